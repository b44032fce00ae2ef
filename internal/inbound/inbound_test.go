package inbound_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/inbound"
	"github.com/autobatcher/autobatcher/internal/reply"
)

// FuzzDecode checks that no bytes, whatever their Content-Encoding, break us.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08\x00"), "gzip")
	f.Add([]byte("x\x9c"), "deflate")
	f.Add([]byte("{}"), "")
	f.Fuzz(func(t *testing.T, raw []byte, encoding string) {
		body, err := inbound.Decode(raw, encoding, 1000)
		if err == nil && strings.TrimSpace(encoding) != "" && !strings.EqualFold(strings.TrimSpace(encoding), "identity") && len(body) > 1000 {
			t.Fatalf("%d bytes of at most 1000", len(body))
		}
		if r := (*reply.Refusal)(nil); err != nil && (!errors.As(err, &r) || r.Status < 400 || r.Status > 499) {
			t.Fatalf("error %v, want one that the caller is told by a status", err)
		}
	})
}
