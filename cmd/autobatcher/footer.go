package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/vbauerster/mpb/v8"
	"golang.org/x/term"
)

// A footer shows a line at the bottom of a terminal while everything above
// scrolls on by itself. The child writes to the same terminal without our
// knowing; a bar that moved the cursor up and erased, as bars usually do, would
// erase what the child wrote.
type footer struct {
	bytes.Buffer // what is to be shown
	out          io.Writer
	size         func() (width, height int, err error)
	height       int    // of the terminal as it is divided now; 0: not divided
	shown        string // in its last line
}

var _ mpb.ConsoleWriter = (*footer)(nil)

func newFooter(f *os.File) *footer {
	return &footer{out: f, size: func() (int, int, error) { return term.GetSize(int(f.Fd())) }}
}

// leastHeight is the lowest terminal that is worth dividing.
const leastHeight = 4

// fits reports whether the terminal has room for a footer. Some tell no size.
func (f *footer) fits() bool {
	_, height, err := f.size()
	return err == nil && height >= leastHeight
}

// IsTerminal is true: there is no footer elsewhere.
func (f *footer) IsTerminal() bool { return true }

// GetTermSize is the terminal's size.
func (f *footer) GetTermSize() (width, height int, err error) { return f.size() }

// Flush shows what was written since the last Flush. Each time it is one write,
// so that it does not mix with what the child writes.
func (f *footer) Flush(int) error {
	line := oneLine(f.String())
	f.Reset()
	_, height, err := f.size()
	if err != nil || height < leastHeight {
		return err
	}
	if line == f.shown && height == f.height {
		return nil
	}
	var text string
	if height != f.height {
		text = divide(height)
	}
	f.height, f.shown = height, line
	// Save the cursor, go to the last line, do not wrap at its end, go back.
	text += fmt.Sprintf("\x1b7\x1b[?7l\x1b[%d;1H\x1b[2K%s\x1b[?7h\x1b8", height, line)
	_, err = io.WriteString(f.out, text)
	return err
}

// divide lets only the lines above the last one scroll. The newline makes room
// where the cursor is on the last line; setting the margins moves it home.
func divide(height int) string {
	return fmt.Sprintf("\n\x1b7\x1b[1;%dr\x1b8\x1b[1A", height-1)
}

// close gives the whole terminal back.
func (f *footer) close() {
	if f.height > 0 {
		_, _ = fmt.Fprintf(f.out, "\x1b7\x1b[r\x1b[%d;1H\x1b[2K\x1b8", f.height)
	}
	f.height = 0
}
