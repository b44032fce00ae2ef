package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// The files in deploy set only variables that the command reads.
func TestDeployFilesSetKnownVariables(t *testing.T) {
	t.Parallel()
	known := variables(rootCommand(process{}))
	name := regexp.MustCompile(`\b(AUTOBATCHER|OPENAI)_[A-Z_]+\b`)
	found := 0
	for _, place := range []string{"../../deploy", "../../docs/install.md"} {
		err := filepath.WalkDir(place, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			for _, variable := range name.FindAllString(string(text), -1) {
				found++
				if !slices.Contains(known, variable) {
					t.Errorf("%s: the command does not know the variable %s", path, variable)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if found == 0 {
		t.Error("found no variable")
	}
}
