package line

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// Errors of Reader.Next.
var (
	// ErrTooLong is the error for a line over the reader's limit. The line is
	// skipped, and the next call reads on behind the line.
	ErrTooLong = errors.New("result line too long")

	// ErrEndless is the error for a line that is skippedLimits times as long as the
	// reader's limit and has not ended. The rest of the file cannot be read.
	ErrEndless = errors.New("a result line has no end")

	// ErrTruncated is the error for a file that ends within a line.
	ErrTruncated = errors.New("the file ends within a line")
)

// skippedLimits limits how much of a line over the limit is skipped.
const skippedLimits = 4

// A Reader yields the lines of a file while the file streams in. A Reader holds a
// single line in memory.
type Reader struct {
	src    *bufio.Reader
	limit  int
	long   []byte // a line that did not fit into the buffer of src
	lines  int
	offset int64
	rest   []byte // of a line that broke off
}

// NewReader returns a Reader of src whose lines may be limit bytes long.
func NewReader(src io.Reader, limit int) *Reader {
	return &Reader{src: bufio.NewReaderSize(src, 64<<10), limit: limit}
}

// Lines is the number of lines that have ended, empty and too long lines
// included.
func (r *Reader) Lines() int { return r.lines }

// Offset is the number of bytes of the lines that have ended: where to resume
// after a download that broke off.
func (r *Reader) Offset() int64 { return r.offset }

// Rest is the beginning of the line in which the file broke off.
func (r *Reader) Rest() []byte { return r.rest }

// Next returns the next line that is not empty, without its line break. The line
// is valid until the next call. The error is io.EOF at the end of a whole file
// and ErrTruncated at an end within a line. A last line without a line break is
// whole if its brackets are closed. Behind ErrTooLong the caller reads on. Any
// other error means that the file broke off.
func (r *Reader) Next() ([]byte, error) {
	for {
		whole, size, err := r.read()
		line := bytes.TrimSpace(whole)
		switch {
		case err == nil, errors.Is(err, ErrTooLong):
		case !errors.Is(err, io.EOF) || len(line) == 0:
			r.breakOff(whole)
			return nil, err
		case !closed(line):
			r.breakOff(whole)
			return nil, ErrTruncated
		}
		r.lines++
		r.offset += size
		if errors.Is(err, ErrTooLong) {
			return nil, err
		}
		if len(line) > 0 {
			return line, nil
		}
	}
}

// breakOff keeps the beginning of a line for Rest.
func (r *Reader) breakOff(part []byte) {
	if len(part) <= r.limit {
		r.rest = bytes.Clone(part)
	}
}

// closed reports whether a line is a whole JSON value, or a whole object in
// malformed JSON.
func closed(b []byte) bool {
	if Valid(b) {
		return true
	}
	_, rest, ok := cutValue(trimBOM(b))
	return ok && len(bytes.TrimSpace(rest)) == 0 && bytes.HasSuffix(b, []byte{'}'})
}

// read returns the bytes up to the next line break, and their number.
func (r *Reader) read() (line []byte, size int64, err error) {
	line, err = r.src.ReadSlice('\n')
	size = int64(len(line))
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, size, err
	}
	r.long = append(r.long[:0], line...)
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = r.src.ReadSlice('\n')
		size += int64(len(line))
		if len(r.long) <= r.limit {
			r.long = append(r.long, line...)
		}
		if size > skippedLimits*int64(r.limit) && err != nil {
			return nil, size, ErrEndless
		}
	}
	if len(r.long) > r.limit && err == nil {
		return nil, size, ErrTooLong
	}
	return r.long, size, err
}
