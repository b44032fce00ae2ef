package batchtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Line is a request to the model: a line of a batch, or a realtime call.
type Line struct {
	// BatchID, Number (from 1) and CustomID are zero in a realtime call.
	BatchID  string
	Number   int
	CustomID string
	Method   string
	// URL is the path, such as "/v1/chat/completions".
	URL   string
	Model string
	// Body is shared with the Server and must not be changed.
	Body []byte
}

// Key identifies the work that a line asks for: a hash of the URL and of the bytes
// of the body without the fields "service_tier" and "background", which say how the
// work is executed. Lines of different accounts, batches and tiers can have equal
// keys.
func (l Line) Key() string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\n", l.URL) // a hash never fails
	h.Write(withoutField(withoutField(l.Body, "service_tier"), "background"))
	return hex.EncodeToString(h.Sum(nil))
}

// Prompt returns the text that the line asks about: the text of the last user
// message, the prompt of a completion or of an image, the query of a reranking, or the input of an embedding or
// of a moderation (as JSON unless the input is a string). Empty if the body has no such text.
func (l Line) Prompt() string {
	switch {
	case strings.HasSuffix(l.URL, "/chat/completions"):
		return lastUserText(field(l.Body, "messages"))
	case strings.HasSuffix(l.URL, "/embeddings"), strings.HasSuffix(l.URL, moderations):
		input := field(l.Body, "input")
		if text, ok := unquote(input); ok {
			return text
		}
		return string(input)
	case strings.HasSuffix(l.URL, rerank):
		query, _ := unquote(field(l.Body, "query"))
		return query
	case strings.HasSuffix(l.URL, "/responses"):
		input := field(l.Body, "input")
		if text, ok := unquote(input); ok {
			return text
		}
		return lastUserText(input)
	}
	text, _ := unquote(field(l.Body, "prompt"))
	return text
}

// modelOptional reports whether the line need not name a model.
func (l Line) modelOptional() bool { return strings.HasSuffix(l.URL, moderations) }

// A BatchError says why a batch failed. Line and Param may be zero.
type BatchError struct {
	Code    string
	Message string
	Line    int
	Param   string
}

// maxErrors is the most errors of one file that are kept.
const maxErrors = 100

// A parser reads the lines of one uploaded file.
type parser struct {
	behavior *Behavior
	models   []string

	lines  []Line
	errs   []BatchError
	ids    map[string]struct{}
	inputs int64
}

