package batchtest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	echoed     = 200        // the most characters of a message that Echo repeats
	answeredAt = 1735689600 // constant, so that an answer depends on the line only
	dimensions = 8          // of an embedding, where the request does not say
)

// Echo is the default of Options.Answer. Echo repeats the first sentence of the
// last user message, in the shape of a chat completion, a text completion or a
// response, which repeats the metadata, too. Embeddings, and the scores of a reranking, are made out of hashes, an image is a pixel whose revised prompt
// repeats the prompt, a transcription repeats the URL, and a moderation flags a text that contains "violence". The usage
// counts four bytes as a token. Equal bodies get equal answers, byte for byte.
func Echo(l Line) Outcome {
	var answer any
	switch {
	case strings.HasSuffix(l.URL, "/chat/completions"):
		answer = chatAnswer(l)
	case strings.HasSuffix(l.URL, "/embeddings"):
		answer = embeddingsAnswer(l)
	case strings.HasSuffix(l.URL, rerank):
		answer = rerankAnswer(l)
	case strings.HasSuffix(l.URL, "/responses"):
		answer = responseAnswer(l)
	case strings.HasSuffix(l.URL, moderations):
		answer = moderationAnswer(l)
	case strings.HasSuffix(l.URL, generations), strings.HasSuffix(l.URL, edits):
		answer = imagesAnswer(l)
	case strings.HasSuffix(l.URL, transcriptions), strings.HasSuffix(l.URL, translations):
		url, _ := unquote(field(l.Body, "url"))
		answer = object{"text": reply(url, nil)}
	default:
		answer = completionAnswer(l)
	}
	body, err := json.Marshal(answer)
	if err != nil {
		panic(err) // answer always has a type of this package
	}
	return Outcome{Status: 200, Body: body}
}

type object = map[string]any

func chatAnswer(l Line) any {
	text := reply(l.Prompt(), l.Body)
	n := 1
	if k, err := strconv.Atoi(string(field(l.Body, "n"))); err == nil {
		n = min(max(1, k), 128)
	}
	choices := make([]any, n)
	for i := range choices {
		choices[i] = chatChoice{
			Index: i, FinishReason: "stop",
			Message: chatMessage{Role: "assistant", Content: text, Annotations: []any{}},
		}
	}
	in, out := tokens(l.Body), int64(n)*tokens([]byte(text))
	return chatCompletion{
		ID: answerID("chatcmpl-", l), Object: "chat.completion", Created: answeredAt, Model: l.Model,
		Choices: choices, Usage: chatUsage{in, out, in + out}, ServiceTier: string(TierDefault),
	}
}

type chatCompletion struct {
	ID          string    `json:"id"`
	Object      string    `json:"object"`
	Created     int64     `json:"created"`
	Model       string    `json:"model"`
	Choices     []any     `json:"choices"`
	Usage       chatUsage `json:"usage"`
	ServiceTier string    `json:"service_tier,omitempty"`
	Fingerprint *string   `json:"system_fingerprint"`
}

type chatChoice struct {
	Index        int         `json:"index"`
	Message      chatMessage `json:"message"`
	Logprobs     *string     `json:"logprobs"`
	FinishReason string      `json:"finish_reason"`
}

type chatMessage struct {
	Role        string  `json:"role"`
	Content     string  `json:"content"`
	Refusal     *string `json:"refusal"`
	Annotations []any   `json:"annotations"`
}

type chatUsage struct {
	Prompt     int64 `json:"prompt_tokens"`
	Completion int64 `json:"completion_tokens"`
	Total      int64 `json:"total_tokens"`
}

func completionAnswer(l Line) any {
	text := reply(l.Prompt(), nil)
	in, out := tokens(l.Body), tokens([]byte(text))
	return object{
		"id": answerID("cmpl-", l), "object": "text_completion", "created": answeredAt, "model": l.Model,
		"choices": []any{object{"index": 0, "text": text, "logprobs": nil, "finish_reason": "stop"}},
		"usage":   chatUsage{in, out, in + out},
	}
}

func responseAnswer(l Line) any {
	text := reply(l.Prompt(), l.Body)
	in, out := tokens(l.Body), tokens([]byte(text))
	answer := responseObject(l)
	answer["status"] = completed
	answer["output"] = []any{object{
		"id": answerID("msg_", l), "type": "message", "role": "assistant", "status": completed,
		"content": []any{object{"type": "output_text", "text": text, "annotations": []any{}, "logprobs": []any{}}},
	}}
	answer["usage"] = object{
		"input_tokens": in, "input_tokens_details": object{"cached_tokens": 0},
		"output_tokens": out, "output_tokens_details": object{"reasoning_tokens": 0},
		"total_tokens": in + out,
	}
	return answer
}

// responseObject is a response without a status, output and usage.
func responseObject(l Line) object {
	return object{
		"id": answerID("resp_", l), "object": "response", "created_at": answeredAt, "model": l.Model,
		"background": false, "completed_at": nil, "error": nil, "incomplete_details": nil, "instructions": nil,
		"max_output_tokens": nil, "metadata": metadataOf(l), "parallel_tool_calls": true, "previous_response_id": nil,
		"service_tier": TierDefault, "temperature": 1, "top_p": 1, "tool_choice": "auto", "tools": []any{},
		"truncation": "disabled", "output": []any{}, "usage": nil,
	}
}

