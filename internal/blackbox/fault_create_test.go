package blackbox_test

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A catalog is a way to the server on which the list of batches looks different.
type catalog struct {
	next  http.RoundTripper
	clock time.Duration                               // how far the server's clock is ahead of ours
	order func(items []map[string]any)                // of the whole list; newest first by default
	hide  string                                      // a field that no item has
	page  func(after string, items int) (from, n int) // which items a page has; all by default
}

func (c *catalog) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/batches") {
		return c.list(req)
	}
	res, err := c.next.RoundTrip(req)
	if err == nil {
		res.Header.Set("Date", time.Now().Add(c.clock).UTC().Format(http.TimeFormat))
	}
	return res, err
}

// list answers a page of the list.
func (c *catalog) list(req *http.Request) (*http.Response, error) {
	items, err := c.all(req)
	if err != nil {
		return nil, err
	}
	if c.order != nil {
		c.order(items)
	}
	from, n := 0, len(items)
	if c.page != nil {
		from, n = c.page(req.URL.Query().Get("after"), len(items))
	}
	page := items[min(from, len(items)):min(from+n, len(items))]
	for _, item := range page {
		item["created_at"] = item["created_at"].(float64) + c.clock.Seconds()
		delete(item, c.hide)
	}
	body, err := json.Marshal(map[string]any{"object": "list", "data": page, "has_more": from+n < len(items) || n < len(items)})
	if err != nil {
		return nil, err
	}
	header := http.Header{"Content-Type": {"application/json"}, "Date": {time.Now().Add(c.clock).UTC().Format(http.TimeFormat)}}
	return &http.Response{StatusCode: 200, Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req}, nil
}

// all fetches every item that the server lists.
func (c *catalog) all(req *http.Request) (items []map[string]any, err error) {
	for after := ""; ; after = items[len(items)-1]["id"].(string) {
		page := req.Clone(req.Context())
		page.URL.RawQuery = "limit=100"
		if after != "" {
			page.URL.RawQuery += "&after=" + after
		}
		res, err := c.next.RoundTrip(page)
		if err != nil {
			return nil, err
		}
		var list struct {
			Data []map[string]any `json:"data"`
			More bool             `json:"has_more"`
		}
		err = json.NewDecoder(res.Body).Decode(&list)
		res.Body.Close()
		if items = append(items, list.Data...); err != nil || !list.More || len(list.Data) == 0 {
			return items, err
		}
	}
}

// reversed lists the oldest batch first.
func reversed(items []map[string]any) { slices.Reverse(items) }

// shuffled lists batches in an order of no meaning, as a list by random id does. The
// oldest batch happens to come first.
func shuffled(items []map[string]any) {
	if len(items) == 0 {
		return
	}
	slices.Reverse(items)
	rest := items[1:]
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
}

// firstPageOnly ignores after, and says that pages follow.
func firstPageOnly(string, int) (from, n int) { return 0, 3 }

// Whether a batch exists whose create was not answered is found out from the list.
// A list that leaves the question open must never lead to a second batch.
func TestALostCreateIsNeverBoughtTwice(t *testing.T) {
	oldFirst := func(items []map[string]any) { // the batch in question comes last
		slices.SortStableFunc(items, func(a, b map[string]any) int {
			return int(a["created_at"].(float64) - b["created_at"].(float64))
		})
	}
	tests := map[string]struct {
		catalog catalog
		unsure  bool // the list does not tell, so that the call must fail
	}{
		"the provider's clock is behind":   {catalog: catalog{clock: -10 * time.Minute}},
		"the provider's clock is ahead":    {catalog: catalog{clock: 10 * time.Minute}},
		"the list is oldest first":         {catalog: catalog{order: reversed}},
		"the list is in no order":          {catalog: catalog{order: shuffled}},
		"the list ignores after":           {catalog: catalog{order: oldFirst, page: firstPageOnly}, unsure: true},
		"the items name no input file":     {catalog: catalog{hide: "input_file_id"}, unsure: true},
		"the items have no time":           {catalog: catalog{order: func(items []map[string]any) { setAll(items, "created_at", 0.0) }}},
		"the input file of each is a null": {catalog: catalog{order: func(items []map[string]any) { setAll(items, "input_file_id", nil) }}, unsure: true},
	}
	for name, test := range tests {
		u := setup{again: true, base: func(next http.RoundTripper) http.RoundTripper {
			c := test.catalog
			c.next = next
			return &c
		}}
		u.run(t, name, func(s *scene) {
			for range 5 {
				s.stray()
				s.until(s.elapsed() + 6*time.Minute)
			}
			s.srv.Control(batchtest.OpCreate, func(w http.ResponseWriter, r *http.Request) bool {
				batchtest.Proceed(&recorded{header: http.Header{}}, r)
				s.stray() // a newer batch
				panic(http.ErrAbortHandler)
			})
			r := s.chat("text").within(5 * time.Hour)
			s.until(s.elapsed() + time.Hour)
			if n := s.executions("text"); n != 1 {
				s.Errorf("the line was executed %d times, want 1", n)
			}
			switch {
			case !test.unsure:
				r.says("text")
			case r.status != 200:
				r.fails("batch_create_unknown")
			}
		})
	}
}

