package background

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/internal/answercache"
)

const (
	// endingsBytes bounds the endings that are kept. maxJobs ordinary failures have room:
	// all calls of a process can fail at once, when their batches expire. An ordinary
	// failure takes about 800 bytes, of which 256 are for its places in the map and the cache.
	endingsBytes = 96 << 20

	// endingBytes is the size of an ending without its texts.
	endingBytes = 160
)

// An ending is the failure of a call, or says that the call was cancelled. As a process may
// keep as many endings as calls, an ending has only what the answer to a question needs,
// and holds no memory of the call and of its response.
type ending struct {
	key      Key
	entry    *answercache.Entry
	created  int64  // when the call was made, in Unix time
	status   int    // of the response to the call; 0: the call was cancelled
	model    string // of the call
	metadata string // of the call; "": none, or not known
	header   string // of the response: names and values, each with a NUL at its end
	body     string // of the response
}

// cancellation is the ending of a call that was cancelled.
func (j *job) cancellation() *ending {
	return &ending{key: j.key, created: j.created.Unix(), model: strings.Clone(j.model), metadata: string(j.metadata)}
}

// failure is the ending of a call whose response is no success. The answer to a question
// for a response of OpenAI's API has only the code and the message of the body.
func (j *job) failure() *ending {
	e, body := j.cancellation(), j.result.body
	if !j.async {
		body, _ = json.Marshal(map[string]any{"error": j.failedView(&j.result).Error}) // texts can be marshaled
	}
	e.status, e.header, e.body = j.result.status, packed(j.result.header), string(body)
	return e
}

// packed returns the headers of a response in one text.
func packed(h http.Header) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			if name != "Content-Length" { // follows from the body
				b.WriteString(name + "\x00" + value + "\x00")
			}
		}
	}
	return b.String()
}

func unpacked(text string) http.Header {
	h := make(http.Header)
	for text != "" {
		var name, value string
		name, text, _ = strings.Cut(text, "\x00")
		value, text, _ = strings.Cut(text, "\x00")
		h.Add(name, value)
	}
	return h
}

// response is the answer to a question for a call that failed or was cancelled.
func (e *ending) response(req *http.Request, id string) *http.Response {
	c := callOf(id)
	c.created, c.model = time.Unix(e.created, 0), e.model
	if e.metadata != "" {
		c.metadata = []byte(e.metadata)
	}
	if e.status == 0 {
		return c.cancelled(req)
	}
	return c.final(req, result{status: e.status, header: unpacked(e.header), body: []byte(e.body)})
}

// end keeps an ending for those who ask for the id.
func (s *Server) end(e *ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.endings[e.key]; before != nil {
		s.cache.Remove(before.entry)
	}
	s.endings[e.key] = e
	e.entry = s.cache.Put(e, endingBytes+int64(len(e.model)+len(e.metadata)+len(e.header)+len(e.body)), s.opts.KeepFor)
}

func (s *Server) endingOf(key Key) *ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache.Prune()
	return s.endings[key]
}

func (s *Server) forgetEnding(key Key) (known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.endings[key]
	if e != nil {
		s.cache.Remove(e.entry)
		delete(s.endings, key)
	}
	return e != nil
}
