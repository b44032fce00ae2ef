package batchtest

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	minFileLife = time.Hour
	maxFileLife = 30 * 24 * time.Hour
	formSlack   = 10 << 10 // what a form may weigh beside its file
)

// A file is an upload, or one side of a batch's results.
type file struct {
	id, key, name, purpose string
	created                time.Time
	life                   time.Duration // zero: for ever
	deleted                bool

	// Of an upload:
	data   []byte
	lines  []Line
	errs   []BatchError
	form   url.Values
	header http.Header

	// Of a result:
	batch *batch
	side  side
}

// A form is an upload on its way in.
type form struct {
	data   []byte
	name   string
	seen   bool // the file part
	values url.Values
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request, key string) error {
	f, err := s.readForm(r)
	if err != nil {
		return err
	}
	life, err := s.checkForm(f)
	if err != nil {
		return err
	}
	up := &file{
		id: s.newID("file-"), key: key, name: f.name, purpose: f.values.Get("purpose"),
		created: time.Now(), life: life, data: f.data, form: f.values, header: r.Header.Clone(),
	}
	up.lines, up.errs = s.parse(up.data)
	if s.manners.CheckAtUpload && len(up.errs) > 0 {
		return uploadError(up.errs[0])
	}
	s.mu.Lock()
	s.files[up.id] = up
	s.uploads = append(s.uploads, up)
	view := s.fileView(up)
	s.mu.Unlock()
	writeJSON(w, s.manners.CreatedStatus, view)
	return nil
}

// uploadError says what is wrong with a file that is checked at upload.
func uploadError(e BatchError) *apiError {
	status := 400
	if e.Code == "model_not_found" {
		status = 403
	}
	switch {
	case e.Code == "invalid_json_line":
		return &apiError{status: status, message: fmt.Sprintf("Invalid JSON on line %d: %s", e.Line, e.Message)}
	case e.Line > 0:
		return &apiError{status: status, message: fmt.Sprintf("Line %d: %s", e.Line, e.Message)}
	}
	return &apiError{status: status, message: e.Message}
}

func (s *Server) readForm(r *http.Request) (*form, error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		return nil, invalid("", "Expected a multipart/form-data request with a boundary.")
	}
	limit := s.manners.MaxFileBytes
	if limit > 0 && r.ContentLength > limit+formSlack {
		return nil, tooLarge(limit)
	}
	f := &form{values: url.Values{}}
	parts := multipart.NewReader(r.Body, params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			return f, nil
		}
		if err == nil {
			err = f.read(part, r.ContentLength, limit)
		}
		if refusal := new(apiError); errors.As(err, &refusal) {
			return nil, refusal
		}
		if err != nil {
			return nil, invalid("", "Could not parse the multipart form: %v", err)
		}
	}
}

func tooLarge(limit int64) *apiError {
	return &apiError{status: 413, message: fmt.Sprintf("The file is larger than the maximum of %d bytes.", limit)}
}

// read takes in one part. The length of the whole request, where known, tells
// how much room its file needs.
func (f *form) read(part *multipart.Part, length, limit int64) error {
	name := part.FormName()
	if name != "file" {
		value, err := io.ReadAll(io.LimitReader(part, formSlack))
		f.values.Add(name, string(value))
		return err
	}
	if f.seen {
		return invalid("file", "There must be exactly one 'file'.")
	}
	f.seen, f.name = true, part.FileName()
	if limit <= 0 {
		limit = 1 << 40
	}
	var buf bytes.Buffer
	buf.Grow(int(max(0, min(length, limit+1))))
	n, err := io.Copy(&buf, io.LimitReader(part, limit+1))
	if n > limit {
		return tooLarge(limit)
	}
	f.data = buf.Bytes()
	return err
}

// checkForm refuses what is missing, strange or out of range, and returns how
// long the file shall live.
func (s *Server) checkForm(f *form) (time.Duration, error) {
	m := &s.manners
	switch {
	case !f.seen:
		return 0, invalid("file", "'file' is a required property")
	case f.name == "":
		return 0, invalid("file", "'file' must have a filename.")
	case f.values.Get("purpose") == "":
		return 0, invalid("purpose", "'purpose' is a required property")
	case f.values.Get("purpose") != m.Purpose:
		return 0, invalid("purpose", "'%s' is not one of ['%s'] - 'purpose'", f.values.Get("purpose"), m.Purpose)
	}
	if err := m.checkFields(f); err != nil {
		return 0, err
	}
	return m.formLife(f.values)
}

