package submit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/redact"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// A Job runs the requests of an input file.
type Job struct {
	Input   *Input
	Part    *Part
	Batched func(endpoint string) bool

	// Do answers a request, and calls queued, which may be called several times, when
	// the request waits to be sent. An error ends the Job.
	Do func(ctx context.Context, r Request, queued func()) (*http.Response, error)

	// AllQueued is called when every request of the file was queued or answered: no
	// more requests will come.
	AllQueued func()

	// Secrets are hidden in what the provider wrote, in results and in reasons; nil:
	// nothing is hidden.
	Secrets *redact.Secrets

	// MaxCalls and MaxBytes bound the requests that are being answered at the same
	// time, and the bytes of their bodies. A request that is larger is sent alone.
	MaxCalls int
	MaxBytes int64

	mu         sync.Mutex
	prompt     int64
	completion int64
	unsent     int
	why        string // the first request was not sent
}

// Unsent returns the number of requests that were not sent, since the provider or the
// journal refused their batches, and why the first was not. These requests have no
// result: the next run sends them.
func (j *Job) Unsent() (n int, why string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.unsent, j.why
}

// Tokens returns the number of tokens that the answers so far report.
func (j *Job) Tokens() (prompt, completion int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.prompt, j.completion
}

// Run sends the requests that have no result yet, and stores the results. It returns
// when each request has a result, or with the error of ctx, of Do or of a file.
func (j *Job) Run(ctx context.Context, file io.Reader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	room := newRoom(j.MaxCalls, j.MaxBytes)
	stop := context.AfterFunc(ctx, room.close)
	defer stop()
	var calls, queued sync.WaitGroup
	if err := j.Input.again(file, func(line textLine) error {
		if err := context.Cause(ctx); err != nil || line.blank() || j.Part.Has(line.number) {
			return err
		}
		return j.begin(ctx, line, room, &calls, &queued, cancel)
	}); err != nil {
		cancel(err)
	}
	queued.Wait()
	if ctx.Err() == nil {
		j.AllQueued()
	}
	calls.Wait()
	return context.Cause(ctx)
}

// begin sends the request of a line, or stores why it cannot be sent.
func (j *Job) begin(ctx context.Context, line textLine, room *room, calls, queued *sync.WaitGroup, fail func(error)) error {
	if reason, bad := j.Input.isBad(line.number); bad {
		id := gjson.GetBytes(line.text, "custom_id").String()
		return j.Part.Add(line.number, failed(id, "invalid_line", reason))
	}
	r, reason := line.parse(j.Batched)
	if reason != "" {
		return fmt.Errorf("line %d: %s", line.number, reason)
	}
	if !room.enter(int64(len(r.Body))) {
		return context.Cause(ctx)
	}
	r.Body = bytes.Clone(r.Body)
	queued.Add(1)
	once := sync.OnceFunc(queued.Done)
	calls.Go(func() {
		defer room.leave(int64(len(r.Body)))
		defer once()
		if err := j.do(ctx, r, once); err != nil {
			fail(j.cleanError(err))
		}
	})
	return nil
}

func (j *Job) do(ctx context.Context, r Request, queued func()) error {
	res, err := j.Do(ctx, r, queued)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // read only
	if wasNotSent(res) {
		return j.noteUnsent(res)
	}
	if body, ok := res.Body.(*reply.Body); ok {
		return j.storeKept(r, res, body)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, int64(maxAnswer)+1))
	switch {
	case err != nil:
		return err
	case len(body) > maxAnswer:
		return j.Part.Add(r.Line, failed(r.CustomID, "answer_too_large", fmt.Sprintf("the answer is larger than %d MiB", maxAnswer>>20)))
	}
	return j.store(r, res, body)
}

// maxAnswer is the largest answer, in bytes, that is stored of those that are sent in
// real time.
var maxAnswer = 256 << 20

// storeKept stores a response whose body is in memory. Reading the body tells the
// journal that the answer was delivered, so that the whole body is stored before: in
// one Write, or here if nothing is to be written.
func (j *Job) storeKept(r Request, res *http.Response, body *reply.Body) error {
	w := &resultWriter{job: j, request: r, response: res}
	var err error
	if body.Len() == 0 {
		_, err = w.Write(nil)
	} else {
		_, err = body.WriteTo(w)
	}
	if err != nil {
		body.MarkUndelivered()
	}
	return err
}

// wasNotSent reports whether a response says that nothing was sent, for a reason that
// is no fault of the request.
func wasNotSent(res *http.Response) bool {
	switch s := res.StatusCode; {
	case res.Header.Get(batchIDHeader) != "", s == http.StatusFailedDependency:
		return false
	default:
		return s == http.StatusUnauthorized || s == http.StatusPaymentRequired || s == http.StatusForbidden ||
			s == http.StatusTooManyRequests || s >= 500
	}
}

