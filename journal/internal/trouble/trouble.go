// Package trouble describes the errors of the journal's backends.
package trouble

import (
	"context"
	"errors"
	"fmt"

	"github.com/autobatcher/autobatcher/journal"
)

// Advice says what to do about each sentinel error of package journal. A backend
// lists the sentinels of its own errors.
type Advice map[error]string

// Kind returns the sentinel in a that err wraps, nil if err wraps none.
func (a Advice) Kind(err error) error {
	for kind := range a {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return nil
}

// Explain returns err with the name of the journal, the sentinel kind unless nil,
// and the advice. Explain does not change errors of an ended context and the
// sentinels of a refused request, for example journal.ErrLapsed.
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
