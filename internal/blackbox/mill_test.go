package blackbox_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A mill is a provider for tests of scale: it keeps of each file only the ids of the
// lines, holds all batches until open is called, and makes the results while they are
// read. It needs no socket, and costs little beside the Transport.
type mill struct {
	answer []byte // the body of each answer

	opened   atomic.Bool
	requests atomic.Int64
	uploaded atomic.Int64 // bytes
	created  atomic.Int64 // batches
	files    atomic.Int64

	mu    sync.Mutex
	ids   map[string][]byte   // by file: the custom ids, lineID bytes each
	owned map[string][]string // by credential: the batches
}

// lineID is the length of the custom ids of the Transport.
const lineID = 36

func newMill(answer string) *mill {
	return &mill{answer: []byte(answer), ids: make(map[string][]byte), owned: make(map[string][]string)}
}

// open lets all batches end.
func (m *mill) open() { m.opened.Store(true) }

// forget forgets all files and batches.
func (m *mill) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ids, m.owned = nil, nil
}

func (m *mill) RoundTrip(req *http.Request) (*http.Response, error) {
	m.requests.Add(1)
	path := req.URL.Path
	name := path[strings.LastIndexByte(path, '/')+1:]
	switch {
	case req.Method == http.MethodPost && name == "files":
		ids := m.swallow(req.Body)
		file := fmt.Sprint("file-", m.files.Add(1))
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ids[file] = ids
		return reply200(req, `{"id":%q,"object":"file"}`, file), nil
	case req.Method == http.MethodPost && name == "batches":
		return m.create(req)
	case name == "content":
		file := strings.TrimSuffix(path, "/content")
		m.mu.Lock()
		defer m.mu.Unlock()
		ids := m.ids[file[strings.LastIndexByte(file, '/')+1:]]
		return response200(req, io.NopCloser(&output{mill: m, ids: ids})), nil
	case name == "batches":
		return m.list(req), nil
	case req.Method == http.MethodDelete:
		return reply200(req, `{"id":%q,"deleted":true}`, name), nil
	}
	return reply200(req, "%s", m.batch(name)), nil
}

func (m *mill) create(req *http.Request) (*http.Response, error) {
	var asked struct {
		File string `json:"input_file_id"`
	}
	defer req.Body.Close()
	if err := json.NewDecoder(req.Body).Decode(&asked); err != nil {
		return nil, err
	}
	id := "batch-" + asked.File
	m.mu.Lock()
	key := req.Header.Get("Authorization")
	m.owned[key] = append(m.owned[key], id)
	m.mu.Unlock()
	m.created.Add(1)
	return reply200(req, "%s", m.batch(id)), nil
}

// list is the page of the newest batches, all of them.
func (m *mill) list(req *http.Request) *http.Response {
	m.mu.Lock()
	owned := m.owned[req.Header.Get("Authorization")]
	m.mu.Unlock()
	all := make([]string, 0, len(owned))
	for _, id := range owned {
		all = append(all, m.batch(id))
	}
	return reply200(req, `{"object":"list","data":[%s],"has_more":false}`, strings.Join(all, ","))
}

func (m *mill) batch(id string) string {
	file := strings.TrimPrefix(id, "batch-")
	m.mu.Lock()
	lines := len(m.ids[file]) / lineID
	m.mu.Unlock()
	status, completed, out := "in_progress", 0, "null"
	if m.opened.Load() {
		status, completed, out = "completed", lines, `"`+file+`"`
	}
	return fmt.Sprintf(`{"id":%q,"object":"batch","status":%q,"input_file_id":%q,"output_file_id":%s,"request_counts":{"total":%d,"completed":%d,"failed":0}}`,
		id, status, file, out, lines, completed)
}

// swallow reads an upload and keeps the custom ids.
func (m *mill) swallow(body io.ReadCloser) (ids []byte) {
	defer body.Close()
	buf, _ := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	mark := []byte(`{"custom_id":"`)
	kept := 0 // bytes of the last read, which may hold the beginning of a mark and an id
	for {
		n, err := body.Read(buf[kept:])
		m.uploaded.Add(int64(n))
		text := buf[:kept+n]
		for {
			i := bytes.Index(text, mark)
			if i < 0 || len(text) < i+len(mark)+lineID {
				break
			}
			ids = append(ids, text[i+len(mark):][:lineID]...)
			text = text[i+len(mark)+lineID:]
		}
		kept = copy(buf[:], text[max(len(text)-len(mark)-lineID, 0):])
		if err != nil {
			return ids
		}
	}
}

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// An output is the result file of a batch, made while it is read.
type output struct {
	mill  *mill
	ids   []byte
	parts [5][]byte // of the line that is being read
}

func (o *output) Read(p []byte) (n int, err error) {
	for n < len(p) {
		part := 0
		for part < len(o.parts) && len(o.parts[part]) == 0 {
			part++
		}
		switch {
		case part < len(o.parts):
			copied := copy(p[n:], o.parts[part])
			o.parts[part] = o.parts[part][copied:]
			n += copied
		case len(o.ids) == 0:
			return n, io.EOF
		default:
			o.parts = [...][]byte{resultHead, o.ids[:lineID], resultMiddle, o.mill.answer, resultTail}
			o.ids = o.ids[lineID:]
		}
	}
	return n, nil
}

var (
	resultHead   = []byte(`{"id":"r","custom_id":"`)
	resultMiddle = []byte(`","response":{"status_code":200,"request_id":"req_1","body":`)
	resultTail   = []byte(`},"error":null}` + "\n")
)

func reply200(req *http.Request, format string, args ...any) *http.Response {
	return response200(req, io.NopCloser(strings.NewReader(fmt.Sprintf(format, args...))))
}

func response200(req *http.Request, body io.ReadCloser) *http.Response {
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: body, Request: req,
	}
}

// completion is the body of a chat completion of that many bytes, or some 300 if less.
func completion(size int) string {
	head := `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"`
	tail := `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`
	return head + strings.Repeat("x", max(size-len(head)-len(tail), 1)) + tail
}

// plain is a call number i, as a client makes it.
func plain(t testing.TB, i int, key, padding string) *http.Request {
	body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"%d%s"}]}`, i, padding)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://mill.invalid/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	return req
}
