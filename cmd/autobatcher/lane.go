package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/provider"
)

// laneSettings are the values of the flags that say how calls are sent: in batches, at
// the provider's flex tier, or in real time.
type laneSettings struct {
	mode         string
	flexFallback string
	quietAfter   quiet
	batchesOnly  bool // submit: the modes flex, auto and realtime are refused
}

func newLaneSettings() laneSettings {
	return laneSettings{flexFallback: string(autobatcher.FallbackBatch), quietAfter: quiet(time.Second)}
}

// modeAsync is a value of --mode of the other implementations of autobatcher, which
// the library does not have.
const modeAsync = "async"

// modes, batchModes and flexFallbacks are the valid values of --mode, of --mode of
// submit, and of --flex-fallback.
var (
	modes         = []string{modeAsync, string(autobatcher.ModeAuto), string(autobatcher.ModeBatch), string(autobatcher.ModeFlex), string(autobatcher.ModeRealtime)}
	batchModes    = []string{modeAsync, string(autobatcher.ModeBatch)}
	flexFallbacks = []string{string(autobatcher.FallbackBatch), string(autobatcher.FallbackRealtime), string(autobatcher.FallbackFail)}
)

func (s *settings) laneFlags(p process) []cli.Flag {
	return []cli.Flag{
		s.modeFlag(p, "`MODE`: batch sends batches with a completion window of 24h; flex sends each call at once at the provider's flex tier, at about the price of a batch; "+
			"auto sends batches, and sends a call at the flex tier if a batch would be late or hold no further call; realtime sends each call at once, at full price; "+
			"async requests a completion window of 1h, or means flex where the provider has no such window. "+
			"Calls that have no flex tier are sent in batches"),
		&cli.StringFlag{
			Name: "flex-fallback", Destination: &s.flexFallback, Value: s.flexFallback, Category: aboutBatches,
			Sources: p.source("AUTOBATCHER_FLEX_FALLBACK"),
			Usage:   "`LANE` for a call that the provider has had no room for at its flex tier for two minutes, or whose model has no flex tier: batch, realtime (at full price, within --escalate-limit), or fail (503, or the provider's refusal of the model)",
		},
		s.quietAfterFlag(p),
	}
}

// batchLaneFlags are laneFlags for a command that sends only batches.
func (s *settings) batchLaneFlags(p process) []cli.Flag {
	s.batchesOnly = true
	return []cli.Flag{
		s.modeFlag(p, "`MODE`: async requests a completion window of 1h, batch a completion window of 24h; the other modes of serve and run send no batches"),
		s.quietAfterFlag(p),
	}
}

func (s *settings) modeFlag(p process, usage string) cli.Flag {
	return &cli.StringFlag{
		Name: "mode", Destination: &s.mode, Category: aboutBatches,
		DefaultText: "batch, with the provider's default window",
		Sources:     p.source("AUTOBATCHER_MODE"),
		Usage:       usage,
	}
}

func (s *settings) quietAfterFlag(p process) cli.Flag {
	return &cli.GenericFlag{
		Name: "quiet-after", Value: &s.quietAfter, Category: aboutBatches,
		Sources: p.source("AUTOBATCHER_QUIET_AFTER"),
		Usage:   "send a batch before --batch-window ends when no new call came for `SECONDS`, or a duration; 0: always wait for the whole window",
	}
}

// A quiet is a duration; every duration of 0 or less means never, and is 0.
type quiet time.Duration

func (q *quiet) Set(text string) error {
	if len(text) > 1 && text[0] == '-' {
		_, err := parseSeconds(text[1:])
		*q = 0
		return err
	}
	d, err := parseSeconds(text)
	*q = quiet(d)
	return err
}

func (q *quiet) Get() any       { return time.Duration(*q) }
func (q *quiet) String() string { return (*seconds)(q).String() }

