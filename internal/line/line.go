// Package line is the codec of a batch's files: it writes the lines of an
// input file and reads the lines of output and error files. It is pure: what
// it reads and writes are bytes, and it knows nothing of the network.
package line

import (
	"bytes"
	"io"

	"github.com/tidwall/gjson"
)

// A Line is one call as it stands in a batch's input file.
type Line struct {
	ID   string // custom_id: at most 64 bytes of printable ASCII that JSON need not escape
	URL  string // "/v1/chat/completions": what the provider calls the endpoint
	Body []byte // a valid JSON object without raw line breaks
}

const (
	idKey   = `{"custom_id":"`
	urlKey  = `","method":"POST","url":"`
	bodyKey = `","body":`
	end     = `}`
)

// Size is the number of bytes that Append writes.
func (l *Line) Size() int {
	return len(idKey) + len(l.ID) + len(urlKey) + len(l.URL) + len(bodyKey) + len(l.Body) + len(end)
}

// Append appends the line to dst, without a line break.
func (l *Line) Append(dst []byte) []byte {
	dst = l.appendHead(dst)
	dst = append(dst, l.Body...)
	return append(dst, end...)
}

// appendHead appends all that stands before the body.
func (l *Line) appendHead(dst []byte) []byte {
	dst = append(dst, idKey...)
	dst = append(dst, l.ID...)
	dst = append(dst, urlKey...)
	dst = append(dst, l.URL...)
	return append(dst, bodyKey...)
}

// A File is an input file that has not been written anywhere: its lines stay
// where they are, and every reader of it walks over them. Lines are joined by
// "\n".
type File struct {
	Lines int
	At    func(i int) *Line
}

// Size is the number of bytes a reader of the file yields.
func (f File) Size() int64 {
	size := int64(max(f.Lines-1, 0))
	for i := range f.Lines {
		size += int64(f.At(i).Size())
	}
	return size
}

// NewReader returns a reader of the file from its beginning. Readers are
// independent of each other; the lines must not change while one is in use.
func (f File) NewReader() io.Reader { return &fileReader{file: f} }

// fileReader yields a file line by line. rest is what is left of the piece in
// hand; a line is three pieces (head, body, tail), so that no body is copied
// anywhere but into the caller's buffer.
type fileReader struct {
	file  File
	line  int // the line that comes next
	piece int // its piece that comes next: 0 head, 1 body, 2 tail
	head  []byte
	rest  []byte
}

func (r *fileReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(r.rest) == 0 && !r.next() {
			break
		}
		k := copy(p[n:], r.rest)
		r.rest = r.rest[k:]
		n += k
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// next takes the next piece in hand, and reports whether there was one.
func (r *fileReader) next() bool {
	if r.line == r.file.Lines {
		return false
	}
	l := r.file.At(r.line)
	switch r.piece {
	case 0:
		r.head = l.appendHead(r.head[:0])
		r.rest = r.head
	case 1:
		r.rest = l.Body
	case 2:
		r.line, r.piece = r.line+1, -1
		r.rest = tail(r.line == r.file.Lines)
	}
	r.piece++
	return true
}

var lastTail, innerTail = []byte(end), []byte(end + "\n")

func tail(last bool) []byte {
	if last {
		return lastTail
	}
	return innerTail
}

// maxDepth bounds the nesting of what is accepted, as encoding/json does:
// gjson's validator calls itself for every level, and a few megabytes of "["
// would end the process by stack overflow.
const maxDepth = 10_000

// Valid reports whether b is one valid JSON value, nested at most 10,000 deep.
func Valid(b []byte) bool {
	if bytes.Count(b, []byte{'['})+bytes.Count(b, []byte{'{'}) > maxDepth && depth(b) > maxDepth {
		return false
	}
	return gjson.ValidBytes(b)
}

// depth is the deepest nesting of brackets outside of strings.
func depth(b []byte) int {
	deepest, level, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			level++
			deepest = max(deepest, level)
		case c == ']' || c == '}':
			level--
		}
	}
	return deepest
}
