package main

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

// The errors that a script cannot cause in every environment.
func TestFileErrors(t *testing.T) {
	denied := &fs.PathError{Op: "open", Path: "private/file", Err: fs.ErrPermission}
	broken := &fs.PathError{Op: "read", Path: "private/file", Err: errors.New("input/output error")}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{unreadable("--prices", "private/file", denied), "--prices private/file may not be read by this user; let this user read the file, or give another path"},
		{unreadable("", "private/file", broken), "private/file cannot be read: input/output error"},
		{unwritable("-o", "private/file", denied), "-o private/file may not be written by this user; let this user write the folder private, or give another path"},
		{unwritable("", "private/file", broken), "private/file cannot be written: input/output error"},
	} {
		if got := tt.err.Error(); strings.ReplaceAll(got, `\`, "/") != tt.want {
			t.Errorf("%s\nwant %s", got, tt.want)
		}
	}
}
