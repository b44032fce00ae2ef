package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"unicode"
)

// A text is a file's name and content.
type text struct{ name, content string }

// readText reads the file. Without a file, readText reads the README of the
// repository that contains the working directory.
func readText(file string) (text, error) {
	if file == "" {
		var err error
		if file, err = findReadme(); err != nil {
			return text{}, err
		}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return text{}, err
	}
	return text{file, strings.ToValidUTF8(string(content), "\uFFFD")}, nil
}

var errNoReadme = errors.New("no README.md in this directory or above, in this module; give a text file: quickstart FILE")

// findReadme looks for a README in the working directory and the directories above,
// up to the root of the module.
func findReadme() (string, error) {
	directory, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for here := directory; ; here = filepath.Dir(here) {
		file := filepath.Join(here, "README.md")
		switch {
		case exists(file):
			return filepath.Rel(directory, file)
		case exists(filepath.Join(here, "go.mod")), here == filepath.Dir(here):
			return "", errNoReadme
		}
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func isMarkdown(name string) bool {
	extension := strings.ToLower(filepath.Ext(name))
	return extension == ".md" || extension == ".markdown"
}

// paragraphs returns the parts of a text between blank lines, each as one line. For
// Markdown, paragraphs omits code, headings, tables, badges and rules.
func paragraphs(t text, markdown bool) []string {
	content := strings.TrimPrefix(t.content, "\uFEFF")
	if markdown {
		content = withoutFences(content)
	}
	var found []string
	for _, block := range blocks(content) {
		if markdown && !isProse(block) {
			continue
		}
		paragraph := strings.Join(strings.Fields(strings.Join(block, " ")), " ")
		if strings.ContainsFunc(paragraph, unicode.IsLetter) {
			found = append(found, paragraph)
		}
	}
	return found
}

// blocks returns the groups of consecutive lines that are not blank. A heading is a
// block of its own, also without blank lines around the heading.
func blocks(content string) [][]string {
	var all [][]string
	var block []string
	end := func() {
		if len(block) > 0 {
			all = append(all, block)
		}
		block = nil
	}
	for line := range strings.Lines(content) {
		line = strings.TrimRightFunc(line, unicode.IsSpace)
		switch {
		case line == "":
			end()
		case isHeading(line):
			end()
			all = append(all, []string{line})
		default:
			block = append(block, line)
		}
	}
	end()
	return all
}

// withoutFences replaces each block of code between fences of ``` or ~~~ by a blank
// line. A block without a closing fence ends with the text.
func withoutFences(content string) string {
	var kept strings.Builder
	fence := ""
	for line := range strings.Lines(content) {
		mark := fenceOf(line)
		switch {
		case fence == "" && mark == "":
			kept.WriteString(line)
		case fence == "":
			fence = mark
			kept.WriteByte('\n')
		case strings.HasPrefix(mark, fence) && strings.Trim(line, " \t\r\n"+fence[:1]) == "":
			fence = ""
		}
	}
	return kept.String()
}

// fenceOf returns the three or more backticks or tildes at the beginning of a line,
// or "".
func fenceOf(line string) string {
	line = strings.TrimLeft(line, " \t")
	for _, mark := range []string{"`", "~"} {
		if n := len(line) - len(strings.TrimLeft(line, mark)); n >= 3 {
			return line[:n]
		}
	}
	return ""
}

// isProse reports whether a block of Markdown is a paragraph or a list.
func isProse(block []string) bool {
	first, last := block[0], block[len(block)-1]
	switch {
	case isHeading(first), isRule(last): // an underlined heading ends in a rule
		return false
	case strings.HasPrefix(first, "    "), strings.HasPrefix(first, "\t"): // code
		return false
	case strings.HasPrefix(first, "|"), strings.HasPrefix(first, "<"), strings.HasPrefix(first, "[!["), strings.HasPrefix(first, "!["):
		return false
	}
	return !isReference(first)
}

// isHeading reports whether a line is a heading such as "## Heading".
func isHeading(line string) bool {
	rest := strings.TrimLeft(line, "#")
	marks := len(line) - len(rest)
	return marks >= 1 && marks <= 6 && strings.HasPrefix(rest, " ")
}

// isRule reports whether a line is a horizontal rule.
func isRule(line string) bool {
	line = strings.ReplaceAll(line, " ", "")
	return line != "" && strings.Trim(line, line[:1]) == "" && strings.ContainsAny(line[:1], "=-*_")
}

// isReference reports whether a line is "[name]: https://example.com".
func isReference(line string) bool {
	name, _, ok := strings.Cut(line, "]: ")
	return ok && strings.HasPrefix(name, "[")
}

// clip shortens a text to length characters.
func clip(s string, length int) string {
	runes := []rune(s)
	if len(runes) <= length {
		return s
	}
	return strings.TrimRight(string(runes[:length-1]), " ") + "…"
}
