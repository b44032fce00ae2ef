package batchapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/backend"
	"github.com/autobatcher/autobatcher/internal/retry"
)

const (
	// findPages bounds how much of the list is read in search of a batch.
	findPages = 20

	// timeMargin is the greatest error of a time that is compared with the
	// provider's times: another process may have taken the time by its own clock.
	timeMargin = 5 * time.Minute

	// minDescents is the number of times that the creation time must have fallen
	// before a list counts as sorted, newest first. A random order shows as many
	// falls in a row, and no rise, once in 300,000 lists.
	minDescents = 8
)

// lookDelays are the waits before the list is searched: a list may lag behind a
// create.
var lookDelays = []time.Duration{3 * time.Second, 10 * time.Second}

var (
	errNoFile   = errors.New("the input file of the batch is not known")
	errEndless  = errors.New("the list of batches could not be read to its end")
	errNameless = errors.New("the list shows new batches without their input files")
)

// Find looks for the batch of a create without an answer, by the input file. The
// file belongs to no other batch. If the list does not show the batch, the create
// may still be under way: a gateway may give up before the server does. Find then
// deletes the input file, since the provider creates no batch without a file, and
// looks once more.
func (c *Client) Find(ctx context.Context, h backend.Handle, since time.Time) (backend.Handle, backend.Existence, error) {
	s, existence, err := c.find(ctx, h, since)
	if existence == backend.Found {
		h = s.Handle
	}
	return h, existence, err
}

func (c *Client) find(ctx context.Context, h backend.Handle, since time.Time) (backend.Status, backend.Existence, error) {
	if h.FileID == "" {
		return backend.Status{}, backend.Unsure, errNoFile
	}
	s := &search{client: c, fileID: h.FileID, since: since.Add(-timeMargin), strangers: make(map[string]bool)}
	existence, err := s.look(ctx)
	if existence == backend.Absent {
		existence, err = s.lookWithoutFile(ctx)
	}
	if existence == backend.Found {
		c.log.Warn("found the batch of a create that was not answered", "batch", s.found.Handle.BatchID)
	}
	return s.found, existence, err
}

// A search looks for the batch of an input file in the list of batches.
type search struct {
	client *Client
	fileID string
	since  time.Time // the batch was not created before, by this process's clock

	fileDeleted bool
	strangers   map[string]bool // ended batches whose own input files are deleted
	found       backend.Status
}

// lookWithoutFile deletes the input file and looks once more. Without the
// certainty that the file is deleted, the batch may appear at any time.
func (s *search) lookWithoutFile(ctx context.Context) (backend.Existence, error) {
	deleteErr := s.client.deleteFile(ctx, s.fileID, resolvePolicy)
	if deleteErr != nil {
		s.client.log.Warn("the input file could not be deleted, so that a create may still be under way", "file", s.fileID, "error", deleteErr)
	}
	s.fileDeleted = deleteErr == nil
	existence, err := s.look(ctx)
	switch {
	case existence == backend.Found:
		s.found.Handle.InputDeleted = s.fileDeleted
	case existence == backend.Absent && deleteErr != nil:
		return backend.Unsure, fmt.Errorf("the input file could not be deleted: %w", deleteErr)
	}
	return existence, err
}

// look reads the list after each of the delays. The batch is Absent if each
// reading shows no batch.
func (s *search) look(ctx context.Context) (backend.Existence, error) {
	for _, delay := range lookDelays {
		existence, err := s.read(ctx, delay)
		if existence != backend.Absent {
			return existence, err
		}
	}
	return backend.Absent, nil
}

// read reads the list after a delay, with retries.
func (s *search) read(ctx context.Context, delay time.Duration) (backend.Existence, error) {
	attempts := submitPolicy.Start()
	for {
		if err := retry.Sleep(ctx, delay); err != nil {
			return backend.Unsure, err
		}
		existence, err := s.readOnce(ctx)
		if err == nil || errors.Is(err, errNameless) || errors.Is(err, errEndless) {
			return existence, err
		}
		wait, again := attempts.Next(err)
		if !again {
			return backend.Unsure, err
		}
		delay = wait
	}
}

// readOnce reads the list once.
func (s *search) readOnce(ctx context.Context) (backend.Existence, error) {
	r := reading{search: s}
	whole, err := s.client.list(ctx, findPages, r.page)
	switch {
	case s.found.Handle.BatchID != "":
		return backend.Found, nil
	case err != nil:
		return backend.Unsure, err
	case r.nameless || r.skipped && !r.named:
		return backend.Unsure, errNameless
	case !whole && !r.past:
		return backend.Unsure, errEndless
	}
	return backend.Absent, nil
}

// A reading is one pass over the list.
type reading struct {
	*search
	order    order
	named    bool // a batch named its input file
	skipped  bool // a batch counted as a stranger
	nameless bool // a batch that may be the wanted batch names no input file
	past     bool // the rest of the list is older than the wanted batch
}

// page looks at one page, and reports whether to read on.
func (r *reading) page(p page) bool {
	since := providerTime(r.since, p.date)
	for _, item := range p.items {
		if inputFileOf(item) == r.fileID && r.take(item) {
			return false
		}
		created := moment(item.Get("created_at"))
		r.order.add(created)
		r.checkName(item, since.IsZero() || created.IsZero() || !created.Before(since))
	}
	r.past = !since.IsZero() && r.order.descending() && r.order.last.Before(since)
	return !r.past
}

// providerTime is a time of this process by the provider's clock, which showed
// date just now. It is the zero time if the provider's clock is not known.
func providerTime(t, date time.Time) time.Time {
	if date.IsZero() {
		return time.Time{}
	}
	return t.Add(time.Until(date))
}

// take notes the wanted batch. It reports false if the item has no id.
func (r *reading) take(item gjson.Result) bool {
	found, err := parseBatch(item, r.fileID)
	if err != nil {
		r.nameless = true
		return false
	}
	r.found = found
	return true
}

// checkName looks for batches that may be the wanted batch although their items
// name no input file. Doubleword blanks the name when the file is deleted: an
// ended batch without a name is a stranger while the wanted batch's file exists.
func (r *reading) checkName(item gjson.Result, recent bool) {
	id := item.Get("id").String()
	ended := phase(canonicalStatus(item.Get("status").String())) == backend.Ended
	switch {
	case inputFileOf(item) != "":
		r.named = true
	case !recent:
	case r.strangers[id], !r.fileDeleted && ended && item.Get("input_file_id").Exists():
		r.strangers[id], r.skipped = true, true
	default:
		r.nameless = true
	}
}

// order tells whether times come newest first.
type order struct {
	last     time.Time
	descents int
	broken   bool // a time rose, or was missing
}

func (o *order) add(t time.Time) {
	switch {
	case t.IsZero() || !o.last.IsZero() && t.After(o.last):
		o.broken = true
	case t.Before(o.last):
		o.descents++
	}
	o.last = t
}

func (o *order) descending() bool { return !o.broken && o.descents >= minDescents }
