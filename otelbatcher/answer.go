package otelbatcher

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"sync"

	"github.com/tidwall/gjson"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
)

// maxAnswer is the size of the largest answer that is examined, in bytes.
const maxAnswer = 8 << 20

// An answer is what the span and the metrics of a call report of its answer.
type answer struct {
	model         string
	input, output int64 // tokens; 0 if unknown
	attributes    []attribute.KeyValue
	failed        string // error.type; "" for a success
}

// answered notes the headers of a response, and ends the call when the caller has read
// or closed the body.
func (c *call) answered(res *http.Response) {
	c.status = res.StatusCode
	for header, key := range map[string]attribute.Key{"Autobatcher-Batch-Id": batchIDKey, "Autobatcher-Custom-Id": customIDKey} {
		if value := res.Header.Get(header); value != "" {
			c.span.SetAttributes(key.String(value))
		}
	}
	if cost, err := strconv.ParseFloat(res.Header.Get("Autobatcher-Cost"), 64); err == nil {
		c.span.SetAttributes(costKey.Float64(cost))
	}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.Body == nil || res.Body == http.NoBody {
		c.end(c.examine(nil, false, nil))
		return
	}
	res.Body = &body{ReadCloser: res.Body, done: func(text []byte, err error) {
		c.end(c.examine(text, kind == "text/event-stream", err))
	}}
}

// A body copies what the caller reads, up to maxAnswer bytes, and calls done once: at
// the end of the body, at an error, or when the caller closes the body. The text is nil
// if the body is too large.
type body struct {
	io.ReadCloser
	done func(text []byte, err error)

	mu       sync.Mutex // Close may interrupt a Read
	text     []byte
	tooLarge bool
	ended    bool
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	switch {
	case b.ended || b.tooLarge:
	case len(b.text)+n > maxAnswer:
		b.text, b.tooLarge = nil, true
	default:
		b.text = append(b.text, p[:n]...)
	}
	b.mu.Unlock()
	if err != nil {
		b.end(err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.end(nil)
	return b.ReadCloser.Close()
}

func (b *body) end(err error) {
	b.mu.Lock()
	ended, text := b.ended, b.text
	b.ended, b.text = true, nil
	b.mu.Unlock()
	if ended {
		return
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	b.done(text, err)
}

// examine reads the answer of a call. err is the error that ended the body.
func (c *call) examine(text []byte, stream bool, err error) answer {
	var a answer
	if stream {
		for event := range bytes.Lines(text) {
			if data, ok := bytes.CutPrefix(event, []byte("data:")); ok {
				a.read(gjson.ParseBytes(data))
			}
		}
	} else {
		a.read(gjson.ParseBytes(text))
	}
	switch {
	case err != nil:
		a.failed = "answer_broken"
	case c.status >= 400:
		a.failed = strconv.Itoa(c.status)
		// Only autobatcher answers with 424, and the number of its codes is small.
		if code := gjson.GetBytes(text, "error.code").Str; c.status == http.StatusFailedDependency && ownCode.MatchString(code) {
			a.failed = code
		}
	}
	return a
}

var ownCode = regexp.MustCompile(`^[a-z_]{1,64}$`)

// read reads an answer, or an event of a streamed answer: a chunk of a chat completion,
// or an event of a response.
func (a *answer) read(object gjson.Result) {
	object.ForEach(func(key, value gjson.Result) bool {
		text := value.Type == gjson.String && len(value.Str) <= maxModel
		switch key.Str {
		case "response":
			a.read(value)
		case "model":
			if text {
				a.model = value.Str
			}
		case "id":
			if text {
				a.set(semconv.GenAIResponseID(value.Str))
			}
		case "status": // of a response
			if text {
				a.set(semconv.GenAIResponseFinishReasons(value.Str))
			}
		case "choices":
			var reasons []string
			for _, reason := range value.Get("#.finish_reason").Array() {
				reasons = append(reasons, reason.Str)
			}
			if len(reasons) > 0 && reasons[0] != "" {
				a.set(semconv.GenAIResponseFinishReasons(reasons...))
			}
		case "usage":
			a.readUsage(value)
		}
		return true
	})
}

// readUsage reads the numbers of tokens: of a chat completion, an embedding or a
// response.
func (a *answer) readUsage(usage gjson.Result) {
	report := func(key attribute.Key, paths ...string) int64 {
		for _, path := range paths {
			if n := usage.Get(path); n.Type == gjson.Number && n.Int() >= 0 {
				a.set(key.Int64(n.Int()))
				return n.Int()
			}
		}
		return 0
	}
	if !usage.IsObject() {
		return
	}
	a.input = report(semconv.GenAIUsageInputTokensKey, "prompt_tokens", "input_tokens")
	a.output = report(semconv.GenAIUsageOutputTokensKey, "completion_tokens", "output_tokens")
	report(semconv.GenAIUsageCacheReadInputTokensKey, "prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens")
	report(semconv.GenAIUsageReasoningOutputTokensKey, "completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens")
}

// set adds an attribute. A later event of a stream replaces the value of an earlier
// event.
func (a *answer) set(attribute attribute.KeyValue) {
	for i := range a.attributes {
		if a.attributes[i].Key == attribute.Key {
			a.attributes[i] = attribute
			return
		}
	}
	a.attributes = append(a.attributes, attribute)
}
