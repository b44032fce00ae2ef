package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/internal/redact"
)

const (
	// keyFileInterval is the minimum time between two checks whether the key
	// file has changed.
	keyFileInterval = time.Second
	// maxKeyFile is the maximum size of a key file, in bytes.
	maxKeyFile = 64 << 10
)

// A keyFile is a provider's API key in a file. The file may be replaced while the
// process runs. All methods are safe for concurrent use.
type keyFile struct {
	path string // absolute
	log  *slog.Logger

	mu      sync.Mutex
	key     string          // the last valid key
	version os.FileInfo     // of the file when the process last read the file; nil: not read
	checked time.Time       // when the process last looked at the file
	problem string          // the last warning; "" while the file is valid
	secrets *redact.Secrets // gets each key; or nil
}

// openKeyFile reads the key for the first time. The first key must be valid.
func openKeyFile(path string, log *slog.Logger) (*keyFile, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	key, version, err := readKey(path)
	if err != nil {
		return nil, err
	}
	if openTo(version, 0o007) {
		log.Warn("other users of this machine can read or write the API key file; chmod 600 the file", "file", path, "mode", version.Mode().String())
	}
	return &keyFile{path: path, log: log, key: key, version: version, checked: time.Now()}, nil
}

// current returns the newest valid key. At most once a second current looks
// whether the file has changed.
func (f *keyFile) current() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.checked) >= keyFileInterval {
		f.checked = now
		f.checkLocked()
	}
	return f.key
}

// reread reads the file even if the file seems unchanged, and returns the newest
// valid key.
func (f *keyFile) reread() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readLocked()
	return f.key
}

// checkLocked reads the file if another file is at the path, or if the size or
// the time of the file changed.
func (f *keyFile) checkLocked() {
	info, err := os.Stat(f.path)
	if err == nil && sameVersion(info, f.version) {
		return
	}
	f.readLocked()
}

func sameVersion(a, b os.FileInfo) bool {
	return b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// readLocked takes the key in the file if the key is valid. Otherwise the last
// valid key remains, and each new problem is logged once.
func (f *keyFile) readLocked() {
	key, version, err := readKey(f.path)
	f.version = version
	if err != nil {
		if f.problem != err.Error() {
			f.problem = err.Error()
			f.log.Warn("the API key file is not valid; using the last valid key", "error", err)
		}
		return
	}
	f.problem = ""
	if key != f.key {
		f.key = key
		f.hideLocked()
		f.log.Info("the API key has changed", "file", f.path)
	}
}

// hideIn makes the file add its keys, also later ones, to secrets.
func (f *keyFile) hideIn(secrets *redact.Secrets) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secrets = secrets
	f.hideLocked()
}

func (f *keyFile) hideLocked() {
	if f.secrets != nil {
		f.secrets.Add(f.key)
	}
}

// readKey reads a key from a file. The version is not nil if the file could be
// opened. The error never contains the file's contents.
func readKey(path string) (key string, version os.FileInfo, err error) {
	content, version, err := readKeyFile(path)
	if err != nil {
		return "", version, err
	}
	key, err = parseKey(content)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return key, version, err
}

// readKeyFile reads the first maxKeyFile bytes of a file, and one more. The version is
// not nil if the file could be opened.
func readKeyFile(path string) (content string, version os.FileInfo, err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", nil, err
	}
	defer file.Close() //nolint:errcheck // read only
	if version, err = file.Stat(); err != nil {
		return "", nil, err
	}
	b, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	return string(b), version, err
}

// parseKey returns the key in the contents of a key file, without the white space
// around the key.
func parseKey(content string) (string, error) {
	key := strings.TrimSpace(content)
	switch {
	case key == "":
		return "", errors.New("the file is empty")
	case len(content) > maxKeyFile:
		return "", fmt.Errorf("the file is larger than %d bytes", maxKeyFile)
	case strings.ContainsFunc(key, notInKey):
		return "", errors.New("the file must contain one key and nothing else")
	}
	return key, nil
}

// notInKey reports whether r cannot be part of a key: a key is sent in a header.
func notInKey(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r > unicode.MaxASCII }

// configure makes the Transport keep one account for all keys of the file. The
// account is named after the path and not after a key: a new key must find the
// batches of the old key. Two servers that share a journal, and whose keys belong
// to different accounts, must therefore read their keys from different paths.
func (f *keyFile) configure(o *autobatcher.Options, authHeader string, secrets *redact.Secrets) {
	f.hideIn(secrets)
	account := "api-key-file " + f.path
	o.Account = func(*http.Request) string { return account }
	o.Credential = func(context.Context, string) (http.Header, error) {
		return credentialHeader(authHeader, f.reread()), nil
	}
}

// credentialHeader returns the header that carries an API key.
func credentialHeader(authHeader, key string) http.Header {
	h := make(http.Header)
	h.Set(authHeader, credentialValue(authHeader, key))
	return h
}

// credentialValue returns an API key as the value of the header authHeader.
func credentialValue(authHeader, key string) string {
	if authHeader == "Authorization" {
		return "Bearer " + key
	}
	return key
}

// A keyFileTransport sends each request with the newest key of a file. The proxy
// sends the first key.
type keyFileTransport struct {
	next       http.RoundTripper
	file       *keyFile
	authHeader string
	first      string // the key that the proxy sends
}

// RoundTrip sends the request itself as long as the first key is the newest, and a
// copy with the newest key afterwards.
func (t *keyFileTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	key := t.file.current()
	if key == t.first {
		return t.next.RoundTrip(req)
	}
	out := req.WithContext(req.Context())
	out.Header = req.Header.Clone()
	out.Header.Set(t.authHeader, credentialValue(t.authHeader, key))
	return t.next.RoundTrip(out)
}
