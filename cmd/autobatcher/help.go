package main

import (
	"strings"

	"github.com/urfave/cli/v3"
)

// helpWidth is the usual width of a terminal, in columns.
const helpWidth = 80

// manualLayout joins groups of flags and gives each flag the layout of a manual:
// the description is below the name, so that the help fits a terminal however
// long the names are.
func manualLayout(flags ...[]cli.Flag) []cli.Flag {
	var all []cli.Flag
	for _, group := range flags {
		for _, f := range group {
			if f, ok := f.(interface{ SetStringer(cli.FlagStringFunc) }); ok {
				f.SetStringer(describe)
			}
			all = append(all, f)
		}
	}
	return all
}

// describe returns the help of one flag.
func describe(f cli.Flag) string {
	d, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return ""
	}
	title := "--" + f.Names()[0]
	placeholder, usage := placeholderOf(d.GetUsage())
	if placeholder != "" {
		title += " " + placeholder
	}
	usage += defaultOf(d)
	for _, name := range d.GetEnvVars() {
		usage += " [$" + name + "]"
	}
	return title + "\n" + wrapped(usage, "         ")
}

// placeholderOf returns the word between backquotes, which represents the value,
// and the usage without backquotes.
func placeholderOf(usage string) (placeholder, plain string) {
	if _, rest, ok := strings.Cut(usage, "`"); ok {
		placeholder, _, _ = strings.Cut(rest, "`")
	}
	return placeholder, strings.ReplaceAll(usage, "`", "")
}

// defaultOf returns the default of a flag as a suffix of the usage, "" without a
// default.
func defaultOf(d cli.DocGenerationFlag) string {
	text := d.GetDefaultText()
	if text == "" && d.TakesValue() {
		text = strings.Trim(d.GetValue(), `"`)
	}
	if text == "" {
		return ""
	}
	return " (default: " + text + ")"
}

// wrapped breaks text into lines of at most helpWidth columns, each with the
// indent.
func wrapped(text, indent string) string {
	var b strings.Builder
	room := 0
	for word := range strings.FieldsSeq(text) {
		if len(word) >= room {
			b.WriteString("\n" + indent)
			room = helpWidth - len(indent)
		} else {
			b.WriteByte(' ')
			room--
		}
		b.WriteString(word)
		room -= len(word)
	}
	return strings.TrimPrefix(b.String(), "\n")
}
