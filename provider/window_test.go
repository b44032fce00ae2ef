package provider_test

import (
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher/provider"
)

func TestCheckWindow(t *testing.T) {
	for _, tt := range []struct {
		profile  provider.Profile
		accepted []string
		refused  []string
	}{
		{provider.OpenAI(), []string{"24h"}, []string{"1h", "24H", "1d", ""}},
		{provider.Azure(), []string{"24h"}, []string{"48h"}},
		// Only the server knows the windows of these two.
		{provider.Doubleword(), []string{"1h", "24h", "soon"}, []string{""}},
		{provider.Generic(), []string{"1h", "24h", "7d", "soon", strings.Repeat("x", 64)}, []string{"", strings.Repeat("x", 65)}},
		{
			provider.Groq(),
			[]string{"24h", "1d", "7d", "168h", "36h30m"},
			[]string{"1h", "23h59m", "8d", "169h", "-1d", "d", "1.5d", "soon", "9999999999999999999d", "200000d"},
		},
		{provider.Moonshot(), []string{"12h", "7d"}, []string{"11h", "0d", "8d"}},
		{provider.DashScope(), []string{"24h", "14d", "336h"}, []string{"337h"}},
		// Without a parameter for the window, only long windows can be refused.
		{provider.Zhipu(), []string{"", "1h", "soon"}, []string{strings.Repeat("x", 65)}},
	} {
		for _, w := range tt.accepted {
			if err := tt.profile.CheckWindow(w); err != nil {
				t.Errorf("%s: window %q refused: %v", tt.profile.Name, w, err)
			}
		}
		for _, w := range tt.refused {
			if err := tt.profile.CheckWindow(w); err == nil {
				t.Errorf("%s: window %q accepted", tt.profile.Name, w)
			}
		}
	}
}

func TestCheckWindowNamesTheAcceptedWindows(t *testing.T) {
	odd := provider.Generic()
	odd.MinWindow, odd.MaxWindow = 90*time.Minute, 30*time.Hour
	for _, tt := range []struct {
		profile provider.Profile
		window  string
		want    string
	}{
		{provider.OpenAI(), "1h", `openai does not accept the completion window "1h"; it accepts 24h`},
		{provider.Groq(), "1h", `groq does not accept the completion window "1h"; it accepts 24h to 7d`},
		{provider.Moonshot(), "30d", `moonshot does not accept the completion window "30d"; it accepts 12h to 7d`},
		{odd, "1h", `generic does not accept the completion window "1h"; it accepts 1h30m0s to 30h`},
		{provider.Groq(), "soon", `groq does not accept the completion window "soon"; write a duration such as 24h or 7d`},
	} {
		err := tt.profile.CheckWindow(tt.window)
		if err == nil || err.Error() != tt.want {
			t.Errorf("CheckWindow(%q) = %v, want %s", tt.window, err, tt.want)
		}
	}
}

// FuzzCheckWindow checks that no string from a caller's header passes the bounds
// or causes a panic.
func FuzzCheckWindow(f *testing.F) {
	for _, w := range []string{"", "24h", "7d", "-1d", "106751d", "9223372036854775807ns", "1e9h", "٣d"} {
		f.Add(w)
	}
	groq := provider.Groq()
	f.Fuzz(func(t *testing.T, w string) {
		if groq.CheckWindow(w) != nil {
			return
		}
		if strings.HasSuffix(w, "d") {
			w = strings.TrimSuffix(w, "d") + "h" // one twenty-fourth
			w = strings.TrimPrefix(w, "+")
			if d, err := time.ParseDuration(w); err != nil || d < time.Hour || d > 7*time.Hour {
				t.Errorf("accepted %q as days: %v, %v", w, d, err)
			}
			return
		}
		if d, err := time.ParseDuration(w); err != nil || d < 24*time.Hour || d > 168*time.Hour {
			t.Errorf("accepted %q: %v, %v", w, d, err)
		}
	})
}

func TestFileExpiry(t *testing.T) {
	const day = 24 * time.Hour
	weekly := provider.Generic()
	weekly.FileExpiryMin, weekly.FileExpiryMax = 7*day, 14*day
	for _, tt := range []struct {
		profile provider.Profile
		window  string
		want    time.Duration
	}{
		{provider.OpenAI(), "24h", 3 * day},
		{provider.Doubleword(), "1h", 3 * day},
		{provider.Doubleword(), "7d", 9 * day},
		{provider.Doubleword(), "0s", 3 * day},
		// An unknown length could be long: keep the file as long as possible.
		{provider.Doubleword(), "soon", 30 * day},
		{provider.Doubleword(), "", 30 * day},
		{provider.Doubleword(), "-1h", 30 * day},
		// Within the bounds of the provider.
		{provider.LLMD(), "28d", 30 * day},
		{provider.LLMD(), "90000d", 30 * day},
		{provider.LLMD(), "2562047h", 30 * day},
		{provider.Azure(), "24h", 14 * day},
		{weekly, "1h", 7 * day},
		{weekly, "13d", 14 * day},
		// No expiry may be sent.
		{provider.Generic(), "24h", 0},
		{provider.Zhipu(), "", 0},
	} {
		if got := tt.profile.FileExpiry(tt.window); got != tt.want {
			t.Errorf("%s: FileExpiry(%q) = %s, want %s", tt.profile.Name, tt.window, got, tt.want)
		}
	}
}

// TestFilesOutliveEveryWindow checks all profiles whose windows have a bound: no
// file may expire before a batch with the longest window has ended.
func TestFilesOutliveEveryWindow(t *testing.T) {
	for _, p := range all(t) {
		longest := p.MaxWindow
		for _, w := range append([]string{p.DefaultWindow}, p.Windows...) {
			if d, err := time.ParseDuration(w); err == nil {
				longest = max(longest, d)
			}
		}
		expiry := p.FileExpiry(longest.String())
		if p.FileExpiryMax > 0 && expiry < longest+48*time.Hour {
			t.Errorf("%s: a file expires after %s, with windows of up to %s", p.Name, expiry, longest)
		}
	}
}

func TestWindowLength(t *testing.T) {
	const day = 24 * time.Hour
	for window, want := range map[string]time.Duration{
		"1h": time.Hour, "24h": day, "7d": 7 * day, "365d": 365 * day, "8760h": 365 * day,
		"": day, "soon": day, "flex": day, "-1h": day, "0d": day,
		"366d": day, "8761h": day, "2562047h47m": day, // a time that far ahead overflows
	} {
		if got := provider.WindowLength(window); got != want {
			t.Errorf("%q: %v, want %v", window, got, want)
		}
	}
}
