package main

import (
	"bytes"
	"fmt"
	"io"

	"github.com/vbauerster/mpb/v8"
	"golang.org/x/term"
)

// A statusLine shows text in the last line of a terminal while all lines above
// scroll. The child process writes to the same terminal at any time. A usual
// progress bar, which moves the cursor up and erases lines, would erase the
// child's output.
type statusLine struct {
	bytes.Buffer // the text to show
	out          io.Writer
	size         func() (width, height int, err error)
	height       int    // of the terminal when the last line was separated; 0: not separated
	shown        string // the text in the last line
}

var _ mpb.ConsoleWriter = (*statusLine)(nil)

// newStatusLine returns a statusLine for w, which must write to a terminal.
func newStatusLine(w io.Writer) *statusLine {
	return &statusLine{out: w, size: func() (int, int, error) { return term.GetSize(int(fileOf(w).Fd())) }}
}

// minHeight is the minimum height of a terminal for a status line.
const minHeight = 4

// fits reports whether the terminal has room for a status line. Some terminals
// report no size.
func (l *statusLine) fits() bool {
	_, height, err := l.size()
	return err == nil && height >= minHeight
}

// IsTerminal returns true: only a terminal has a status line.
func (l *statusLine) IsTerminal() bool { return true }

// GetTermSize returns the size of the terminal.
func (l *statusLine) GetTermSize() (width, height int, err error) { return l.size() }

// Flush shows the text that was written since the last Flush. Flush makes a single
// write, so that the text does not mix with the child's output.
func (l *statusLine) Flush(int) error {
	line := oneLine(l.String())
	l.Reset()
	_, height, err := l.size()
	if err != nil || height < minHeight {
		return err
	}
	if line == l.shown && height == l.height {
		return nil
	}
	var text string
	if height != l.height {
		text = separateLastLine(height)
	}
	l.height, l.shown = height, line
	// Save the cursor, go to the last line, write without wrapping, restore the cursor.
	text += fmt.Sprintf("\x1b7\x1b[?7l\x1b[%d;1H\x1b[2K%s\x1b[?7h\x1b8", height, line)
	if _, err = io.WriteString(l.out, text); err != nil {
		l.height, l.shown = 0, "" // draw everything the next time
	}
	return err
}

// separateLastLine makes only the lines above the last line scroll. The newline
// makes room if the cursor is in the last line. Setting the margins would move the
// cursor to the top, hence the cursor is saved and restored.
func separateLastLine(height int) string {
	return fmt.Sprintf("\n\x1b7\x1b[1;%dr\x1b8\x1b[1A", height-1)
}

// close makes the whole terminal scroll again.
func (l *statusLine) close() {
	if l.height > 0 {
		_, _ = fmt.Fprintf(l.out, "\x1b7\x1b[r\x1b[%d;1H\x1b[2K\x1b8", l.height)
	}
	l.height = 0
}
