package dashboard

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"path"
	"time"
)

//go:embed assets
var files embed.FS

// page is the one file that is not sent as it is: where the server wants a key
// in the URL, the page's own requests must have it too.
var page = template.Must(template.ParseFS(files, "assets/index.html"))

// policy lets the page load from its own origin alone, and run or style
// nothing that is written inline.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// prefix is where everything but the page itself is served.
const prefix = "/autobatcher/"

// writePatience is how long one write to a viewer may take.
const writePatience = 10 * time.Second

// An asset is an embedded file that is served as it is.
type asset struct {
	body []byte
	kind string // its Content-Type
	etag string
}

var assets = loadAssets("app.js", "chart.js", "style.css", "icon.svg", "uplot.js", "uplot.css", "uplot.LICENSE.txt")

// kinds are written down because the types that package mime knows depend on
// the machine.
var kinds = map[string]string{
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
			panic(err) // not built right, and every test fails
		}
		sum := sha256.Sum256(body)
		all[prefix+name] = asset{body, kinds[path.Ext(name)], `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`}
	}
	return all
}

// ServeHTTP serves the page at "/", and beneath "/autobatcher/" what it is made
// of: its files, "state" (a JSON snapshot) and "events" (the same, kept up to
// date, as server-sent events). Everything else is a 404. Who may see it is
// for the caller to decide.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	a, isAsset := assets[r.URL.Path]
	switch {
	case !isAsset && r.URL.Path != "/" && r.URL.Path != prefix+"events" && r.URL.Path != prefix+"state":
		http.Error(w, "not found", http.StatusNotFound)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	case isAsset:
		serveAsset(w, r, a)
	case r.URL.Path == "/":
		servePage(w, r)
	case r.URL.Path == prefix+"state":
		d.serveState(w, r)
	default:
		d.serveEvents(w, r)
	}
}

func secure(h http.Header) {
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer") // the URL may hold a key
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

func serveAsset(w http.ResponseWriter, r *http.Request, a asset) {
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Cache-Control", "no-cache") // kept, but asked for again: a new version must not meet old files
	h.Set("ETag", a.etag)
	serveBytes(w, r, a.body)
}

// serveBytes answers HEAD, ranges and If-None-Match as they should be.
func serveBytes(w http.ResponseWriter, r *http.Request, body []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

func servePage(w http.ResponseWriter, r *http.Request) {
	var html bytes.Buffer
	if err := page.Execute(&html, r.URL.Query().Get("key")); err != nil {
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
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

func (d *Dashboard) serveEvents(w http.ResponseWriter, r *http.Request) {
	d.refresh(time.Now(), true)
	v := d.feed.join()
	if v == nil {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many viewers, or shutting down", http.StatusServiceUnavailable)
		return
	}
	defer d.feed.leave(v)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close") // its write deadline would hit the next answer
	}
	if r.Method == http.MethodHead {
		return
	}
	stream(w, r, v)
}

// stream sends a viewer its frames until it leaves, is dropped, or takes too
// long to read.
func stream(w http.ResponseWriter, r *http.Request, v viewer) {
	out := http.NewResponseController(w)
	hurry := func() { _ = out.SetWriteDeadline(time.Now().Add(writePatience)) } // not every writer has one
	defer hurry()
	for {
		select {
		case fr, ok := <-v:
			if !ok {
				return
			}
			hurry()
			if _, err := w.Write(fr); err != nil {
				return
			}
			if err := out.Flush(); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}
