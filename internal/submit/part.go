package submit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"sync"

	"github.com/tidwall/gjson"
)

// A Part holds results in the order in which they came, each with the number of its
// line, until all results are there. A run that was interrupted goes on with the
// Part. All methods are safe for concurrent use.
type Part struct {
	path string

	mu   sync.Mutex
	file *os.File
	end  int64   // of the file
	at   []int64 // where the result of each line begins, by line number less 1; 0: no result
	done int
	ok   int
}

// header is the first line of a Part.
type header struct {
	Input string `json:"input"` // hash of the input file
	Lines int    `json:"lines"`
}

// ErrOtherInput is returned for a Part that was begun for other contents of the input
// file.
var ErrOtherInput = errors.New("was begun for other contents of the input file")

// ErrNotPart is returned for a file that submit has not begun. The file stays as it is.
var ErrNotPart = errors.New("is no file that submit has begun")

// ErrInUse is returned for a Part that another process has open.
var ErrInUse = errors.New("another process is writing it")

// OpenPart opens the Part of an input file, and makes one if there is none. Only the
// user can read the Part.
func OpenPart(path string, in *Input) (*Part, error) {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %w", path, ErrNotPart) // a symbolic link, for example
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(file); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	p := &Part{path: path, file: file, at: make([]int64, in.Lines)}
	if err := p.resume(header{in.hash, in.Lines}); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// resume reads the results that an earlier run has left. A result, or a header, that is
// not whole is cut off. Another file is not changed.
func (p *Part) resume(h header) error {
	r := bufio.NewReaderSize(p.file, 1<<20)
	want, err := json.Marshal(h)
	if err != nil {
		return err
	}
	want = append(want, '\n')
	got, err := r.Peek(len(want))
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case bytes.HasPrefix(got, []byte(`{"input":"`)) && !bytes.HasPrefix(want, got):
		return fmt.Errorf("%s %w", p.path, ErrOtherInput)
	case !bytes.HasPrefix(want, got):
		return fmt.Errorf("%s %w", p.path, ErrNotPart)
	}
	if err := p.makePrivate(); err != nil {
		return err
	}
	if len(got) < len(want) {
		if err := p.cut(); err != nil {
			return err
		}
		return p.append(want)
	}
	_, err = r.Discard(len(want))
	for p.end = int64(len(want)); err == nil; {
		var text []byte
		if text, err = readLine(r); err == nil {
			p.note(text)
			p.end += int64(len(text))
		}
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return p.cut()
}

// makePrivate makes sure that only the user can read the Part, as if submit had made
// the file.
func (p *Part) makePrivate() error {
	info, err := p.file.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s %w", p.path, ErrNotPart)
	case info.Mode().Perm()&0o077 == 0 || runtime.GOOS == "windows": // which has no such bits
		return nil
	}
	return p.file.Chmod(0o600)
}

// readLine reads a line with its end. A line without an end counts as the end of the
// file.
func readLine(r *bufio.Reader) ([]byte, error) {
	text, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	return text, nil
}

// cut removes what is behind the last whole result.
func (p *Part) cut() error {
	if err := p.file.Truncate(p.end); err != nil {
		return err
	}
	_, err := p.file.Seek(p.end, io.SeekStart)
	return err
}

func (p *Part) append(text []byte) error {
	n, err := p.file.Write(text)
	if err != nil {
		return errors.Join(err, p.cut()) // what was written of the result is no result
	}
	p.end += int64(n)
	return nil
}

// note remembers where a result is.
func (p *Part) note(text []byte) {
	number, result, _ := bytes.Cut(text, []byte(" "))
	line, err := strconv.Atoi(string(number))
	if err != nil || line < 1 || line > len(p.at) || p.at[line-1] != 0 {
		return
	}
	p.at[line-1] = p.end + int64(len(number)) + 1
	p.done++
	if succeeded(result) {
		p.ok++
	}
}

func succeeded(result []byte) bool {
	status := gjson.GetBytes(result, "response.status_code").Int()
	return status >= 200 && status < 300
}

// Add stores the result of a line: a JSON object without line breaks.
func (p *Part) Add(line int, result []byte) error {
	text := append(strconv.AppendInt(make([]byte, 0, len(result)+12), int64(line), 10), ' ')
	text = append(append(text, result...), '\n')
	p.mu.Lock()
	defer p.mu.Unlock()
	begin := p.end
	if err := p.append(text); err != nil {
		return err
	}
	p.end, begin = begin, p.end
	p.note(text)
	p.end = begin
	return nil
}

// Has reports whether a line has its result.
func (p *Part) Has(line int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[line-1] != 0
}

// Counts returns the number of results, and how many of them are answers.
func (p *Part) Counts() (done, ok int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done, p.ok
}

// Finish writes the results in the order of the lines to out, which must not exist,
// and removes the Part.
func (p *Part) Finish(out string) (err error) {
	temporary := p.path + ".sorted"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an earlier run, or a link
		return err
	}
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(p.copyInOrder(file), file.Sync(), file.Close()); err != nil {
		return err
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s was made by another program meanwhile; the results are in %s", out, temporary)
	}
	if err := os.Rename(temporary, out); err != nil {
		return err
	}
	return errors.Join(p.Close(), os.Remove(p.path))
}

func (p *Part) copyInOrder(w io.Writer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	buffered := bufio.NewWriterSize(w, 1<<20)
	reader := bufio.NewReader(nil)
	for _, at := range p.at {
		if at == 0 {
			continue
		}
		reader.Reset(io.NewSectionReader(p.file, at, p.end-at))
		for {
			some, err := reader.ReadSlice('\n')
			if _, err := buffered.Write(some); err != nil {
				return err
			}
			if err == nil {
				break
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				return err
			}
		}
	}
	return buffered.Flush()
}

// Close closes the Part; its results stay.
func (p *Part) Close() error { return errors.Join(p.file.Sync(), p.file.Close()) }
