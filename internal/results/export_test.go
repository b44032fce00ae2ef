package results

// SetLimit sets the number of lines after which a transfer is broken off.
func (r *Reader) SetLimit(lines int) { r.limit = lines }
