package measure

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Header returns the header of a call by an SDK of OpenAI.
func Header() http.Header {
	return http.Header{
		"Authorization": {"Bearer dummy"}, "Content-Type": {"application/json"}, "Accept": {"application/json"}, "User-Agent": {"OpenAI/Go 3.96.0"},
		"X-Stainless-Lang": {"go"}, "X-Stainless-Os": {"Linux"}, "X-Stainless-Arch": {"x64"}, "X-Stainless-Runtime": {"go"},
		"X-Stainless-Runtime-Version": {"go1.26"}, "X-Stainless-Package-Version": {"3.96.0"}, "X-Stainless-Retry-Count": {"0"},
	}
}

// Hold sends a call for each body to a server, each on a connection of its own with
// HTTP/1.1, and returns without an answer. wait reads the answers, and returns the
// bodies of the answers in the order of the calls.
func Hold(address string, bodies [][]byte) (wait func() ([][]byte, error), err error) {
	conns := make([]net.Conn, 0, len(bodies))
	closeAll := func() {
		for _, conn := range conns {
			conn.Close()
		}
	}
	var header bytes.Buffer
	_ = Header().Write(&header) // memory
	for _, body := range bodies {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conns = append(conns, conn)
			_, err = fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s", header.Bytes(), len(body), body)
		}
		if err != nil {
			closeAll()
			return nil, err
		}
	}
	return func() ([][]byte, error) {
		defer closeAll()
		answers := make([][]byte, len(conns))
		for i, conn := range conns {
			if answers[i], err = readAnswer(conn); err != nil {
				return nil, fmt.Errorf("call %d: %w", i, err)
			}
		}
		return answers, nil
	}, nil
}

// readAnswer reads an answer, which must have the status 200.
func readAnswer(conn net.Conn) ([]byte, error) {
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return body, err
}
