package batchapi_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/batchapi"
	"github.com/autobatcher/autobatcher/provider"
)

// The file is deleted when the list does not show its batch, and not before. If the
// file cannot be deleted, the batch may appear at any time.
func TestFind(t *testing.T) {
	type answers = []func() (*http.Response, error)
	for _, tt := range []struct {
		name    string
		lists   answers
		deletes answers
		deleted int // requests
		want    backend.Existence
	}{
		{"found", answers{listed(batchOf("f"))}, nil, 0, backend.Found},
		{"no list", answers{says(404, "{}")}, nil, 0, backend.Unsure},
		{"found late", answers{listed(), listed(), listed(), listed(batchOf("f"))}, nil, 1, backend.Found},
		{"not there", answers{listed()}, nil, 1, backend.Absent},
		{"deleted at the second try", answers{listed()}, answers{reset, says(200, "{}")}, 2, backend.Absent},
		{"not to be seen at first", answers{listed()}, answers{says(404, "{}"), says(200, "{}")}, 2, backend.Absent},
		{"deleted without content", answers{listed()}, answers{says(204, "")}, 1, backend.Absent},
		{"must not be deleted", answers{listed()}, answers{says(403, "{}")}, 1, backend.Unsure},
		{"found though it must not be", answers{listed(), listed(), listed(batchOf("f"))}, answers{says(403, "{}")}, 1, backend.Found},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{lists: tt.lists, deletes: tt.deletes}
				h, existence, err := openai(t, s).Find(t.Context(), backend.Handle{FileID: "f"}, time.Now())
				if existence != tt.want || (h.BatchID == "b-f") != (tt.want == backend.Found) || (err != nil) != (tt.want == backend.Unsure) {
					t.Errorf("%+v, %v, %v", h, existence, err)
				}
				if existence == backend.Found && h.InputDeleted != (tt.deleted == 1 && tt.deletes == nil) {
					t.Errorf("%+v after %d deletes", h, tt.deleted)
				}
				if len(s.deleted) != tt.deleted || tt.deleted > 0 && s.deleted[0] != "/v1/files/f" {
					t.Errorf("deleted %q", s.deleted)
				}
			})
		})
	}
}

// Whatever a provider's list is like, a lost create is found in it.
func TestAdoptAtEveryProvider(t *testing.T) {
	for _, tt := range []struct {
		profile  provider.Profile
		behavior batchtest.Behavior
		more     int // batches made by others meanwhile
	}{
		{provider.OpenAI(), batchtest.OpenAI(), 250},
		{provider.Doubleword(), batchtest.Doubleword(), 150},
		{provider.LLMD(), batchtest.LLMD(), 250},
		{provider.Together(), batchtest.Together(), 50},
		{provider.Azure(), batchtest.Azure(), 150},
	} {
		t.Run(tt.profile.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := batchtest.New(batchtest.Options{Behavior: tt.behavior})
				c := client(t, srv.URL, tt.profile, srv.Transport())
				id, err := c.UploadOnce(t.Context(), backend.Params{Name: "x"}, file(1))
				if err != nil {
					t.Fatal(err)
				}
				params := backend.Params{Endpoint: tt.profile.Endpoint("/chat/completions"), Window: "24h"}
				other, err := c.UploadOnce(t.Context(), backend.Params{Name: "y"}, file(1))
				if err != nil {
					t.Fatal(err)
				}
				since := time.Now()
				mine, err := c.CreateOnce(t.Context(), id, params)
				if err != nil {
					t.Fatal(err)
				}
				for range tt.more {
					if _, err := c.CreateOnce(t.Context(), other, params); err != nil {
						t.Fatal(err)
					}
				}
				if found, existence, err := c.ReadList(t.Context(), id, since); found.Handle.BatchID != mine.Handle.BatchID || existence != backend.Found || err != nil {
					t.Errorf("found %+v, %v, %v behind %d batches; want %s", found, existence, err, tt.more, mine.Handle.BatchID)
				}
				if _, existence, err := c.ReadList(t.Context(), "no-such-file", since); existence != backend.Absent || err != nil {
					t.Errorf("a file without a batch: %v, %v", existence, err)
				}
			})
		})
	}
}

