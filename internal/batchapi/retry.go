package batchapi

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
)

// Retries decides whether a failed request is made again, and when.
type Retries struct {
	Patience time.Duration // how long to go on trying
	Unseen   time.Duration // how long a 404 may only mean that a copy lags behind

	began time.Time
	tries int
}

// Next returns how long to wait before the request is made again, or false:
// there was no error, trying again would not help, or it was tried for long
// enough.
func (r *Retries) Next(err error) (time.Duration, bool) {
	if r.tries == 0 {
		r.began = time.Now()
	}
	r.tries++
	var failed *Error
	if !errors.As(err, &failed) {
		return 0, false
	}
	var wait time.Duration
	switch {
	case failed.RateLimited():
		wait = RateLimitWait(failed)
	case failed.Transient():
		wait = max(Backoff(r.tries), failed.RetryAfter)
	case failed.Status == http.StatusNotFound && time.Since(r.began) < r.Unseen:
		wait = Backoff(r.tries)
	default:
		return 0, false
	}
	return wait, time.Since(r.began)+wait <= r.Patience
}

// RateLimitWait is what the provider asked for, at least a second, or a minute
// where it did not say; and up to a tenth more, so that a fleet of clients does
// not come back in the same instant.
func RateLimitWait(e *Error) time.Duration {
	wait := time.Minute
	if e.RetryAfter >= 0 {
		wait = max(e.RetryAfter, time.Second)
	}
	return wait + rand.N(wait/10)
}

// Backoff doubles from a second to half a minute, less up to a quarter.
func Backoff(try int) time.Duration {
	wait := time.Second << min(max(try-1, 0), 5)
	wait = min(wait, 30*time.Second)
	return wait - rand.N(wait/4)
}
