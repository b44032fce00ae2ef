package otelbatcher

import (
	"net/http"
	"strings"
	"testing"
)

func TestOperationOf(t *testing.T) {
	for suffix, want := range map[string]string{
		"/chat/completions": "chat", "/responses": "chat", "/embeddings": "embeddings", "/completions": "text_completion",
		"/moderations": "moderation", "/images/generations": "image_generation", "/images/edits": "image_generation", "/audio/translations": "transcription",
	} {
		if got := operationOf(suffix); string(got) != want {
			t.Errorf("%s is %s, want %s", suffix, got, want)
		}
	}
}

// A form may be large, and is not read for its attributes.
func TestFormsAreNotRead(t *testing.T) {
	for kind, want := range map[string]int{"application/json": 1, "multipart/form-data; boundary=x": 0} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.openai.com/v1/completions", strings.NewReader(`{"model":"m"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		if got := requested(req); len(got) != want {
			t.Errorf("%s: %d attributes, want %d", kind, len(got), want)
		}
	}
}
