package line

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// ErrTooLong is returned by Reader.Next for a line over the reader's limit.
// The line is skipped, and the next call reads on behind it.
var ErrTooLong = errors.New("result line too long")

// A Reader yields the lines of a file as it streams in. It holds one line at a
// time, however long the file.
type Reader struct {
	src   *bufio.Reader
	limit int
	long  []byte // a line that did not fit into src's buffer
	lines int
}

// NewReader returns a Reader of src whose lines may be limit bytes long.
func NewReader(src io.Reader, limit int) *Reader {
	return &Reader{src: bufio.NewReaderSize(src, 64<<10), limit: limit}
}

// Lines is how many lines ended so far, empty and too long ones included: the
// position from which a broken download is resumed.
func (r *Reader) Lines() int { return r.lines }

// Next returns the next line that is not empty, without its line break; it is
// valid until the next call. At the end of a whole file the error is io.EOF;
// any other error but ErrTooLong means that the file broke off. A last line
// without a line break counts only if it is a whole JSON value, since a torn
// download ends within one.
func (r *Reader) Next() ([]byte, error) {
	for {
		line, err := r.read()
		line = bytes.TrimSpace(line)
		switch {
		case err == nil:
			r.lines++
		case errors.Is(err, ErrTooLong):
			r.lines++
			return nil, err
		case errors.Is(err, io.EOF) && len(line) > 0 && Valid(line):
			r.lines++
			return line, nil
		default:
			return nil, err
		}
		if len(line) > 0 {
			return line, nil
		}
	}
}

// read returns what comes up to the next line break.
func (r *Reader) read() ([]byte, error) {
	line, err := r.src.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	r.long = append(r.long[:0], line...)
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = r.src.ReadSlice('\n')
		if len(r.long) <= r.limit {
			r.long = append(r.long, line...)
		}
	}
	if len(r.long) > r.limit && err == nil {
		return nil, ErrTooLong
	}
	return r.long, err
}
