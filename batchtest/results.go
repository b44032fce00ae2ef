package batchtest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// flushAt is how much of a result file is put together before it is sent.
const flushAt = 32 << 10

// maxPage is the most lines one limited download gives.
const maxPage = 101

func (s *Server) content(w http.ResponseWriter, r *http.Request, key string) error {
	s.mu.Lock()
	f, err := s.findFile(r.PathValue("id"), key)
	var lines []result
	var running bool
	if err == nil && f.batch != nil {
		lines, running = f.batch.results[f.side].lines, f.batch.end == ""
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if f.batch == nil {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(f.data)))
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(f.data)
		return nil
	}
	// What lines holds is never changed, only added to: no lock from here on.
	if s.manners.PartialResults {
		lines = f.batch.partial(w.Header(), r, lines, running)
	}
	w.Header().Set("Content-Type", "application/jsonl")
	return f.batch.send(w, lines)
}

// resultHost and resultPath are where results named by URL are.
const (
	resultHost = "https://results.batchtest.invalid"
	resultPath = "/results/"
)

// resultName is how a batch names a result file of that id.
func (s *Server) resultName(id string) string {
	if id == "" || !s.manners.ResultURLs {
		return id
	}
	return resultHost + resultPath + id + "?signature=" + signature(id)
}

// signature is the credential in a result's address.
func signature(id string) string { return fmt.Sprintf("%016x", digest([]byte(id))) }

// download serves a result named by URL. The address is all the credential there
// is: a key has no business on this host.
func (s *Server) download(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.mu.Lock()
	f := s.files[id]
	s.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "" || r.Header.Get("api-key") != "":
		s.refuse(w, invalid("", "Only one auth mechanism is allowed here."))
	case !s.manners.ResultURLs || f == nil || f.batch == nil || r.URL.Query().Get("signature") != signature(id):
		s.refuse(w, notFound("File", id))
	default:
		r.SetPathValue("id", id)
		if err := s.content(w, r, f.key); err != nil {
			s.refuse(w, err)
		}
	}
}

