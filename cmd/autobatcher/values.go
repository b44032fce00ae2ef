package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v3"
)

// seconds is a duration on the command line: a number of seconds, as the other
// implementations of autobatcher take it, or a Go duration.
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
			return 0, fmt.Errorf("%q is no length of time", text)
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

// never is a grace that does not end.
const never time.Duration = -1

// grace is a length of time, or "never".
type grace time.Duration

func (g *grace) Set(text string) error {
	if text == "never" {
		*g = grace(never)
		return nil
	}
	d, err := parseSeconds(text)
	if err == nil && d == 0 {
		err = fmt.Errorf("it must be more than 0, or never")
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
		return fmt.Errorf("%q is no size such as 1048576, 10MB or 1GiB", text)
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

// An environment variable as the source of a flag's value. An empty one counts
// as not set.
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
		// Kubernetes tells every pod of a Service called autobatcher by
		// AUTOBATCHER_PORT=tcp://…, which is not meant for --port.
		return "", false
	}
	if v.list && !strings.Contains(value, listSeparator) {
		value = strings.ReplaceAll(value, ",", listSeparator)
	}
	return value, value != ""
}

// listSeparator divides a list in a variable. On the command line a repeatable
// flag is repeated instead, so that a value may hold commas.
const listSeparator = "\n"

func (v variable) IsFromEnv() bool  { return true }
func (v variable) Key() string      { return v.name }
func (v variable) String() string   { return "environment variable " + v.name }
func (v variable) GoString() string { return fmt.Sprintf("variable{%q}", v.name) }

// source is the source of a flag that a variable can set too.
func (p process) source(name string) cli.ValueSourceChain {
	return cli.NewValueSourceChain(variable{name: name, p: p})
}

func (p process) listSource(name string) cli.ValueSourceChain {
	return cli.NewValueSourceChain(variable{name: name, p: p, list: true})
}
