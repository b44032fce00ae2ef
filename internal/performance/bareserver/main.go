// Command bareserver is the baseline of autobatcher serve in the benchmarks: the
// simplest server that holds calls. It prints its address. POST /release makes it
// answer all calls with their own bodies, and GET /held returns their number.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	release := make(chan struct{})
	var held atomic.Int64
	http.HandleFunc("POST /release", func(http.ResponseWriter, *http.Request) { close(release) })
	http.HandleFunc("GET /held", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, held.Load()) })
	http.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		held.Add(1)
		select {
		case <-release:
		case <-r.Context().Done():
		}
		w.Header()["Content-Type"] = []string{"application/json"}
		_, _ = w.Write(body) // the client checks its answer
	})
	log.Fatal(http.Serve(listener, nil))
}