// A list whose pages are smaller than was asked for is read on from where it
// ended.
func TestSmallPagesByOffset(t *testing.T) {
	w := &wire{answer: func(s sent, _ int) (*http.Response, error) {
		after, _ := url.Parse(s.url)
		start := 0
		fmt.Sscan(after.Query().Get("after"), &start)
		var items []string
		for i := start; i < min(start+20, 90); i++ {
			items = append(items, fmt.Sprintf(`{"id":"b%d","input_file_id":"f%d"}`, i, i))
		}
		return answer(200, fmt.Sprintf(`{"data":[%s],"has_more":%v}`, strings.Join(items, ","), start+20 < 90)), nil
	}}
	c := client(t, "https://gateway.example/v1", provider.LLMD(), w)
	if b, existence, err := c.ReadList(t.Context(), "f55", time.Time{}); b.Handle.BatchID != "b55" || existence != backend.Found || err != nil {
		t.Errorf("found %+v, %v, %v; want b55", b, existence, err)
	}
}

// An entry is a batch in a provider's list.
type entry struct {
	file   string        // the JSON value of input_file_id; empty: no such member
	age    time.Duration // since the batch was created; negative: no created_at
	status string
}

// A listing is a provider that lists batches.
type listing struct {
	entries   []entry
	pageSize  int           // 0: 100
	clock     time.Duration // how far the provider's clock is ahead of ours
	noDate    bool
	noHasMore bool
	repeats   bool    // ignores "after"
	afterward []entry // the list once the file is deleted, if not nil

	pages, deletes int
}

func (l *listing) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodDelete {
		l.deletes++
		if l.afterward != nil {
			l.entries = l.afterward
		}
		return answer(200, "{}"), nil
	}
	l.pages++
	start := 0
	if after := req.URL.Query().Get("after"); after != "" && !l.repeats {
		fmt.Sscanf(after, "b%d", &start)
		start++
	}
	end := min(start+cmp.Or(l.pageSize, 100), len(l.entries))
	var items []string
	for i := start; i < end; i++ {
		items = append(items, l.item(i))
	}
	more := fmt.Sprintf(`,"has_more":%v`, end < len(l.entries))
	if l.noHasMore {
		more = ""
	}
	res := answer(200, `{"object":"list","data":[`+strings.Join(items, ",")+`]`+more+`}`)
	if !l.noDate {
		res.Header.Set("Date", time.Now().Add(l.clock).UTC().Format(http.TimeFormat))
	}
	return res, nil
}

func (l *listing) item(i int) string {
	e := l.entries[i]
	text := fmt.Sprintf(`{"id":"b%d","status":%q`, i, e.status)
	if e.age >= 0 {
		text += fmt.Sprintf(`,"created_at":%d`, time.Now().Add(l.clock-e.age).Unix())
	}
	if e.file != "" {
		text += `,"input_file_id":` + e.file
	}
	return text + "}"
}

// others are n batches of other files, the youngest of the age from, each step
// older than the batch before.
func others(n int, from, step time.Duration) []entry {
	entries := make([]entry, n)
	for i := range entries {
		entries[i] = entry{fmt.Sprintf(`"x%d"`, i), from + time.Duration(i)*step, "in_progress"}
	}
	return entries
}

func shuffled(entries []entry) []entry {
	r := rand.New(rand.NewPCG(1, 2))
	r.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	return entries
}

func reversed(entries []entry) []entry {
	slices.Reverse(entries)
	return entries
}

