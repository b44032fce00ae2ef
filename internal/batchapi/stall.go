package batchapi

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// A stallWatch ends a context when a transfer has not moved for stallTimeout. A
// stallWatch is safe for concurrent use: net/http reads a request body in a
// separate goroutine.
type stallWatch struct {
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

func watchStall(ctx context.Context) (context.Context, *stallWatch) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	return ctx, &stallWatch{timer: timer, cancel: cancel}
}

// moved starts the time anew.
func (w *stallWatch) moved() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.timer.Reset(stallTimeout)
	}
}

// stop ends the watch and the context. The watch leaves no timer.
func (w *stallWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
	w.cancel(nil)
}

// A movingBody reports to a watch whenever bytes move through the body.
type movingBody struct {
	io.ReadCloser
	watch *stallWatch
}

func (b *movingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.watch.moved()
	}
	return n, err
}

// A watchedBody is the body of a response. The watch ends at the end of the body,
// when reading fails, or when the body is closed.
type watchedBody struct {
	movingBody
	ctx context.Context // of the watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.movingBody.Read(p)
	if err == nil {
		return n, nil
	}
	if !errors.Is(err, io.EOF) && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	b.watch.stop()
	return n, err
}

func (b *watchedBody) Close() error {
	b.watch.stop()
	return b.ReadCloser.Close()
}
