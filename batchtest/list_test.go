package batchtest_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autobatcher/autobatcher/batchtest"
)

func TestListOrder(t *testing.T) {
	for _, tt := range []struct {
		name  string
		order batchtest.ListOrder
		want  func(created []string) []string
	}{
		{"newest first", batchtest.NewestFirst, func(c []string) []string { slices.Reverse(c); return c }},
		{"oldest first", batchtest.OldestFirst, func(c []string) []string { return c }},
		{"by id", batchtest.OrderByID, func(c []string) []string { slices.Sort(c); return c }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			behavior := batchtest.OpenAI()
			behavior.ListOrder = tt.order
			a := newAPI(t, batchtest.Options{Behavior: behavior})
			var batches, files []string
			for range 6 {
				b := a.create(chatLines(1))
				batches, files = append(batches, b["id"].(string)), append(files, b["input_file_id"].(string))
			}
			want := tt.want(batches)
			if diff := cmp.Diff(want, a.ids("/batches")); diff != "" {
				t.Errorf("batches (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want[3:5], a.ids("/batches?limit=2&after="+want[2])); diff != "" {
				t.Errorf("a page (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want(files), a.ids("/files")); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLLMDListsByID follows the pages of a gateway whose order is not time.
func TestLLMDListsByID(t *testing.T) {
	a := newAPI(t, batchtest.Options{Behavior: batchtest.LLMD()})
	var want []string
	for range 5 {
		want = append(want, a.create(chatLines(1))["id"].(string))
	}
	slices.Sort(want)
	got := slices.Concat(a.ids("/batches?limit=3"), a.ids("/batches?limit=3&after=3"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("two pages (-want +got):\n%s", diff)
	}
}

func TestListIgnoresAfter(t *testing.T) {
	behavior := batchtest.OpenAI()
	behavior.ListIgnoresAfter = true
	a := newAPI(t, batchtest.Options{Behavior: behavior})
	first, second := a.create(chatLines(1))["id"].(string), a.create(chatLines(1))["id"].(string)
	for _, path := range []string{"/batches?limit=1", "/batches?limit=1&after=" + second, "/batches?limit=1&after=" + first} {
		page := a.get(path).json(t)
		if ids := a.ids(path); len(ids) != 1 || ids[0] != second || page["has_more"] != true {
			t.Errorf("%s: %v, has_more %v; want the newest batch and more", path, ids, page["has_more"])
		}
	}
}

func TestListOmitsInput(t *testing.T) {
	behavior := batchtest.OpenAI()
	behavior.ListOmitsInput = true
	a := newAPI(t, batchtest.Options{Behavior: behavior})
	created := a.create(chatLines(1))
	item := a.get("/batches").json(t)["data"].([]any)[0].(map[string]any)
	if _, found := item["input_file_id"]; found || item["id"] != created["id"] {
		t.Errorf("item = %v, want the batch without input_file_id", item)
	}
	if got := a.retrieve(created["id"])["input_file_id"]; got != created["input_file_id"] {
		t.Errorf("input_file_id of the batch itself = %v", got)
	}
}

func TestClockOffset(t *testing.T) {
	for _, offset := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, batchtest.Options{ClockOffset: offset, Turnaround: time.Hour})
			theirs := time.Now().Add(offset)
			b := a.create(chatLines(1))
			if got := b["created_at"]; got != float64(theirs.Unix()) {
				t.Errorf("created_at = %v, want %d", got, theirs.Unix())
			}
			if got := b["expires_at"]; got != float64(theirs.Add(24*time.Hour).Unix()) {
				t.Errorf("expires_at = %v", got)
			}
			if got := a.get("/files/" + b["input_file_id"].(string)).json(t)["created_at"]; got != float64(theirs.Unix()) {
				t.Errorf("created_at of the file = %v, want %d", got, theirs.Unix())
			}
			date, err := time.Parse(time.RFC1123, a.get("/models").header.Get("Date"))
			if err != nil || date.Unix() != theirs.Unix() {
				t.Errorf("Date = %v, %v; want %v", date, err, theirs)
			}
			a.follow(b["id"], time.Now(), []moment{
				{time.Hour - 1, "in_progress", "1/0/0"}, {time.Hour, "completed", "1/1/0"},
			})
		})
	}
}

func TestDateOnASocket(t *testing.T) {
	onBothTransports(t, batchtest.Options{ClockOffset: -48 * time.Hour}, func(t *testing.T, a *api) {
		date, err := time.Parse(time.RFC1123, a.get("/models").header.Get("Date"))
		if off := time.Since(date) - 48*time.Hour; err != nil || off.Abs() > time.Minute {
			t.Errorf("Date = %v, %v; want two days ago", date, err)
		}
	})
}
