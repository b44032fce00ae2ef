// Package inbound reads the bodies of requests: whole, bounded, and without
// their Content-Encoding.
package inbound

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/autobatcher/autobatcher/internal/reply"
)

// Read reads what there is, up to limit. length is what was announced, which is
// not always true. More than limit is a *reply.Refusal.
func Read(r io.Reader, length, limit int64) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	if length > limit {
		return nil, tooLarge(limit)
	}
	body, err := readExactly(r, min(max(length, 0), preallocated))
	if err != nil {
		return nil, err
	}
	one, err := readExactly(r, 1) // nearly always there is no more
	if err != nil || len(one) == 0 {
		return body, err
	}
	rest, err := io.ReadAll(io.LimitReader(r, limit-int64(len(body))))
	if err != nil {
		return nil, err
	}
	if int64(len(body)+1+len(rest)) > limit {
		return nil, tooLarge(limit)
	}
	return slices.Concat(body, one, rest), nil
}

func tooLarge(limit int64) error {
	return &reply.Refusal{Status: http.StatusRequestEntityTooLarge, Code: "request_too_large", Message: fmt.Sprintf(
		"the request body is larger than the %d bytes that one line of a batch may hold; send it with the header Autobatcher-Mode: realtime, or send less", limit)}
}

// preallocated bounds what a mere announcement of a length can cost.
const preallocated = 1 << 20

// readExactly reads n bytes into memory of just that size, or less where the
// body is shorter than announced.
func readExactly(r io.Reader, n int64) ([]byte, error) {
	body := make([]byte, n)
	got, err := io.ReadFull(r, body)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return body[:got], err
}

// Decode undoes a Content-Encoding, since a line has none. What it cannot undo,
// and what is more than limit, is a *reply.Refusal.
func Decode(raw []byte, encoding string, limit int64) ([]byte, error) {
	var r io.Reader
	var err error
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		return raw, nil
	case "gzip", "x-gzip":
		r, err = gzip.NewReader(bytes.NewReader(raw))
	case "deflate":
		r, err = zlib.NewReader(bytes.NewReader(raw))
	default:
		return nil, &reply.Refusal{Status: http.StatusUnsupportedMediaType, Code: "unsupported_content_encoding", Message: fmt.Sprintf(
			"Content-Encoding %q cannot be batched; send the body as it is, or with gzip or deflate", encoding)}
	}
	if err == nil {
		var body []byte
		if body, err = Read(r, -1, limit); err == nil {
			return body, nil
		}
	}
	if r := (*reply.Refusal)(nil); errors.As(err, &r) {
		return nil, err
	}
	return nil, reply.BadBody("", "the body is not "+encoding+" as its Content-Encoding says: "+err.Error())
}
