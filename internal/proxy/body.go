package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// A callBody is the body of a held call. It is read once, by the Transport,
// which keeps it; what the proxy needs to know is read in passing, so that there
// is no second copy of it.
type callBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	scan  scanner
	whole func() // called when it was read to its end

	mu       sync.Mutex // the body may be read and closed by other goroutines
	size     int64      // as far as it was read
	err      error      // why it could not be read, if so
	watchdog *time.Timer
	seen     int64 // size when the watchdog last looked
	ended    bool  // it looks no more
}

func newCallBody(a *answer, limit int64, whole func()) *callBody {
	b := &callBody{
		ReadCloser: http.MaxBytesReader(a.w, a.r.Body, limit),
		rc:         http.NewResponseController(a.w),
		whole:      whole,
	}
	b.watchdog = time.AfterFunc(patience, b.watch)
	return b
}

// watch ends a body that stood still for a minute. A deadline is set only then:
// left standing it would end the call, since net/http reads on in order to notice
// when the caller goes away.
func (b *callBody) watch() {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ended:
	case b.size > b.seen:
		b.seen = b.size
		b.watchdog.Reset(patience)
	default:
		_ = b.rc.SetReadDeadline(time.Now()) // not every ResponseWriter can
	}
}

// Read reads on.
func (b *callBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.scan.see(p[:n])
	b.note(n, err)
	if errors.Is(err, io.EOF) {
		b.whole()
	}
	return n, err
}

func (b *callBody) note(n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.size += int64(n)
	switch {
	case errors.Is(err, io.EOF):
		b.ended = true
		b.watchdog.Stop()
	case err != nil:
		b.err = err
	}
}

// Close closes the body. net/http reads some of what is left, so that the
// connection can be used again; it must not wait long for it.
func (b *callBody) Close() error {
	b.mu.Lock()
	b.watchdog.Stop()
	if !b.ended {
		_ = b.rc.SetReadDeadline(time.Now().Add(time.Second))
		defer func() { _ = b.rc.SetReadDeadline(time.Time{}) }()
	}
	b.ended = true
	b.mu.Unlock()
	return b.ReadCloser.Close()
}

// progress says how much was read, and what went wrong if something did.
func (b *callBody) progress() (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size, b.err
}

// A scanner finds the top-level "stream" and "model" of a JSON object that flows
// past. It trusts the object to be well-formed: another is refused anyway.
type scanner struct {
	depth    int
	quoted   bool // inside a string
	slashes  int  // backslashes directly before here, inside a string
	keep     bool // the string is worth keeping
	value    bool // after the colon of key
	text     []byte
	key      string
	isStream bool
	name     string // the model, as JSON
}

// maxKept is the longest string kept, in bytes: a model's name.
const maxKept = 200

func (s *scanner) stream() bool { return s.isStream }

// model is the model's name as JSON.
func (s *scanner) model() string {
	if s.name == "" || !json.Valid([]byte(s.name)) {
		return `""`
	}
	return s.name
}

// see looks at the next piece of the body.
func (s *scanner) see(b []byte) {
	for len(b) > 0 {
		if s.quoted {
			b = s.inString(b)
		} else {
			b = s.outside(b)
		}
	}
}

// inString looks for the end of a string, and returns what follows it.
func (s *scanner) inString(b []byte) []byte {
	end := bytes.IndexByte(b, '"')
	piece := b
	if end >= 0 {
		piece = b[:end]
	}
	run := trailingSlashes(piece)
	if run == len(piece) {
		run += s.slashes
	}
	s.slashes = run
	if s.keep && len(s.text)+len(piece) <= maxKept {
		s.text = append(s.text, piece...)
	} else {
		s.keep = false
	}
	if end < 0 {
		return nil
	}
	if run%2 == 1 { // the quote is part of the string
		s.slashes = 0
		if s.keep {
			s.text = append(s.text, '"')
		}
		return b[end+1:]
	}
	s.endString()
	return b[end+1:]
}

func trailingSlashes(b []byte) int {
	n := 0
	for n < len(b) && b[len(b)-1-n] == '\\' {
		n++
	}
	return n
}

func (s *scanner) endString() {
	s.quoted = false
	switch {
	case !s.keep:
	case s.value && s.key == "model":
		s.name = `"` + string(s.text) + `"`
	case !s.value:
		s.key = keyword(s.text)
	}
}

// keyword is text if it is one of the keys that matter. It allocates nothing.
func keyword(text []byte) string {
	switch string(text) {
	case "stream":
		return "stream"
	case "model":
		return "model"
	}
	return ""
}

// outside looks at what is not in a string, as far as the next string, and
// returns what follows.
func (s *scanner) outside(b []byte) []byte {
	for i, ch := range b {
		switch ch {
		case '"':
			s.quoted, s.slashes, s.text = true, 0, s.text[:0]
			s.keep = s.depth == 1 && (!s.value || s.key == "model")
			return b[i+1:]
		case '{', '[':
			s.depth++
		case '}', ']':
			s.depth--
		case ':':
			s.value = s.value || s.depth == 1
		case ',':
			s.value = s.value && s.depth != 1
		case 't', 'f':
			if s.depth == 1 && s.value && s.key == "stream" {
				s.isStream = ch == 't'
				s.key = "" // the f in "false" is seen once, the t in no literal twice
			}
		}
	}
	return nil
}
