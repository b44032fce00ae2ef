// Package trouble says what is wrong with a journal, for its backends.
package trouble

import (
	"context"
	"errors"
	"fmt"

	"github.com/autobatcher/autobatcher/journal"
)

// Advice is what to do about each of package journal's troubles that a backend
// knows.
type Advice map[error]string

// Kind is the trouble that err wraps already, nil if there is none.
func (a Advice) Kind(err error) error {
	for kind := range a {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return nil
}

// Explain makes err say which journal is in trouble, what the trouble is (kind,
// if not nil), and what to do. What package journal says that a Store refuses,
// and the end of a context, are passed on as they are.
func (a Advice) Explain(place string, err, kind error) error {
	switch {
	case err == nil, passedOn(err):
		return err
	case kind == nil:
		return fmt.Errorf("journal %s: %w", place, err)
	case errors.Is(err, kind):
		return fmt.Errorf("journal %s: %w (%s)", place, err, a[kind])
	}
	return fmt.Errorf("journal %s: %w: %w (%s)", place, kind, err, a[kind])
}

func passedOn(err error) bool {
	for _, as := range []error{
		journal.ErrLapsed, journal.ErrNotOwner, journal.ErrNoBatch, journal.ErrExists, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, as) {
			return true
		}
	}
	return false
}
