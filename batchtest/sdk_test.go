package batchtest_test

import (
	"bufio"
	"errors"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// TestOfficialClient takes OpenAI's own client through every operation.
func TestOfficialClient(t *testing.T) {
	server := batchtest.New(batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		if l.CustomID == "line-1" {
			return batchtest.Outcome{Status: 400}
		}
		return batchtest.Outcome{}
	}})
	t.Cleanup(server.Close)
	client := openai.NewClient(
		option.WithBaseURL(server.URL), option.WithHTTPClient(server.Client()), option.WithAPIKey("sk-test"))
	ctx := t.Context()

	file, err := client.Files.New(ctx, openai.FileNewParams{
		File: openai.File(strings.NewReader(chatLines(3)), "lines.jsonl", "application/jsonl"), Purpose: openai.FilePurposeBatch,
	})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := client.Batches.New(ctx, openai.BatchNewParams{
		InputFileID: file.ID, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions,
		CompletionWindow: openai.BatchNewParamsCompletionWindow24h, Metadata: map[string]string{"nonce": "n"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if batch, err = client.Batches.Get(ctx, batch.ID); err != nil {
		t.Fatal(err)
	}
	if batch.Status != openai.BatchStatusCompleted || batch.RequestCounts.Completed != 2 || batch.RequestCounts.Failed != 1 ||
		batch.OutputFileID == "" || batch.ErrorFileID == "" || batch.Metadata["nonce"] != "n" {
		t.Errorf("batch = %s", batch.RawJSON())
	}
	if n := countLines(t, &client, batch.OutputFileID); n != 2 {
		t.Errorf("%d lines of output, want 2", n)
	}
	listed := 0
	pages := client.Batches.ListAutoPaging(ctx, openai.BatchListParams{Limit: openai.Int(1)})
	for pages.Next() {
		listed++
	}
	if listed != 1 || pages.Err() != nil {
		t.Errorf("%d batches listed: %v", listed, pages.Err())
	}
	refused := &openai.Error{}
	if _, err := client.Batches.Cancel(ctx, batch.ID, option.WithMaxRetries(0)); !errors.As(err, &refused) || refused.StatusCode != 409 || refused.Message == "" {
		t.Errorf("cancel of a finished batch: %v", err)
	}
	if gone, err := client.Files.Delete(ctx, file.ID); err != nil || !gone.Deleted {
		t.Errorf("delete: %v %v", gone, err)
	}
	answerOne(t, &client)
}

func countLines(t *testing.T, client *openai.Client, id string) (n int) {
	t.Helper()
	res, err := client.Files.Content(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		n++
	}
	return n
}

// answerOne asks in real time, once whole and once as a stream.
func answerOne(t *testing.T, client *openai.Client) {
	t.Helper()
	params := openai.ChatCompletionNewParams{
		Model: "m", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hello there.")},
	}
	whole, err := client.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	acc := openai.ChatCompletionAccumulator{}
	for stream.Next() {
		acc.AddChunk(stream.Current())
	}
	if stream.Err() != nil {
		t.Fatal(stream.Err())
	}
	want := "You said: Hello there."
	if got := whole.Choices[0].Message.Content; got != want {
		t.Errorf("whole: %q, want %q", got, want)
	}
	if got := acc.Choices[0].Message.Content; got != want {
		t.Errorf("stream: %q, want %q", got, want)
	}
}
