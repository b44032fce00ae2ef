package batchtest

import (
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

// maxCreate is the largest body of a JSON request that is not the model's.
const maxCreate = 1 << 20

// A createRequest is the body of "create batch".
type createRequest struct {
	InputFileID  string                     `json:"input_file_id"`
	Endpoint     string                     `json:"endpoint"`
	Window       string                     `json:"completion_window"`
	RawMetadata  map[string]json.RawMessage `json:"metadata"`
	OutputExpiry *struct {
		Anchor  string `json:"anchor"`
		Seconds int64  `json:"seconds"`
	} `json:"output_expires_after"`

	metadata map[string]string
	life     time.Duration // of the result files
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, key string) error {
	req, err := s.readCreate(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	input, err := s.findFile(req.InputFileID, key)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if input.batch != nil {
		return invalid("input_file_id", "The input file must have the purpose '%s'.", s.manners.Purpose)
	}
	if err := s.countCreation(key); err != nil {
		return err
	}
	b := s.newBatch(req, input) // not under the lock: it asks Options.Answer
	s.mu.Lock()
	s.enqueue(b, req.life)
	view := s.batchView(b, validating)
	s.mu.Unlock()
	if s.manners.WrapCreated {
		view = map[string]any{"job": view}
	}
	writeJSON(w, s.manners.CreatedStatus, view)
	return nil
}

// countCreation refuses what is too much for an hour.
func (s *Server) countCreation(key string) error {
	limit := s.manners.CreationsPerHour
	if limit <= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	recent := slices.DeleteFunc(s.created[key], func(t time.Time) bool { return now.Sub(t) >= time.Hour })
	if s.created[key] = recent; len(recent) >= limit {
		return &apiError{
			status: 429, code: "rate_limit_exceeded", retryAfter: time.Hour - now.Sub(recent[0]),
			message: fmt.Sprintf("Rate limit reached: %d batches may be created in an hour.", limit),
		}
	}
	s.created[key] = append(recent, now)
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
	if !s.manners.IgnoreUnknown {
		err = knownFields(body, "input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")
	}
	if err == nil {
		err = s.checkCreate(req)
	}
	return req, err
}

// readJSON reads a request's body, which must say that it is JSON and be it.
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

// badJSON is about fields of the wrong type.
func (s *Server) badJSON(err error) error {
	e := invalid("", "Invalid type in the JSON body: %v", err)
	if s.manners.TextErrors {
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
	m := &s.manners
	if m.NoWindow && req.Window != "" {
		return unknownParameter("completion_window")
	}
	for _, f := range []struct{ name, value string }{
		{"input_file_id", req.InputFileID}, {"endpoint", req.Endpoint}, {"completion_window", req.Window},
	} {
		if f.value == "" && (f.name != "completion_window" || !m.NoWindow) {
			e := invalid(f.name, "Missing required parameter: '%s'.", f.name)
			e.code = "missing_required_parameter"
			return e
		}
	}
	if !allowed(m.Endpoints, req.Endpoint) {
		return invalid("endpoint", "Invalid value: '%s'. Supported values are: '%s'.", req.Endpoint, strings.Join(m.Endpoints, "', '"))
	}
	if !m.offers(req.Window) {
		return invalid("completion_window", "Invalid value: '%s'. Supported values are: '%s'.", req.Window, strings.Join(m.Windows, "', '"))
	}
	if req.OutputExpiry != nil {
		req.life, err = m.life("output_expires_after", req.OutputExpiry.Anchor, req.OutputExpiry.Seconds)
	} else if m.FileExpiry {
		req.life = maxFileLife
	}
	if err == nil {
		req.metadata, err = s.checkMetadata(req.RawMetadata)
	}
	return err
}

// offers tells whether a window may be had.
func (m *Manners) offers(window string) bool {
	if len(m.Windows) > 0 || m.MaxWindow == 0 {
		return allowed(m.Windows, window)
	}
	d, ok := parseWindow(window)
	return ok && d >= m.MinWindow && d <= m.MaxWindow
}

func (s *Server) checkMetadata(raw map[string]json.RawMessage) (map[string]string, error) {
	m := &s.manners
	if m.MaxPairs > 0 && len(raw) > m.MaxPairs {
		return nil, invalid("metadata", "Invalid 'metadata': too many properties. Expected at most %d, but got %d.", m.MaxPairs, len(raw))
	}
	metadata := make(map[string]string, len(raw))
	for key, value := range raw {
		text, ok := unquote(value)
		switch {
		case !ok:
			return nil, s.badJSON(fmt.Errorf("metadata.%s: expected a string", key))
		case m.MaxKey > 0 && utf8.RuneCountInString(key) > m.MaxKey:
			return nil, invalid("metadata", "Invalid 'metadata': a key is longer than %d characters.", m.MaxKey)
		case m.MaxValue > 0 && utf8.RuneCountInString(text) > m.MaxValue:
			return nil, invalid("metadata", "Invalid 'metadata.%s': string too long. Expected at most %d characters.", key, m.MaxValue)
		}
		if !slices.Contains(m.DropMetadata, strings.ToLower(strings.ReplaceAll(key, "-", "_"))) {
			metadata[key] = text
		}
	}
	return metadata, nil
}

func (s *Server) newBatch(req *createRequest, input *file) *batch {
	now := time.Now()
	b := &batch{
		server: s, id: s.newID("batch_"), key: input.key, endpoint: req.Endpoint, window: req.Window,
		input: input, metadata: req.metadata, created: now, starts: now.Add(s.opts.Validating),
		expires: now.Add(windowLength(req.Window)), lines: input.lines, tokens: map[string]int64{},
	}
	b.problems = append(slices.Clone(input.errs), s.mismatches(b)...)
	if len(b.problems) > 0 {
		b.lines = nil
		return b
	}
	for i := range b.lines {
		b.tokens[b.lines[i].Model] += tokens(b.lines[i].Body)
	}
	b.plan()
	return b
}

// mismatches are lines that do not fit their batch or each other.
func (s *Server) mismatches(b *batch) (errs []BatchError) {
	m := &s.manners
	for i := range b.lines {
		l := &b.lines[i]
		if m.OneEndpoint && !m.sameEndpoint(l.URL, b.endpoint) {
			errs = append(errs, BatchError{
				Code: "url_mismatch", Line: l.Number, Param: "url",
				Message: "The URL provided for this request does not match the batch endpoint.",
			})
		}
		if m.OneModel && l.Model != b.lines[0].Model {
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

func (m *Manners) sameEndpoint(a, b string) bool {
	if m.OptionalV1 {
		a, b = strings.TrimPrefix(a, "/v1"), strings.TrimPrefix(b, "/v1")
	}
	return a == b
}

// enqueue takes a batch in, with the two files its results will be in. It needs mu.
func (s *Server) enqueue(b *batch, life time.Duration) {
	if s.overEnqueued(b) {
		b.problems = append(b.problems, BatchError{Code: "token_limit_exceeded", Message: s.tokenLimitText()})
		b.lines, b.queue = nil, nil
	}
	for i, kind := range []string{"output", "error"} {
		f := &file{
			id: s.newID("file-"), key: b.key, name: b.id + "_" + kind + ".jsonl", purpose: s.manners.Purpose + "_output",
			created: b.created, life: life, batch: b, side: side(i),
		}
		b.results[i].id = f.id
		s.files[f.id] = f
	}
	s.batches[b.id] = b
	s.order = append(s.order, b)
}

func (s *Server) tokenLimitText() string {
	told := ""
	if s.manners.TellTokenLimit {
		told = fmt.Sprintf(" Limit: %s enqueued tokens.", thousands(s.opts.MaxEnqueuedTokens))
	}
	return "Enqueued token limit reached for the model." + told +
		" Please try again once some in_progress batches have been completed."
}

// thousands writes 90000 as "90,000".
func thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

func (s *Server) overEnqueued(b *batch) bool {
	if s.opts.MaxEnqueuedTokens <= 0 {
		return false
	}
	now := time.Now()
	total := maps.Clone(b.tokens)
	for _, other := range s.order {
		if other.key != b.key {
			continue
		}
		if other.advance(now); other.end == "" {
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

// findBatch returns a batch that key may see, as it stands now. It needs mu.
func (s *Server) findBatch(id, key string) (*batch, error) {
	if err := s.checkID(id); err != nil {
		return nil, err
	}
	b := s.batches[id]
	if b == nil || b.key != key || time.Since(b.created) < s.manners.VisibleAfter {
		return nil, notFound("Batch", id)
	}
	b.advance(time.Now())
	return b, nil
}

func (s *Server) retrieve(w http.ResponseWriter, r *http.Request, key string) error {
	return s.withBatch(w, r, key, func(*batch) error { return nil })
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request, key string) error {
	return s.withBatch(w, r, key, func(b *batch) error {
		if b.end != "" && !s.manners.CancelAtOnce {
			return &apiError{status: 409, message: fmt.Sprintf("Cannot cancel a batch with status '%s'.", b.end)}
		}
		b.cancel(time.Now())
		return nil
	})
}

// withBatch does something to the batch a request names, and shows it.
func (s *Server) withBatch(w http.ResponseWriter, r *http.Request, key string, f func(*batch) error) error {
	s.mu.Lock()
	b, err := s.findBatch(r.PathValue("id"), key)
	if err == nil {
		err = f(b)
	}
	var view any
	if err == nil {
		view = s.batchView(b, b.status(time.Now()))
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

func (s *Server) listBatches(w http.ResponseWriter, r *http.Request, key string) error {
	q, err := s.readPage(r, 100)
	if err != nil {
		return err
	}
	search := r.URL.Query().Get("search")
	s.mu.Lock()
	var ids []string
	for _, b := range slices.Backward(s.order) {
		if _, err := s.findBatch(b.id, key); err == nil && s.searched(b, search) {
			ids = append(ids, b.id)
		}
	}
	page, more, err := q.cut(ids, &s.manners)
	views := make([]any, len(page))
	for i, id := range page {
		b := s.batches[id]
		views[i] = s.batchView(b, b.status(time.Now()))
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if s.manners.BareList {
		writeJSON(w, http.StatusOK, views)
		return nil
	}
	writeJSON(w, http.StatusOK, listView(views, page, more))
	return nil
}

func (s *Server) searched(b *batch, search string) bool {
	if search == "" || !s.manners.ListSearch {
		return true
	}
	metadata, _ := json.Marshal(b.metadata)
	return like(b.id, search) || like(b.input.name, search) || like(string(metadata), search)
}

// batchView is a batch as the API shows it. It needs mu.
func (s *Server) batchView(b *batch, status string) map[string]any {
	view := map[string]any{
		"id": b.id, "object": "batch", "endpoint": b.endpoint, "completion_window": b.window,
		"status": s.manners.StatusStyle.spell(status), "errors": b.errorsView(),
		"input_file_id": nonEmpty(b.input.id), "metadata": s.metadataView(b),
		"output_file_id": nonEmpty(s.resultName(b.resultID(outputs))), "error_file_id": nonEmpty(s.resultName(b.resultID(failures))),
		"request_counts": map[string]int{"total": len(b.lines), "completed": b.completed, "failed": b.failed},
	}
	if b.inputGone {
		view["input_file_id"] = nil
	}
	if s.manners.ReportUsage && len(b.lines) > 0 {
		view["model"], view["usage"] = b.lines[0].Model, b.usage.view()
	}
	for name, t := range b.times(status) {
		view[name] = s.stamp(t)
	}
	return view
}

// times are the moments a batch has been through; those still to come are zero.
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
	if b.server.manners.NoExpiry && time.Now().After(b.expires) {
		times["expired_at"] = b.expires
	}
	return times
}

func (b *batch) errorsView() any {
	errs := b.errors()
	if len(errs) == 0 {
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
	if len(b.metadata) == 0 && len(s.manners.AddMetadata) == 0 {
		return nil
	}
	all := maps.Clone(b.metadata)
	maps.Copy(all, s.manners.AddMetadata)
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
