package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v3"

	"github.com/autobatcher/autobatcher"
)

// seconds is a duration on the command line: a number of seconds, as in the other
// implementations of autobatcher, or a Go duration.
type seconds time.Duration

func (s *seconds) Set(text string) error {
	d, err := parseSeconds(text)
	*s = seconds(d)
	return err
}

func (s *seconds) Get() any { return time.Duration(*s) }

func (s *seconds) String() string {
	return strconv.FormatFloat(time.Duration(*s).Seconds(), 'f', -1, 64)
}

func parseSeconds(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if n, numeric := strconv.ParseFloat(text, 64); numeric == nil {
		d, err = time.Duration(n*float64(time.Second)), nil
		if math.IsNaN(n) || math.Abs(n) > (math.MaxInt64/float64(time.Second)) {
			return 0, fmt.Errorf("%q is not a duration", text)
		}
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is neither a number of seconds nor a duration such as 90s or 1h30m", text)
	case d < 0:
		return 0, fmt.Errorf("%q is negative", text)
	}
	return d, nil
}

// never is the grace period that does not end.
const never time.Duration = -1

// grace is a duration, or "never".
type grace time.Duration

func (g *grace) Set(text string) error {
	if text == "never" {
		*g = grace(never)
		return nil
	}
	d, err := parseSeconds(text)
	if err == nil && d == 0 {
		err = fmt.Errorf("the duration must be more than 0, or never")
	}
	*g = grace(d)
	return err
}

func (g *grace) Get() any { return time.Duration(*g) }

func (g *grace) String() string {
	if time.Duration(*g) == never {
		return "never"
	}
	return (*seconds)(g).String()
}

// size is a number of bytes, such as 1048576, 10MB or 1GiB.
type size int64

func (s *size) Set(text string) error {
	n, err := humanize.ParseBytes(text)
	if err != nil || n == 0 || n > math.MaxInt64 {
		return fmt.Errorf("%q is not a size such as 1048576, 10MB or 1GiB", text)
	}
	*s = size(n)
	return nil
}

func (s *size) Get() any { return int64(*s) }

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return humanize.IBytes(uint64(*s))
}

// budget is an amount of money, such as 20usd or 20usd/day.
type budget autobatcher.Budget

func (b *budget) Set(text string) error {
	amount, daily := strings.CutSuffix(strings.ToLower(strings.TrimSpace(text)), "/day")
	amount, dollars := strings.CutSuffix(amount, "usd")
	usd, err := strconv.ParseFloat(strings.TrimSpace(amount), 64)
	if err != nil || !dollars || !(usd > 0) || math.IsInf(usd, 1) {
		return fmt.Errorf("%q is not an amount of US dollars above 0, such as 20usd (for the life of the process) or 20usd/day", text)
	}
	*b = budget{USD: usd, Daily: daily}
	return nil
}

func (b *budget) Get() any { return autobatcher.Budget(*b) }

func (b *budget) String() string {
	if b.USD == 0 {
		return ""
	}
	text := strconv.FormatFloat(b.USD, 'f', -1, 64) + "usd"
	if b.Daily {
		text += "/day"
	}
	return text
}

// A variable is an environment variable as the source of a flag's value. An empty
// variable counts as not set.
type variable struct {
	name string
	p    process
	list bool // several values, separated by commas or newlines
}

var _ interface {
	cli.ValueSource
	cli.EnvValueSource
} = variable{}

func (v variable) Lookup() (string, bool) {
	value := v.p.getenv(v.name)
	if strings.HasPrefix(value, "tcp://") {
		// For a Service named autobatcher, Kubernetes sets AUTOBATCHER_PORT=tcp://…
		// in every pod. The variable is not meant for --port.
		return "", false
	}
	if v.list && !strings.Contains(value, listSeparator) {
		value = strings.ReplaceAll(value, ",", listSeparator)
	}
	return value, value != ""
}

// listSeparator separates the values of a list in a variable. On the command line
// the flag is repeated instead, so that a value may contain commas.
const listSeparator = "\n"

func (v variable) IsFromEnv() bool  { return true }
func (v variable) Key() string      { return v.name }
func (v variable) String() string   { return "environment variable " + v.name }
func (v variable) GoString() string { return fmt.Sprintf("variable{%q}", v.name) }

// source returns the sources of a flag that the variable name can set as well.
func (p process) source(name string) cli.ValueSourceChain {
	return cli.NewValueSourceChain(variable{name: name, p: p})
}

// listSource is like source, for a flag with several values.
func (p process) listSource(name string) cli.ValueSourceChain {
	return cli.NewValueSourceChain(variable{name: name, p: p, list: true})
}
