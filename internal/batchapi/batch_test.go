package batchapi_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/backend"
)

func TestBatchObjects(t *testing.T) {
	status := func(word string, phase backend.Phase) backend.Status {
		return backend.Status{Handle: backend.Handle{BatchID: "b"}, Word: word, Phase: phase}
	}
	with := func(s backend.Status, change func(*backend.Status)) backend.Status {
		change(&s)
		return s
	}
	for _, tt := range []struct {
		name, body string
		want       backend.Status
	}{
		{
			"OpenAI's",
			`{"id":"b","status":"in_progress","input_file_id":"i","output_file_id":"o","error_file_id":"e","expires_at":1700000000,
			  "request_counts":{"total":3,"completed":1,"failed":1}}`,
			backend.Status{
				Handle: backend.Handle{BatchID: "b", FileID: "i"}, Word: "in_progress",
				OutputFileID: "o", ErrorFileID: "e", Sources: []string{"o", "e"},
				Counts: backend.Counts{Completed: 1, Failed: 1, Total: 3},
			},
		},
		{
			"Azure's",
			`{"id":"b","status":"Completed","output_file_id":"o","error_file_id":"","request_counts":{"total":null,"completed":null,"failed":null}}`,
			with(status("completed", backend.Ended), func(s *backend.Status) { s.OutputFileID, s.Sources = "o", []string{"o"} }),
		},
		{"Together's", `{"id":"b","status":"CANCELING"}`, status("cancelling", backend.Cancelling)},
		{"American", `{"id":"b","status":"canceled"}`, status("cancelled", backend.Ended)},
		{"null for none", `{"id":"b","output_file_id":null,"errors":null,"request_counts":null}`, status("", backend.Running)},
		{
			"failed",
			`{"id":"b","status":"failed","errors":{"object":"list","data":[{"code":"c","line":7,"message":"m","param":null},{"message":"alone"},{"line":null}]}}`,
			with(status("failed", backend.Ended), func(s *backend.Status) {
				s.Problems = []backend.Problem{{Code: "c", Message: "m", Line: 7}, {Message: "alone"}, {}}
			}),
		},
		{"errors of another shape", `{"id":"b","status":"failed","errors":{"message":"no"}}`, status("failed", backend.Ended)},
		{"a future field", `{"id":"b","status":"paused","new":{"id":"x"}}`, status("paused", backend.Running)},
		{"expired", `{"id":"b","status":"expired"}`, status("expired", backend.Ended)},
		{"finalizing", `{"id":"b","status":"finalizing"}`, status("finalizing", backend.Running)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := openai(t, always(200, tt.body)).Retrieve(t.Context(), "b")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}
