// Package redact hides credentials in text that a provider wrote: answers, error
// messages, log lines.
//
// A credential is replaced by asterisks of the same number, so that lengths, and
// the syntax around the credential, stay valid. All functions and methods may be
// called concurrently.
package redact

import (
	"bytes"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/autobatcher/autobatcher/internal/line"
)

const (
	// partLen is the number of bytes of a quoted part of a credential that are
	// recognized. Shorter parts, such as the last four characters by which
	// providers name a key, remain.
	partLen = 8
	// minParts is the length of a credential whose parts are recognized. A part of
	// a shorter credential may be an ordinary word.
	minParts = 16
	// minWhole is the length of the shortest credential that is hidden in error
	// messages, and minAnswer that of the shortest one hidden in answers: a short
	// key, of a server at home, is often an ordinary word.
	minWhole, minAnswer = 6, 10
	// maxParts bounds the length of a credential whose parts are recognized.
	maxParts = 4 << 10
	// maxCallers bounds the callers' credentials; the oldest is forgotten first.
	maxCallers = 1000
)

// Secrets are the credentials to hide. Make Secrets with New.
type Secrets struct {
	mu      sync.RWMutex
	whole   []string            // in all encodings
	parts   map[string]struct{} // of up to partLen bytes
	callers []string            // in all encodings, oldest first
}

// New returns Secrets without a credential.
func New() *Secrets { return &Secrets{parts: make(map[string]struct{})} }

// Add adds a credential of the operator. Add ignores a credential of less than six
// bytes.
func (s *Secrets) Add(secret string) {
	if len(secret) < minWhole {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range encodings(secret) {
		if slices.Contains(s.whole, text) {
			continue
		}
		s.whole = append(s.whole, text)
		if len(text) < minParts || len(text) > maxParts {
			continue
		}
		for i := range text {
			for n := 1; n <= partLen && i+n <= len(text); n++ {
				s.parts[text[i:i+n]] = struct{}{}
			}
		}
	}
}

// AddCaller adds a credential that a caller sent, which Text hides as a whole. A
// caller may send any text as a credential, so AddCaller ignores text that does
// not look like a credential, and Reader hides no caller's text in the answers of
// other callers.
func (s *Secrets) AddCaller(secret string) {
	if len(secret) < 20 || len(secret) > maxParts || !strings.ContainsAny(secret, "0123456789") || strings.ContainsFunc(secret, notInToken) {
		return
	}
	s.mu.RLock()
	known := slices.Contains(s.callers, secret)
	s.mu.RUnlock()
	if known {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.callers) >= maxCallers {
		s.callers = slices.Delete(s.callers, 0, 1)
	}
	s.callers = append(s.callers, secret)
}

// notInToken reports whether r is no character of a bearer token (RFC 6750).
func notInToken(r rune) bool {
	return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("-._~+/=", r)
}

// encodings returns a credential as text, in JSON, in JSON within JSON, and in a
// URL. The strings are distinct.
func encodings(secret string) []string {
	all := []string{secret, inJSON(secret), inJSON(inJSON(secret)), strings.ReplaceAll(secret, "/", `\/`), url.QueryEscape(secret), url.PathEscape(secret)}
	slices.Sort(all)
	return slices.Compact(all)
}

func inJSON(s string) string {
	quoted, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always marshal
	}
	return string(quoted[1 : len(quoted)-1])
}

// Text returns an error message or a log line without the credentials, and without
// quoted parts of the operator's credentials.
func (s *Secrets) Text(text string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	text = s.valueLocked(text, true)
	for _, w := range s.callers {
		if strings.Contains(text, w) {
			text = strings.ReplaceAll(text, w, strings.Repeat("*", len(w)))
		}
	}
	return text
}

// Value returns a header of an answer as Reader returns the body.
func (s *Secrets) Value(text string, parts bool) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.valueLocked(text, parts)
}

// Bytes returns the body of an answer as Reader returns it. Bytes does not modify b,
// and returns b if it holds no credential.
func (s *Secrets) Bytes(b []byte, parts bool) []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bytesLocked(b, parts)
}

func (s *Secrets) valueLocked(text string, parts bool) string {
	if !s.foundLocked(text, parts) {
		return text // without a copy: nearly every header of every answer
	}
	return string(s.hiddenLocked([]byte(text), parts))
}

func (s *Secrets) bytesLocked(in []byte, parts bool) []byte {
	if !s.foundLocked(line.View(in), parts) {
		return in
	}
	return s.hiddenLocked(in, parts)
}

// hiddenLocked returns a copy of in without the operator's credentials.
func (s *Secrets) hiddenLocked(in []byte, parts bool) []byte {
	out := bytes.Clone(in)
	s.hideLocked(in, out, 0, minLength(parts), parts)
	return out
}

// foundLocked reports whether text holds one of the operator's credentials.
func (s *Secrets) foundLocked(text string, parts bool) bool {
	if slices.ContainsFunc(s.whole, func(w string) bool { return len(w) >= minLength(parts) && strings.Contains(text, w) }) {
		return true
	}
	for i := 0; parts && i+partLen <= len(text); i++ {
		if _, found := s.parts[text[i:i+partLen]]; found {
			return true
		}
	}
	return false
}

// minLength is the length of the shortest credential to be hidden.
func minLength(parts bool) int {
	if parts {
		return minWhole
	}
	return minAnswer
}

// hideLocked hides the operator's credentials: hideLocked searches in, and writes
// asterisks to out, which has the same length. The first covered bytes of in belong
// to a part that was found before. It returns the end of the last part.
func (s *Secrets) hideLocked(in, out []byte, covered, minLen int, parts bool) int {
	for _, w := range s.whole {
		if len(w) >= minLen {
			hide(in, out, w)
		}
	}
	if !parts || len(s.parts) == 0 {
		return 0
	}
	end := covered
	for i := 0; i+partLen <= len(in); i++ {
		if _, found := s.parts[string(in[i:i+partLen])]; found {
			fill(out[i : i+partLen])
			end = i + partLen
		}
	}
	return end
}

func hide(in, out []byte, w string) {
	for from := 0; ; {
		i := bytes.Index(in[from:], []byte(w))
		if i < 0 {
			return
		}
		from += i
		fill(out[from : from+len(w)])
		from++
	}
}

func fill(b []byte) {
	for i := range b {
		b[i] = '*'
	}
}

// openLocked returns the length of the longest end of text at which a credential, or a
// part, may begin.
func (s *Secrets) openLocked(text string, minLen int, parts bool) int {
	longest := 0
	for _, w := range s.whole {
		if len(w) < minLen {
			continue
		}
		for n := min(len(w)-1, len(text)); n > longest; n-- {
			if strings.HasSuffix(text, w[:n]) {
				longest = n
				break
			}
		}
	}
	for n := min(partLen-1, len(text)); parts && n > longest; n-- {
		if _, found := s.parts[text[len(text)-n:]]; found {
			longest = n
			break
		}
	}
	return longest
}
