package demo

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/batchtest"
)

func TestChooseReal(t *testing.T) {
	type found struct{ BaseURL, Key, Model, EmbeddingModel string }
	tests := []struct {
		name string
		env  map[string]string
		want found
	}{
		{
			name: "a key alone means OpenAI",
			env:  map[string]string{"OPENAI_API_KEY": "secret"},
			want: found{"https://api.openai.com/v1", "secret", DefaultModel, DefaultEmbeddingModel},
		},
		{
			name: "everything named",
			env: map[string]string{
				"OPENAI_API_KEY": "secret", "OPENAI_BASE_URL": "http://localhost:1/v1",
				"OPENAI_MODEL": "talker", "OPENAI_EMBEDDING_MODEL": "embedder",
			},
			want: found{"http://localhost:1/v1", "secret", "talker", "embedder"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			api, closeServer, err := Choose(true, func(name string) string { return test.env[name] }, batchtest.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer closeServer()
			got := found{api.BaseURL, api.Key, api.Model, api.EmbeddingModel}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if api.Options.BatchWindow != 0 || api.Options.PollInterval != 0 {
				t.Errorf("window %v and poll interval %v, want the defaults at a real provider", api.Options.BatchWindow, api.Options.PollInterval)
			}
		})
	}
}

// Without -real, no call leaves this machine, also if a key is exported.
func TestChooseStartsAServer(t *testing.T) {
	env := map[string]string{"OPENAI_API_KEY": "secret", "OPENAI_BASE_URL": "http://localhost:1/v1", "OPENAI_MODEL": "talker"}
	api, closeServer, err := Choose(false, func(name string) string { return env[name] }, batchtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if api.Key == "secret" || api.BaseURL == env["OPENAI_BASE_URL"] {
		t.Errorf("the provider of the environment is used: %s", api.BaseURL)
	}
	get := func() (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api.BaseURL+"/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+api.Key)
		return http.DefaultClient.Do(req)
	}
	res, err := get()
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("status %d, want 200", res.StatusCode)
	}
	closeServer()
	if res, err := get(); err == nil {
		res.Body.Close()
		t.Error("the server answers after closeServer")
	}
}

func TestChooseRealRequiresKey(t *testing.T) {
	env := map[string]string{"OPENAI_BASE_URL": "http://localhost:1/v1"}
	_, closeServer, err := Choose(true, func(name string) string { return env[name] }, batchtest.Options{})
	closeServer()
	if err == nil {
		t.Error("no error; the calls would have gone out without a key")
	}
}
