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
	"time"
)

const (
	minExpiry = time.Hour
	maxExpiry = 30 * 24 * time.Hour
	formSlack = 10 << 10 // the most bytes of a form beside the file
)

// A file is an upload, or one of the two result files of a batch.
type file struct {
	id, name, purpose string
	owner             caller
	created           time.Time
	expiry            time.Duration // zero: for ever
	deleted           bool

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

// A form is an upload that is being read.
type form struct {
	data   []byte
	name   string
	seen   bool // the form has a file
	values url.Values
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request, c caller) error {
	f, err := s.readForm(r)
	if err != nil {
		return err
	}
	expiry, err := s.checkForm(f)
	if err != nil {
		return err
	}
	up := &file{
		id: s.newID("file-"), owner: c, name: f.name, purpose: f.values.Get("purpose"),
		created: time.Now(), expiry: expiry, data: f.data, form: f.values, header: r.Header.Clone(),
	}
	up.lines, up.errs = s.parse(up.data)
	if s.behavior.CheckAtUpload && len(up.errs) > 0 {
		return uploadError(up.errs[0])
	}
	s.mu.Lock()
	s.files[up.id] = up
	s.uploads = append(s.uploads, up)
	view := s.fileViewLocked(up)
	s.mu.Unlock()
	writeJSON(w, s.behavior.CreatedStatus, view)
	return nil
}

// uploadError is the refusal of a file that the provider checks at upload.
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
	limit := s.behavior.MaxFileBytes
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

// read reads one part. Length is that of the whole request, if known, and so the
// size of the buffer for the file.
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

// checkForm refuses missing, unknown and invalid fields, and returns how long the
// file exists.
func (s *Server) checkForm(f *form) (time.Duration, error) {
	rules := &s.behavior
	switch {
	case !f.seen:
		return 0, invalid("file", "'file' is a required property")
	case f.name == "":
		return 0, invalid("file", "'file' must have a filename.")
	case f.values.Get("purpose") == "":
		return 0, invalid("purpose", "'purpose' is a required property")
	case f.values.Get("purpose") != rules.Purpose:
		return 0, invalid("purpose", "'%s' is not one of ['%s'] - 'purpose'", f.values.Get("purpose"), rules.Purpose)
	}
	if err := rules.checkFields(f); err != nil {
		return 0, err
	}
	return rules.formExpiry(f.values)
}

// formFields are the form fields that OpenAI knows beside the file.
var formFields = []string{"purpose", "expires_after[anchor]", "expires_after[seconds]"}

// checkFields refuses unknown and duplicate fields, and requires UploadFields.
func (rules *Behavior) checkFields(f *form) error {
	for name, values := range f.values {
		if message, fails := rules.FailingFields[name]; fails {
			return &apiError{status: 500, message: message}
		}
		if len(values) > 1 {
			return invalid(name, "Duplicate parameter: '%s'.", name)
		}
		if !rules.IgnoreUnknown && !slices.Contains(formFields, name) && !slices.Contains(rules.UploadFields, name) {
			return unknownParameter(name)
		}
	}
	for _, name := range rules.UploadFields {
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

func (rules *Behavior) formExpiry(values url.Values) (time.Duration, error) {
	if !values.Has("expires_after[anchor]") && !values.Has("expires_after[seconds]") {
		return rules.expiry("expires_after", "created_at", int64(maxExpiry/time.Second))
	}
	seconds, err := strconv.ParseInt(values.Get("expires_after[seconds]"), 10, 64)
	if err != nil && rules.FileExpiry {
		return 0, invalid("expires_after.seconds", "'expires_after[seconds]' must be an integer.")
	}
	return rules.expiry("expires_after", values.Get("expires_after[anchor]"), seconds)
}

// expiry checks an anchor and a number of seconds, and returns how long a file
// exists: zero if the files of the provider do not expire.
func (rules *Behavior) expiry(param, anchor string, seconds int64) (time.Duration, error) {
	if !rules.FileExpiry {
		return 0, nil
	}
	if anchor != "created_at" {
		return 0, invalid(param+".anchor", "Invalid value for '%s.anchor': only 'created_at' is supported.", param)
	}
	if seconds < int64(minExpiry/time.Second) || seconds > int64(maxExpiry/time.Second) {
		return 0, invalid(param+".seconds", "Invalid value for '%s.seconds': must be between 3600 and 2592000.", param)
	}
	return time.Duration(seconds) * time.Second, nil
}

// newID returns a new identifier in the style of the provider.
func (s *Server) newID(prefix string) string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	if !s.behavior.BareIDs {
		return prefix + hex.EncodeToString(b[:])
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func (s *Server) checkID(id string) error {
	if s.behavior.BareIDs && !uuid.MatchString(id) {
		return invalid("id", "Cannot parse `id` with value `%s`: UUID parsing failed", id)
	}
	return nil
}

// findFileLocked returns a file that the caller c may see now. The mutex mu must be
// held.
func (s *Server) findFileLocked(id string, c caller) (*file, error) {
	if err := s.checkID(id); err != nil {
		return nil, err
	}
	f := s.files[id]
	if f == nil || f.owner.account != c.account || !s.visibleLocked(f, time.Now()) {
		return nil, notFound("File", id)
	}
	return f, nil
}

// visibleLocked reports whether a file exists: neither deleted, expired nor still to
// come. The caller holds mu.
func (s *Server) visibleLocked(f *file, now time.Time) bool {
	if f.batch != nil {
		f.batch.advanceLocked(now)
		if f.batch.resultID(f.side) != f.id {
			return false
		}
	}
	start := f.start()
	return !f.deleted && now.Sub(start) >= s.behavior.VisibleAfter &&
		(f.expiry == 0 || now.Sub(start) < f.expiry)
}

// start is when the file came into being. A result file does so at the end of the
// batch.
func (f *file) start() time.Time {
	if f.batch != nil && !f.batch.ended.IsZero() {
		return f.batch.ended
	}
	return f.created
}

// fileViewLocked is a file as the API shows the file. The caller holds mu.
func (s *Server) fileViewLocked(f *file) map[string]any {
	size := int64(len(f.data))
	if f.batch != nil {
		size = f.batch.results[f.side].bytes
	}
	view := map[string]any{
		"id": f.id, "object": "file", "bytes": size, "created_at": s.stamp(f.start()),
		"filename": f.name, "purpose": f.purpose, "status": s.fileStatus(f),
	}
	if f.expiry > 0 {
		view["expires_at"] = s.stamp(f.start().Add(f.expiry))
	}
	return view
}

// fileStatus is "pending" while the provider processes a new upload.
func (s *Server) fileStatus(f *file) string {
	if f.batch == nil && time.Since(f.created) < s.behavior.FileProcessing {
		return "pending"
	}
	return "processed"
}

func (s *Server) retrieveFile(w http.ResponseWriter, r *http.Request, c caller) error {
	s.mu.Lock()
	f, err := s.findFileLocked(r.PathValue("id"), c)
	var view any
	if err == nil {
		view = s.fileViewLocked(f)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

func (s *Server) deleteFile(w http.ResponseWriter, r *http.Request, c caller) error {
	id := r.PathValue("id")
	s.mu.Lock()
	f, err := s.findFileLocked(id, c)
	if err == nil {
		f.deleted = true
		s.cancelOfLocked(f)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"id": id, "object": "file", "deleted": true})
	return nil
}

// cancelOfLocked cancels the batches of a deleted input file, at a provider that
// does so. The caller holds mu.
func (s *Server) cancelOfLocked(f *file) {
	if !s.behavior.DeleteCancels {
		return
	}
	now := time.Now()
	for _, b := range s.order {
		if b.input == f {
			b.inputGone = true
			b.cancelLocked(now)
		}
	}
}

// stamp writes a time in the style of the provider. The zero time is null.
func (s *Server) stamp(t time.Time) any {
	switch {
	case t.IsZero():
		return nil
	case s.behavior.ISOTimes:
		return s.clock(t).UTC().Format(time.RFC3339)
	}
	return s.clock(t).Unix()
}

// clock returns the time that the provider's clock shows at t.
func (s *Server) clock(t time.Time) time.Time { return t.Add(s.opts.ClockOffset) }