// metadataOf returns the metadata of a request, which a response repeats: an object of
// strings. Other metadata counts as none.
func metadataOf(l Line) map[string]string {
	pairs := map[string]string{}
	if raw := field(l.Body, "metadata"); raw == nil || json.Unmarshal(raw, &pairs) != nil || pairs == nil {
		return map[string]string{}
	}
	return pairs
}

func embeddingsAnswer(l Line) any {
	encoding, _ := unquote(field(l.Body, "encoding_format"))
	size, err := strconv.Atoi(string(field(l.Body, "dimensions")))
	if err != nil {
		size = dimensions
	}
	size = min(max(1, size), 4096)
	data := []any{}
	eachInput(field(l.Body, "input"), func(text []byte) {
		data = append(data, object{
			"object": "embedding", "index": len(data), "embedding": encode(vector(text, size), encoding),
		})
	})
	n := tokens(l.Body)
	return object{
		"object": "list", "data": data, "model": l.Model, "usage": object{"prompt_tokens": n, "total_tokens": n},
	}
}

// rerankAnswer ranks documents by a hash, in Voyage's shape.
func rerankAnswer(l Line) any {
	data := []object{}
	eachInput(field(l.Body, "documents"), func(text []byte) {
		score := float64(digest(text)%1000) / 1000
		data = append(data, object{"index": len(data), "relevance_score": score})
	})
	slices.SortStableFunc(data, func(a, b object) int {
		return cmp.Compare(b["relevance_score"].(float64), a["relevance_score"].(float64))
	})
	if k, err := strconv.Atoi(string(field(l.Body, "top_k"))); err == nil {
		data = data[:min(max(0, k), len(data))]
	}
	return object{"object": "list", "data": data, "model": l.Model, "usage": object{"total_tokens": tokens(l.Body)}}
}

func moderationAnswer(l Line) any {
	results := []any{}
	eachInput(field(l.Body, "input"), func(text []byte) {
		flagged := bytes.Contains(text, []byte("violence"))
		score := 0.001
		if flagged {
			score = 0.999
		}
		results = append(results, object{
			"flagged": flagged, "categories": object{"violence": flagged}, "category_scores": object{"violence": score},
			"category_applied_input_types": object{"violence": []string{"text"}},
		})
	})
	return object{"id": answerID("modr-", l), "model": cmp.Or(l.Model, "omni-moderation-latest"), "results": results}
}

// pixel is a PNG of one transparent pixel.
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="

func imagesAnswer(l Line) any {
	n := 1
	if k, err := strconv.Atoi(string(field(l.Body, "n"))); err == nil {
		n = min(max(1, k), 10)
	}
	data := make([]any, n)
	for i := range data {
		data[i] = object{"b64_json": pixel, "revised_prompt": reply(l.Prompt(), nil)}
	}
	in, out := tokens(l.Body), 272*int64(n) // as for a small image of low quality
	return object{"created": answeredAt, "data": data, "usage": object{
		"input_tokens": in, "input_tokens_details": object{"text_tokens": in, "image_tokens": 0}, "output_tokens": out, "total_tokens": in + out,
	}}
}

// vector makes a unit vector out of a text's hash.
func vector(text []byte, size int) []float32 {
	v := make([]float64, size)
	state, norm := digest(text), 0.0
	for i := range v {
		state ^= state << 13 // xorshift64
		state ^= state >> 7
		state ^= state << 17
		v[i] = float64(int64(state)) / math.MaxInt64
		norm += v[i] * v[i]
	}
	unit := make([]float32, size)
	for i := range v {
		unit[i] = float32(v[i] / math.Sqrt(norm))
	}
	return unit
}

func encode(v []float32, encoding string) any {
	if encoding != "base64" {
		return v
	}
	raw := make([]byte, 0, 4*len(v))
	for _, x := range v {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// reply is the model's answer to a prompt: JSON if the body asks for JSON.
func reply(prompt string, body []byte) string {
	text := "You said: " + firstSentence(prompt)
	if prompt == "" {
		text = "You said nothing."
	}
	if !wantsJSON(body) {
		return text
	}
	quoted, _ := json.Marshal(object{"echo": firstSentence(prompt)})
	return string(quoted)
}

func wantsJSON(body []byte) bool {
	format := field(body, "response_format")
	if format == nil {
		format = field(field(body, "text"), "format")
	}
	kind, _ := unquote(field(format, "type"))
	return strings.HasPrefix(kind, "json_")
}

func firstSentence(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 4*echoed {
		s = strings.ToValidUTF8(s[:4*echoed], "")
	}
	if end := strings.IndexAny(s, ".!?\n"); end >= 0 {
		s = strings.TrimRight(s[:end+1], "\n")
	}
	if utf8.RuneCountInString(s) > echoed {
		s = string([]rune(s)[:echoed]) + "…"
	}
	return s
}

// lastUserText returns the text of the last user message, whose content is a
// string or a list of parts.
func lastUserText(messages []byte) (text string) {
	var content []byte
	eachItem(messages, func(message []byte) bool {
		if string(field(message, "role")) == `"user"` {
			content = field(message, "content")
		}
		return true
	})
	if s, ok := unquote(content); ok {
		return s
	}
	eachItem(content, func(part []byte) bool {
		if s, ok := unquote(field(part, "text")); ok {
			text = s
		}
		return true
	})
	return text
}

func tokens(b []byte) int64 { return int64(len(b)+3) / 4 }

func answerID(prefix string, l Line) string { return fmt.Sprintf("%s%016x", prefix, digest(l.Body)) }

// digest is a hash that is equal in all runs and never zero.
func digest(b []byte) uint64 {
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:]) | 1
}
