// Package line is the codec of a batch's files. The package writes the lines of an
// input file and reads the lines of output and error files. It does not use the
// network.
package line

import "io"

// A Line is a call in a batch's input file.
type Line struct {
	ID   string // custom_id: at most 64 bytes of printable ASCII that JSON need not escape
	URL  string // "/v1/chat/completions": the endpoint in the provider's spelling
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
	dst = l.appendHead(dst, false)
	dst = append(dst, l.Body...)
	return append(dst, end...)
}

// appendHead appends the part of the line before the body.
func (l *Line) appendHead(dst []byte, bare bool) []byte {
	dst = append(dst, idKey...)
	dst = append(dst, l.ID...)
	if !bare {
		dst = append(dst, urlKey...)
		dst = append(dst, l.URL...)
	}
	return append(dst, bodyKey...)
}

// A File is an input file in memory. Each reader of the File walks over the lines
// without copying the File. Lines are joined by "\n".
type File struct {
	Lines int
	At    func(i int) *Line
	Bare  bool // the lines have an id and a body only
}

// Size is the number of bytes a reader of the file yields.
func (f File) Size() int64 {
	size := int64(max(f.Lines-1, 0))
	for i := range f.Lines {
		l := f.At(i)
		size += int64(l.Size())
		if f.Bare {
			size -= int64(len(urlKey) + len(l.URL))
		}
	}
	return size
}

// NewReader returns a reader of the file from the beginning. Readers are
// independent of each other. The lines must not change while a reader is in use.
func (f File) NewReader() io.Reader { return &fileReader{file: f} }

// fileReader yields a file line by line. A line is three pieces: head, body and
// tail. A body is copied into the caller's buffer only. rest is the unread part of
// the current piece.
type fileReader struct {
	file  File
	line  int // the next line
	piece int // the next piece of the line: 0 head, 1 body, 2 tail
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

// next moves to the next piece. It returns false at the end of the file.
func (r *fileReader) next() bool {
	if r.line == r.file.Lines {
		return false
	}
	l := r.file.At(r.line)
	switch r.piece {
	case 0:
		r.head = l.appendHead(r.head[:0], r.file.Bare)
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