// unknownValue is the error of a flag whose value is none of the words.
func unknownValue(flag, value string, words []string) error {
	text := fmt.Sprintf("--%s is %q; it must be %s", flag, value, alternatives(words))
	if near := nearest(value, words); near != "" {
		text += fmt.Sprintf("; did you mean %s?", near)
	}
	return usagef("%s", text)
}

// lane returns the library's mode and the completion window to request from a
// provider; "" means the provider's default window.
func (s *settings) lane(p provider.Profile) (mode autobatcher.Mode, window string, err error) {
	valid := modes
	if s.batchesOnly {
		valid = batchModes
	}
	if s.mode != "" && !slices.Contains(valid, s.mode) {
		return "", "", unknownValue("mode", s.mode, valid)
	}
	mode, window = autobatcher.ModeBatch, s.completionWindow
	switch s.mode {
	case "":
	case string(autobatcher.ModeBatch):
		if p.CheckWindow("24h") == nil { // else as without --mode: Voyage has one window, of 12h
			window, err = s.windowOfMode("24h")
		}
	case modeAsync:
		if p.CheckWindow("1h") != nil && len(p.FlexEndpoints) > 0 && !s.batchesOnly {
			mode = autobatcher.ModeFlex
		} else {
			window, err = s.windowOfMode("1h")
		}
	default:
		mode = autobatcher.Mode(s.mode)
	}
	if err != nil || window == "" {
		return mode, "", err
	}
	if err := p.CheckWindow(window); err != nil {
		return "", "", &failure{exitUsage, err}
	}
	return mode, window, nil
}

// windowOfMode returns the window that the value of --mode means, unless
// --completion-window is another window.
func (s *settings) windowOfMode(window string) (string, error) {
	if s.completionWindow != "" && s.completionWindow != window {
		return "", usagef("--mode %s means --completion-window %s, not %s; give only one of the flags", s.mode, window, s.completionWindow)
	}
	return window, nil
}

// applyLane checks the settings and copies the settings to the library's options.
func (s *settings) applyLane(o *autobatcher.Options, p provider.Profile) (err error) {
	if o.Mode, o.CompletionWindow, err = s.lane(p); err != nil {
		return err
	}
	if !slices.Contains(flexFallbacks, s.flexFallback) {
		return unknownValue("flex-fallback", s.flexFallback, flexFallbacks)
	}
	o.FlexFallback = autobatcher.FlexFallback(s.flexFallback)
	o.QuietAfter = orNegative(time.Duration(s.quietAfter))
	return nil
}

// passTimeout is how long a request that passes through may take. A provider that
// sells single calls at the price of batches may take longer than --pass-through-timeout.
func (s *settings) passTimeout(p provider.Profile) time.Duration {
	timeout := time.Duration(s.passThroughTimeout)
	if p.SinglePrice != "" {
		timeout = max(timeout, p.FlexTimeout)
	}
	return timeout
}

// describeLane says how calls to a provider are sent with the options.
func describeLane(o autobatcher.Options, p provider.Profile) string {
	window := o.CompletionWindow
	if window == "" {
		window = p.DefaultWindow
	}
	batches := "batches"
	if !p.OmitWindow {
		batches = "batches of " + window
	}
	switch {
	case o.Mode == autobatcher.ModeRealtime:
		return "real time, at full price"
	case p.SinglePrice != "":
		return "single calls, " + p.SinglePrice
	case len(p.Suffixes()) == 0:
		return fmt.Sprintf("real time, at full price, since %s has no batches", p.Name)
	case o.Mode != autobatcher.ModeBatch && len(p.FlexEndpoints) == 0:
		return fmt.Sprintf("%s, since %s has no flex tier that saves money", batches, p.Name)
	case o.Mode == autobatcher.ModeFlex:
		return fmt.Sprintf("flex tier, or else %s", batches)
	case o.Mode == autobatcher.ModeAuto:
		return fmt.Sprintf("%s, or the flex tier for a call that a batch would be late for or that would be alone", batches)
	}
	return batches
}