// parse reads a whole file into lines and errors. Errors that depend on the batch
// are found later, by mismatches.
func (s *Server) parse(data []byte) ([]Line, []BatchError) {
	p := &parser{behavior: &s.behavior, models: s.opts.Models, ids: map[string]struct{}{}}
	p.lines = make([]Line, 0, bytes.Count(data, []byte("\n"))+1)
	number := 0
	for len(data) > 0 {
		var raw []byte
		raw, data, _ = bytes.Cut(data, []byte("\n"))
		if p.behavior.SkipBlankLines && len(bytes.TrimSpace(raw)) == 0 {
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

// whole checks the limits of the file as a whole.
func (p *parser) whole(count int) {
	rules := p.behavior
	if count == 0 {
		p.fail(BatchError{Code: "empty_file", Message: "The input file is empty. Please ensure that the batch contains at least one request."})
	}
	if rules.MaxLines > 0 && int64(count) > rules.MaxLines {
		p.fail(BatchError{Code: "too_many_tasks", Message: fmt.Sprintf("The input file has %d requests, more than the maximum of %d.", count, rules.MaxLines)})
	}
	if rules.MaxInputs > 0 && p.inputs > rules.MaxInputs {
		p.fail(BatchError{Code: "too_many_tasks", Message: fmt.Sprintf("The input file has %d embedding inputs, more than the maximum of %d.", p.inputs, rules.MaxInputs)})
	}
}

// line reads a line, and keeps the line if the line is valid.
func (p *parser) line(number int, raw []byte) *BatchError {
	if !utf8.Valid(raw) || !json.Valid(raw) || raw[skipSpace(raw, 0)] != '{' {
		return &BatchError{Code: "invalid_json_line", Message: "This line is not parseable as valid JSON."}
	}
	if p.behavior.RefuseSurrogates && loneSurrogate(raw) {
		return &BatchError{Code: "invalid_json_line", Message: "lone leading surrogate in hex escape"}
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

// set stores a field of a line.
func (p *parser) set(l *Line, key string, value []byte) *BatchError {
	if p.behavior.LineMembers != nil && key != "custom_id" && key != "body" {
		return badField("invalid_request", key, "Unknown key '"+key+"'.")
	}
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

// last is the previous line, which often has the same strings.
func (p *parser) last() *Line {
	if len(p.lines) == 0 {
		return &Line{}
	}
	return &p.lines[len(p.lines)-1]
}

// setString decodes a string into dst, without allocating if the string equals the
// guess.
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

// check checks a line after all fields were read.
func (p *parser) check(l *Line) *BatchError {
	if p.behavior.LineMembers != nil {
		l.Method = http.MethodPost // and the batch says the url and the model
	}
	for _, f := range []struct{ name, value string }{
		{"custom_id", l.CustomID}, {"method", l.Method}, {"url", l.URL}, {"body", string(l.Body[:min(1, len(l.Body))])},
	} {
		if f.value == "" && (f.name != "url" || p.behavior.LineMembers == nil) {
			return badField("missing_required_parameter", f.name, "Missing required parameter: '"+f.name+"'.")
		}
	}
	if err := p.checkID(l.CustomID); err != nil {
		return err
	}
	if l.Method != http.MethodPost {
		return badField("invalid_method", "method", "The HTTP method must be POST.")
	}
	if p.behavior.LineMembers == nil && !allowed(p.behavior.Endpoints, l.URL) {
		return badField("invalid_url", "url", "The URL provided is not supported by the batch API.")
	}
	return p.checkBody(l)
}

func (p *parser) checkID(id string) *BatchError {
	if len(id) > 64 || !printable(id) {
		return badField("invalid_request", "custom_id", "'custom_id' must be at most 64 characters of printable ASCII.")
	}
	if !p.behavior.UniqueIDs {
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
	rules := p.behavior
	if rules.MaxLineBytes > 0 && int64(len(l.Body)) > rules.MaxLineBytes {
		return badField("invalid_request", "body", fmt.Sprintf("The body has %d bytes, more than the maximum of %d.", len(l.Body), rules.MaxLineBytes))
	}
	var bad *BatchError
	eachField(l.Body, func(key, value []byte) bool {
		switch string(key) {
		case "model":
			bad = setString(&l.Model, p.last().Model, "model", value)
		case "stream":
			if rules.RefuseStream && string(value) == "true" {
				bad = badField("invalid_request", "stream", "Streaming is not supported in a batch.")
			}
		case "messages":
			if rules.RefuseParts && hasParts(value) {
				bad = badField("invalid_request", "messages", "The content of a message must be a string.")
			}
		case "input":
			if l.URL == "" || strings.HasSuffix(l.URL, "/embeddings") {
				eachInput(value, func([]byte) { p.inputs++ })
			}
		case "documents":
			eachInput(value, func([]byte) { p.inputs++ })
		}
		return bad == nil
	})
	if bad == nil && l.Model == "" && !l.modelOptional() && rules.LineMembers == nil {
		bad = badField("missing_required_parameter", "model", "Missing required parameter: 'body.model'.")
	}
	if bad == nil && l.Model != "" && !allowed(p.models, l.Model) {
		bad = badField("model_not_found", "model", "The model '"+l.Model+"' does not exist or you do not have access to it.")
	}
	return bad
}

// complete returns the lines of a batch whose create has the parameters params: with the
// url of the batch, and with the members and the model of params in the body.
func (rules *Behavior) complete(lines []Line, endpoint string, params []byte) (whole []Line, errs []BatchError) {
	model, _ := unquote(field(params, "model"))
	for _, l := range lines {
		var names []string
		eachField(l.Body, func(key, _ []byte) bool {
			names = append(names, string(key))
			return true
		})
		if want := rules.LineMembers[endpoint]; !sameNames(names, want) && len(errs) < maxErrors {
			err := badField("invalid_request", "body", fmt.Sprintf("The body has the keys %q; it must have %q.", names, want))
			err.Line = l.Number
			errs = append(errs, *err)
		}
		l.URL, l.Model = endpoint, model
		l.Body = slices.Concat(bytes.TrimRight(l.Body[:len(l.Body)-1], " "), []byte(","), params[1:])
		whole = append(whole, l)
	}
	return whole, errs
}

func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func allowed(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }

// eachInput calls yield with every text, or list of tokens, in the input of an
// embedding.
func eachInput(input []byte, yield func(text []byte)) {
	if !isList(input) {
		yield(input) // a text, or a list of tokens
		return
	}
	eachItem(input, func(item []byte) bool {
		yield(item)
		return true
	})
}

// isList reports whether the input of an embedding is a list of inputs, rather than
// a single input.
func isList(input []byte) (list bool) {
	eachItem(input, func(item []byte) bool {
		list = item[0] == '"' || item[0] == '['
		return false
	})
	return list
}

// hasParts reports whether a message has a list as its content.
func hasParts(messages []byte) (found bool) {
	eachItem(messages, func(message []byte) bool {
		content := field(message, "content")
		found = len(content) > 0 && content[0] == '['
		return !found
	})
	return found
}

var escapedUnit = regexp.MustCompile(`\\(?:u([0-9a-fA-F]{4})|.)`)

// loneSurrogate reports whether valid JSON escapes half a surrogate pair.
func loneSurrogate(raw []byte) bool {
	if !bytes.Contains(raw, []byte(`\u`)) {
		return false
	}
	end, high := 0, false // high: a high surrogate ends at end
	for _, at := range escapedUnit.FindAllSubmatchIndex(raw, -1) {
		unit := 0
		if at[2] >= 0 {
			n, _ := strconv.ParseUint(string(raw[at[2]:at[3]]), 16, 16)
			unit = int(n)
		}
		low := unit >= 0xdc00 && unit <= 0xdfff
		if pair := high && low && at[0] == end; (high || low) && !pair {
			return true
		}
		high, end = unit >= 0xd800 && unit <= 0xdbff, at[1]
	}
	return high
}
