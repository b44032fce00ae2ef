// Package backend describes how batches are run at a provider, without saying
// how the provider's API spells a batch. Package batchapi implements Backend for
// the APIs with files and batches.
package backend

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/line"
	"github.com/autobatcher/autobatcher/internal/retry"
)

// A Backend runs batches at one provider for one account. A Backend is safe for
// concurrent use. Its methods return an *Error for a request that failed, and
// the cause of ctx if ctx ended.
type Backend interface {
	// Prepare transfers the lines to the provider, where the provider wants them
	// before the batch is created. Prepare repeats failed transfers for half an
	// hour. It reads f only until it returns. The Handle names the
	// transferred file, also beside an error.
	Prepare(ctx context.Context, f line.File, p Params) (Handle, error)

	// Create creates the batch, and never two. Create sends the lines of f where
	// Prepare sent none. It reads f only until it returns. If the provider did not
	// answer, Create looks for the batch. Its error wraps ErrUnsure if the batch may
	// exist, and ErrInputDeleted if the batch surely does not exist.
	Create(ctx context.Context, f line.File, h Handle, p Params) (Handle, Status, error)

	// Find looks for the batch of a Handle without a batch id, whose create was
	// sent at the time since or later. If the batch is Absent, Find has deleted the
	// input file, so that a create that is still under way comes to nothing. The
	// error says why the existence is Unsure, and is nil otherwise.
	Find(ctx context.Context, h Handle, since time.Time) (Handle, Existence, error)

	// Status returns the state of each batch, in the order of hs. A failure of a
	// single batch stands in the batch's Status. The error concerns all batches.
	// With many handles Status may read a list: the Err of a batch is ErrNotListed
	// if the list does not show the batch, and the caller asks for the batch alone. Status sends each request once.
	Status(ctx context.Context, hs []Handle) ([]Status, error)

	// Results opens a source of results at a position: zero, or one that a Stream
	// of the same source returned. Results sends each request once.
	Results(ctx context.Context, h Handle, source string, from Position) (*Stream, error)

	// Cancel cancels the batch unless the batch has ended. The error is ErrEnded
	// then. Cancel sends each request once.
	Cancel(ctx context.Context, h Handle) error

	// Cleanup deletes the input of the batch and the given sources. Cleanup repeats
	// each failed request for a minute. A missing file counts as deleted. The batch must have ended, or must not exist.
	Cleanup(ctx context.Context, h Handle, sources []string) error
}

// Errors of a Backend beside *Error.
var (
	// ErrUnsure is wrapped by the error of a create that may have made a batch, if
	// the batch could not be found. A second create would risk paying twice.
	ErrUnsure = errors.New("it is not known whether the provider accepted it")

	// ErrAbsent says that a batch was never created, or that nothing of it is left.
	ErrAbsent = errors.New("the batch was never created")

	// ErrInputDeleted is wrapped by the error of a create that made no batch and
	// never will, since the input file is deleted.
	ErrInputDeleted = errors.New("the batch was not created, and its input file was deleted")

	// ErrNoCapacity is wrapped by the error of a create that the provider refused, again
	// and again, for want of room. Nothing was executed or billed.
	ErrNoCapacity = errors.New("the provider has no room")

	// ErrNoTier is wrapped by the error of a create that the provider refused because the
	// model has no flex tier, which therefore has no room. ErrNoTier is an ErrNoCapacity.
	ErrNoTier error = noTier{}

	// ErrEnded is the error of Cancel for a batch that has ended.
	ErrEnded = errors.New("it has ended already")

	// ErrNotListed is the Err of a Status if the provider's list does not show the
	// batch.
	ErrNotListed = errors.New("the list does not show the batch")
)

type noTier struct{}

func (noTier) Error() string        { return "the model has no flex tier" }
func (noTier) Is(target error) bool { return target == ErrNoCapacity }

// A Handle is what the journal stores of a batch at the provider.
type Handle struct {
	FileID  string // of the input file; empty: not transferred, or not a file
	BatchID string // empty: not created

	// InputDeleted says that the input file was deleted while the batch was
	// searched for. The batch may fail for want of the file.
	InputDeleted bool
}

// Params are the parameters of a batch.
type Params struct {
	Name         string            // of the input file: "batch-….jsonl"
	Models       []string          // of the lines
	Endpoint     string            // in the provider's spelling
	Window       string            // in the provider's spelling; empty: the provider's default
	Shared       json.RawMessage   // the parameters of all lines, a JSON object; nil: the lines have them
	Metadata     map[string]string // shown by the provider beside the batch
	FileExpiry   time.Duration     // after which the provider deletes the input file; zero: the provider's default
	OutputExpiry time.Duration     // after which the provider deletes the results; zero: the provider's default

	// Pause waits before a create that was refused is sent again; its error ends
	// Create. Nil: Create waits until its context ends.
	Pause func(time.Duration) error
}

// Wait waits before a create that was refused is sent again.
func (p *Params) Wait(ctx context.Context, d time.Duration) error {
	if p.Pause != nil {
		return p.Pause(d)
	}
	return retry.Sleep(ctx, d)
}

// UserAgent names the library in requests. Providers attribute batches to the client.
const UserAgent = "autobatcher (+https://github.com/autobatcher/autobatcher)"

// A Phase is how far a batch has come.
type Phase int

// The phases of a batch. The phase of a status that is not known is Running.
const (
	Running Phase = iota // also: the input is being validated, the results are being written
	Cancelling
	Ended
)

// A Status is what the provider says of a batch. Everything but Handle.BatchID
// may be missing.
type Status struct {
	Handle   Handle
	Phase    Phase
	Word     string // the provider's status in lower case and in OpenAI's spelling, such as "in_progress"
	Counts   Counts
	Problems []Problem
	Took     time.Duration // from Create, if the batch ended in the request: how long the provider worked

	OutputFileID, ErrorFileID string   // for events
	Sources                   []string // of results, as far as they are known, in reading order

	Err error // why this batch's state is not known
}

// Counts are the numbers of lines that the provider reports for a batch.
type Counts struct {
	Completed int `json:"completed"`
	Failed    int `json:"failed"`
	Total     int `json:"total"`
}

// A Problem is a reason that the provider names for the failure of a batch.
type Problem struct {
	Code, Message string
	Line          int // of the input, from 1; 0: the provider named no line
}

// String describes the problem: "line 3: not valid (invalid_json_line)".
func (p Problem) String() string {
	text := p.Message
	if p.Code != "" {
		text += " (" + p.Code + ")"
	}
	if p.Line > 0 {
		text = "line " + strconv.Itoa(p.Line) + ": " + text
	}
	return text
}

// maxReasons is the number of problems that Reasons describes.
const maxReasons = 5

// Reasons describes the first problems, as the end of a sentence that says what they led
// to: ": line 3: not valid; line 7: too long". Without problems it returns "".
func Reasons(problems []Problem) string {
	var text strings.Builder
	for i, p := range problems[:min(len(problems), maxReasons)] {
		text.WriteString([]string{": ", "; "}[min(i, 1)] + p.String())
	}
	return text.String()
}

// Existence says whether a batch exists at the provider.
type Existence int

// Values of Existence.
const (
	Unsure Existence = iota
	Absent
	Found
)
