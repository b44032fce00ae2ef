package batchtest_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

func TestWindowsOnOffer(t *testing.T) {
	for _, tt := range []struct {
		manners batchtest.Manners
		good    []string
		bad     []string
	}{
		{batchtest.OpenAI(), []string{"24h"}, []string{"1h", "1d", "7d", ""}},
		{batchtest.Groq(), []string{"24h", "1d", "7d", "100h"}, []string{"1h", "8d", "soon", ""}},
		{batchtest.Moonshot(), []string{"12h", "7d"}, []string{"11h", "8d"}},
		{batchtest.SiliconFlow(), []string{"24h", "336h"}, []string{"1h", "337h"}},
		{batchtest.LLMD(), []string{"90m", "24h"}, []string{"soon", "-1h"}},
		{batchtest.LiteLLM(), []string{"24h"}, []string{"1h"}},
	} {
		t.Run(tt.manners.Name, func(t *testing.T) {
			tt.manners.UploadFields = nil
			a := newAPI(t, batchtest.Options{Manners: tt.manners})
			file := a.upload(chatLines(1))
			for _, window := range tt.good {
				if got := a.post("/batches", createBody(file, chat, window)); got.status != 200 {
					t.Errorf("window %q: %d %s", window, got.status, got.body)
				}
			}
			for _, window := range tt.bad {
				if got := a.post("/batches", createBody(file, chat, window)); got.status != 400 {
					t.Errorf("window %q: %d, want 400", window, got.status)
				}
			}
		})
	}
}

func TestZhipuManners(t *testing.T) {
	a := newAPI(t, batchtest.Options{Manners: batchtest.Zhipu()})
	file := a.upload(strings.ReplaceAll(chatLines(1), "/v1/", "/v4/"))
	if got := a.post("/batches", createBody(file, "/v4/chat/completions", "24h")); got.status != 400 {
		t.Errorf("a window: %d, want 400", got.status)
	}
	res := a.post("/batches", `{"input_file_id":"`+file+`","endpoint":"/v4/chat/completions"}`)
	if got := a.retrieve(res.json(t)["id"])["status"]; got != "completed" {
		t.Errorf("status = %v", got)
	}
	a.post("/chat/completions", `{"model":"m"}`)
	if got := a.server.Executed()[1].URL; got != "/v4/chat/completions" {
		t.Errorf("url of a realtime call = %s", got)
	}
}

func TestAzureLegacyManners(t *testing.T) {
	a := newAPI(t, batchtest.Options{Manners: batchtest.AzureLegacy()})
	if got := a.get("/batches"); got.status != 400 || !strings.Contains(got.body, "api-version") {
		t.Errorf("without a version: %d %s", got.status, got.body)
	}
	if got := a.get("/batches?api-version=2024-10-21"); got.status != 200 {
		t.Errorf("with a version: %d %s", got.status, got.body)
	}
	if got := a.post("/deployments/d/chat/completions?api-version=2024-10-21", `{"model":"m"}`); got.status != 200 {
		t.Errorf("a call: %d %s", got.status, got.body)
	}
	if got := a.server.Executed()[0].URL; got != "/chat/completions" {
		t.Errorf("url of a realtime call = %s", got)
	}
}

func TestUploadFields(t *testing.T) {
	litellm, together := batchtest.LiteLLM(), batchtest.Together()
	for _, tt := range []struct {
		manners batchtest.Manners
		fields  []string
		want    int
	}{
		{litellm, []string{"purpose", "batch"}, 400},
		{litellm, []string{"purpose", "batch", "target_model_names", "m"}, 200},
		{together, []string{"purpose", "batch-api"}, 400},
		{together, []string{"purpose", "batch-api", "file_name", "other"}, 400},
		{together, []string{"purpose", "batch-api", "file_name", "lines.jsonl"}, 200},
	} {
		a := newAPI(t, batchtest.Options{Manners: tt.manners})
		path := strings.TrimSpace(tt.manners.UploadPath)
		if path == "" {
			path = "/files"
		}
		if got := a.do(a.form(path, append(tt.fields, "file", chatLines(1))...)); got.status != tt.want {
			t.Errorf("%s %v: %d %s, want %d", tt.manners.Name, tt.fields, got.status, got.body, tt.want)
		}
	}
}

