package blackbox_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/caller"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/provider"
)

// atOpenAI is a setup whose provider is OpenAI by its profile and its behavior.
func atOpenAI(options autobatcher.Options) setup {
	p := provider.OpenAI()
	options.Provider = &p
	return setup{options: options}
}

// batchOnly makes a call of a caller that may only batch.
func batchOnly(r *http.Request) {
	*r = *r.WithContext(caller.With(r.Context(), &caller.Caller{BatchOnly: true}))
}

// Each endpoint of OpenAI's batches gives openai-go the object that it gives in real time.
func TestOpenAIGoEndpoints(t *testing.T) {
	atOpenAI(autobatcher.Options{}).run(t, "completions", func(s *scene) {
		client := s.official()
		got, err := client.Completions.New(s.Context(), openai.CompletionNewParams{
			Model: "gpt-3.5-turbo-instruct", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("Hello")},
		})
		if err != nil || got.Choices[0].Text != "You said: Hello" || got.Usage.TotalTokens == 0 {
			s.Errorf("%+v, %v", got, err)
		}
		s.at(15 * time.Second)
		if b := s.batch(); b.Endpoint != "/v1/completions" {
			s.Errorf("endpoint %q", b.Endpoint)
		}
	})
	atOpenAI(autobatcher.Options{}).run(t, "a stream of a completion", func(s *scene) {
		client := s.official()
		stream := client.Completions.NewStreaming(s.Context(), openai.CompletionNewParams{
			Model: "m", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("Hello")},
			StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
		})
		text, tokens := "", int64(0)
		for stream.Next() {
			for _, c := range stream.Current().Choices {
				text += c.Text
			}
			tokens += stream.Current().Usage.TotalTokens
		}
		if err := stream.Err(); err != nil || text != "You said: Hello" || tokens == 0 {
			s.Errorf("%q, %d tokens, %v", text, tokens, err)
		}
		s.at(15 * time.Second)
		if body := string(s.upload().Lines[0].Body); strings.Contains(body, "stream") {
			s.Errorf("the line says stream: %s", body)
		}
	})
	atOpenAI(autobatcher.Options{}).run(t, "moderations without a model", func(s *scene) {
		client := s.official()
		got, err := client.Moderations.New(s.Context(), openai.ModerationNewParams{
			Input: openai.ModerationNewParamsInputUnion{OfStringArray: []string{"a kind word", "violence"}},
		})
		if err != nil || len(got.Results) != 2 || got.Results[0].Flagged || !got.Results[1].Categories.Violence {
			s.Errorf("%+v, %v", got, err)
		}
		s.at(15 * time.Second)
		if e := s.event(autobatcher.BatchSubmitted); e.Models == nil || len(e.Models) != 0 || e.Endpoint != "/v1/moderations" {
			s.Errorf("models %#v, endpoint %s; want an empty list of models", e.Models, e.Endpoint)
		}
	})
	atOpenAI(autobatcher.Options{}).run(t, "images", func(s *scene) {
		client := s.official()
		got, err := client.Images.Generate(s.Context(), openai.ImageGenerateParams{Model: "gpt-image-1", Prompt: "A cat", N: openai.Int(2)})
		if err != nil || len(got.Data) != 2 || got.Data[0].B64JSON == "" || got.Data[0].RevisedPrompt != "You said: A cat" {
			s.Errorf("%+v, %v", got, err)
		}
		s.at(15 * time.Second)
	})
	// No batch can hold the form of an edit.
	atOpenAI(autobatcher.Options{}).run(t, "an edit of an image", func(s *scene) {
		client := s.official()
		_, err := client.Images.Edit(s.Context(), openai.ImageEditParams{
			Image: openai.ImageEditParamsImageUnion{OfFile: strings.NewReader("png")}, Prompt: "A hat",
		})
		var failed *openai.Error
		if !errors.As(err, &failed) || failed.StatusCode != 400 || s.elapsed() != 0 || len(s.srv.Batches()) > 0 { // the fake server reads no forms
			s.Errorf("%v after %v; want the server's own answer", err, s.elapsed())
		}
	})
}

