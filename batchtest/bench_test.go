package batchtest_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/batchtest"
)

// BenchmarkBatch runs whole batches: upload, create, retrieve, download.
func BenchmarkBatch(b *testing.B) {
	for _, size := range []struct{ lines, bytes int }{{1000, 500}, {50_000, 500}, {50_000, 4000}} {
		b.Run(fmt.Sprintf("lines=%d/bytes=%d", size.lines, size.bytes), func(b *testing.B) {
			var input strings.Builder
			padding := strings.Repeat("words ", size.bytes/6)
			for i := range size.lines {
				input.WriteString(chatLine(fmt.Sprintf("line-%d", i), padding))
			}
			content := input.String()
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			for b.Loop() {
				s := batchtest.New(batchtest.Options{Behavior: roomy()})
				a := &api{b, s, s.Client(), "sk-test"}
				batch := a.retrieve(a.create(content)["id"])
				req := a.request("GET", "/files/"+batch["output_file_id"].(string)+"/content", nil)
				if n := a.download(req); n < size.lines*100 {
					b.Fatalf("output of %d bytes", n)
				}
				s.Close()
			}
		})
	}
}

func roomy() batchtest.Behavior {
	m := batchtest.OpenAI()
	m.MaxFileBytes = 1 << 30
	return m
}

// download counts a body without keeping it.
func (a *api) download(req *http.Request) int {
	a.t.Helper()
	req.Header.Set("Authorization", "Bearer "+a.key)
	res, err := a.client.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return int(n)
}
