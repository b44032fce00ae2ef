package backend

import (
	"github.com/autobatcher/autobatcher/internal/line"
)

// A Position is a place in a source of results, behind the results that were
// read before. The zero Position is the beginning. A Position is valid for the
// source that the Position comes from.
type Position struct {
	Line    int    // the number of lines before the position
	Byte    int64  // the number of bytes before the position
	Rest    string // the bytes behind Byte of a line that is longer than the part that was read; may be empty
	Partial bool   // the server skips lines when it is asked to
	Ranges  bool   // the server sends ranges of bytes when it is asked to
	ETag    string // of the content to which Byte belongs; empty: not known
}

// A Stream is an opened source of results. It must not be used by several
// goroutines at once.
type Stream struct {
	Lines

	// From is where the Stream begins. From is the zero Position if the server
	// could not resume.
	From Position

	// Partial says that the server shows the results of running batches, and that
	// a later read may go on where this one ends.
	Partial bool

	// Incomplete says that the server will add more results.
	Incomplete bool
}

// Lines are the results of a Stream.
type Lines interface {
	// Next returns the next result. The error is io.EOF at the end of a whole
	// source. Behind an error that wraps line.ErrMalformed or line.ErrTooLong the
	// caller reads on; the line is lost. Every other error is an *Error or the
	// cause of the context: the transfer broke off.
	Next() (line.Result, error)

	// Position is the place behind the last line that Next returned, where a later
	// Stream of the source goes on.
	Position() Position

	// Close ends the transfer.
	Close() error
}
