package batchtest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// A batch from beginning to end, by plain HTTP.
func Example() {
	server := batchtest.New(batchtest.Options{})
	defer server.Close()

	line := `{"custom_id":"greeting","method":"POST","url":"/v1/chat/completions",` +
		`"body":{"model":"small","messages":[{"role":"user","content":"Good morning! How are you?"}]}}`
	file := send(server, upload(server, line))
	batch := send(server, post(server, "/batches", fmt.Sprintf(
		`{"input_file_id":%q,"endpoint":"/v1/chat/completions","completion_window":"24h"}`, file["id"])))
	fmt.Println(batch["status"])

	batch = send(server, get(server, "/batches/"+batch["id"].(string)))
	fmt.Println(batch["status"], batch["request_counts"])

	result := send(server, get(server, "/files/"+batch["output_file_id"].(string)+"/content"))
	body := result["response"].(map[string]any)["body"].(map[string]any)
	choice := body["choices"].([]any)[0].(map[string]any)
	fmt.Println(result["custom_id"], choice["message"].(map[string]any)["content"])
	// Output:
	// validating
	// completed map[completed:1 failed:0 total:1]
	// greeting You said: Good morning!
}

// One answer to "create batch" is lost: the client sees an error, and yet the
// batch exists.
func ExampleServer_Control() {
	server := batchtest.New(batchtest.Options{})
	defer server.Close()
	server.Control(batchtest.OpCreate, batchtest.LoseAnswer())

	line := `{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{"model":"small","input":"x"}}`
	file := send(server, upload(server, line))
	_, err := server.Client().Do(post(server, "/batches", fmt.Sprintf(
		`{"input_file_id":%q,"endpoint":"/v1/embeddings","completion_window":"24h"}`, file["id"])))
	fmt.Println(err != nil, len(server.Batches()))
	// Output: true 1
}

// A model that refuses what is too long.
func ExampleOptions_answer() {
	server := batchtest.New(batchtest.Options{Answer: func(line batchtest.Line) batchtest.Outcome {
		if len(line.Body) > 100 {
			return batchtest.Outcome{Status: http.StatusBadRequest}
		}
		return batchtest.Outcome{} // as Echo does
	}})
	defer server.Close()
	for _, text := range []string{"Short.", strings.Repeat("Long. ", 50)} {
		res, err := server.Client().Do(post(server, "/responses", fmt.Sprintf(`{"model":"small","input":%q}`, text)))
		if err != nil {
			fmt.Println(err)
			return
		}
		_ = res.Body.Close()
		fmt.Println(res.Status)
	}
	// Output:
	// 200 OK
	// 400 Bad Request
}

// A response that is made in the background at the tier flex. The first attempt is
// refused for lack of capacity.
func ExampleFlexUnavailable() {
	server := batchtest.New(batchtest.Options{})
	defer server.Close()
	server.Control(batchtest.OpRealtime, batchtest.FlexUnavailable())

	body := `{"model":"small","input":"Good morning!","service_tier":"flex","background":true}`
	refusal := send(server, post(server, "/responses", body))
	fmt.Println(refusal["error"].(map[string]any)["code"])
	response := send(server, post(server, "/responses", body))
	fmt.Println(response["status"])
	response = send(server, get(server, "/responses/"+response["id"].(string)))
	fmt.Println(response["status"], response["service_tier"], server.PaidTiers())
	// Output:
	// resource_unavailable
	// queued
	// completed flex map[flex:1]
}

// A webhook that refuses the first request.
func ExampleServer_AddWebhook() {
	server := batchtest.New(batchtest.Options{})
	requests, statuses := make(chan string, 2), make(chan int, 2)
	statuses <- http.StatusServiceUnavailable
	statuses <- http.StatusOK
	err := server.AddWebhook(batchtest.Webhook{
		Secret:  "whsec_" + base64.StdEncoding.EncodeToString([]byte("a key of 24 bytes or more")),
		Retries: []time.Duration{time.Millisecond},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(<-statuses)
			requests <- r.Header.Get("webhook-id")
		}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	send(server, post(server, "/responses", `{"model":"small","input":"Good morning!","background":true}`))
	first, second := <-requests, <-requests
	fmt.Println(first == second)
	server.Close()
	for _, d := range server.Deliveries() {
		fmt.Println(d.Attempt, d.Type, d.Status)
	}
	// Output:
	// true
	// 1 response.completed 503
	// 2 response.completed 200
}

// A provider that takes three lines at most.
func ExampleBehavior() {
	behavior := batchtest.Doubleword()
	behavior.MaxLines = 3
	server := batchtest.New(batchtest.Options{Behavior: behavior})
	defer server.Close()
	res, err := server.Client().Do(upload(server, chatLines(4)))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(printer{}, res.Body)
	// Output: The input file has 4 requests, more than the maximum of 3.
}

type printer struct{}

func (printer) Write(p []byte) (int, error) { return fmt.Print(string(p)) }

func get(s *batchtest.Server, path string) *http.Request { return request(s, "GET", path, nil, "") }

func post(s *batchtest.Server, path, body string) *http.Request {
	return request(s, "POST", path, strings.NewReader(body), "application/json")
}

func upload(s *batchtest.Server, lines string) *http.Request {
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	_ = w.WriteField("purpose", "batch")
	part, _ := w.CreateFormFile("file", "lines.jsonl")
	_, _ = io.WriteString(part, lines)
	_ = w.Close()
	return request(s, "POST", "/files", &form, w.FormDataContentType())
}

func request(s *batchtest.Server, method, path string, body io.Reader, contentType string) *http.Request {
	req, err := http.NewRequest(method, s.URL+path, body)
	if err != nil {
		panic(err)
	}
	req.Header.Set("Authorization", "Bearer any")
	req.Header.Set("Content-Type", contentType)
	return req
}

// send returns the answer's JSON.
func send(s *batchtest.Server, req *http.Request) (v map[string]any) {
	res, err := s.Client().Do(req)
	if err != nil {
		panic(err)
	}
	defer func() { _ = res.Body.Close() }()
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		panic(err)
	}
	return v
}
