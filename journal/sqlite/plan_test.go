package sqlite

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/journal"
)

// scanned is what a query plan reads from end to end: a table, or its alias in the
// statements.
var scanned = regexp.MustCompile(`\bSCAN (\w+)`)

// mayScan are the tables of few rows, the JSON arguments and the recursions.
var mayScan = map[string]bool{
	"owners": true, "w": true, "json_each": true, "CONSTANT": true, "holders": true, "runners": true, "dead": true,
}

// No statement of a request reads a table that grows with the journal from end to
// end.
func TestPlans(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	for name, statement := range map[string]string{
		"heartbeat":               renew,
		"take over: holders":      deadHolders,
		"take over: small":        inSmallBatches,
		"take over: large":        largeBatches,
		"take over: run":          lookUpRun,
		"take over: runs":         readAllRuns,
		"take over: lines":        linesByRow,
		"take over: give":         giveRows,
		"find: holders":           allHolders,
		"withdraw":                deleteRows,
		"deliver: held":           deliverHeld,
		"deliver: open":           deliverOpen,
		"deliver, hold: count":    openCounts,
		"release":                 release,
		"abandon":                 abandon,
		"orphans":                 orphaned,
		"list of one batch":       listing(journal.Filter{Ref: "one"}),
		"forget: old":             old,
		"forget: unfinished":      unfinished,
		"forget: still":           stillUnfinished,
		"forget: a page of lines": deletePages[0],
		"forget: a page of runs":  deletePages[1],
	} {
		t.Run(name, func(t *testing.T) {
			plan := planOf(t, s, statement)
			for _, found := range scanned.FindAllStringSubmatch(plan, -1) {
				if !mayScan[found[1]] {
					t.Errorf("the plan scans %s:\n%s", found[1], plan)
				}
			}
		})
	}
}

// planOf explains a statement whose arguments are all null.
func planOf(t *testing.T, s *Store, statement string) string {
	t.Helper()
	rows, err := s.db.QueryContext(t.Context(), "explain query plan "+statement, make([]any, arguments(statement))...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan strings.Builder
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&plan, detail)
	}
	if err := rows.Err(); err != nil || plan.Len() == 0 {
		t.Fatalf("no plan; %v", err)
	}
	return plan.String()
}

// arguments counts the arguments of a statement.
func arguments(statement string) int {
	highest := 0
	for _, found := range regexp.MustCompile(`\?(\d+)`).FindAllStringSubmatch(statement, -1) {
		var n int
		fmt.Sscan(found[1], &n) //nolint:errcheck // these are digits
		highest = max(highest, n)
	}
	return max(highest, strings.Count(statement, "?")-len(regexp.MustCompile(`\?\d`).FindAllString(statement, -1)))
}

// A list of all batches counts no lines.
func TestPlanOfLists(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "journal"))
	plan := planOf(t, s, listing(journal.Filter{}))
	if strings.Contains(plan, "lines ") || strings.Contains(plan, "SCAN holds") {
		t.Errorf("the plan counts lines:\n%s", plan)
	}
}
