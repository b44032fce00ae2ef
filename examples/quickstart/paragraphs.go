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

// readText reads the file, or the README of the repository around the working
// directory where none is named.
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

var errNoReadme = errors.New("there is no README.md here or above in this module; name a text file: quickstart FILE")

// findReadme looks here and in the directories above, up to the module's top.
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

// paragraphs are the parts of a text between blank lines, each on one line. Of
// Markdown, only what is prose: no code, headings, tables, badges or rules.
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

// blocks are the runs of lines that are not blank. A heading needs no blank
// line around it, and ends a block all the same.
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

// withoutFences leaves a blank line in place of each block of code between
// fences of ``` or ~~~. A fence that is never closed reaches to the end.
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

// fenceOf is the row of backticks or tildes, three or more, that the line
// begins with.
func fenceOf(line string) string {
	line = strings.TrimLeft(line, " \t")
	for _, mark := range []string{"`", "~"} {
		if n := len(line) - len(strings.TrimLeft(line, mark)); n >= 3 {
			return line[:n]
		}
	}
	return ""
}

// isProse tells a Markdown paragraph or list from what only looks well on a page.
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

// isHeading knows "## Heading", with one to six marks.
func isHeading(line string) bool {
	rest := strings.TrimLeft(line, "#")
	marks := len(line) - len(rest)
	return marks >= 1 && marks <= 6 && strings.HasPrefix(rest, " ")
}

func isRule(line string) bool {
	line = strings.ReplaceAll(line, " ", "")
	return line != "" && strings.Trim(line, line[:1]) == "" && strings.ContainsAny(line[:1], "=-*_")
}

// isReference knows "[name]: https://example.com".
func isReference(line string) bool {
	name, _, ok := strings.Cut(line, "]: ")
	return ok && strings.HasPrefix(name, "[")
}

// clip shortens a text to so many characters.
func clip(s string, length int) string {
	runes := []rune(s)
	if len(runes) <= length {
		return s
	}
	return strings.TrimRight(string(runes[:length-1]), " ") + "…"
}
