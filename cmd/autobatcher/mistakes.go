package main

import (
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
)

// The messages of the flag parser.
var (
	unknownFlag  = regexp.MustCompile(`^flag provided but not defined: -(.*)$`)
	missingValue = regexp.MustCompile(`^flag needs an argument: -*(.*)$`)
	wrongValue   = regexp.MustCompile(`(?s)^invalid value (".*") for flag -(\S+): (.*)$`)
	wrongEnv     = regexp.MustCompile(`(?s)^could not parse (".*") as \S+ value from environment variable (\S+) for flag (\S+): (.*)$`)
)

// explainUsage returns an error of the flag parser as a sentence about a flag of the
// command c.
func explainUsage(c *cli.Command, message string) string {
	if m := unknownFlag.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("there is no flag --%s%s", m[1], whereIsFlag(c, m[1]))
	}
	if m := missingValue.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("--%s needs a value", m[1])
	}
	if m := wrongValue.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("--%s is %s; %s", m[2], m[1], explainValue(m[1], m[3]))
	}
	return message
}

// explainVariable returns an error of the flag parser about a variable as a sentence.
func explainVariable(message string) string {
	if m := wrongEnv.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("the variable %s, for --%s, is %s; %s", m[2], m[3], m[1], explainValue(m[1], m[4]))
	}
	return message
}

// explainValue says which values a flag accepts, by the error of the flag's parser.
// value is the value in quotes, which the sentence has already.
func explainValue(value, reason string) string {
	switch {
	case strings.HasSuffix(reason, "value out of range"):
		return "the number is too large"
	case strings.HasPrefix(reason, "strconv.ParseInt"):
		return "it must be a whole number"
	case strings.HasPrefix(reason, "strconv.ParseFloat"):
		return "it must be a number"
	case reason == "parse error": // of a flag without a value
		return "it must be true or false"
	}
	if rest, ok := strings.CutPrefix(reason, value+" is "); ok {
		return "it is " + rest
	}
	return reason
}

// whereIsFlag suggests a flag for the unknown flag name of a command, as the end of a
// sentence.
func whereIsFlag(c *cli.Command, name string) string {
	flags := namesOfFlags(c.Flags)
	for _, parent := range c.Lineage()[1:] {
		flags = append(flags, namesOfFlags(parent.Flags)...)
	}
	if near := nearest(name, flags); near != "" {
		return fmt.Sprintf("; did you mean --%s?", near)
	}
	var owners []string
	for _, other := range c.Root().Commands {
		if !other.Hidden && other != c && slices.Contains(namesOfFlags(other.Flags), name) {
			owners = append(owners, other.Name)
		}
	}
	switch {
	case len(owners) == 0:
		return ""
	case c == c.Root():
		return fmt.Sprintf(" in front of the command; write autobatcher %s --%s", owners[0], name)
	}
	return "; it is a flag of autobatcher " + strings.Join(owners, " and autobatcher ")
}

func namesOfFlags(flags []cli.Flag) (names []string) {
	for _, f := range flags {
		names = append(names, f.Names()...)
	}
	return names
}

// nearest returns the word that is most similar to text, or "" if no word is
// similar.
func nearest(text string, words []string) string {
	best, at := "", (len(text)+2)/3+1
	for _, w := range words {
		if d := distance(text, w); d < at && len(w) > 1 {
			best, at = w, d
		}
	}
	return best
}

// distance returns how many bytes must be inserted, removed or replaced to turn a
// into b (the Levenshtein distance).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := previous
			if a[i] != b[j] {
				replaced++
			}
			previous = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// warnAboutVariables logs each variable AUTOBATCHER_… that no flag reads.
func (p process) warnAboutVariables(log *slog.Logger) {
	known := variables(rootCommand(p))
	for _, pair := range p.env {
		name, value, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "AUTOBATCHER_") || value == "" || slices.Contains(known, name) || ofService.MatchString(name) {
			continue
		}
		if near := nearestVariable(name, known); near != "" {
			log.Warn("an unknown variable is ignored; did you mean "+near+"?", "variable", name)
		} else {
			log.Warn("an unknown variable is ignored; autobatcher serve --help lists the variables", "variable", name)
		}
	}
}

// nearestVariable is nearest for names of variables, whose common prefix does not make
// them similar.
func nearestVariable(name string, known []string) string {
	const prefix = "AUTOBATCHER_"
	var words []string
	for _, k := range known {
		if word, ours := strings.CutPrefix(k, prefix); ours {
			words = append(words, word)
		}
	}
	if near := nearest(strings.TrimPrefix(name, prefix), words); near != "" {
		return prefix + near
	}
	return ""
}

// ofService matches the variables that Kubernetes sets in every pod for a Service
// named autobatcher.
var ofService = regexp.MustCompile(`^AUTOBATCHER_(SERVICE_(HOST|PORT.*)|PORT_[0-9]+_.*)$`)

// variables returns the variables that the flags of a command and of its
// subcommands read.
func variables(c *cli.Command) (names []string) {
	for _, f := range c.Flags {
		if d, ok := f.(cli.DocGenerationFlag); ok {
			names = append(names, d.GetEnvVars()...)
		}
	}
	for _, sub := range c.Commands {
		names = append(names, variables(sub)...)
	}
	return names
}