// formFields are those that OpenAI knows beside the file.
var formFields = []string{"purpose", "expires_after[anchor]", "expires_after[seconds]"}

// checkFields looks for fields that must not, or must, be there.
func (m *Manners) checkFields(f *form) error {
	for name, values := range f.values {
		if len(values) > 1 {
			return invalid(name, "Duplicate parameter: '%s'.", name)
		}
		if !m.IgnoreUnknown && !slices.Contains(formFields, name) && !slices.Contains(m.UploadFields, name) {
			return unknownParameter(name)
		}
	}
	for _, name := range m.UploadFields {
		switch value := f.values.Get(name); {
		case value == "":
			return invalid(name, "'%s' is a required property", name)
		case name == "file_name" && value != f.name:
			return invalid(name, "'file_name' must be the name of the file.")
		}
	}
	return nil
}

func unknownParameter(name string) *apiError {
	e := invalid(name, "Unknown parameter: '%s'.", name)
	e.code = "unknown_parameter"
	return e
}

func (m *Manners) formLife(values url.Values) (time.Duration, error) {
	if !values.Has("expires_after[anchor]") && !values.Has("expires_after[seconds]") {
		return m.life("expires_after", "created_at", int64(maxFileLife/time.Second))
	}
	seconds, err := strconv.ParseInt(values.Get("expires_after[seconds]"), 10, 64)
	if err != nil && m.FileExpiry {
		return 0, invalid("expires_after.seconds", "'expires_after[seconds]' must be an integer.")
	}
	return m.life("expires_after", values.Get("expires_after[anchor]"), seconds)
}

// life checks an anchor and a number of seconds; it is zero where files do not expire.
func (m *Manners) life(param, anchor string, seconds int64) (time.Duration, error) {
	if !m.FileExpiry {
		return 0, nil
	}
	if anchor != "created_at" {
		return 0, invalid(param+".anchor", "Invalid value for '%s.anchor': only 'created_at' is supported.", param)
	}
	if seconds < int64(minFileLife/time.Second) || seconds > int64(maxFileLife/time.Second) {
		return 0, invalid(param+".seconds", "Invalid value for '%s.seconds': must be between 3600 and 2592000.", param)
	}
	return time.Duration(seconds) * time.Second, nil
}