func TestGoOpenAIEndpoints(t *testing.T) {
	atOpenAI(autobatcher.Options{}).run(t, "moderations", func(s *scene) {
		got, err := s.community().Moderations(s.Context(), goopenai.ModerationRequest{Input: "violence"})
		if err != nil || !got.Results[0].Flagged {
			s.Errorf("%+v, %v", got, err)
		}
		s.at(15 * time.Second)
	})
	atOpenAI(autobatcher.Options{}).run(t, "a stream of a completion", func(s *scene) {
		stream, err := s.community().CreateCompletionStream(s.Context(), goopenai.CompletionRequest{Model: goopenai.GPT3Dot5TurboInstruct, Prompt: "Hello"})
		if err != nil {
			s.Fatal(err)
		}
		defer stream.Close()
		text := ""
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				s.Fatal(err)
			}
			text += chunk.Choices[0].Text
		}
		if text != "You said: Hello" {
			s.Errorf("text %q", text)
		}
		s.at(15 * time.Second)
	})
	atOpenAI(autobatcher.Options{}).run(t, "images", func(s *scene) {
		got, err := s.community().CreateImage(s.Context(), goopenai.ImageRequest{Prompt: "A cat", Model: goopenai.CreateImageModelGptImage1})
		if err != nil || got.Data[0].B64JSON == "" {
			s.Errorf("%+v, %v", got, err)
		}
		s.at(15 * time.Second)
	})
}

// Moderations that name no model share a batch with each other, and with no others.
func TestCallsWithoutModelShareABatch(t *testing.T) {
	store := journal.NewMemory()
	atOpenAI(autobatcher.Options{Journal: store}).run(t, "moderations", func(s *scene) {
		calls := []*pending{
			s.send("/moderations", `{"input":"a"}`), s.send("/moderations", `{"input":"b"}`),
			s.send("/moderations", `{"model":"omni-moderation-latest","input":"c"}`),
		}
		for _, c := range calls {
			if r := c.wait(); r.status != 200 || !strings.Contains(r.body, `"flagged":false`) {
				s.Errorf("status %d: %s", r.status, r.body)
			}
		}
		var sizes []int
		for _, b := range s.srv.Batches() {
			sizes = append(sizes, b.Total)
		}
		if slices.Sort(sizes); !slices.Equal(sizes, []int{1, 2}) {
			s.Errorf("batches of %v lines, want 1 and 2", sizes)
		}
		list, err := store.Batches(s.Context(), journal.Filter{})
		if err != nil || len(list) != 2 {
			s.Fatalf("%d batches in the journal, %v", len(list), err)
		}
		for _, b := range list {
			if b.Models == nil || slices.Contains(b.Models, "") {
				s.Errorf("the journal has the models %#v", b.Models)
			}
		}
	})
	setup{}.run(t, "a model is required elsewhere", func(s *scene) {
		s.post("/embeddings", `{"input":"a"}`).want(400, 0)
	})
}

// What autobatcher cannot stream is streamed by the provider.
func TestStreamsThatPassThrough(t *testing.T) {
	const body = `{"model":"gpt-image-1","prompt":"a","stream":true}`
	var log bytes.Buffer
	atOpenAI(autobatcher.Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}).run(t, "images", func(s *scene) {
		r := s.post("/images/generations", body).want(200, 0)
		if !strings.HasPrefix(r.body, "event: image_generation.completed\n") {
			s.Errorf("body %.200s", r.body)
		}
		if !strings.Contains(log.String(), `level=INFO msg="call passes through" reason="stream: true"`) {
			s.Errorf("log %s", log.String())
		}
		s.post("/images/generations", body, batchOnly).want(400, 0).fails("stream_closed")
		s.post("/images/generations", `{"model":"gpt-image-1","prompt":"a","stream":false}`, batchOnly).want(200, 15*time.Second)
		if n := s.count("POST", "/images/generations"); n != 1 {
			s.Errorf("%d calls in real time, want 1", n)
		}
	})
}

