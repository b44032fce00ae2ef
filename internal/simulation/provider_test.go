package simulation

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// newProvider returns the provider as processes reach it: the server, behind
// RoundTrippers that make the server behave as this schedule draws.
func (w *world) newProvider() http.RoundTripper {
	next := w.srv.Transport()
	if w.list != (listing{}) {
		next = w.rearrangeList(next)
	}
	if w.clockSkew != 0 {
		next = shiftClock(next, w.clockSkew, w.sendsDate)
	}
	if w.refusals {
		next = w.refuseKeys(next)
	}
	if w.noDelete || w.noList {
		next = w.restrictKeys(next)
	}
	if w.rotation {
		next = w.rotateKeys(next)
	}
	return next
}

// respond makes a response that does not come from the server.
func respond(req *http.Request, status int, header http.Header, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}
}

// replaceBody gives a response another body, which ends with err if err is not
// nil.
func replaceBody(res *http.Response, body []byte, err error) {
	res.Header.Del("Content-Length")
	res.ContentLength = -1
	res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), failing{err}))
}

// timestamp finds the times in a JSON object of the provider.
var timestamp = regexp.MustCompile(`"[a-z_]+_at":(\d+)`)

// shiftClock makes the provider's clock differ from the clock of the processes.
func shiftClock(next http.RoundTripper, skew time.Duration, sendsDate bool) http.RoundTripper {
	shift := func(found []byte) []byte {
		name, number, _ := bytes.Cut(found, []byte(":"))
		seconds, _ := strconv.ParseInt(string(number), 10, 64)
		return fmt.Appendf(nil, "%s:%d", name, seconds+int64(skew/time.Second))
	}
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		res, err := next.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		if sendsDate {
			res.Header.Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
		}
		if strings.HasSuffix(req.URL.Path, "/content") {
			return res, nil
		}
		defer res.Body.Close()
		body, torn := io.ReadAll(res.Body)
		replaceBody(res, timestamp.ReplaceAllFunc(body, shift), torn)
		return res, nil
	})
}

// A listing says how the provider lists batches. The zero listing is the
// server's own: newest first, up to 100 on a page.
type listing struct {
	order        listOrder
	page         int  // the most batches on a page
	ignoresAfter bool // each page is the first page
}

type listOrder string

const (
	newestFirst listOrder = "newest first"
	oldestFirst listOrder = "oldest first"
	randomOrder listOrder = "random"
)

// rearrangeList answers requests for the list of batches as w.list says.
func (w *world) rearrangeList(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, "/batches") {
			return next.RoundTrip(req)
		}
		all, failed, err := w.wholeList(next, req)
		if failed != nil || err != nil {
			return failed, err
		}
		switch w.list.order {
		case oldestFirst:
			slices.Reverse(all)
		case randomOrder:
			slices.SortFunc(all, func(a, b gjson.Result) int { return strings.Compare(w.rank(a), w.rank(b)) })
		}
		return w.pageOf(req, all), nil
	})
}

// rank orders the batches of a list by chance, and each time alike.
func (w *world) rank(item gjson.Result) string {
	return fmt.Sprintf("%016x", newDice(w.seed, "rank", item.Get("id").String()).Uint64())
}

// wholeList reads the server's list, newest first. If a page could not be read,
// wholeList returns the response or the error for that page.
func (w *world) wholeList(next http.RoundTripper, req *http.Request) (all []gjson.Result, failed *http.Response, err error) {
	for after := ""; ; {
		page := req.Clone(req.Context())
		query := page.URL.Query()
		query.Set("limit", "100")
		query.Del("after")
		if after != "" {
			query.Set("after", after)
		}
		page.URL.RawQuery = query.Encode()
		res, err := next.RoundTrip(page)
		if err != nil || res.StatusCode != http.StatusOK {
			return nil, res, err
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !gjson.GetBytes(body, "data").IsArray() {
			replaceBody(res, body, err)
			return nil, res, nil
		}
		items := gjson.GetBytes(body, "data").Array()
		all = append(all, items...)
		if len(items) == 0 || !gjson.GetBytes(body, "has_more").Bool() {
			return all, nil, nil
		}
		after = items[len(items)-1].Get("id").String()
		if w.server.Behavior.ListByOffset {
			after = strconv.Itoa(len(all))
		}
	}
}

// pageOf is the page of a list that a request asks for.
func (w *world) pageOf(req *http.Request, all []gjson.Result) *http.Response {
	after, start := req.URL.Query().Get("after"), 0
	switch {
	case after == "" || w.list.ignoresAfter:
	case w.server.Behavior.ListByOffset:
		start, _ = strconv.Atoi(after)
	default:
		start = 1 + slices.IndexFunc(all, func(item gjson.Result) bool { return item.Get("id").String() == after })
	}
	rest := all[min(start, len(all)):]
	page := rest[:min(len(rest), w.list.page)]
	texts := make([]string, len(page))
	for i, item := range page {
		texts[i] = item.Raw
	}
	body := fmt.Sprintf(`{"object":"list","data":[%s],"has_more":%t}`, strings.Join(texts, ","), len(page) < len(rest))
	return respond(req, http.StatusOK, http.Header{"Content-Type": {"application/json"}}, body)
}

// A refusal is a time in which the provider refuses a key.
type refusal struct {
	key         string
	status      int
	since, ends time.Time
}

const invalidKey = `{"error":{"message":"Incorrect API key provided.","type":"invalid_request_error","code":"invalid_api_key"}}`

// refuseKeys answers 401 or 403 while the provider refuses a key.
func (w *world) refuseKeys(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		for _, r := range w.refused(bearer(req.Header)) {
			if now := time.Now(); !now.Before(r.since) && now.Before(r.ends) {
				if req.Body != nil {
					req.Body.Close()
				}
				return respond(req, r.status, http.Header{"Content-Type": {"application/json"}}, invalidKey), nil
			}
		}
		return next.RoundTrip(req)
	})
}