// newID returns a fresh identifier in the provider's style.
func (s *Server) newID(prefix string) string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	if !s.manners.BareIDs {
		return prefix + hex.EncodeToString(b[:])
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func (s *Server) checkID(id string) error {
	if s.manners.BareIDs && !uuid.MatchString(id) {
		return invalid("id", "Cannot parse `id` with value `%s`: UUID parsing failed", id)
	}
	return nil
}

// findFile returns a file that key may see now. It needs mu.
func (s *Server) findFile(id, key string) (*file, error) {
	if err := s.checkID(id); err != nil {
		return nil, err
	}
	f := s.files[id]
	if f == nil || f.key != key || !s.visible(f, time.Now()) {
		return nil, notFound("File", id)
	}
	return f, nil
}

// visible tells whether a file is there at all: not gone, and not yet to come.
func (s *Server) visible(f *file, now time.Time) bool {
	if f.batch != nil {
		f.batch.advance(now)
		if f.batch.resultID(f.side) != f.id {
			return false
		}
	}
	start := f.start()
	return !f.deleted && now.Sub(start) >= s.manners.VisibleAfter &&
		(f.life == 0 || now.Sub(start) < f.life)
}

// start is when the file came to be: a result file's life begins with the end of its batch.
func (f *file) start() time.Time {
	if f.batch != nil && !f.batch.ended.IsZero() {
		return f.batch.ended
	}
	return f.created
}

// fileView is a file as the API shows it. It needs mu.
func (s *Server) fileView(f *file) map[string]any {
	size := int64(len(f.data))
	if f.batch != nil {
		size = f.batch.results[f.side].bytes
	}
	view := map[string]any{
		"id": f.id, "object": "file", "bytes": size, "created_at": s.stamp(f.start()),
		"filename": f.name, "purpose": f.purpose, "status": "processed",
	}
	if f.life > 0 {
		view["expires_at"] = s.stamp(f.start().Add(f.life))
	}
	return view
}

func (s *Server) retrieveFile(w http.ResponseWriter, r *http.Request, key string) error {
	s.mu.Lock()
	f, err := s.findFile(r.PathValue("id"), key)
	var view any
	if err == nil {
		view = s.fileView(f)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

func (s *Server) deleteFile(w http.ResponseWriter, r *http.Request, key string) error {
	id := r.PathValue("id")
	s.mu.Lock()
	f, err := s.findFile(id, key)
	if err == nil {
		f.deleted = true
		s.orphan(f)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"id": id, "object": "file", "deleted": true})
	return nil
}

// orphan does to the batches of a deleted input what the provider does.
func (s *Server) orphan(f *file) {
	if !s.manners.DeleteCancels {
		return
	}
	now := time.Now()
	for _, b := range s.order {
		if b.input == f {
			b.inputGone = true
			b.cancel(now)
		}
	}
}

func (s *Server) listFiles(w http.ResponseWriter, r *http.Request, key string) error {
	q, err := s.readPage(r, 10_000)
	if err != nil {
		return err
	}
	purpose := r.URL.Query().Get("purpose")
	s.mu.Lock()
	var ids []string
	for _, f := range slices.Backward(s.uploads) {
		if f.key == key && s.visible(f, time.Now()) && (purpose == "" || purpose == f.purpose) {
			ids = append(ids, f.id)
		}
	}
	page, more, err := q.cut(ids, &s.manners)
	views := make([]any, len(page))
	for i, id := range page {
		views[i] = s.fileView(s.files[id])
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, listView(views, page, more))
	return nil
}

// A pageQuery is what a list is asked for.
type pageQuery struct {
	after string
	limit int
}

func (s *Server) readPage(r *http.Request, most int) (pageQuery, error) {
	q := pageQuery{after: r.URL.Query().Get("after"), limit: min(20, most)}
	if most > 100 {
		q.limit = most
	}
	text := r.URL.Query().Get("limit")
	if text == "" {
		return q, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return q, invalid("limit", "Invalid 'limit': must be an integer between 1 and %d.", most)
	}
	q.limit = n
	return q, nil
}

// cut returns the page of ids that was asked for, and whether more follow.
func (q pageQuery) cut(ids []string, m *Manners) (page []string, more bool, err error) {
	start := 0
	switch {
	case q.after == "":
	case m.ListByOffset:
		if start, err = strconv.Atoi(q.after); err != nil || start < 0 {
			return nil, false, invalid("after", "Invalid 'after': must be a number.")
		}
		start = min(start, len(ids))
	default:
		start = slices.Index(ids, q.after) + 1
		if start == 0 && !m.ListFirstPageAgain {
			return nil, false, invalid("after", "No such object: %s", q.after)
		}
	}
	end := min(start+q.limit, len(ids))
	return ids[start:end], end < len(ids), nil
}

func listView(views []any, ids []string, more bool) map[string]any {
	view := map[string]any{"object": "list", "data": views, "has_more": more, "first_id": nil, "last_id": nil}
	if len(ids) > 0 {
		view["first_id"], view["last_id"] = ids[0], ids[len(ids)-1]
	}
	return view
}

// stamp writes a time in the provider's style; the zero time is null.
func (s *Server) stamp(t time.Time) any {
	switch {
	case t.IsZero():
		return nil
	case s.manners.ISOTimes:
		return t.UTC().Format(time.RFC3339)
	}
	return t.Unix()
}

// like matches text in the manner of SQL's ILIKE '%pattern%'.
func like(text, pattern string) bool {
	expr := strings.NewReplacer("%", ".*", "_", ".").Replace(regexp.QuoteMeta(pattern))
	ok, err := regexp.MatchString("(?is)"+expr, text)
	return err == nil && ok
}