// A form passes through as it comes: not read before, and with its bytes.
func TestForms(t *testing.T) {
	type seen struct{ kind, body string }
	var got []seen
	u := atOpenAI(autobatcher.Options{})
	u.base = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if !strings.HasSuffix(r.URL.Path, "/images/generations") {
				return next.RoundTrip(r)
			}
			if _, streams := r.Body.(*io.PipeReader); !streams {
				t.Errorf("the body is a %T: it was buffered", r.Body)
			}
			text, err := io.ReadAll(r.Body)
			r.Body.Close()
			got = append(got, seen{r.Header.Get("Content-Type"), string(text)})
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, err
		})
	}
	u.run(t, "passes through", func(s *scene) {
		const size = 3 << 20
		body, w := io.Pipe()
		form := multipart.NewWriter(w)
		go func() {
			part, err := form.CreateFormFile("image", "a.png")
			for i := 0; i < size && err == nil; i += 1 << 10 {
				_, err = part.Write(bytes.Repeat([]byte("x"), 1<<10))
			}
			w.CloseWithError(errors.Join(err, form.Close()))
		}()
		req := s.request(s.Context(), "/images/generations", "", with("Content-Type", form.FormDataContentType()))
		req.Body, req.ContentLength, req.GetBody = body, -1, nil
		s.do(req).want(200, 0)
		if len(got) != 1 || len(got[0].body) < size || got[0].kind != form.FormDataContentType() || strings.Count(got[0].body, "x") < size {
			s.Errorf("%d requests", len(got))
		}
	})
	u.run(t, "is refused to callers that may only batch", func(s *scene) {
		closed := &closing{Reader: strings.NewReader("--x--")}
		req := s.request(s.Context(), "/images/generations", "", with("Content-Type", "multipart/form-data; boundary=x"), batchOnly)
		req.Body = closed
		s.do(req).want(400, 0).fails("multipart_closed")
		if !closed.closed || closed.Len() != len("--x--") {
			s.Errorf("closed %v, %d bytes unread; want the body closed and not read", closed.closed, closed.Len())
		}
	})
}

