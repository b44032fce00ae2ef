package aside_test

import (
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/aside"
)

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name  string
		f     func()
		want  any    // the panic
		stack string // in the text of the panic
		exits bool   // Run does not return
	}{
		{name: "returns", f: func() {}},
		{name: "panics with an error", f: func() { panic(io.ErrUnexpectedEOF) }, want: io.ErrUnexpectedEOF, stack: "aside_test.go", exits: true},
		{name: "panics with a text", f: func() { panic("no") }, want: "no", stack: "no\n", exits: true},
		{name: "aborts a handler", f: func() { panic(http.ErrAbortHandler) }, want: http.ErrAbortHandler, exits: true},
		{name: "exits", f: runtime.Goexit, exits: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got any
			ran, returned, done := false, false, make(chan struct{})
			go func() {
				defer close(done)
				defer func() { got = recover() }()
				aside.Run(func() { ran = true; tt.f() })
				returned = true
			}()
			<-done
			if !ran || returned == tt.exits {
				t.Errorf("ran %v, returned %v", ran, returned)
			}
			if p, ok := got.(*aside.Panic); ok {
				if err, ok := tt.want.(error); ok && !errors.Is(p, err) || !strings.Contains(p.Error(), tt.stack) {
					t.Errorf("panic %q, want %v with %q", p, tt.want, tt.stack)
				}
				got = p.Value
			}
			if got != tt.want {
				t.Errorf("panic %v, want %v", got, tt.want)
			}
		})
	}
}
