package proxy

import (
	"net/http"
	"time"
)

// NewServer returns a server for calls that take hours, over HTTP/1.1 and over
// HTTP/2 without TLS, with which a hundred thousand calls fit into a few
// connections. It has no WriteTimeout, which would cut such calls off; the Proxy
// sets a deadline for each write instead. TCP keep-alive is net/http's, every 15 s.
func NewServer(h http.Handler) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &protocols,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    128 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250_000,
			SendPingTimeout:      time.Minute, // notices callers that vanished without a word
			WriteByteTimeout:     patience,
		},
	}
}
