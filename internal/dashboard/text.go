package dashboard

import (
	"fmt"
	"math"
	"regexp"
)

// clipModels returns the first maxModels models, and the number of further models.
// Model names come from callers, so the names are clipped.
func clipModels(models []string) (clipped []string, more int) {
	if len(models) > maxModels {
		more = len(models) - maxModels
		models = models[:maxModels]
	}
	clipped = make([]string, len(models))
	for i, m := range models {
		clipped[i] = clip(m)
	}
	return clipped, more
}

// clipCallers returns the first maxModels callers, and an ellipsis for more.
func clipCallers(callers []string) []string {
	if len(callers) == 0 {
		return nil
	}
	clipped, more := clipModels(callers)
	if more > 0 {
		clipped = append(clipped, "…")
	}
	return clipped
}

// clip shortens a text to maxText characters and an ellipsis.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := 0
	for i := range s {
		if n++; n > maxText {
			return s[:i] + "…"
		}
	}
	return s
}

// secrets matches the parts of an error message that the page must not show: the
// query of a URL, the user and password of a URL, and text that looks like a key.
// Some providers repeat an invalid key in the error message.
var secrets = regexp.MustCompile(`((?i:bearer|basic|key provided:) *)\S+|\?[^\s"'?]+=[^\s"']*|//[^\s/@"']+@|` +
	`\b(?:[sprx]k|key)[-_][\w*-]{6,}|\bAIza[\w*-]+|\b[\w*-]{32,}`)

// redact hides secrets in the first maxMessage bytes of message, and drops the rest.
func redact(message string) string {
	return secrets.ReplaceAllString(message[:min(len(message), maxMessage)], "${1}[hidden]")
}

// dollars formats an amount as the page does: a small amount has two significant digits.
func dollars(usd float64) string {
	if n := math.Abs(usd); n > 0 && n < 0.001 {
		return fmt.Sprintf("$%.*f", min(1-int(math.Floor(math.Log10(n))), 10), usd)
	}
	return fmt.Sprintf("$%.4f", usd)
}
