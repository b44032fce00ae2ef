// Package submit runs the requests of a Batch API input file through a
// RoundTripper that batches, and writes the results in the order of the input.
package submit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// maxLine is the largest line of an input file, in bytes: larger than any provider
// allows.
const maxLine = 256 << 20

// A Request is a line of the input file.
type Request struct {
	Line     int    // in the file, from 1
	CustomID string // chosen by the author of the file
	Endpoint string // "/chat/completions"
	Body     []byte
}

// A BadLine is a line that cannot be sent.
type BadLine struct {
	Line   int
	Reason string
}

func (b BadLine) String() string { return fmt.Sprintf("line %d: %s", b.Line, b.Reason) }

// An Input describes an input file that was read once.
type Input struct {
	Requests int // good lines
	Lines    int // of the file, with blank and bad lines
	Bad      []BadLine
	hash     string // of the contents
	seed     maphash.Seed
	sums     []uint64 // hash of each line
}

// Check reads an input file to its end, before anything is sent. batched says which
// endpoints are batched. The error is an error of reading.
func Check(r io.Reader, batched func(endpoint string) bool) (*Input, error) {
	in := &Input{seed: maphash.MakeSeed()}
	sum := sha256.New()
	ids := newIDs()
	for line, err := range lines(io.TeeReader(r, sum)) {
		if err != nil {
			return nil, err
		}
		in.Lines = line.number
		in.sums = append(in.sums, maphash.Bytes(in.seed, line.text))
		if line.blank() {
			continue
		}
		request, reason := line.parse(batched)
		if reason != "" {
			in.Bad = append(in.Bad, BadLine{line.number, reason})
			continue
		}
		in.Requests++
		ids.add(request.CustomID, request.Line)
	}
	for _, bad := range ids.repeated() {
		in.Requests--
		in.Bad = append(in.Bad, bad)
	}
	slices.SortFunc(in.Bad, func(a, b BadLine) int { return a.Line - b.Line })
	in.hash = hex.EncodeToString(sum.Sum(nil))
	return in, nil
}

// ErrChanged is returned when the input file is not the file that Check has read.
var ErrChanged = errors.New("the input file has changed while it was read")

// again reads the file for the second time, and calls use for each line. A file that
// Check has read otherwise is ErrChanged, and no line that differs is used.
func (in *Input) again(r io.Reader, use func(textLine) error) error {
	read := 0
	for line, err := range lines(r) {
		if err == nil {
			err = in.verify(line)
		}
		if err == nil {
			err = use(line)
		}
		if err != nil {
			return err
		}
		read = line.number
	}
	if read < in.Lines {
		return fmt.Errorf("%w: it had %d lines, and has %d", ErrChanged, in.Lines, read)
	}
	return nil
}

// verify checks that a line is the line that Check has read: what is sent belongs to
// the hash in the Part.
func (in *Input) verify(line textLine) error {
	switch {
	case line.number > in.Lines:
		return fmt.Errorf("%w: it had %d lines, and has more", ErrChanged, in.Lines)
	case maphash.Bytes(in.seed, line.text) != in.sums[line.number-1]:
		return fmt.Errorf("%w: line %d is another", ErrChanged, line.number)
	}
	return nil
}

// isBad reports whether a line is among the bad lines.
func (in *Input) isBad(line int) (reason string, bad bool) {
	i, bad := slices.BinarySearchFunc(in.Bad, line, func(b BadLine, line int) int { return b.Line - line })
	if !bad {
		return "", false
	}
	return in.Bad[i].Reason, true
}

// A textLine is a line of the file.
type textLine struct {
	number int
	text   []byte // valid until the next line is read
}

func (l textLine) blank() bool { return len(bytes.TrimSpace(l.text)) == 0 }

// lines yields the lines of a file. A byte-order mark is skipped.
func lines(r io.Reader) func(yield func(textLine, error) bool) {
	return func(yield func(textLine, error) bool) {
		s := bufio.NewScanner(r)
		s.Buffer(make([]byte, 64<<10), maxLine)
		n := 0
		for s.Scan() {
			n++
			text := s.Bytes()
			if n == 1 {
				text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
			}
			if !yield(textLine{n, text}, nil) {
				return
			}
		}
		if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield(textLine{}, fmt.Errorf("line %d is longer than %d MiB", n+1, maxLine>>20))
		} else if err != nil {
			yield(textLine{}, err)
		}
	}
}

// parse reads a line. The body of the Request is valid until the next line is read.
func (l textLine) parse(batched func(endpoint string) bool) (r Request, reason string) {
	if !gjson.ValidBytes(l.text) {
		return r, "not valid JSON"
	}
	line := gjson.ParseBytes(l.text)
	if !line.IsObject() {
		return r, "not a JSON object"
	}
	id, method, url, body := line.Get("custom_id"), line.Get("method"), line.Get("url"), line.Get("body")
	r = Request{Line: l.number, CustomID: id.String(), Endpoint: endpoint(url.String()), Body: []byte(body.Raw)}
	switch {
	case id.Type != gjson.String || id.String() == "":
		return r, `"custom_id" is missing; it must be a text that no other line has`
	case method.Exists() && method.String() != "POST":
		return r, fmt.Sprintf(`"method" is %s; it must be "POST"`, method.Raw)
	case url.Type != gjson.String:
		return r, `"url" is missing; it must be an endpoint such as "/v1/chat/completions"`
	case !batched(r.Endpoint):
		return r, fmt.Sprintf("%q is no endpoint that can be batched here", url.String())
	case !body.IsObject():
		return r, `"body" is missing; it must be the JSON object of the request`
	case body.Get("stream").Bool():
		return r, `"stream" is true; a result in a file cannot be a stream`
	}
	return r, ""
}

// endpoint is a URL of a line without the version.
func endpoint(url string) string {
	for _, version := range []string{"/v1/", "/v4/", "/openai/v1/"} {
		if rest, ok := strings.CutPrefix(url, version); ok {
			return "/" + rest
		}
	}
	return url
}

// ids finds custom ids that occur more than once. It keeps a hash and a line number
// of each id.
type ids struct {
	seed  maphash.Seed
	first map[uint64]int
	again []BadLine
}

func newIDs() *ids { return &ids{seed: maphash.MakeSeed(), first: make(map[uint64]int)} }

func (i *ids) add(id string, line int) {
	h := maphash.String(i.seed, id)
	if first, known := i.first[h]; known {
		i.again = append(i.again, BadLine{line, fmt.Sprintf(`"custom_id" is %q, as on line %d; each line needs its own`, id, first)})
		return
	}
	i.first[h] = line
}

func (i *ids) repeated() []BadLine { return i.again }
