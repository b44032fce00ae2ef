package provider

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// FlexWindow stands for a completion window where a call is sent at the flex tier
// instead of in a batch: in the journal and in events. It is no completion window.
const FlexWindow = "flex"

// maxWindowText is the maximum length of a completion window, in bytes. Windows come
// from headers of calls, and are part of events, logs and the journal.
const maxWindowText = 64

// CheckWindow returns nil unless the provider is certain to refuse the
// completion window w; the error is a sentence for the user. At providers that
// take their windows from a configuration, such as Doubleword, and at unknown
// hosts, only the provider knows the windows, so CheckWindow accepts every
// string but the empty string and strings of more than 64 bytes.
func (p Profile) CheckWindow(w string) error {
	switch {
	case w == FlexWindow:
		return errors.New(`"flex" is no completion window; choose the mode flex instead`)
	case len(w) > maxWindowText:
		return fmt.Errorf("the completion window has %d bytes; it may have %d", len(w), maxWindowText)
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

// A file stays for leastExpiry, with a weekend to come back to its batch, and at
// least for expiryMargin after the window of its batch: a batch may end a day
// late, and its results may need another day to be read.
const (
	leastExpiry  = 3 * day
	expiryMargin = 2 * day
)

// FileExpiry returns how long a file of a batch with the completion window w must
// be kept, counted from the upload: 72 hours, or the window and 48 hours if that
// is longer, within FileExpiryMin and FileExpiryMax. If the length of the window is unknown,
// FileExpiry returns FileExpiryMax, because a file that expires before its batch
// ends costs the caller the results. Zero means that no expiry must be sent.
func (p Profile) FileExpiry(w string) time.Duration {
	if p.FileExpiryMax == 0 {
		return 0
	}
	window, err := parseWindow(w)
	if err != nil || window < 0 || window > p.FileExpiryMax {
		return p.FileExpiryMax
	}
	return min(max(window+expiryMargin, leastExpiry, p.FileExpiryMin), p.FileExpiryMax)
}

// maxDays keeps a number of days within the range of a time.Duration.
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
	return time.Duration(n) * day, nil
}

// formatWindow writes a bound as providers do: "24h" and "7d", not "168h0m0s".
func formatWindow(d time.Duration) string {
	switch {
	case d > day && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	case d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	}
	return d.String()
}

// WindowLength is the length of a completion window such as "24h" or "7d". A window
// without a length, or of more than a year, counts as a day.
func WindowLength(w string) time.Duration {
	const day, maxDays = 24 * time.Hour, 365
	if d, err := time.ParseDuration(w); err == nil && d > 0 && d <= maxDays*day {
		return d
	}
	if days, err := strconv.Atoi(strings.TrimSuffix(w, "d")); err == nil && days > 0 && days <= maxDays {
		return time.Duration(days) * day
	}
	return day
}
