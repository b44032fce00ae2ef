package yourcode

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// newClient returns an OpenAI client that batches calls at the server, without a
// socket. Each poll of a batch takes real time, hence the poll interval of ten
// minutes.
func newClient(t *testing.T, server *batchtest.Server) openai.Client {
	t.Helper()
	transport, err := autobatcher.New(autobatcher.Options{Base: server.Transport(), PollInterval: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { transport.Close() })
	return openai.NewClient(
		option.WithHTTPClient(transport.Client()),
		option.WithBaseURL(server.URL),
		option.WithAPIKey("any"),
	)
}

var documents = []string{"One fish. Red.", "Two fish. Blue.", "Three fish. Green."}

// The embedded server echoes the first sentence, so that each answer is different.
func TestAllDocumentsShareOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Turnaround: 20 * time.Hour})
		began := time.Now()
		got, err := Summarize(t.Context(), newClient(t, server), documents)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"You said: One fish.", "You said: Two fish.", "You said: Three fish."}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("summaries (-want +got):\n%s", diff)
		}
		if batches := server.Batches(); len(batches) != 1 || batches[0].Total != 3 {
			t.Errorf("batches = %+v, want one of 3 lines", batches)
		}
		// A second in which no call comes, the batch, and at most ten minutes until a poll.
		if took := time.Since(began); took < 20*time.Hour || took > 20*time.Hour+11*time.Minute {
			t.Errorf("took %v", took)
		}
	})
}

// Options.Answer determines the result of each line. Here one line fails, and only
// one document has an error.
func TestOneDocumentFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			if strings.Contains(string(l.Body), "Two") {
				return batchtest.Outcome{Status: http.StatusBadRequest}
			}
			return batchtest.Echo(l)
		}})
		got, err := Summarize(t.Context(), newClient(t, server), documents)
		if diff := cmp.Diff([]string{"You said: One fish.", "", "You said: Three fish."}, got); diff != "" {
			t.Errorf("summaries (-want +got):\n%s", diff)
		}
		var failed *openai.Error
		if !errors.As(err, &failed) || failed.StatusCode != http.StatusBadRequest || !strings.Contains(err.Error(), "document 2") {
			t.Errorf("err = %v, want a 400 for document 2", err)
		}
	})
}

// A batch can expire: here the window of 24 hours ends before one line has finished.
// The finished lines are delivered. The unfinished line is resubmitted once (see
// Options.Resubmits), and fails when the second batch expires.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
			return batchtest.Outcome{Never: strings.Contains(string(l.Body), "Three")}
		}, Turnaround: time.Hour})
		client := newClient(t, server)
		time.AfterFunc(24*time.Hour, func() {
			if err := server.Expire(server.Batches()[0].ID); err != nil {
				t.Error(err)
			}
		})
		got, err := Summarize(t.Context(), client, documents)
		if diff := cmp.Diff([]string{"You said: One fish.", "You said: Two fish.", ""}, got); diff != "" {
			t.Errorf("summaries (-want +got):\n%s", diff)
		}
		var failed *openai.Error
		if !errors.As(err, &failed) || failed.StatusCode != http.StatusFailedDependency || failed.Code != "batch_expired" {
			t.Errorf("err = %v, want 424 batch_expired", err)
		}
		if n := len(server.Batches()); n != 2 {
			t.Errorf("%d batches, want two", n)
		}
	})
}

// Control makes single requests fail. The callers must not notice the failures, and
// Paid shows that no line was paid for twice.
func TestFailedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Turnaround: time.Minute})
		server.Control(batchtest.OpUpload, batchtest.RateLimit(30*time.Second))
		server.Control(batchtest.OpCreate, batchtest.LoseAnswer())
		server.Control(batchtest.OpRetrieve, batchtest.HTML(http.StatusBadGateway), batchtest.Reset())
		server.Control(batchtest.OpContent, batchtest.Tear(100))
		if _, err := Summarize(t.Context(), newClient(t, server), documents); err != nil {
			t.Fatal(err)
		}
		for work, times := range server.Paid() {
			if times != 1 {
				t.Errorf("%s was paid for %d times", work, times)
			}
		}
	})
}

// A caller whose context ends gets the context's error at once. A batch that has had
// no callers for two minutes is cancelled.
func TestContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := batchtest.New(batchtest.Options{Turnaround: time.Hour})
		client := newClient(t, server)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		_, err := Summarize(ctx, client, documents)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("err = %v after %v, want the deadline after 1m", err, time.Since(began))
		}
		time.Sleep(3 * time.Minute) // virtual time; longer than Options.AbandonAfter
		if batch := server.Batches()[0]; !batch.CancelRequested {
			t.Errorf("batch %s runs on without callers", batch.ID)
		}
	})
}