// restrictKeys answers 403 to what the keys may not do.
func (w *world) restrictKeys(next http.RoundTripper) http.RoundTripper {
	const body = `{"error":{"message":"You have insufficient permissions for this operation.","type":"invalid_request_error"}}`
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		lists := req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/batches")
		if w.noDelete && req.Method == http.MethodDelete || w.noList && lists {
			return respond(req, http.StatusForbidden, http.Header{"Content-Type": {"application/json"}}, body), nil
		}
		return next.RoundTrip(req)
	})
}

// refused returns the refusals of a key that have begun.
func (w *world) refused(key string) (found []refusal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.refusalsSoFar {
		if r.key == key && !time.Now().Before(r.since) {
			found = append(found, r)
		}
	}
	return found
}

// wasRefused reports whether the provider refused a key within the last hour.
func (w *world) wasRefused(key string) bool {
	return slices.ContainsFunc(w.refused(key), func(r refusal) bool { return time.Since(r.ends) < time.Hour })
}

// wasRefusedLong reports whether the provider refused a key within the last hour,
// and nine minutes ago or earlier as well: a process may have seen no other
// response for the ten minutes after which a process gives a batch up.
func (w *world) wasRefusedLong(key string) bool {
	return w.wasRefused(key) && slices.ContainsFunc(w.refused(key), func(r refusal) bool {
		return time.Since(r.since) >= 9*time.Minute && time.Since(r.since) < 3*time.Hour
	})
}

// runRefusals has the provider refuse keys for a while.
func (w *world) runRefusals() {
	d := newDice(w.seed, "refusals")
	for w.sleep(d.between(time.Second, w.length/3)) {
		r := refusal{key: w.keys[d.IntN(len(w.keys))], status: []int{401, 401, 403}[d.IntN(3)], since: time.Now()}
		r.ends = r.since.Add(d.of(d.between(time.Second, 5*time.Minute), d.between(time.Minute, 40*time.Minute)))
		w.logf("the provider refuses %s with %d until %v", r.key, r.status, r.ends.Sub(w.begin))
		w.mu.Lock()
		w.refusalsSoFar = append(w.refusalsSoFar, r)
		w.mu.Unlock()
		w.sleep(time.Until(r.ends))
	}
}

// A downloadFault is what is wrong with the downloads of result files.
type downloadFault string

const (
	wholeFile downloadFault = ""
	truncated downloadFault = "truncated, without an error"
	webPage   downloadFault = "a web page with status 200"
)

// runDownloadFaults spoils all downloads for a while.
func (w *world) runDownloadFaults() {
	d := newDice(w.seed, "download faults")
	for w.sleep(d.between(time.Second, w.length/4)) {
		fault := w.downloadFaults[d.IntN(len(w.downloadFaults))]
		length := d.of(d.between(time.Second, 4*time.Minute), d.between(time.Minute, time.Hour))
		w.logf("for %v, each result file is %s", length, fault)
		w.setDownloadFault(fault)
		w.sleep(length)
		w.setDownloadFault(wholeFile)
		w.faultEnds()
	}
}

func (w *world) setDownloadFault(f downloadFault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.downloadFault = f
}

const page = "<html><head><title>Maintenance</title></head><body>We will be back soon.</body></html>\n"

// spoil changes a result file on its way to a process, as drawn. The position
// decides where a file is cut, and which lines are doubled.
func (w *world) spoil(res *http.Response, file []byte, position uint64) []byte {
	w.mu.Lock()
	fault := w.downloadFault
	w.mu.Unlock()
	d := newDice(position)
	if fault == wholeFile && len(w.downloadFaults) > 0 && d.chance(0.1) {
		fault = w.downloadFaults[d.IntN(len(w.downloadFaults))]
	}
	if w.duplicates && w.mayRearrange(res) {
		file = doubleLines(file, d)
	}
	switch fault {
	case truncated:
		file = file[:d.IntN(len(file)+1)]
	case webPage:
		res.Header = http.Header{"Content-Type": {"text/html"}}
		file = []byte(page)
	}
	return file
}

// mayRearrange reports whether two downloads of a file may differ. Downloads that
// resume are parts of one file: at a line, or at a byte, where the file has an
// ETag.
func (w *world) mayRearrange(res *http.Response) bool {
	return !w.server.Behavior.PartialResults && res.Header.Get("ETag") == ""
}

// doubleLines repeats some lines of a file.
func doubleLines(file []byte, d dice) []byte {
	var out []byte
	for l := range bytes.Lines(file) {
		out = append(out, l...)
		if d.chance(0.3) {
			out = append(out, l...)
		}
	}
	return out
}
