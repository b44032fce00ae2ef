package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// unreadable returns the error of reading the file at path as a sentence with the fix.
// flag names the flag with the path, and is empty for an argument.
func unreadable(flag, path string, err error) error {
	name := nameOfFile(flag, path)
	switch info, statErr := os.Stat(path); {
	case statErr == nil && info.IsDir():
		return fmt.Errorf("%s is a folder; give the path of a file", name)
	case errors.Is(err, fs.ErrNotExist):
		return missing(name, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be read by this user; let this user read the file, or give another path", name)
	}
	return fmt.Errorf("%s cannot be read: %w", name, reasonOf(err))
}

// unwritable returns the error of making or writing the file at path as a sentence with
// the fix.
func unwritable(flag, path string, err error) error {
	name := nameOfFile(flag, path)
	folder := filepath.Dir(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be written by this user; let this user write the folder %s, or give another path", name, folder)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s cannot be made, since there is no folder %s; make the folder, or give another path", name, folder)
	}
	return fmt.Errorf("%s cannot be written: %w", name, reasonOf(err))
}

// nameOfFile names a file in a message by the flag and the path as the user wrote them.
func nameOfFile(flag, path string) string {
	if flag == "" {
		return path
	}
	return flag + " " + path
}

// missing says where a file was looked for, and which file has a similar name.
func missing(name, path string) error {
	folder := filepath.Dir(path)
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s does not exist, and neither does the folder %s; give the path of a file", name, folder)
	}
	if absolute, err := filepath.Abs(folder); err == nil {
		folder = absolute
	}
	if near := nearestFile(filepath.Base(path), entries); near != "" {
		return fmt.Errorf("%s does not exist in the folder %s; did you mean %s?", name, folder, filepath.Join(filepath.Dir(path), near))
	}
	return fmt.Errorf("%s does not exist in the folder %s; give the path of a file", name, folder)
}

// nearestFile returns the file whose name is most similar, or "" if no name is similar.
// Equal extensions do not make names similar.
func nearestFile(name string, entries []fs.DirEntry) string {
	stem := func(name string) string { return strings.TrimSuffix(name, filepath.Ext(name)) }
	var similar []string
	for _, e := range entries {
		if !e.IsDir() && nearest(stem(name), []string{stem(e.Name())}) != "" {
			similar = append(similar, e.Name())
		}
	}
	return nearest(name, similar)
}

// reasonOf returns err without the operation and the path, which the message has.
func reasonOf(err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}