func TestResultURLs(t *testing.T) {
	a := newAPI(t, batchtest.Options{Manners: batchtest.SiliconFlow()})
	address, _ := a.retrieve(a.create(chatLines(2))["id"])["output_file_id"].(string)
	if !strings.HasPrefix(address, "https://results.batchtest.invalid/") {
		t.Fatalf("output_file_id = %q", address)
	}
	fetch := func(address, key string) answer {
		req, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", key)
		if key == "" {
			a.key = ""
			req.Header.Del("Authorization")
		}
		return a.do(req)
	}
	if got := fetch(address, "Bearer sk-test"); got.status != 400 {
		t.Errorf("with a key: %d, want 400", got.status)
	}
	if got := fetch(strings.Replace(address, "signature=", "signature=0", 1), ""); got.status != 404 {
		t.Errorf("with a wrong signature: %d, want 404", got.status)
	}
	if got := fetch(address, ""); got.status != 200 || strings.Count(got.body, "\n") != 2 {
		t.Errorf("%d %s, want two lines", got.status, got.body)
	}
}

func TestLists(t *testing.T) {
	t.Run("by offset", func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Manners: batchtest.LLMD()})
		first := a.create(chatLines(1))["id"]
		a.create(chatLines(1))
		res := a.get("/batches?limit=1&after=1").json(t)
		if data := res["data"].([]any); len(data) != 1 || data[0].(map[string]any)["id"] != first || res["has_more"] != false {
			t.Errorf("second page = %v", res)
		}
		if got := a.get("/batches?after=" + first.(string)); got.status != 400 {
			t.Errorf("an id: %d, want 400", got.status)
		}
	})
	t.Run("bare", func(t *testing.T) {
		a := newAPI(t, batchtest.Options{Manners: batchtest.Together()})
		if got := a.get("/batches").body; got != "[]" {
			t.Errorf("list = %s, want an array", got)
		}
	})
}

func TestCreationsPerHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		manners := batchtest.OpenAI()
		manners.CreationsPerHour = 2
		a := newAPI(t, batchtest.Options{Manners: manners})
		file := a.upload(chatLines(1))
		create := func() answer { return a.post("/batches", createBody(file, chat, "24h")) }
		create()
		time.Sleep(10 * time.Minute)
		create()
		if got := create(); got.status != 429 || got.header.Get("Retry-After") != "3000" {
			t.Errorf("third: %d, Retry-After %s; want 429, 3000", got.status, got.header.Get("Retry-After"))
		}
		a.key = "sk-other"
		if got := a.post("/batches", createBody(a.upload(chatLines(1)), chat, "24h")); got.status != 200 {
			t.Errorf("another key's: %d", got.status)
		}
		a.key = "sk-test"
		time.Sleep(50 * time.Minute)
		if got := create(); got.status != 200 {
			t.Errorf("an hour after the first: %d", got.status)
		}
	})
}

func TestTokenLimitIsTold(t *testing.T) {
	for _, tell := range []bool{true, false} {
		manners := batchtest.OpenAI()
		manners.TellTokenLimit = tell
		a := newAPI(t, batchtest.Options{Manners: manners, MaxEnqueuedTokens: 1234})
		a.create(chatLine("a", strings.Repeat("x", 6000)))
		got := a.server.Batches()[0].Errors
		if len(got) != 1 || strings.Contains(got[0].Message, "Limit: 1,234 enqueued tokens") != tell {
			t.Errorf("told %v: errors = %v", tell, got)
		}
	}
}
