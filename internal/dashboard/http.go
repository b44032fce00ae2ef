package dashboard

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"path"
	"strconv"
	"time"
)

//go:embed assets
var files embed.FS

// page is the template of the page. If the URL of the page has ?key=…, the page must
// request its files with the same key.
var page = template.Must(template.ParseFS(files, "assets/index.html"))

// contentSecurityPolicy allows the page to load only from the page's own origin,
// and forbids inline scripts and inline styles. Without JavaScript, forms cancel.
const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// prefix is the path prefix of the page's files, the state and the events.
const prefix = "/autobatcher/"

// writeTimeout is the time limit for one write to a viewer.
const writeTimeout = 10 * time.Second

// An asset is an embedded file that is served unchanged.
type asset struct {
	body        []byte
	contentType string
	etag        string
}

var assets = loadAssets("app.js", "format.js", "list.js", "batch.js", "chart.js", "style.css", "icon.svg", "uplot.js", "uplot.css", "uplot.LICENSE.txt")

// contentTypes has the Content-Type for each file extension. Package mime is not
// used, because the types of package mime depend on the machine.
var contentTypes = map[string]string{
	".js":  "text/javascript; charset=utf-8",
	".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml",
	".txt": "text/plain; charset=utf-8",
}

func loadAssets(names ...string) map[string]asset {
	all := make(map[string]asset, len(names))
	for _, name := range names {
		body, err := files.ReadFile("assets/" + name)
		if err != nil {
			panic(err) // the file is missing in the source tree, and every test fails
		}
		sum := sha256.Sum256(body)
		all[prefix+name] = asset{body, contentTypes[path.Ext(name)], `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`}
	}
	return all
}

// ServeHTTP serves the page at "/" and, below "/autobatcher/", the files of the
// page, "state" (a snapshot as JSON), "batch?seq=…" (one batch as JSON) and "events"
// (snapshots as server-sent events).
// All other paths get 404. ServeHTTP does not authenticate requests; the caller of
// ServeHTTP must.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setSecurityHeaders(w.Header())
	var serve func(http.ResponseWriter, *http.Request)
	a, isAsset := assets[r.URL.Path]
	switch r.URL.Path {
	case "/":
		serve = d.servePage
	case prefix + "state":
		serve = d.serveState
	case prefix + "batch":
		serve = d.serveBatch
	case prefix + "events":
		serve = d.serveEvents
	default:
		serve = func(w http.ResponseWriter, r *http.Request) { serveAsset(w, r, a) }
		if !isAsset {
			http.Error(w, "not found", http.StatusNotFound)
			return
		}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	serve(w, r)
}

func setSecurityHeaders(h http.Header) {
	h.Set("Content-Security-Policy", contentSecurityPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin") // the URL may hold a key; forms name the origin of the page
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

func serveAsset(w http.ResponseWriter, r *http.Request, a asset) {
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Cache-Control", "no-cache") // browsers must revalidate: the files must fit the version of the page
	h.Set("ETag", a.etag)
	serveBytes(w, r, a.body)
}

// serveBytes serves body, with support for HEAD, ranges and If-None-Match.
func serveBytes(w http.ResponseWriter, r *http.Request, body []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

func (d *Dashboard) servePage(w http.ResponseWriter, r *http.Request) {
	var html bytes.Buffer
	if err := page.Execute(&html, d.pageData(r.URL.Query())); err != nil {
		http.Error(w, "the page could not be rendered", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	serveBytes(w, r, html.Bytes())
}

func (d *Dashboard) serveState(w http.ResponseWriter, r *http.Request) {
	d.refresh(time.Now(), true)
	w.Header().Set("Content-Type", "application/json")
	serveBytes(w, r, d.feed.latest())
}

// serveBatch serves the batch with the number in the query.
func (d *Dashboard) serveBatch(w http.ResponseWriter, r *http.Request) {
	seq, err := strconv.Atoi(r.URL.Query().Get("seq"))
	d.mu.Lock()
	t, found := d.board.details(seq, time.Now())
	d.mu.Unlock()
	if err != nil || !found {
		http.Error(w, "no batch with this number is listed", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	serveBytes(w, r, marshal(t))
}

func (d *Dashboard) serveEvents(w http.ResponseWriter, r *http.Request) {
	d.refresh(time.Now(), true)
	v := d.feed.subscribe()
	if v == nil {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many viewers, or shutting down", http.StatusServiceUnavailable)
		return
	}
	defer d.feed.unsubscribe(v)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx buffers events otherwise
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close") // the write deadline would also apply to the next response
	}
	if r.Method == http.MethodHead {
		return
	}
	stream(w, r, v)
}

// stream sends frames until the client disconnects, the feed drops the viewer, or a
// write takes longer than writeTimeout.
func stream(w http.ResponseWriter, r *http.Request, v viewer) {
	rc := http.NewResponseController(w)
	extendDeadline := func() { _ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) } // some writers have no deadline
	defer extendDeadline()                                                             // net/http still has to write the end of the response
	for {
		select {
		case fr, ok := <-v:
			if !ok {
				return
			}
			extendDeadline()
			if _, err := w.Write(fr); err != nil {
				return
			}
			if err := rc.Flush(); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}
