package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/examples/internal/demo"
	"github.com/autobatcher/autobatcher/journal"
	"github.com/autobatcher/autobatcher/journal/sqlite"
)

// A service summarizes texts. POST /tasks takes a text and answers 202 with the Location
// of the task; GET /tasks/ID answers 202 until the summary is there.
type service struct {
	*http.ServeMux
	model     string
	client    openai.Client
	transport *autobatcher.Transport
	journal   journal.Store
	path      string // of the file with the tasks

	work sync.WaitGroup
	mu   sync.Mutex
	all  []task // by id
}

// A task is a text and, once there is one, its summary.
type task struct {
	Text    string `json:"text"`
	Summary string `json:"summary,omitempty"`
	Failure string `json:"failure,omitempty"`
}

func (t task) done() bool { return t.Summary != "" || t.Failure != "" }

// start starts the service. The tasks that an earlier process has left get their
// answers: the same calls are made again, and the journal finds their lines.
func start(ctx context.Context, dir string, api demo.Provider) (*service, error) {
	store, err := sqlite.Open(ctx, filepath.Join(dir, "journal.db"))
	if err != nil {
		return nil, err
	}
	options := api.Options
	options.Journal, options.JournalRequired = store, true
	options.CancelOnClose = false // the next process picks up the results
	transport, err := autobatcher.New(options)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	s := &service{
		ServeMux: http.NewServeMux(), model: api.Model, transport: transport, journal: store, path: filepath.Join(dir, "tasks.json"),
		client: openai.NewClient(option.WithHTTPClient(transport.Client()), option.WithBaseURL(api.BaseURL), option.WithAPIKey(api.Key)),
	}
	s.HandleFunc("POST /tasks", s.post)
	s.HandleFunc("GET /tasks/{id}", s.get)
	if err := s.load(); err != nil {
		return nil, errors.Join(err, s.stop(ctx))
	}
	for id, t := range s.all {
		if !t.done() {
			s.begin(id, t.Text)
		}
	}
	return s, nil
}

// stop sends what is queued, leaves the batches running, and ends the service. The calls
// that wait end with an error; the next process makes the same calls again.
func (s *service) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second) // Kubernetes waits 30 s
	defer cancel()
	flushed := s.transport.Flush(ctx)
	closed := s.transport.Close()
	s.work.Wait()
	return errors.Join(flushed, closed, s.journal.Close())
}

func (s *service) post(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, "the text is too long", http.StatusRequestEntityTooLarge)
		return
	}
	id, err := s.add(string(text))
	if err != nil {
		http.Error(w, "the task could not be stored", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Location", "/tasks/"+strconv.Itoa(id))
	w.WriteHeader(http.StatusAccepted)
}

func (s *service) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	id, err := strconv.Atoi(r.PathValue("id"))
	known := err == nil && id >= 0 && id < len(s.all)
	var t task
	if known {
		t = s.all[id]
	}
	s.mu.Unlock()
	switch {
	case !known:
		http.NotFound(w, r)
	case t.Failure != "":
		http.Error(w, t.Failure, http.StatusBadGateway)
	case t.Summary == "":
		w.WriteHeader(http.StatusAccepted)
	default:
		fmt.Fprint(w, t.Summary)
	}
}

// add stores a task before its call is made: a task that was accepted is not lost.
func (s *service) add(text string) (id int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, task{Text: text})
	id = len(s.all) - 1
	if err := s.saveLocked(); err != nil {
		s.all = s.all[:id]
		return 0, err
	}
	s.begin(id, text)
	return id, nil
}

// begin makes the call of a task. The call is ordinary code, and takes as long as its
// batch.
func (s *service) begin(id int, text string) {
	s.work.Go(func() {
		completion, err := s.client.Chat.Completions.New(context.Background(), openai.ChatCompletionNewParams{
			Model:    s.model,
			Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Summarize: " + text)},
		})
		switch {
		case errors.Is(err, autobatcher.ErrClosed): // the next process makes the call again
		case err != nil:
			s.finish(id, task{Text: text, Failure: err.Error()})
		case len(completion.Choices) == 0:
			s.finish(id, task{Text: text, Failure: "the answer has no choices"})
		default:
			s.finish(id, task{Text: text, Summary: completion.Choices[0].Message.Content})
		}
	})
}

func (s *service) finish(id int, t task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[id] = t
	if err := s.saveLocked(); err != nil {
		fmt.Fprintln(os.Stderr, "the tasks could not be stored:", err)
	}
}

// load reads the tasks that an earlier process has stored.
func (s *service) load() error {
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(text, &s.all)
}

// saveLocked stores the tasks. A real service has a database.
func (s *service) saveLocked() error {
	text, err := json.Marshal(s.all)
	if err != nil {
		return err
	}
	temporary := s.path + ".new"
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, s.path)
}
