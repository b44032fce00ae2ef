package batchtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Line is one request to the model: a line of a batch, or a realtime call.
type Line struct {
	// BatchID, Number (from 1) and CustomID are zero in a realtime call.
	BatchID  string
	Number   int
	CustomID string
	Method   string
	// URL is the path, such as "/v1/chat/completions".
	URL   string
	Model string
	// Body is shared with the Server: read it, never change it.
	Body []byte
}

// Key identifies the work a line asks for, whoever asks and however often: a
// hash of the URL and of the body's bytes.
func (l Line) Key() string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\n", l.URL) // a hash takes everything
	h.Write(l.Body)
	return hex.EncodeToString(h.Sum(nil))
}

// A BatchError says why a batch failed. Line and Param may be zero.
type BatchError struct {
	Code    string
	Message string
	Line    int
	Param   string
}

// maxErrors is how many errors of one file are kept.
const maxErrors = 100

// A parser reads the lines of one uploaded file.
type parser struct {
	manners *Manners
	models  []string

	lines  []Line
	errs   []BatchError
	ids    map[string]struct{}
	inputs int64
}

// parse reads a whole file. What is wrong with it, whatever batch it may be used
// for, is in errs.
func (s *Server) parse(data []byte) ([]Line, []BatchError) {
	p := &parser{manners: &s.manners, models: s.opts.Models, ids: map[string]struct{}{}}
	p.lines = make([]Line, 0, bytes.Count(data, []byte("\n"))+1)
	number := 0
	for len(data) > 0 {
		var raw []byte
		raw, data, _ = bytes.Cut(data, []byte("\n"))
		if p.manners.SkipBlankLines && len(bytes.TrimSpace(raw)) == 0 {
			continue
		}
		number++
		if err := p.line(number, raw); err != nil {
			err.Line = number
			p.fail(*err)
		}
	}
	p.whole(number)
	return p.lines, p.errs
}

func (p *parser) fail(err BatchError) {
	if len(p.errs) < maxErrors {
		p.errs = append(p.errs, err)
	}
}

// whole checks what only the file as a whole can break.
func (p *parser) whole(count int) {
	m := p.manners
	if count == 0 {
		p.fail(BatchError{Code: "empty_file", Message: "The input file is empty. Please ensure that the batch contains at least one request."})
	}
	if m.MaxLines > 0 && int64(count) > m.MaxLines {
		p.fail(BatchError{Code: "too_many_tasks", Message: fmt.Sprintf("The input file has %d requests, more than the maximum of %d.", count, m.MaxLines)})
	}
	if m.MaxInputs > 0 && p.inputs > m.MaxInputs {
		p.fail(BatchError{Code: "too_many_tasks", Message: fmt.Sprintf("The input file has %d embedding inputs, more than the maximum of %d.", p.inputs, m.MaxInputs)})
	}
}

// line reads one line and keeps it if it is sound.
func (p *parser) line(number int, raw []byte) *BatchError {
	if !utf8.Valid(raw) || !json.Valid(raw) || raw[skipSpace(raw, 0)] != '{' {
		return &BatchError{Code: "invalid_json_line", Message: "This line is not parseable as valid JSON."}
	}
	l := Line{Number: number}
	var err *BatchError
	eachField(raw, func(key, value []byte) bool {
		err = p.set(&l, string(key), value)
		return err == nil
	})
	if err == nil {
		err = p.check(&l)
	}
	if err != nil {
		return err
	}
	p.lines = append(p.lines, l)
	return nil
}

// set stores one field of a line.
func (p *parser) set(l *Line, key string, value []byte) *BatchError {
	switch key {
	case "custom_id":
		return setString(&l.CustomID, "", key, value)
	case "method":
		return setString(&l.Method, "POST", key, value)
	case "url":
		return setString(&l.URL, p.last().URL, key, value)
	case "body":
		if value[0] != '{' {
			return badField("invalid_request", key, "'body' must be an object.")
		}
		l.Body = value
	}
	return nil
}

