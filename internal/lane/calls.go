package lane

// Calls counts the calls of a lane.
type Calls struct {
	Waiting int   // whose answer has not ended
	OK      int64 // ended with a status below 400
	Failed  int64 // ended otherwise
}

// RealtimeCalls counts the model calls that are answered in real time.
type RealtimeCalls struct {
	Chosen    Calls // the operator or the caller chose real time, or the provider does not batch the call
	Escalated Calls // waited for a batch or for the flex tier before
}
