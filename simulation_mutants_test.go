package autobatcher_test

import (
	"net/http"

	"github.com/autobatcher/autobatcher/journal"
)

// A mutant is a deliberate bug.
type mutant struct {
	name  string
	plan  func(*plan)                               // makes it likely
	base  func(http.RoundTripper) http.RoundTripper // around a process's way to the provider
	store func(journal.Store) journal.Store         // around its hand on the journal
}
