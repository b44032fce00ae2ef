package submit

// SetMaxAnswer sets the largest answer until the returned function is called.
func SetMaxAnswer(bytes int) (restore func()) {
	old := maxAnswer
	maxAnswer = bytes
	return func() { maxAnswer = old }
}
