package batchtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// maxCreate is the largest body of a create, in bytes.
const maxCreate = 1 << 20

// A createRequest is the body of "create batch".
type createRequest struct {
	InputFileID  string                     `json:"input_file_id"`
	Endpoint     string                     `json:"endpoint"`
	Window       string                     `json:"completion_window"`
	Params       json.RawMessage            `json:"request_params"`
	RawMetadata  map[string]json.RawMessage `json:"metadata"`
	OutputExpiry *struct {
		Anchor  string `json:"anchor"`
		Seconds int64  `json:"seconds"`
	} `json:"output_expires_after"`

	metadata map[string]string
	expiry   time.Duration // of the result files
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, c caller) error {
	req, err := s.readCreate(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	input, err := s.findFileLocked(req.InputFileID, c)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if input.batch != nil {
		return invalid("input_file_id", "The input file must have the purpose '%s'.", s.behavior.Purpose)
	}
	if s.fileStatus(input) != "processed" {
		return invalid("input_file_id", "Only files with status 'Processed' are accepted.")
	}
	if err := s.countCreation(c.account); err != nil {
		return err
	}
	b := s.newBatch(req, input, c) // not under the lock, since newBatch calls Options.Answer
	s.mu.Lock()
	s.enqueueLocked(b, req.expiry)
	view := s.batchViewLocked(b, validating)
	s.mu.Unlock()
	if s.behavior.WrapCreated {
		view = map[string]any{"job": view}
	}
	writeJSON(w, s.behavior.CreatedStatus, view)
	return nil
}

// countCreation counts a create, and refuses the create if the account has made
// too many in the last hour.
func (s *Server) countCreation(account string) error {
	limit := s.behavior.CreationsPerHour
	if limit <= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	recent := slices.DeleteFunc(s.created[account], func(t time.Time) bool { return now.Sub(t) >= time.Hour })
	if s.created[account] = recent; len(recent) >= limit {
		return &apiError{
			status: 429, code: "rate_limit_exceeded", retryAfter: time.Hour - now.Sub(recent[0]),
			message: fmt.Sprintf("Rate limit reached: %d batches may be created in an hour.", limit),
		}
	}
	s.created[account] = append(recent, now)
	return nil
}

func (s *Server) readCreate(r *http.Request) (*createRequest, error) {
	body, err := readJSON(r, maxCreate)
	if err != nil {
		return nil, err
	}
	req := &createRequest{}
	if err := json.Unmarshal(body, req); err != nil {
		return nil, s.badJSON(err)
	}
	if !s.behavior.IgnoreUnknown {
		known := []string{"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
		if s.behavior.LineMembers != nil {
			known = append(known, "request_params")
		}
		err = knownFields(body, known...)
	}
	if err == nil {
		err = s.checkCreate(req)
	}
	return req, err
}

// readJSON reads the body of a request, which must be a JSON object with the
// Content-Type of JSON.
func readJSON(r *http.Request, limit int64) ([]byte, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, &apiError{status: 400, message: "The Content-Type must be application/json."}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, invalid("", "Could not read the body: %v", err)
	}
	if int64(len(body)) > limit {
		return nil, tooLarge(limit)
	}
	if !json.Valid(body) || body[skipSpace(body, 0)] != '{' {
		return nil, invalid("", "We could not parse the JSON body of your request.")
	}
	return body, nil
}

// badJSON refuses a field of the wrong type.
func (s *Server) badJSON(err error) error {
	e := invalid("", "Invalid type in the JSON body: %v", err)
	if s.behavior.TextErrors {
		e.status = 422
	}
	return e
}

func knownFields(body []byte, names ...string) (err error) {
	eachField(body, func(key, _ []byte) bool {
		if !slices.Contains(names, string(key)) {
			err = unknownParameter(string(key))
		}
		return err == nil
	})
	return err
}

func (s *Server) checkCreate(req *createRequest) (err error) {
	rules := &s.behavior
	if rules.NoWindow && req.Window != "" {
		return unknownParameter("completion_window")
	}
	for _, f := range []struct{ name, value string }{
		{"input_file_id", req.InputFileID}, {"endpoint", req.Endpoint}, {"completion_window", req.Window},
	} {
		if f.value == "" && (f.name != "completion_window" || !rules.NoWindow) {
			e := invalid(f.name, "Missing required parameter: '%s'.", f.name)
			e.code = "missing_required_parameter"
			return e
		}
	}
	if !allowed(rules.Endpoints, req.Endpoint) {
		return invalid("endpoint", "Invalid value: '%s'. Supported values are: '%s'.", req.Endpoint, strings.Join(rules.Endpoints, "', '"))
	}
	if model, ok := unquote(field(req.Params, "model")); rules.LineMembers != nil && (!ok || !allowed(s.opts.Models, model)) {
		return invalid("request_params", "Invalid 'request_params': 'model' must name a model.")
	}
	if !rules.offers(req.Window) {
		if _, ok := parseWindow(req.Window); !ok && rules.UnreadableWindow != 0 {
			return &apiError{status: rules.UnreadableWindow, message: "Internal server error."}
		}
		return invalid("completion_window", "Invalid value: '%s'. Supported values are: '%s'.", req.Window, strings.Join(rules.Windows, "', '"))
	}
	if req.OutputExpiry != nil {
		req.expiry, err = rules.expiry("output_expires_after", req.OutputExpiry.Anchor, req.OutputExpiry.Seconds)
	} else if rules.FileExpiry {
		req.expiry = maxExpiry
	}
	if err == nil {
		req.metadata, err = s.checkMetadata(req.RawMetadata)
	}
	return err
}

// offers reports whether a create may ask for the window.
func (rules *Behavior) offers(window string) bool {
	if len(rules.Windows) > 0 || rules.MaxWindow == 0 {
		return allowed(rules.Windows, window)
	}
	d, ok := parseWindow(window)
	return ok && d >= rules.MinWindow && d <= rules.MaxWindow
}

func (s *Server) checkMetadata(raw map[string]json.RawMessage) (map[string]string, error) {
	rules := &s.behavior
	if rules.MaxPairs > 0 && len(raw) > rules.MaxPairs {
		return nil, invalid("metadata", "Invalid 'metadata': too many properties. Expected at most %d, but got %d.", rules.MaxPairs, len(raw))
	}
	metadata := make(map[string]string, len(raw))
	for key, value := range raw {
		text, ok := unquote(value)
		switch {
		case !ok:
			return nil, s.badJSON(fmt.Errorf("metadata.%s: expected a string", key))
		case rules.MaxKey > 0 && utf8.RuneCountInString(key) > rules.MaxKey:
			return nil, invalid("metadata", "Invalid 'metadata': a key is longer than %d characters.", rules.MaxKey)
		case rules.MaxValue > 0 && utf8.RuneCountInString(text) > rules.MaxValue:
			return nil, invalid("metadata", "Invalid 'metadata.%s': string too long. Expected at most %d characters.", key, rules.MaxValue)
		}
		if !slices.Contains(rules.DropMetadata, strings.ToLower(strings.ReplaceAll(key, "-", "_"))) {
			metadata[key] = text
		}
	}
	return metadata, nil
}

func (s *Server) newBatch(req *createRequest, input *file, c caller) *batch {
	now := time.Now()
	b := &batch{
		server: s, id: s.newID("batch_"), owner: c, endpoint: req.Endpoint, window: req.Window,
		input: input, metadata: req.metadata, created: now, starts: now.Add(s.opts.Validating),
		expires: now.Add(windowLength(req.Window)), lines: input.lines, tokens: map[string]int64{},
	}
	b.problems = slices.Clone(input.errs)
	if s.behavior.LineMembers != nil {
		var errs []BatchError
		b.lines, errs = s.behavior.complete(b.lines, req.Endpoint, bytes.TrimSpace(req.Params))
		b.problems = append(b.problems, errs...)
	}
	b.problems = append(b.problems, s.mismatches(b)...)
	if len(b.problems) > 0 {
		b.lines = nil
		return b
	}
	for i := range b.lines {
		b.tokens[b.lines[i].Model] += tokens(b.lines[i].Body)
	}
	b.plan()
	b.refuseLines()
	return b
}

// mismatches are the errors of lines that differ from the batch in the endpoint,
// or from the first line in the model.
func (s *Server) mismatches(b *batch) (errs []BatchError) {
	rules := &s.behavior
	for i := range b.lines {
		l := &b.lines[i]
		if rules.OneEndpoint && !rules.sameEndpoint(l.URL, b.endpoint) {
			errs = append(errs, BatchError{
				Code: "url_mismatch", Line: l.Number, Param: "url",
				Message: "The URL provided for this request does not match the batch endpoint.",
			})
		}
		if rules.OneModel && l.Model != b.lines[0].Model {
			errs = append(errs, BatchError{
				Code: "model_mismatch", Line: l.Number, Param: "model",
				Message: "The model of this request does not match the rest of the batch.",
			})
		}
		if len(errs) >= maxErrors {
			break
		}
	}
	return errs
}

func (rules *Behavior) sameEndpoint(a, b string) bool {
	if rules.OptionalV1 {
		a, b = strings.TrimPrefix(a, "/v1"), strings.TrimPrefix(b, "/v1")
	}
	return a == b
}

// enqueueLocked adds a batch and the two files of its results. The caller holds mu.
func (s *Server) enqueueLocked(b *batch, expiry time.Duration) {
	if s.overEnqueuedLocked(b) {
		b.problems = append(b.problems, BatchError{Code: "token_limit_exceeded", Message: s.tokenLimitText()})
		b.lines, b.queue = nil, nil
	}
	for i, kind := range []string{"output", "error"} {
		f := &file{
			id: s.newID("file-"), owner: b.owner, name: b.id + "_" + kind + ".jsonl", purpose: s.behavior.Purpose + "_output",
			created: b.created, expiry: expiry, batch: b, side: side(i),
		}
		b.results[i].id = f.id
		s.files[f.id] = f
	}
	s.batches[b.id] = b
	s.order = append(s.order, b)
	s.hooks.watchLocked(b)
}

func (s *Server) tokenLimitText() string {
	limit := ""
	if s.behavior.ShowTokenLimit {
		limit = fmt.Sprintf(" Limit: %s enqueued tokens.", thousands(s.opts.MaxEnqueuedTokens))
	}
	return "Enqueued token limit reached for the model." + limit +
		" Please try again once some in_progress batches have been completed."
}

// thousands writes 90000 as "90,000".
func thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

// overEnqueuedLocked reports whether the account has too many tokens enqueued with
// b. The caller holds mu.
func (s *Server) overEnqueuedLocked(b *batch) bool {
	if s.opts.MaxEnqueuedTokens <= 0 {
		return false
	}
	now := time.Now()
	total := maps.Clone(b.tokens)
	for _, other := range s.order {
		if other.owner.account != b.owner.account {
			continue
		}
		if other.advanceLocked(now); other.end == "" {
			for model, n := range other.tokens {
				total[model] += n
			}
		}
	}
	for model := range b.tokens {
		if total[model] > s.opts.MaxEnqueuedTokens {
			return true
		}
	}
	return false
}

// findBatchLocked returns a batch that the caller c may see, up to date. The mutex
// mu must be held.
func (s *Server) findBatchLocked(id string, c caller) (*batch, error) {
	if err := s.checkID(id); err != nil {
		return nil, err
	}
	b := s.batches[id]
	if b == nil || b.owner.account != c.account || time.Since(b.created) < s.behavior.VisibleAfter {
		return nil, notFound("Batch", id)
	}
	b.advanceLocked(time.Now())
	return b, nil
}

func (s *Server) retrieve(w http.ResponseWriter, r *http.Request, c caller) error {
	return s.withBatch(w, r, c, func(*batch) error { return nil })
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request, c caller) error {
	return s.withBatch(w, r, c, func(b *batch) error {
		if b.end != "" && !s.behavior.CancelAtOnce {
			return &apiError{status: 409, message: fmt.Sprintf("Cannot cancel a batch with status '%s'.", b.end)}
		}
		b.cancelLocked(time.Now())
		return nil
	})
}

// withBatch calls f with the batch that a request names, and answers with the
// batch.
func (s *Server) withBatch(w http.ResponseWriter, r *http.Request, c caller, f func(*batch) error) error {
	s.mu.Lock()
	b, err := s.findBatchLocked(r.PathValue("id"), c)
	if err == nil {
		err = f(b)
	}
	var view any
	if err == nil {
		view = s.batchViewLocked(b, b.status(time.Now()))
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

// batchViewLocked is a batch as the API shows the batch. The caller holds mu.
func (s *Server) batchViewLocked(b *batch, status string) map[string]any {
	view := map[string]any{
		"id": b.id, "object": "batch", "endpoint": b.endpoint, "completion_window": b.window,
		"status": s.behavior.StatusStyle.spell(status), "errors": b.errorsView(),
		"input_file_id": nonEmpty(b.input.id), "metadata": s.metadataView(b),
		"output_file_id": nonEmpty(s.resultName(b.resultID(outputs))), "error_file_id": nonEmpty(s.resultName(b.resultID(failures))),
		"request_counts": b.countsView(),
	}
	if b.inputGone {
		view["input_file_id"] = nil
	}
	if s.behavior.ReportUsage && len(b.lines) > 0 {
		view["model"], view["usage"] = b.lines[0].Model, b.usage.view()
	}
	for name, t := range b.times(status) {
		view[name] = s.stamp(t)
	}
	return view
}

// times are the times of the batch by the name of the field. A time in the future
// is zero, except expires_at.
func (b *batch) times(status string) map[string]time.Time {
	times := map[string]time.Time{
		"created_at": b.created, "expires_at": b.expires, "cancelling_at": b.cancelAt,
		"in_progress_at": {}, "finalizing_at": {},
		"completed_at": {}, "failed_at": {}, "expired_at": {}, "cancelled_at": {},
	}
	if status != validating && len(b.problems) == 0 {
		times["in_progress_at"] = b.starts
	}
	if (status == finalizing || status == completed) && len(b.queue) > 0 {
		times["finalizing_at"] = b.finalizingAt()
	}
	if b.end != "" {
		times[b.end+"_at"] = b.ended
	}
	if b.server.behavior.NoExpiry && time.Now().After(b.expires) {
		times["expired_at"] = b.expires
	}
	return times
}

// silent reports whether the batch failed and hides the reason.
func (b *batch) silent() bool { return b.server.behavior.SilentFailure && len(b.errors()) > 0 }

func (b *batch) countsView() map[string]int {
	total := len(b.lines)
	if b.silent() {
		total = 0
	}
	return map[string]int{"total": total, "completed": b.completed, "failed": b.failed}
}

func (b *batch) errorsView() any {
	errs := b.errors()
	if len(errs) == 0 || b.silent() {
		return nil
	}
	data := make([]map[string]any, len(errs))
	for i, e := range errs {
		data[i] = map[string]any{"code": e.Code, "message": e.Message, "param": nonEmpty(e.Param), "line": nil}
		if e.Line > 0 {
			data[i]["line"] = e.Line
		}
	}
	return map[string]any{"object": "list", "data": data}
}

func (s *Server) metadataView(b *batch) any {
	if len(b.metadata) == 0 && len(s.behavior.AddMetadata) == 0 {
		return nil
	}
	all := maps.Clone(b.metadata)
	maps.Copy(all, s.behavior.AddMetadata)
	return all
}

func (style StatusStyle) spell(status string) string {
	switch style {
	case UpperStatus:
		return strings.ToUpper(status)
	case TitleStatus:
		return strings.ToUpper(status[:1]) + status[1:]
	}
	return status
}
