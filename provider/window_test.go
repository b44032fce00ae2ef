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
		// Both take their windows from a configuration nobody here can see.
		{provider.Doubleword(), []string{"1h", "24h", "soon"}, []string{""}},
		{provider.Generic(), []string{"1h", "24h", "7d", "soon"}, []string{""}},
		{
			provider.Groq(),
			[]string{"24h", "1d", "7d", "168h", "36h30m"},
			[]string{"1h", "23h59m", "8d", "169h", "-1d", "d", "1.5d", "soon", "9999999999999999999d", "200000d"},
		},
		{provider.Moonshot(), []string{"12h", "7d"}, []string{"11h", "0d", "8d"}},
		{provider.DashScope(), []string{"24h", "14d", "336h"}, []string{"337h"}},
		// No such parameter, so nothing that could be refused.
		{provider.Zhipu(), []string{"", "1h", "soon"}, nil},
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

func TestCheckWindowSaysWhatIsAccepted(t *testing.T) {
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

// FuzzCheckWindow makes sure that no string from a caller's header gets past the
// bounds, or brings the program down.
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
