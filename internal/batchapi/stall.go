package batchapi

import (
	"context"
	"errors"
	"io"
	"time"
)

var (
	errStalled = errors.New("the provider stopped answering")
	errNoID    = errors.New("the answer has no id")
)

// A stallWatch ends its context when a transfer has not moved for stallTimeout.
type stallWatch struct {
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func watchStall(ctx context.Context) (context.Context, *stallWatch) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	return ctx, &stallWatch{timer: timer, cancel: cancel}
}

func (w *stallWatch) moved() { w.timer.Reset(stallTimeout) }

func (w *stallWatch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// A watchedBody reports to its watch whenever bytes move through it. Closing
// an answer's body ends the watch; an upload's is ended by Upload, since the
// wait for the answer comes after it.
type watchedBody struct {
	io.ReadCloser
	watch *stallWatch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.watch.moved()
	}
	return n, err
}

// stalled turns the end of a watch or timeout of our own into an Error that
// can be told from the end of the caller's context.
func stalled(err error, method, path string) error {
	if errors.Is(err, errStalled) {
		return &Error{Op: method + " /" + path, Err: errStalled}
	}
	return err
}
