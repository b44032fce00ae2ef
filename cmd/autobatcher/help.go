package main

import (
	"strings"

	"github.com/urfave/cli/v3"
)

// helpWidth is that of a terminal nobody has widened.
const helpWidth = 80

// described gives flags the layout of a manual: what a flag means stands below
// its name, so that it fits a terminal however long the names are.
func described(flags ...[]cli.Flag) []cli.Flag {
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

// describe is a flag's part of the help.
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
	return title + "\n" + indented(usage, "         ")
}

// placeholderOf finds the word between backquotes, which stands for the value.
func placeholderOf(usage string) (placeholder, plain string) {
	if _, rest, ok := strings.Cut(usage, "`"); ok {
		placeholder, _, _ = strings.Cut(rest, "`")
	}
	return placeholder, strings.ReplaceAll(usage, "`", "")
}

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

// indented breaks text into lines that fit, each after the indent.
func indented(text, indent string) string {
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