// setAll gives every item the same value of a field.
func setAll(items []map[string]any, field string, value any) {
	for _, item := range items {
		item[field] = value
	}
}

// executions counts how often a line with that text was executed.
func (s *scene) executions(text string) (n int) {
	for _, l := range s.srv.Executed() {
		if strings.Contains(string(l.Body), text) {
			n++
		}
	}
	return n
}

// The same holds at llm-d, whose list is in the order of random ids, and for a
// process that died between create and the answer.
func TestALostCreateAtRandomlyOrderedLists(t *testing.T) {
	p := provider.LLMD()
	around := func(next http.RoundTripper) http.RoundTripper { return &catalog{next: next, order: shuffled} }
	strays := func(stray func()) {
		for range 12 {
			stray()
			time.Sleep(time.Minute)
		}
	}
	setup{
		again: true, base: around, server: batchtest.Options{Behavior: batchtest.LLMD()}, options: autobatcher.Options{Provider: &p},
	}.run(t, "the answer is lost", func(s *scene) {
		strays(s.stray)
		s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
		s.chat("text").within(5 * time.Hour).says("text")
		if n := s.executions("text"); n != 1 {
			s.Errorf("the line was executed %d times, want 1", n)
		}
	})
	t.Run("the process dies", func(t *testing.T) {
		inFleet(t, batchtest.Options{Behavior: batchtest.LLMD(), Turnaround: 10 * time.Minute}, func(f *fleet) {
			f.base = around
			s := &scene{T: f.T, srv: f.srv, begin: f.begin}
			strays(func() { s.strayOf("k") })
			f.srv.Control(batchtest.OpCreate, func(_ http.ResponseWriter, r *http.Request) bool {
				batchtest.Proceed(&recorded{header: http.Header{}}, r)
				<-r.Context().Done()
				panic(http.ErrAbortHandler)
			})
			a := f.start(autobatcher.Options{Provider: &p})
			a.ask(f.Context(), "text")
			time.Sleep(12 * time.Second)
			a.cut()
			strays(func() { s.strayOf("k") })
			f.wantAnswer(f.start(autobatcher.Options{Provider: &p}).ask(f.Context(), "text"), "text")
			synctest.Wait()
			if n := s.executions("text"); n != 1 {
				f.Errorf("the line was executed %d times, want 1", n)
			}
		})
	})
}

// Azure refuses a create while the input file is still being processed. The file's
// status says so, and the create succeeds when the file is ready.
func TestAFileThatIsNotProcessedYet(t *testing.T) {
	for name, said := range map[string]bool{"the upload's answer says so": true, "only the refusal says so": false} {
		setup{}.run(t, name, func(s *scene) {
			const ready = 60 * time.Second
			processing := func(op batchtest.Op) {
				s.srv.Keep(op, func(w http.ResponseWriter, r *http.Request) bool {
					return said && s.elapsed() < ready && field("status", `"pending"`)(w, r)
				})
			}
			processing(batchtest.OpUpload)
			processing(batchtest.OpRetrieveFile)
			s.srv.Keep(batchtest.OpCreate, func(w http.ResponseWriter, r *http.Request) bool {
				const refusal = `{"error":{"message":"Only files with status 'Processed' are accepted. File status: 'pending'.","type":"invalid_request_error","param":"input_file_id","code":"invalid_input_file"}}`
				return s.elapsed() < ready && batchtest.Status(400, nil, refusal)(w, r)
			})
			var calls []*pending
			for range 5 {
				calls = append(calls, s.chat("text"))
			}
			for _, c := range calls {
				if r := c.within(time.Hour); r.status != 200 || r.at > 5*time.Minute {
					s.Errorf("status %d at %v: %s; want an answer soon after the file is ready", r.status, r.at, r.body)
				}
			}
			s.sent(5)
			s.upload()
		})
	}
}

// A redirected upload or create would be redirected again. The call ends at once,
// and its error names the new location.
func TestARedirectEndsTheSubmission(t *testing.T) {
	for _, op := range []batchtest.Op{batchtest.OpUpload, batchtest.OpCreate} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			setup{}.run(t, string(op)+" "+http.StatusText(status), func(s *scene) {
				const location = "https://new.example/v1/files"
				s.srv.Keep(op, batchtest.Status(status, http.Header{"Location": {location}}, ""))
				r := s.chat("text").within(2 * time.Hour)
				if r.err != nil || r.status < 400 || r.at > time.Minute || !strings.Contains(r.body, location) {
					s.Errorf("status %d, error %v at %v: %s; want an error that names %s at once", r.status, r.err, r.at, r.body, location)
				}
				if n := s.count("POST", "/batches") + s.count("POST", "/files"); n > 2 {
					s.Errorf("%d requests to submit one batch", n)
				}
			})
		}
	}
}
