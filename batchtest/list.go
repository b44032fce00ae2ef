package batchtest

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (s *Server) listFiles(w http.ResponseWriter, r *http.Request, c caller) error {
	q, err := s.readPage(r, 10_000)
	if err != nil {
		return err
	}
	purpose := r.URL.Query().Get("purpose")
	s.mu.Lock()
	var ids []string
	for _, f := range s.uploads {
		if f.owner.account == c.account && s.visibleLocked(f, time.Now()) && (purpose == "" || purpose == f.purpose) {
			ids = append(ids, f.id)
		}
	}
	page, more, err := q.cut(ids, &s.behavior)
	views := make([]any, len(page))
	for i, id := range page {
		views[i] = s.fileViewLocked(s.files[id])
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, listView(views, page, more))
	return nil
}

// A pageQuery is the part of a list that a request asks for.
type pageQuery struct {
	after string
	limit int
}

func (s *Server) readPage(r *http.Request, most int) (pageQuery, error) {
	q := pageQuery{after: r.URL.Query().Get("after"), limit: min(20, most)}
	if most > 100 {
		q.limit = most
	}
	text := r.URL.Query().Get("limit")
	if text == "" {
		return q, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return q, invalid("limit", "Invalid 'limit': must be an integer between 1 and %d.", most)
	}
	q.limit = n
	return q, nil
}

// cut puts ids, which are in the order of creation, into the order of the list. The
// results are the page that was asked for, and whether more pages follow.
func (q pageQuery) cut(ids []string, rules *Behavior) (page []string, more bool, err error) {
	switch rules.ListOrder {
	case NewestFirst:
		slices.Reverse(ids)
	case OrderByID:
		slices.Sort(ids)
	}
	start := 0
	switch {
	case rules.ListIgnoresAfter:
		return ids[:min(q.limit, len(ids))], true, nil
	case q.after == "":
	case rules.ListByOffset:
		if start, err = strconv.Atoi(q.after); err != nil || start < 0 {
			return nil, false, invalid("after", "Invalid 'after': must be a number.")
		}
		start = min(start, len(ids))
	default:
		start = slices.Index(ids, q.after) + 1
		if start == 0 && !rules.ListFirstPageAgain {
			return nil, false, invalid("after", "No such object: %s", q.after)
		}
	}
	end := min(start+q.limit, len(ids))
	return ids[start:end], end < len(ids), nil
}

func listView(views []any, ids []string, more bool) map[string]any {
	view := map[string]any{"object": "list", "data": views, "has_more": more, "first_id": nil, "last_id": nil}
	if len(ids) > 0 {
		view["first_id"], view["last_id"] = ids[0], ids[len(ids)-1]
	}
	return view
}

func (s *Server) listBatches(w http.ResponseWriter, r *http.Request, c caller) error {
	q, err := s.readPage(r, 100)
	if err != nil {
		return err
	}
	search := r.URL.Query().Get("search")
	s.mu.Lock()
	var ids []string
	for _, b := range s.order {
		if _, err := s.findBatchLocked(b.id, c); err == nil && s.searched(b, search) {
			ids = append(ids, b.id)
		}
	}
	page, more, err := q.cut(ids, &s.behavior)
	views := make([]any, len(page))
	for i, id := range page {
		b := s.batches[id]
		view := s.batchViewLocked(b, b.status(time.Now()))
		if s.behavior.ListOmitsInput {
			delete(view, "input_file_id")
		}
		views[i] = view
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if s.behavior.BareList {
		writeJSON(w, http.StatusOK, views)
		return nil
	}
	writeJSON(w, http.StatusOK, listView(views, page, more))
	return nil
}

func (s *Server) searched(b *batch, search string) bool {
	if search == "" || !s.behavior.ListSearch {
		return true
	}
	metadata, _ := json.Marshal(b.metadata)
	return like(b.id, search) || like(b.input.name, search) || like(string(metadata), search)
}

// like matches text as SQL's ILIKE '%pattern%' does.
func like(text, pattern string) bool {
	expr := strings.NewReplacer("%", ".*", "_", ".").Replace(regexp.QuoteMeta(pattern))
	ok, err := regexp.MatchString("(?is)"+expr, text)
	return err == nil && ok
}
