//go:build unix

package postgres

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/autobatcher/autobatcher/journal"
)

// grows matches a plan that reads a table from end to end, or all lines of a batch.
var grows = regexp.MustCompile(`Seq Scan on (lines|holds|batches|runs)\b` +
	`|Index.* Scan using (lines|batches|runs)_pkey on \w+( \w+)?  \(.*\)\n\s+Filter` +
	`|Index Scan.* lines_pkey .*\n\s+Index Cond: \(batch = [^)]*\)\n`)

// Every statement of a request finds its rows by an index.
func TestPlans(t *testing.T) {
	url := newDatabase(t)
	s := mustOpen(t, url)
	if err := beat(t.Context(), s, "a", time.Hour); err != nil {
		t.Fatal(err)
	}
	b := journal.Batch{Ref: "one", Owner: "a", Account: testAccount}
	if err := s.Begin(t.Context(), b, make([]journal.Line, 20_000)); err != nil {
		t.Fatal(err)
	}
	some, ids := make([]int, 1000), make([]int64, 1000) // as many as one delivery has
	for i := range some {
		some[i], ids[i] = i, 1
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	// Most tables are empty, and an index would cost more than reading nothing.
	if _, err := conn.Exec(t.Context(), `set enable_seqscan = off`); err != nil {
		t.Fatal(err)
	}
	print, hour := [][]byte{make([]byte, 16)}, time.Hour
	for name, explained := range map[string]struct {
		statement string
		args      []any
	}{
		"heartbeat":          {renew, []any{"a", hour}},
		"take over: holders": {deadHolders, nil},
		"take over: small":   {inSmallBatches, []any{0, []byte{}, journal.Cancelling, print, []int{1}}},
		"take over: large":   {largeBatches, []any{0, []byte{}, journal.Cancelling, []int64{1}}},
		"take over: run":     {lookUpRuns, []any{1, []int64{1}}},
		"take over: runs":    {readRuns, []any{1}},
		"take over: lines":   {linesByN, []any{1, some, 0}},
		"take over: take":    {takePlaces, []any{ids, some, ids, journal.Cancelling, 1}},
		"find: holders":      {allHolders, nil},
		"find: small":        {inSmallBatches, []any{anyone, []byte{}, journal.Cancelling, print, []*int{nil}}},
		"find: large":        {largeBatches, []any{anyone, []byte{}, journal.Cancelling, []int64{1}}},
		"find: lines":        {linesByN, []any{1, some, anyone}},
		"withdraw":           {withdrawPlaces, []any{ids, some, 1}},
		"deliver: a range":   {deliverHeld(deleteRange), []any{"one", some, "a", 0, 999}},
		"deliver: lines":     {deliverHeld(deleteEach), []any{"one", some, "a", 0, 999}},
		"deliver: open":      {deliverOpen, []any{1, some, ids}},
		"deliver, hold":      {openLines, []any{1, some}},
		"release":            {release, []any{1, some, 1}},
		"abandon":            {abandon, []any{journal.Cancelling, 1, journal.Running}},
		"orphans":            {orphaned, []any{"", nil}},
		"forget: old":        {lockOld, []any{journal.Ended, hour, hour, 1}},
		"forget: still old":  {stillOld, []any{journal.Ended, hour, hour, []int64{1}}},
		"forget: unfinished": {unfinished, nil},
		"forget: a page":     {deletePage, []any{1, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			rows, err := conn.Query(t.Context(), "explain "+explained.statement, explained.args...)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(plan, "\n"); grows.MatchString(text) {
				t.Error(fmt.Sprint("the plan reads a table from end to end:\n", text))
			}
		})
	}
}
