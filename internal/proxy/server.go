package proxy

import (
	"net/http"
	"time"
)

// maxStreams is how many requests one HTTP/2 connection may have at the same time.
// Each request costs a goroutine before the key of the client is checked. Clients
// open further connections for further requests.
const maxStreams = 250

// NewServer returns an http.Server for calls that take hours. The server speaks
// HTTP/1.1, and HTTP/2 without TLS, so that a client can hold maxStreams calls on
// one connection. The server has no WriteTimeout, because a WriteTimeout would
// end long calls; the Proxy limits each single write instead. TCP keep-alive
// stays at the default of net/http: a probe every 15 s.
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
			MaxConcurrentStreams: maxStreams,
			SendPingTimeout:      time.Minute, // detects clients that disappeared without closing the connection
			WriteByteTimeout:     stallTimeout,
		},
	}
}