// batchIDHeader is the header of every answer that a batch gave.
const batchIDHeader = "Autobatcher-Batch-Id"

// maxReason bounds the bytes of an answer that are read for its message.
const maxReason = 64 << 10

func (j *Job) noteUnsent(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, maxReason))
	if err != nil {
		return err
	}
	why := j.clean(cmp.Or(gjson.GetBytes(body, "error.message").String(), res.Status))
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.unsent++; j.why == "" {
		j.why = why
	}
	return nil
}

// A resultWriter stores what is written as the response of a request.
type resultWriter struct {
	job      *Job
	request  Request
	response *http.Response
}

func (w *resultWriter) Write(body []byte) (int, error) {
	if err := w.job.store(w.request, w.response, body); err != nil {
		return 0, err
	}
	return len(body), nil
}

func (j *Job) store(r Request, res *http.Response, body []byte) error {
	usage := gjson.GetBytes(body, "usage")
	j.mu.Lock()
	j.prompt += max(usage.Get("prompt_tokens").Int(), usage.Get("input_tokens").Int())
	j.completion += max(usage.Get("completion_tokens").Int(), usage.Get("output_tokens").Int())
	j.mu.Unlock()
	return j.Part.Add(r.Line, j.result(r.CustomID, res, body))
}

// clean returns a text of the provider without the secrets.
func (j *Job) clean(text string) string {
	if j.Secrets == nil {
		return text
	}
	return j.Secrets.Text(text)
}

// cleanError returns err, or its text without the secrets if it has some.
func (j *Job) cleanError(err error) error {
	if text := err.Error(); j.clean(text) != text {
		return errors.New(j.clean(text))
	}
	return err
}

// cleanBody returns the body of a response without the secrets. Some providers repeat
// the key in an error, whole or in part. A compressed error cannot be searched.
func (j *Job) cleanBody(res *http.Response, body []byte) []byte {
	failed := res.StatusCode >= 400
	switch encoding := res.Header.Get("Content-Encoding"); {
	case j.Secrets == nil:
		return body
	case failed && encoding != "" && !strings.EqualFold(encoding, "identity"):
		return reply.Failure(res.StatusCode, "upstream_error", "the upstream answered "+j.clean(res.Status)).Body
	}
	return j.Secrets.Bytes(body, failed)
}

// result is the line of the output file for a response. A failure of the batch, which
// has no answer of the provider, is an error of the line.
func (j *Job) result(customID string, res *http.Response, body []byte) []byte {
	body = j.cleanBody(res, body)
	if res.StatusCode == http.StatusFailedDependency {
		if e := gjson.GetBytes(body, "error"); e.IsObject() {
			return failed(customID, e.Get("code").String(), e.Get("message").String())
		}
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, body); err != nil {
		text, _ := json.Marshal(string(body)) // a string can always be encoded
		compact.Reset()
		compact.Write(text)
	}
	return encode(outputLine{
		ID: newID(), CustomID: customID,
		Response: &response{StatusCode: res.StatusCode, RequestID: j.clean(res.Header.Get("X-Request-Id")), Body: compact.Bytes()},
	})
}

func failed(customID, code, message string) []byte {
	return encode(outputLine{ID: newID(), CustomID: customID, Error: &lineError{Code: code, Message: message}})
}

func newID() string { return "batch_req_" + uuid.NewString() }

// An outputLine is a line of the output file, as the Batch API writes it.
type outputLine struct {
	ID       string     `json:"id"`
	CustomID string     `json:"custom_id"`
	Response *response  `json:"response"`
	Error    *lineError `json:"error"`
}

type response struct {
	StatusCode int             `json:"status_code"`
	RequestID  string          `json:"request_id"`
	Body       json.RawMessage `json:"body"`
}

type lineError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// encode encodes a line without a line break at its end.
func encode(l outputLine) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // answers are copied as they are
	if err := e.Encode(l); err != nil {
		panic(err) // the fields can be encoded
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// A room bounds the requests that are being answered.
type room struct {
	mu       sync.Mutex
	changed  sync.Cond
	maxCalls int
	maxBytes int64
	calls    int
	bytes    int64
	closed   bool
}

func newRoom(maxCalls int, maxBytes int64) *room {
	r := &room{maxCalls: maxCalls, maxBytes: maxBytes}
	r.changed.L = &r.mu
	return r
}

// enter waits for room, and returns false if the room was closed.
func (r *room) enter(bytes int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closed && r.calls > 0 && (r.calls >= r.maxCalls || r.bytes+bytes > r.maxBytes) {
		r.changed.Wait()
	}
	if r.closed {
		return false
	}
	r.calls++
	r.bytes += bytes
	return true
}

func (r *room) leave(bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls--
	r.bytes -= bytes
	r.changed.Broadcast()
}

func (r *room) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.changed.Broadcast()
}
