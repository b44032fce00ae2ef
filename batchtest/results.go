package batchtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// flushAt is how many bytes of a result file are collected before sending.
const flushAt = 32 << 10

// maxPage is the most lines of a download with the parameter limit.
const maxPage = 101

func (s *Server) content(w http.ResponseWriter, r *http.Request, c caller) error {
	s.mu.Lock()
	f, err := s.findFileLocked(r.PathValue("id"), c)
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
		s.serveBytes(w, r, f.data)
		return nil
	}
	// The elements of lines never change, so lines needs no lock from here on.
	if s.behavior.PartialResults {
		lines = f.batch.partial(w.Header(), r, lines, running)
	}
	w.Header().Set("Content-Type", "application/jsonl")
	if s.behavior.Ranges {
		s.serveBytes(w, r, f.batch.appendResults(nil, lines))
		return nil
	}
	return f.batch.send(w, lines)
}

// serveBytes sends a file, or the part of the file that the header Range asks for.
func (s *Server) serveBytes(w http.ResponseWriter, r *http.Request, data []byte) {
	if s.behavior.Ranges {
		w.Header().Set("ETag", fmt.Sprintf(`"%016x"`, digest(data)))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(data)
}

func (b *batch) appendResults(dst []byte, lines []result) []byte {
	for _, r := range lines {
		dst = b.appendResult(dst, r)
	}
	return dst
}

// resultHost and resultPath are the address of results that a batch names by URL.
const (
	resultHost = "https://results.batchtest.invalid"
	resultPath = "/results/"
)

// resultName is how a batch names the result file with the id.
func (s *Server) resultName(id string) string {
	if id == "" || !s.behavior.ResultURLs {
		return id
	}
	return resultHost + resultPath + id + "?signature=" + signature(id)
}

// signature is the credential in the address of a result.
func signature(id string) string { return fmt.Sprintf("%016x", digest([]byte(id))) }

// download serves a result named by URL. The address contains the credential. A
// request that also sends a key is refused, since the key must not leave the
// provider's host.
func (s *Server) download(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.mu.Lock()
	f := s.files[id]
	s.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "" || r.Header.Get("api-key") != "":
		s.refuse(w, invalid("", "Only one auth mechanism is allowed here."))
	case !s.behavior.ResultURLs || f == nil || f.batch == nil || r.URL.Query().Get("signature") != signature(id):
		s.refuse(w, notFound("File", id))
	default:
		r.SetPathValue("id", id)
		if err := s.content(w, r, f.owner); err != nil {
			s.refuse(w, err)
		}
	}
}

// partial selects the lines that the request asks for, and writes to the header
// whether lines remain.
func (b *batch) partial(h http.Header, r *http.Request, lines []result, running bool) []result {
	q := r.URL.Query()
	search := q.Get("search")
	if search != "" {
		lines = b.search(lines, search)
	}
	skip := max(0, atoi(q.Get("skip")))
	lines = lines[min(skip, len(lines)):]
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

// send writes result lines in pieces, and stops if the client disconnects.
func (b *batch) send(w http.ResponseWriter, lines []result) error {
	w.WriteHeader(http.StatusOK)
	buf := make([]byte, 0, 2*flushAt)
	for _, r := range lines {
		if buf = b.appendResult(buf, r); len(buf) < flushAt {
			continue
		}
		if _, err := w.Write(buf); err != nil {
			return nil //nolint:nilerr // the client has disconnected
		}
		buf = buf[:0]
	}
	_, _ = w.Write(buf)
	return nil
}

// usage counts the tokens that the lines of a batch have used.
type usage struct{ in, out, cached, reasoning int64 }

// add adds the usage in an answer, with the field names of chat completions or of
// responses.
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

// appendResult appends a line of a result file, with the newline.
func (b *batch) appendResult(dst []byte, r result) []byte {
	o := &b.outcomes[r.line]
	if r.ending == executed && o.Garbage != "" {
		return append(append(dst, o.Garbage...), '\n')
	}
	serial := strconv.Itoa(int(r.line))
	dst = append(dst, `{"id":"batch_req_`...)
	dst = append(append(append(append(dst, b.id...), '-'), serial...), `","custom_id":`...)
	dst = strconv.AppendQuote(dst, b.lines[r.line].CustomID) // for printable ASCII the quotes are those of JSON
	switch {
	case r.ending == byExpiry:
		dst = appendError(dst, "batch_expired", "This request could not be executed before the completion window expired.")
	case r.ending == byCancel:
		dst = appendError(dst, "batch_cancelled", "This request was cancelled.")
	case o.Code != "" || !o.ok() && b.server.behavior.FailedLines == AsMessage:
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
	if b.server.behavior.FailedLines == AsMessage {
		dst = append(dst, `null`...)
	} else {
		dst = append(append(append(append(append(dst, `"req_`...), b.id...), '-'), serial...), '"')
	}
	if !o.ok() && b.server.behavior.FailedLines == AsStatus {
		dst = appendQuoted(append(dst, `,"message":`...), messageOf(o.Body))
		return append(dst, `},"error":null`...)
	}
	dst = append(dst, `,"body":`...)
	if o.BodyAsString {
		dst = appendQuoted(dst, string(o.Body))
	} else {
		dst = append(dst, o.Body...)
	}
	return append(dst, `},"error":null`...)
}

// messageOf returns the message of an error in OpenAI's shape, or the whole body.
func messageOf(body []byte) string {
	if message, ok := unquote(field(field(body, "error"), "message")); ok {
		return message
	}
	return string(body)
}

// appendFailure writes an outcome without a response.
func (b *batch) appendFailure(dst []byte, o *Outcome) []byte {
	if b.server.behavior.FailedLines != AsMessage {
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