// A batch counts as absent only if the list surely does not show it. Otherwise
// the file would be deleted, and a second batch paid for.
func TestFindIsSure(t *testing.T) {
	mine := entry{`"f"`, time.Second, "validating"}
	blank := func(status string) entry { return entry{"null", time.Minute, status} }
	day := func(first ...entry) []entry { return append(first, others(300, 10*time.Minute, 5*time.Minute)...) }
	for _, tt := range []struct {
		name    string
		list    *listing
		want    backend.Existence
		pages   int // of the first reading; 0: any number
		deletes int
	}{
		{"newest first", &listing{entries: day(mine)}, backend.Found, 1, 0},
		{"the provider's clock is behind, and a newer batch is listed", &listing{entries: append(others(1, 0, 0), day(mine)...), clock: -10 * time.Minute}, backend.Found, 1, 0},
		{"the provider's clock is hours behind, and newer batches fill a page", &listing{entries: append(others(150, 0, time.Second), day(entry{`"f"`, 4 * time.Minute, "validating"})...), clock: -9 * time.Hour}, backend.Found, 2, 0},
		{"oldest first", &listing{entries: reversed(day(mine))}, backend.Found, 4, 0},
		{"in random order", &listing{entries: shuffled(day(mine))}, backend.Found, 0, 0},
		{"in random order on small pages", &listing{entries: shuffled(day(mine))[:150], pageSize: 10}, backend.Found, 0, 0},
		{"in no order, although the first page is", &listing{entries: []entry{{`"x"`, time.Minute, "completed"}, {`"y"`, time.Hour, "completed"}, mine}, pageSize: 2}, backend.Found, 2, 0},
		{"oldest first without end", &listing{entries: reversed(append(others(1, time.Second, 0), others(2500, time.Hour, time.Minute)...))}, backend.Unsure, 20, 0},
		{"the same page again", &listing{entries: day(), repeats: true, noDate: true}, backend.Unsure, 2, 0},
		{"no batch names a file", &listing{entries: []entry{{"", time.Minute, "in_progress"}, {"", time.Minute, "completed"}}}, backend.Unsure, 1, 0},
		{"each batch names no file", &listing{entries: []entry{blank("completed"), blank("failed")}}, backend.Unsure, 1, 0},
		{"a batch that runs names no file", &listing{entries: day(blank("validating"))}, backend.Unsure, 0, 0},
		{"an old batch names no file", &listing{entries: append(others(1, 0, 0), entry{"", time.Hour, "completed"})}, backend.Absent, 0, 1},
		{"a batch that ended lost its file", &listing{entries: day(blank("completed"))}, backend.Absent, 0, 1},
		{"another batch lost its file after the deletion", &listing{entries: day(), afterward: day(blank("completed"))}, backend.Unsure, 0, 1},
		{"not there, newest first", &listing{entries: append(others(50, 0, 0), others(3000, time.Minute, time.Minute)...)}, backend.Absent, 1, 1},
		{"not there, in random order", &listing{entries: shuffled(day())}, backend.Absent, 3, 1},
		{"not there, and no clock", &listing{entries: day(), noDate: true}, backend.Absent, 3, 1},
		{"not there, and no clock or end", &listing{entries: others(3000, 0, time.Minute), noDate: true}, backend.Unsure, 20, 0},
		{"not there, and no times", &listing{entries: others(150, -time.Hour, 0)}, backend.Absent, 2, 1},
		{"a full page that does not say whether more follow", &listing{entries: append(others(100, 0, 0), mine), noHasMore: true}, backend.Found, 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := openai(t, tt.list)
				began := time.Now()
				if existence, err := readList(c, began); tt.pages > 0 && tt.list.pages != tt.pages {
					t.Errorf("%v, %v after %d pages, want %d", existence, err, tt.list.pages, tt.pages)
				}
				h, existence, err := c.Find(t.Context(), backend.Handle{FileID: "f"}, began)
				if existence != tt.want || (h.BatchID != "") != (tt.want == backend.Found) {
					t.Errorf("%+v, %v, %v; want %v", h, existence, err, tt.want)
				}
				if tt.list.deletes != tt.deletes {
					t.Errorf("%d deletes, want %d", tt.list.deletes, tt.deletes)
				}
			})
		})
	}
}

func readList(c *batchapi.Client, since time.Time) (backend.Existence, error) {
	_, existence, err := c.ReadList(context.Background(), "f", since.Add(-batchapi.TimeMargin))
	return existence, err
}

func TestFindWithoutFile(t *testing.T) {
	w := always(500, "{}")
	_, existence, err := openai(t, w).Find(t.Context(), backend.Handle{}, time.Now())
	if existence != backend.Unsure || err == nil || len(w.requests()) != 0 {
		t.Errorf("%v, %v after %d requests", existence, err, len(w.requests()))
	}
}