// partial picks the lines asked for, and says in the header what remains.
func (b *batch) partial(h http.Header, r *http.Request, lines []result, running bool) []result {
	q := r.URL.Query()
	search := q.Get("search")
	if search != "" {
		lines = b.search(lines, search)
	}
	skip := min(max(0, atoi(q.Get("skip"))), len(lines))
	lines = lines[skip:]
	limited := q.Get("limit") != ""
	more := false
	if limited {
		n := min(max(1, atoi(q.Get("limit"))), maxPage)
		more = len(lines) > n
		lines = lines[:min(n, len(lines))]
	}
	h.Set("X-Incomplete", strconv.FormatBool(running || more))
	if search == "" || limited {
		h.Set("X-Last-Line", strconv.Itoa(skip+len(lines)))
	}
	return lines
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func (b *batch) search(lines []result, text string) (found []result) {
	for _, r := range lines {
		if strings.Contains(b.lines[r.line].CustomID, text) {
			found = append(found, r)
		}
	}
	return found
}

// send writes result lines, in pieces of some size. The client's leaving ends it early.
func (b *batch) send(w http.ResponseWriter, lines []result) error {
	w.WriteHeader(http.StatusOK)
	buf := make([]byte, 0, 2*flushAt)
	for _, r := range lines {
		if buf = b.appendResult(buf, r); len(buf) < flushAt {
			continue
		}
		if _, err := w.Write(buf); err != nil {
			return nil //nolint:nilerr // nobody is left to tell
		}
		buf = buf[:0]
	}
	_, _ = w.Write(buf)
	return nil
}

// usage is what the lines of a batch have used, in tokens.
type usage struct{ in, out, cached, reasoning int64 }

// add counts what an answer says it used, in either of the API's dialects.
func (u *usage) add(body []byte) {
	used := field(body, "usage")
	u.in += number(used, "prompt_tokens") + number(used, "input_tokens")
	u.out += number(used, "completion_tokens") + number(used, "output_tokens")
	u.cached += number(field(used, "prompt_tokens_details"), "cached_tokens") +
		number(field(used, "input_tokens_details"), "cached_tokens")
	u.reasoning += number(field(used, "completion_tokens_details"), "reasoning_tokens") +
		number(field(used, "output_tokens_details"), "reasoning_tokens")
}

func (u *usage) view() any {
	return object{
		"input_tokens": u.in, "input_tokens_details": object{"cached_tokens": u.cached},
		"output_tokens": u.out, "output_tokens_details": object{"reasoning_tokens": u.reasoning},
		"total_tokens": u.in + u.out,
	}
}

func number(raw []byte, name string) int64 { return int64(atoi(string(field(raw, name)))) }

// appendResult appends one line of a result file, with its newline.
func (b *batch) appendResult(dst []byte, r result) []byte {
	o := &b.outcomes[r.line]
	if r.fate == executed && o.Garbage != "" {
		return append(append(dst, o.Garbage...), '\n')
	}
	serial := strconv.Itoa(int(r.line))
	dst = append(dst, `{"id":"batch_req_`...)
	dst = append(append(append(append(dst, b.id...), '-'), serial...), `","custom_id":`...)
	dst = strconv.AppendQuote(dst, b.lines[r.line].CustomID) // printable ASCII: the same as JSON
	switch {
	case r.fate == ranOut:
		dst = appendError(dst, "batch_expired", "This request could not be executed before the completion window expired.")
	case r.fate == calledOff:
		dst = appendError(dst, "batch_cancelled", "This request was cancelled.")
	case o.Code != "" || !o.ok() && b.server.manners.FailedLines == AsMessage:
		dst = b.appendFailure(dst, o)
	default:
		dst = b.appendResponse(dst, o, serial)
	}
	return append(dst, "}\n"...)
}

func (b *batch) appendResponse(dst []byte, o *Outcome, serial string) []byte {
	dst = append(dst, `,"response":{"status_code":`...)
	dst = strconv.AppendInt(dst, int64(o.Status), 10)
	dst = append(dst, `,"request_id":`...)
	if b.server.manners.FailedLines == AsMessage {
		dst = append(dst, `null`...)
	} else {
		dst = append(append(append(append(append(dst, `"req_`...), b.id...), '-'), serial...), '"')
	}
	dst = append(dst, `,"body":`...)
	if o.BodyAsString {
		dst = appendQuoted(dst, string(o.Body))
	} else {
		dst = append(dst, o.Body...)
	}
	return append(dst, `},"error":null`...)
}

// appendFailure writes an outcome without a response.
func (b *batch) appendFailure(dst []byte, o *Outcome) []byte {
	if b.server.manners.FailedLines != AsMessage {
		return appendError(dst, o.Code, o.Message)
	}
	failure := map[string]any{"type": o.Code, "details": map[string]any{"error": o.Message}}
	if o.Code == "" {
		failure = map[string]any{
			"type":    retriable(o.Status) + "HttpStatus",
			"details": map[string]any{"status": o.Status, "body": string(o.Body)},
		}
	}
	message, _ := json.Marshal(failure)
	return appendError(dst, "", string(message))
}

func retriable(status int) string {
	switch status {
	case 404, 408, 429, 499:
		return "Retriable"
	}
	if status >= 500 {
		return "Retriable"
	}
	return "NonRetriable"
}

func appendError(dst []byte, code, message string) []byte {
	dst = append(dst, `,"response":null,"error":{"code":`...)
	if code == "" {
		dst = append(dst, "null"...)
	} else {
		dst = appendQuoted(dst, code)
	}
	dst = append(dst, `,"message":`...)
	return append(appendQuoted(dst, message), '}')
}

func appendQuoted(dst []byte, s string) []byte {
	quoted, _ := json.Marshal(s)
	return append(dst, quoted...)
}

// An Outcome is what becomes of a line or of a realtime call. The zero Outcome
// is a success that says what [Echo] says.
type Outcome struct {
	// Status is the HTTP status of the answer; zero means 200.
	Status int
	// Body is the answer's body; nil means Echo's for a success, and an error in
	// OpenAI's shape for a failure. What is not JSON is written as a JSON string,
	// and newlines between JSON's tokens are left out.
	Body []byte
	// BodyAsString writes the body as a JSON string even if it is JSON.
	BodyAsString bool

	// Code and Message are an error that is not HTTP's, such as
	// "request_timeout": the line has no response. A realtime call gets a 500.
	Code, Message string

	// Delay is when the line finishes, from the time the batch has been
	// validated, instead of taking its turn in the Turnaround. Zero and negative
	// mean its turn. A realtime call is answered that much later.
	Delay time.Duration
	// Never keeps the line from finishing: it is for the window, a cancel or
	// [Server.Finish] to end the batch. A realtime call ends with the client's
	// patience, or with the Server.
	Never bool

	// Displaced puts the line at the start of its file when it finishes, as happens
	// where lines are sorted by a time that is stamped before it is written. A
	// reader that skips as many lines as it has seen misses it and sees another twice.
	Displaced bool
	// Missing counts the line as completed but writes it to no file.
	Missing bool
	// Garbage is written in place of the line to the output file, or of the body
	// of a realtime call.
	Garbage string
}

// ok tells whether the line counts as completed.
func (o *Outcome) ok() bool {
	return o.Garbage != "" || o.Missing || o.Code == "" && o.Status >= 200 && o.Status <= 299
}

func (o *Outcome) billed() bool { return o.ok() }

// outcome asks what becomes of a line, and fills in what the answer leaves open.
func (s *Server) outcome(l Line) Outcome {
	var o Outcome
	switch {
	case l.BatchID != "" && unlucky(s.opts.Seed, l.CustomID, s.opts.FailRate):
		o.Status = http.StatusInternalServerError
	case s.opts.Answer != nil:
		o = s.opts.Answer(l)
	}
	o.Status = cmp.Or(o.Status, http.StatusOK)
	switch {
	case o.Body != nil:
		o.tidy()
	case o.Garbage != "" || o.Missing || o.Code != "":
	case o.ok():
		o.Body = Echo(l).Body
	default:
		o.Body = failureBody(o.Status)
	}
	return o
}

// tidy makes the body fit on a line.
func (o *Outcome) tidy() {
	if !json.Valid(o.Body) {
		o.BodyAsString = true
		return
	}
	if !o.BodyAsString && bytes.IndexByte(o.Body, '\n') >= 0 {
		var buf bytes.Buffer
		_ = json.Compact(&buf, o.Body)
		o.Body = buf.Bytes()
	}
}

func unlucky(seed int64, id string, rate float64) bool {
	if rate <= 0 {
		return false
	}
	h := digest([]byte(fmt.Sprintf("%d %s", seed, id)))
	return float64(h>>11)/(1<<53) < rate
}