// last is the line before, whose strings are likely to come again.
func (p *parser) last() *Line {
	if len(p.lines) == 0 {
		return &Line{}
	}
	return &p.lines[len(p.lines)-1]
}

// setString decodes a string into dst, without allocating where it is the guess.
func setString(dst *string, guess, key string, value []byte) *BatchError {
	if len(value) == len(guess)+2 && guess != "" && string(value[1:len(value)-1]) == guess {
		*dst = guess
		return nil
	}
	s, ok := unquote(value)
	if !ok {
		return badField("invalid_request", key, "'"+key+"' must be a string.")
	}
	*dst = s
	return nil
}

// unquote decodes a JSON string.
func unquote(value []byte) (s string, ok bool) {
	if len(value) < 2 || value[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return string(value[1 : len(value)-1]), true
	}
	return s, json.Unmarshal(value, &s) == nil
}

func badField(code, param, message string) *BatchError {
	return &BatchError{Code: code, Param: param, Message: message}
}

// check looks at a line whose fields are all there are.
func (p *parser) check(l *Line) *BatchError {
	for _, f := range []struct{ name, value string }{
		{"custom_id", l.CustomID}, {"method", l.Method}, {"url", l.URL}, {"body", string(l.Body[:min(1, len(l.Body))])},
	} {
		if f.value == "" {
			return badField("missing_required_parameter", f.name, "Missing required parameter: '"+f.name+"'.")
		}
	}
	if err := p.checkID(l.CustomID); err != nil {
		return err
	}
	if l.Method != http.MethodPost {
		return badField("invalid_method", "method", "The HTTP method must be POST.")
	}
	if !allowed(p.manners.Endpoints, l.URL) {
		return badField("invalid_url", "url", "The URL provided is not supported by the batch API.")
	}
	return p.checkBody(l)
}

func (p *parser) checkID(id string) *BatchError {
	if len(id) > 64 || !printable(id) {
		return badField("invalid_request", "custom_id", "'custom_id' must be at most 64 characters of printable ASCII.")
	}
	if !p.manners.UniqueIDs {
		return nil
	}
	if _, twice := p.ids[id]; twice {
		return badField("duplicate_custom_id", "custom_id", "The custom_id '"+id+"' is used more than once.")
	}
	p.ids[id] = struct{}{}
	return nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func (p *parser) checkBody(l *Line) *BatchError {
	m := p.manners
	if m.MaxLineBytes > 0 && int64(len(l.Body)) > m.MaxLineBytes {
		return badField("invalid_request", "body", fmt.Sprintf("The body has %d bytes, more than the maximum of %d.", len(l.Body), m.MaxLineBytes))
	}
	var bad *BatchError
	eachField(l.Body, func(key, value []byte) bool {
		switch string(key) {
		case "model":
			bad = setString(&l.Model, p.last().Model, "model", value)
		case "stream":
			if m.RefuseStream && string(value) == "true" {
				bad = badField("invalid_request", "stream", "Streaming is not supported in a batch.")
			}
		case "input":
			if strings.HasSuffix(l.URL, "/embeddings") {
				eachInput(value, func([]byte) { p.inputs++ })
			}
		}
		return bad == nil
	})
	if bad == nil && l.Model == "" {
		bad = badField("missing_required_parameter", "model", "Missing required parameter: 'body.model'.")
	}
	if bad == nil && !allowed(p.models, l.Model) {
		bad = badField("model_not_found", "model", "The model '"+l.Model+"' does not exist or you do not have access to it.")
	}
	return bad
}

func allowed(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }

// eachInput calls yield with every text, or list of tokens, in an embedding's input.
func eachInput(input []byte, yield func(text []byte)) {
	if !isList(input) {
		yield(input) // one text, or one list of tokens
		return
	}
	eachItem(input, func(item []byte) bool {
		yield(item)
		return true
	})
}

// isList tells whether an embedding's input has several texts, rather than
// being one itself.
func isList(input []byte) (list bool) {
	eachItem(input, func(item []byte) bool {
		list = item[0] == '"' || item[0] == '['
		return false
	})
	return list
}
