package redact

import (
	"bytes"
	"io"
	"slices"

	"github.com/autobatcher/autobatcher/internal/line"
)

// Reader returns r without the operator's credentials. With parts, Reader also hides
// quoted parts, as Text does; this is slow, and meant for error messages. Bytes that
// may begin a credential are held back until more bytes, or the end, come.
func (s *Secrets) Reader(r io.Reader, parts bool) io.Reader {
	return &reader{s: s, src: r, parts: parts, minLen: minLength(parts)}
}

type reader struct {
	s      *Secrets
	src    io.Reader
	parts  bool
	minLen int

	ready   []byte // without credentials, to be returned
	in, out []byte // held back: as read, and without credentials
	covered int    // the first bytes of in belong to a part that was found
	err     error  // of src
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if len(r.ready) > 0 {
			n := copy(p, r.ready)
			r.ready = r.ready[n:]
			return n, nil
		}
		if r.err != nil {
			return 0, r.err
		}
		n, err := r.src.Read(p)
		r.err = err
		if r.process(p[:n]) {
			return n, err
		}
	}
	return 0, nil
}

// process searches the next bytes of src. It returns true if the bytes can be
// returned as they are; otherwise the result is in r.ready.
func (r *reader) process(b []byte) bool {
	r.s.mu.RLock()
	defer r.s.mu.RUnlock()
	if text := line.View(b); len(r.in) == 0 && !r.s.foundLocked(text, r.parts) && (r.err != nil || r.s.openLocked(text, r.minLen, r.parts) == 0) {
		return true // the usual case, without a copy
	}
	in, out := slices.Concat(r.in, b), slices.Concat(r.out, b)
	end := r.s.hideLocked(in, out, r.covered, r.minLen, r.parts)
	open := 0
	if r.err == nil {
		open = r.s.openLocked(line.View(in), r.minLen, r.parts)
	}
	done := len(in) - open
	r.ready = out[:done]
	r.in, r.out, r.covered = bytes.Clone(in[done:]), bytes.Clone(out[done:]), max(end-done, 0)
	return false
}
