package dashboard

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// plainRows is the number of batches on a page without JavaScript.
const plainRows = 25

// pageData are the values in the page: the header, and the table for browsers
// without JavaScript.
type pageData struct {
	Key      string
	Options  Options
	State    snapshot
	Rows     []plainRow
	From, Of int
	Flex     []plainRow // calls at the flex tier that run in the background, the newest
	FlexOf   int
	ByLane   []plainTotal
	Previous string // link to the previous page; "": none
	Next     string // link to the next page; "": none
	Made     string // " (made up)" in a sandbox
	Saved    string
}

// A plainTotal is the cost of the OK answers of a lane.
type plainTotal struct{ Name, Answers, Cost, Saved string }

// A plainRow is a batch in the table for browsers without JavaScript.
type plainRow struct {
	ID, About, Status, Done, Failed, Total, Cost, Created, Error string

	Cancel string // where a form cancels the batch; "": nothing to cancel, or not on this page
}

// pageData returns the values for a page with the query q.
func (d *Dashboard) pageData(q url.Values) pageData {
	d.refresh(time.Now(), true)
	d.feed.mu.Lock()
	s := d.feed.state
	d.feed.mu.Unlock()
	batches, flex := s.Batches, []batch(nil)
	if i := slices.IndexFunc(batches, batch.isFlex); i >= 0 {
		batches, flex = batches[:i], batches[i:]
	}
	number, _ := strconv.Atoi(q.Get("page"))
	last := max(len(batches)-1, 0) / plainRows
	number = min(max(number, 1), last+1)
	from := (number - 1) * plainRows
	p := pageData{Key: q.Get("key"), Options: d.opts, State: s, From: from + 1, Of: len(batches), FlexOf: len(flex), ByLane: plainTotals(s.ByLane), Saved: "not known"}
	if d.opts.Sandbox {
		p.Made = " (made up)"
	}
	if s.Cost != nil {
		p.Saved = fmt.Sprintf("about %s, estimated with prices of %s", dollars(s.Cost.Savings), s.Cost.Date)
	}
	link := func(number int) string {
		v := url.Values{"page": {strconv.Itoa(number)}}
		if p.Key != "" {
			v.Set("key", p.Key)
		}
		return "?" + v.Encode()
	}
	if number > 1 {
		p.Previous = link(number - 1)
	}
	if number <= last {
		p.Next = link(number + 1)
	}
	for _, b := range batches[from:min(from+plainRows, len(batches))] {
		p.Rows = append(p.Rows, p.row(b))
	}
	for _, b := range flex[:min(plainRows, len(flex))] {
		p.Flex = append(p.Flex, p.row(b))
	}
	return p
}

func plainTotals(all []total) (rows []plainTotal) {
	for _, t := range all {
		row := plainTotal{t.Name, strconv.FormatInt(t.Priced+t.Unpriced, 10), "not known", "not known"}
		if t.Priced > 0 {
			row.Cost, row.Saved = dollars(t.USD), dollars(t.Savings)
		}
		rows = append(rows, row)
	}
	return rows
}

func (p *pageData) row(b batch) plainRow {
	row := plainRow{
		ID: b.ID, About: b.Endpoint + " " + strings.Join(b.Models, ", "), Status: strings.ReplaceAll(b.Status, "_", " "),
		Done: strconv.Itoa(b.done()), Failed: strconv.Itoa(b.Failed), Total: strconv.Itoa(b.Total),
		Created: time.UnixMilli(b.Created).UTC().Format("2006-01-02 15:04"), Error: b.Error,
	}
	if row.ID == "" {
		row.ID = "not created"
	}
	if b.Cost != nil {
		row.Cost = "about " + dollars(b.Cost.USD)
	}
	if p.Options.Cancel && !b.Finished && b.ID != "" && b.Status != "cancelling" {
		v := url.Values{"id": {b.ID}}
		if p.Key != "" {
			v.Set("key", p.Key)
		}
		row.Cancel = "autobatcher/cancel?" + v.Encode()
	}
	return row
}
