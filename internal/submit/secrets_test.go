package submit_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/redact"
)

// What a provider writes is stored and shown without the operator's key.
func TestResultsWithoutTheKey(t *testing.T) {
	const key = "sk-Zx81kQ37pLm3vBd9wTy2"
	const fromBatch = "Autobatcher-Batch-Id"
	for _, tt := range []struct {
		name string
		res  *http.Response
		want string // part of the results, or of why the request was not sent
	}{
		{"an answer", reply(200, `{"n":"`+key+`"}`, fromBatch, "b"), `{"n":"***`},
		{"an error", reply(400, `{"error":{"message":"bad key `+key+`"}}`, fromBatch, "b"), `bad key ***`},
		{"a part of the key", reply(400, `{"error":{"message":"bad key `+key[:14]+`…"}}`, fromBatch, "b"), `bad key ***`},
		{"an error that is no JSON", reply(400, `bad key `+key, fromBatch, "b"), `"bad key ***`},
		{"a failure of the batch", reply(424, `{"error":{"code":"c","message":"bad key `+key+`"}}`, fromBatch, "b"), `"message":"bad key ***`},
		{"the id of the request", reply(200, `{}`, fromBatch, "b", "X-Request-Id", "id-"+key), `"request_id":"id-***`},
		{"a compressed error", reply(400, key, "Content-Encoding", "gzip"), `the upstream answered Bad Request`},
		{"not sent", reply(401, `{"error":{"message":"bad key `+key+`"}}`), `bad key ***`},
		{"an error of the Transport", nil, `bad key ***`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t, request("a"))
			part, a := p.open(), p.newAnswers()
			a.do = func(string) (*http.Response, error) {
				if tt.res == nil {
					return nil, errors.New("bad key " + key)
				}
				return tt.res, nil
			}
			job := p.job(part, a)
			job.Secrets = redact.New()
			job.Secrets.Add(key)
			shown := ""
			if err := job.Run(t.Context(), strings.NewReader(p.text)); err != nil {
				shown = err.Error()
			}
			_, why := job.Unsent()
			kept := p.read(p.path)
			out := filepath.Join(t.TempDir(), "out")
			if err := part.Finish(out); err != nil {
				t.Fatal(err)
			}
			text, _ := os.ReadFile(out)
			if all := shown + why + kept + string(text); strings.Contains(all, key[3:11]) || !strings.Contains(all, tt.want) {
				t.Errorf("shown %q, %q; results %s", shown, why, text)
			}
		})
	}
}