type closing struct {
	*strings.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

// A budget does not refuse what is free, and refuses what has no price by the token.
func TestBudgetOfEndpoints(t *testing.T) {
	for _, test := range []struct {
		path, body, code string
		reserved         float64
	}{
		{"/moderations", `{"input":"a"}`, "", 0},
		{"/moderations", `{"model":"omni-moderation-latest","input":"a"}`, "", 0},
		{"/moderations", `{"model":"other","input":"a"}`, "price_unknown", 0},
		{"/images/generations", `{"model":"gpt-image-1","prompt":"a"}`, "price_unknown", 0},
		{"/completions", `{"model":"davinci-002","prompt":"a","max_tokens":1000}`, "", 0.001014},
	} {
		atOpenAI(autobatcher.Options{Budget: autobatcher.Budget{USD: 1}}).run(t, test.path+" "+test.body, func(s *scene) {
			call := s.send(test.path, test.body)
			if test.code != "" {
				call.wait().want(402, 0).fails(test.code)
				return
			}
			s.until(time.Second)
			if got := s.tr.Stats().Budget.ReservedUSD; fmt.Sprintf("%.6f", got) != fmt.Sprintf("%.6f", test.reserved) {
				s.Errorf("%v dollars are reserved, want %v", got, test.reserved)
			}
			call.want(200, 15*time.Second)
			if cost := s.tr.Stats().Cost; cost.Unpriced != 0 || cost.Priced != 1 {
				s.Errorf("cost %+v, want one answer with a price", cost)
			}
		})
	}
}

// A moderation without a model is free, also if the table does not have the model that
// answered.
func TestTheCostOfAModerationWithoutModel(t *testing.T) {
	u := atOpenAI(autobatcher.Options{})
	u.server.Answer = func(batchtest.Line) batchtest.Outcome {
		return batchtest.Outcome{Body: []byte(`{"id":"modr-1","model":"omni-moderation-2099-01-01","results":[{"flagged":false}]}`)}
	}
	u.run(t, "free", func(s *scene) {
		if r := s.post("/moderations", `{"input":"a"}`).want(200, 15*time.Second); r.header.Get("Autobatcher-Cost") != "0" {
			s.Errorf("cost %q, want 0", r.header.Get("Autobatcher-Cost"))
		}
	})
}

// Equal calls in real time and in a batch have equal answers, at each endpoint.
func TestEndpointsAnswerAsInRealTime(t *testing.T) {
	p := provider.OpenAI()
	for _, suffix := range p.Suffixes() {
		atOpenAI(autobatcher.Options{}).run(t, suffix, func(s *scene) {
			body := `{"model":"m","prompt":"Hello","input":"Hello","messages":[{"role":"user","content":"Hello"}]}`
			batched := s.post(suffix, body).want(200, 15*time.Second)
			now := s.post(suffix, body, with("Autobatcher-Mode", "realtime")).want(200, 15*time.Second)
			if batched.body != now.body || !json.Valid([]byte(now.body)) || batched.header.Get("Autobatcher-Batch-Id") == "" {
				s.Errorf("in a batch %s\nin real time %s", batched.body, now.body)
			}
		})
	}
}

// A transcription of a recording that has a URL is batched where the provider batches audio.
func TestTranscriptions(t *testing.T) {
	for _, tt := range []struct {
		profile  provider.Profile
		behavior batchtest.Behavior
	}{{provider.Groq(), batchtest.Groq()}, {provider.Together(), batchtest.Together()}} {
		setup{server: batchtest.Options{Behavior: tt.behavior}, options: autobatcher.Options{Provider: &tt.profile}}.run(t, tt.profile.Name, func(s *scene) {
			for _, suffix := range []string{"/audio/transcriptions", "/audio/translations"} {
				body := `{"model":"whisper-large-v3","url":"https://host.example/a.mp3"}`
				batched, now := s.post(suffix, body), s.post(suffix, body, with("Autobatcher-Mode", "realtime"))
				if batched.status != 200 || batched.body != now.body || batched.header.Get("Autobatcher-Batch-Id") == "" {
					s.Errorf("%s: %d %s; in real time %s", suffix, batched.status, batched.body, now.body)
				}
			}
			if r := s.post("/audio/transcriptions", `{"model":"m","url":"https://host.example/a.mp3","response_format":"srt"}`); r.header.Get("Autobatcher-Batch-Id") != "" {
				s.Errorf("a file with subtitles was batched: %s", r.body)
			}
		})
	}
}

// An endpoint of one's own is batched where the profile says so.
func TestEndpointOfOnesOwn(t *testing.T) {
	behavior, p := batchtest.OpenAI(), provider.Generic()
	behavior.Endpoints = append(behavior.Endpoints, "/v1/rerank")
	p.Endpoints = []string{"/rerank"}
	setup{server: batchtest.Options{Behavior: behavior}, options: autobatcher.Options{Provider: &p}}.run(t, "rerank", func(s *scene) {
		s.post("/rerank", `{"model":"m","query":"a","documents":["b"]}`).want(200, 15*time.Second)
		s.post("/chat/completions", chatBody("a")).want(200, 15*time.Second) // in real time
		if b := s.batch(); b.Endpoint != "/v1/rerank" {
			s.Errorf("endpoint %q", b.Endpoint)
		}
	})
}
