package reply

import (
	"context"
	"io"
	"sync/atomic"
)

// A WatchedBody is the body of a response in real time. It reports the end of the
// reading.
type WatchedBody struct {
	io.ReadCloser
	Context context.Context //nolint:containedctx // of the caller, for as long as the caller reads
	Scan    func([]byte)    // is called with the bytes that were read

	// Whole is called at the end of the body, or when the caller closes the body
	// because it has read enough, as SDKs do after the last event of a stream. End is
	// called in any case, after Whole. Both may be called several times.
	Whole, End func()

	broken atomic.Bool // a Read failed
}

// Read implements io.Reader.
func (b *WatchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.Scan(p[:n])
	switch err {
	case nil:
	case io.EOF: //nolint:errorlint // io.Reader says that EOF is not wrapped
		b.Whole()
		b.End()
	default:
		b.broken.Store(true)
	}
	return n, err
}

// Close implements io.Closer.
func (b *WatchedBody) Close() error {
	if b.Context.Err() == nil && !b.broken.Load() {
		b.Whole()
	}
	defer b.End()
	return b.ReadCloser.Close()
}
