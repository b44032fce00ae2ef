package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// Durations in the log are text in both formats.
func TestDurationsInLog(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		s := newSettings()
		s.logFormat = format
		log, err := s.logger(process{stderr: &out})
		if err != nil {
			t.Fatal(err)
		}
		log.Warn("trying again", "in", 952799604*time.Nanosecond)
		log.Warn("trying again", "in", 75499*time.Millisecond)
		log.Warn("trying again", "in", 2512345*time.Microsecond)
		for _, want := range []string{"953ms", "1m15s", "2.51s"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: the log lacks %s:\n%s", format, want, out.String())
			}
		}
	}
}
