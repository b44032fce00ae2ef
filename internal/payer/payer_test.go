package payer_test

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/internal/payer"
)

func TestPayer(t *testing.T) {
	h := http.Header{
		"Authorization": {"Bearer k"}, "X-Api-Key": {"a: b", "c"}, "Openai-Project": {"p"},
		"Content-Type": {"x"}, "X-Stainless-Lang": {"go"}, "Accept": {"y"}, "User-Agent": {"z"}, "X-Request-Id": {"1"},
	}
	want := http.Header{"Authorization": {"Bearer k"}, "X-Api-Key": {"a: b", "c"}, "Openai-Project": {"p"}}
	if diff := cmp.Diff(want, payer.Header(payer.Of(h))); diff != "" {
		t.Error(diff)
	}
	if got := payer.Of(http.Header{"Accept": {"x"}}); got != "" {
		t.Errorf("a payer of nothing: %q", got)
	}
	for _, pair := range [][2]http.Header{
		{{"Authorization": {"a"}}, {"Authorization": {"b"}}},
		{{"Authorization": {"a"}}, {"Api-Key": {"a"}}},
		{{"X-Key": {"a", "b"}}, {"X-Key": {"a"}, "Y-Key": {"b"}}},
		{{"Authorization": {"a"}}, {}},
	} {
		if payer.Of(pair[0]) == payer.Of(pair[1]) {
			t.Errorf("%v and %v pay as one", pair[0], pair[1])
		}
	}
}
