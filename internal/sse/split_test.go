package sse

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestPrefixSize(t *testing.T) {
	tests := []struct {
		name, text string
		limit      int
		want       string
	}{
		{"short", `abc`, 3, `abc`},
		{"nothing", ``, 3, ``},
		{"plain", `abcdef`, 4, `abcd`},
		{"rune", `aé`, 2, `a`},
		{"emoji", `😀😀`, 7, `😀`},
		{"simple escape", `ab\ncd`, 3, `ab`},
		{"escaped backslash", `a\\\\b`, 4, `a\\`},
		{"backslash before u", `a\\u00e9x`, 4, `a\\u`},
		{"unicode escape", `ab\u00e9cd`, 7, `ab`},
		{"surrogate pair", `a\uD83D\ude00b`, 12, `a`},
		{"whole surrogate pair", `a\uD83D\ude00b`, 13, `a\uD83D\ude00`},
		{"unpaired high surrogate", `\ud83dabcdef`, 7, `\ud83da`},
		{"two high surrogates", `\ud83d\ud83d\ude00`, 8, `\ud83d`},
		{"low before high", `\ude00\ud83dxx`, 6, `\ude00`},
		{"first character too long", `😀😀`, 3, ``},
		{"invalid UTF-8", "\xf0\x9f\xf0\x9f", 3, "\xf0\x9f\xf0"},
		{"escape at the end", `abc\u00e9`, 8, `abc`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.text[:prefixSize(test.text, test.limit)]; got != test.want {
				t.Errorf("prefixSize(%q, %d) is %q, want %q", test.text, test.limit, got, test.want)
			}
		})
	}
}

func TestPiecesAreShortAndDecodable(t *testing.T) {
	unit := `a\"\\é\u00e9\ud83d\ude00😀/`
	text := strings.Repeat(unit, 3*pieceSize/len(unit))
	var want, got string
	if err := json.Unmarshal([]byte(quote(text)), &want); err != nil {
		t.Fatal(err)
	}
	for piece := range pieces(text) {
		var decoded string
		if err := json.Unmarshal([]byte(quote(piece)), &decoded); err != nil {
			t.Fatalf("piece %q: %v", piece, err)
		}
		if len(piece) > pieceSize {
			t.Errorf("piece of %d bytes, want at most %d", len(piece), pieceSize)
		}
		got += decoded
	}
	if got != want {
		t.Error("the joined pieces are not the text")
	}
}
