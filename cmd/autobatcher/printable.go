package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// printable returns text for a terminal: all characters that can control the
// terminal or reorder its text (ANSI sequences, other control characters,
// bidirectional controls) are escaped as \uXXXX, invalid UTF-8 is replaced, and line
// breaks stay. A string in JSON keeps its value, since JSON has the same escapes. All text
// of callers and providers that the command prints must go through printable.
func printable(text string) string {
	if strings.IndexFunc(text, unprintable) < 0 && utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case !unprintable(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func unprintable(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

// printableLine is printable for a value within a line: line breaks are escaped, too.
func printableLine(text string) string {
	return strings.ReplaceAll(printable(text), "\n", `\u000a`)
}

// A terminalWriter makes JSON printable.
type terminalWriter struct{ io.Writer }

// forTerminal returns a writer of JSON for w: if w is a terminal, the JSON is made
// printable.
func forTerminal(w io.Writer) io.Writer {
	if isTerminal(w) {
		return terminalWriter{w}
	}
	return w
}

func (t terminalWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(t.Writer, printable(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}
