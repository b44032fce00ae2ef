package redact_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/autobatcher/autobatcher/internal/redact"
)

const key = "sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t/+x&yz"

func secrets() *redact.Secrets {
	s := redact.New()
	s.Add(key)
	s.Add("short-one!")
	return s
}

// TestText checks that no eight characters in a row of a credential remain, however
// the text quotes the credential.
func TestText(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", ""},
		{"nothing", "nothing"},
		{"key Bearer " + key + ".", "key Bearer " + strings.Repeat("*", len(key)) + "."},
		{key + key, strings.Repeat("*", 2*len(key))},
		{`{"e":"sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t/+x\u0026yz"}`, `{"e":"` + strings.Repeat("*", len(key)+5) + `"}`},
		{`{"e":"sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t\/+x"}`, `{"e":"` + strings.Repeat("*", len(key)-2) + `"}`},
		{"begins with " + key[:12] + "…", "begins with ************…"},
		{"ends in " + key[24:], "ends in " + strings.Repeat("*", len(key)-24)},
		{"the middle " + key[10:19] + " of it", "the middle ********* of it"},
		{"sk-proj-****8t/+", "************8t/+"},
		{key[:7], key[:7]},
		{"?key=sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t%2F%2Bx%26yz&a=b", "?key=" + strings.Repeat("*", len(key)+6) + "&a=b"},
		{"short-one! and short-on", "********** and short-on"},
	} {
		if got := secrets().Text(test.text); got != test.want {
			t.Errorf("%s\nbecame %s\nwant   %s", test.text, got, test.want)
		}
	}
}

// TestReader checks that the sizes of the pieces in which a body arrives do not
// matter, and that nothing is lost.
func TestReader(t *testing.T) {
	for _, parts := range []bool{false, true} {
		for name, text := range map[string]string{
			"whole":      strings.Repeat("a", 100) + key + "b" + key,
			"at the end": "x" + key,
			"begins":     "x" + key[:20] + "y" + key[:3],
			"often":      strings.Repeat(key[:len(key)-1], 5) + key,
			"long":       strings.Repeat("0123456789", 10_000) + key + strings.Repeat("z", 70_000),
			"none":       "data: {}\n\n",
			"empty":      "",
		} {
			for how, wrap := range map[string]func(io.Reader) io.Reader{
				"at once": func(r io.Reader) io.Reader { return r }, "by byte": iotest.OneByteReader,
				"by half": iotest.HalfReader, "with EOF": iotest.DataErrReader,
			} {
				got, err := io.ReadAll(secrets().Reader(wrap(strings.NewReader(text)), parts))
				want := strings.ReplaceAll(text, key, strings.Repeat("*", len(key)))
				if parts {
					want = secrets().Text(text)
				}
				if string(got) != want || err != nil {
					t.Errorf("%s, %s, parts %v: %d bytes, %v\n%.300s", name, how, parts, len(got), err, got)
				}
			}
		}
	}
}

// TestReaderIsPrompt checks that an event of a stream is not held back.
func TestReaderIsPrompt(t *testing.T) {
	for _, parts := range []bool{false, true} {
		r, w := io.Pipe()
		out := secrets().Reader(r, parts)
		go w.Write([]byte("data: {\"s\":\"sk\"}\n\n"))
		b := make([]byte, 100)
		if n, err := out.Read(b); string(b[:n]) != "data: {\"s\":\"sk\"}\n\n" || err != nil {
			t.Errorf("%q %v", b[:n], err)
		}
		w.Close()
	}
}

// TestReaderError checks that an error of the body arrives after the bytes before.
func TestReaderError(t *testing.T) {
	broken := errors.New("broken")
	got, err := io.ReadAll(secrets().Reader(io.MultiReader(strings.NewReader("x sk-pro"), iotest.ErrReader(broken)), true))
	if !errors.Is(err, broken) || len(got) != 8 {
		t.Errorf("%q %v", got, err)
	}
}

// TestShortKeysAreWords checks that a key that may be an ordinary word does not
// change answers.
func TestShortKeysAreWords(t *testing.T) {
	s := redact.New()
	for _, word := range []string{"", "k", "dummy", "ollama"} {
		s.Add(word)
	}
	const text = "a dummy llama in ollama"
	if got, _ := io.ReadAll(s.Reader(strings.NewReader(text), false)); string(got) != text {
		t.Errorf("an answer became %s", got)
	}
	if got, want := s.Text(text), "a dummy llama in ******"; got != want {
		t.Errorf("an error became %q, want %q", got, want)
	}
}

// TestCallers checks that callers' credentials are hidden in texts only, and that a
// caller cannot choose which words of a log are hidden.
func TestCallers(t *testing.T) {
	s := redact.New()
	for _, credential := range []string{"sk-caller-0123456789abcdef", "listening", "upstream request failed", "anerrorhappenedhereatonce"} {
		s.AddCaller(credential)
	}
	const text = "listening: upstream request failed: anerrorhappenedhereatonce: sk-caller-0123456789abcdef"
	want := strings.ReplaceAll(text, "sk-caller-0123456789abcdef", "**************************")
	if got := s.Text(text); got != want {
		t.Errorf("%s", got)
	}
	if got, _ := io.ReadAll(s.Reader(strings.NewReader(text), true)); string(got) != text {
		t.Errorf("an answer became %s", got)
	}
}

func TestHandler(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(secrets().Handler(slog.NewJSONHandler(&out, nil)))
	log.With("with", key).WithGroup("g").Warn("message "+key, "error", errors.New("401: "+key), "text", key[:15], slog.Group("in", "x", []string{key}), "n", 5)
	log.Info("plain", "n", 5, "error", errors.New("no"))
	if strings.Contains(out.String(), key[3:11]) || strings.Count(out.String(), "********") < 5 {
		t.Errorf("%s", &out)
	}
	if !strings.Contains(out.String(), `"msg":"plain","n":5,"error":"no"`) {
		t.Errorf("%s", &out)
	}
}
