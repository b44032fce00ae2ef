package provider

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CheckWindow returns nil unless the provider is certain to refuse the
// completion window w; the error is a sentence for the user. Providers that
// take their windows from a configuration, such as Doubleword, and unknown hosts
// accept any string here: only they can tell.
func (p Profile) CheckWindow(w string) error {
	switch {
	case p.OmitWindow:
		return nil
	case w == "":
		return errors.New("the completion window is empty")
	case p.Windows != nil:
		return p.checkListed(w)
	case p.MaxWindow > 0:
		return p.checkRange(w)
	}
	return nil
}

func (p Profile) checkListed(w string) error {
	if slices.Contains(p.Windows, w) {
		return nil
	}
	return fmt.Errorf("%s does not accept the completion window %q; it accepts %s",
		p.Name, w, strings.Join(p.Windows, ", "))
}

func (p Profile) checkRange(w string) error {
	d, err := parseWindow(w)
	if err != nil {
		return fmt.Errorf("%s does not accept the completion window %q; write a duration such as 24h or 7d", p.Name, w)
	}
	if d < p.MinWindow || d > p.MaxWindow {
		return fmt.Errorf("%s does not accept the completion window %q; it accepts %s to %s",
			p.Name, w, formatWindow(p.MinWindow), formatWindow(p.MaxWindow))
	}
	return nil
}

// maxDays keeps a number of days within what a time.Duration can hold.
const maxDays = 100_000

// parseWindow reads a Go duration or a whole number of days, such as "7d".
func parseWindow(w string) (time.Duration, error) {
	days, ok := strings.CutSuffix(w, "d")
	if !ok {
		return time.ParseDuration(w)
	}
	n, err := strconv.Atoi(days)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > maxDays {
		return 0, strconv.ErrRange
	}
	return time.Duration(n) * 24 * time.Hour, nil
}

// formatWindow writes a bound as providers do: "24h" and "7d", not "168h0m0s".
func formatWindow(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d > day && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	case d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	}
	return d.String()
}
