package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/autobatcher/autobatcher/journal"
)

// checkPlace returns journal.ErrReplaced if the file at the path of the journal, or a
// file that SQLite keeps beside it, is not the file that this Store has open: what is
// written to a deleted file is lost with the process, and a process with another log or
// index does not see the locks and changes of this one. Call checkPlace within a
// transaction of the writer, while SQLite has the files open.
func (s *Store) checkPlace() error {
	if err := checkFile(s.given, s.file); err != nil { // what the next process would open
		return err
	}
	for _, suffix := range []string{walSuffix, shmSuffix} {
		if err := s.checkBeside(suffix); err != nil {
			return err
		}
	}
	return nil
}

// checkBeside checks a file beside the journal. The first check of each file remembers
// the file: SQLite makes or opens it within the first transaction, and keeps it until
// the last connection is closed.
func (s *Store) checkBeside(suffix string) error {
	path := s.path + suffix
	known, found := s.beside[suffix]
	if found {
		return checkFile(path, known)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return replaced(path, err)
	}
	s.beside[suffix] = info
	return nil
}

func checkFile(path string, known os.FileInfo) error {
	info, err := os.Stat(path)
	if err != nil {
		return replaced(path, err)
	}
	if !os.SameFile(info, known) {
		return fmt.Errorf("%w: another file is in the place of %s", journal.ErrReplaced, path)
	}
	return nil
}

// replaced returns the error for a file whose state could not be read.
func replaced(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: the file %s does not exist any more", journal.ErrReplaced, path)
	}
	return err
}

const (
	walSuffix = "-wal"
	shmSuffix = "-shm"
)

// refuseLinks returns an error if a file that SQLite writes beside the journal is a
// symbolic link: a user who may write the folder could make this process overwrite any
// file. The journal itself may be a link, since its path is the choice of this user.
func (s *Store) refuseLinks() error {
	for _, path := range []string{s.path + walSuffix, s.path + shmSuffix} {
		if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return &fs.PathError{Op: "open", Path: path, Err: errLink}
		}
	}
	return nil
}

var errLink = errors.New("it is a symbolic link, which this program did not make; remove the link")
