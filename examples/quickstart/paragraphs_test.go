package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParagraphs(t *testing.T) {
	tests := []struct {
		name     string
		content  string
		markdown bool
		want     []string
	}{
		{name: "empty", content: ""},
		{name: "blank lines only", content: "\n \n\t\n"},
		{name: "lines of a paragraph are joined", content: "one\n  two\nthree\n\n\nfour", want: []string{"one two three", "four"}},
		{name: "carriage returns", content: "one\r\ntwo\r\n\r\nthree\r\n", want: []string{"one two", "three"}},
		{name: "byte order mark", content: "\uFEFFone", want: []string{"one"}},
		{name: "no letters", content: "* * *\n\n2024\n\none", want: []string{"one"}},
		{name: "plain text keeps what Markdown would not", content: "#1 of two\n\n    indented", want: []string{"#1 of two", "indented"}},
		{name: "headings", markdown: true, content: "# Title\nunder it\n## Next\n\nHigh\n====\n\nLow\n---\n\n#hash", want: []string{"under it", "#hash"}},
		{name: "fences", markdown: true, content: "a\n```go\nno\n\nno\n```\nb\n\n~~~\nno\n```\n~~~\nc", want: []string{"a", "b", "c"}},
		{name: "a longer fence holds a shorter", markdown: true, content: "````\nno\n```\nno\n````\nyes", want: []string{"yes"}},
		{name: "a fence with a language does not close", markdown: true, content: "```\nno\n```go\nno\n```\nyes", want: []string{"yes"}},
		{name: "a fence that is never closed", markdown: true, content: "yes\n\n```\nno\n\nno", want: []string{"yes"}},
		{name: "indented code", markdown: true, content: "yes\n\n    no\n\n\tno", want: []string{"yes"}},
		{name: "tables, badges, pages, references", markdown: true, content: "| a |\n|---|\n\n[![ci](x)](y)\n\n![logo](x)\n\n<p>x</p>\n\n[x]: https://example.com\n\nyes", want: []string{"yes"}},
		{name: "links and lists stay", markdown: true, content: "[here](x) is prose\n\n- one\n- two", want: []string{"[here](x) is prose", "- one - two"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := paragraphs(text{content: test.content}, test.markdown)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestClip(t *testing.T) {
	tests := []struct {
		text   string
		length int
		want   string
	}{
		{"", 3, ""},
		{"äöü", 3, "äöü"},
		{"äöüß", 3, "äö…"},
		{"a b c", 3, "a…"},
	}
	for _, test := range tests {
		if got := clip(test.text, test.length); got != test.want {
			t.Errorf("clip(%q, %d) = %q, want %q", test.text, test.length, got, test.want)
		}
	}
}

func TestReadTextFindsReadme(t *testing.T) {
	top := t.TempDir()
	below := filepath.Join(top, "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(below)
	if err := os.WriteFile(filepath.Join(top, "go.mod"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readText(""); !errors.Is(err, errNoReadme) {
		t.Errorf("without a README: err = %v, want %v", err, errNoReadme)
	}
	if err := os.WriteFile(filepath.Join(top, "README.md"), []byte("Hello.\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readText("")
	if err != nil {
		t.Fatal(err)
	}
	if want := (text{filepath.Join("..", "..", "README.md"), "Hello.\uFFFD"}); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := readText("missing.txt"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err = %v, want that the file does not exist", err)
	}
}
