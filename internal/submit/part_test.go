package submit_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/autobatcher/autobatcher/internal/submit"
)

func (p *place) write(path, text string) {
	p.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.Fatal(err)
	}
}

func (p *place) read(path string) string {
	p.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		p.Fatal(err)
	}
	return string(text)
}

func (p *place) link(target, path string) {
	p.Helper()
	if err := os.Symlink(target, path); err != nil {
		p.Skip(err) // Windows needs a privilege
	}
}

// begun returns the contents of a part without results.
func (p *place) begun() string {
	p.Helper()
	if err := p.open().Close(); err != nil {
		p.Fatal(err)
	}
	defer os.Remove(p.path)
	return p.read(p.path)
}

// A file that submit has not begun is not changed.
func TestOpenPartLeavesOtherFiles(t *testing.T) {
	for name, text := range map[string]string{
		"a text without a line break": "important",
		"a text":                      "important\n",
		"JSON":                        `{"a":1}`,
		"a line break":                "\n",
		"a part of another input":     strings.Replace(newPlace(t, request("a")).begun(), `"lines":1`, `"lines":2`, 1),
		"a torn part of another one":  `{"input":"0`,
		"a longer header":             strings.TrimSuffix(newPlace(t, request("a")).begun(), "}\n") + `,"more":1}` + "\n",
	} {
		p := newPlace(t, request("a"))
		p.write(p.path, text)
		if _, err := submit.OpenPart(p.path, p.in); !errors.Is(err, submit.ErrNotPart) && !errors.Is(err, submit.ErrOtherInput) {
			t.Errorf("%s: error %v", name, err)
		}
		if got := p.read(p.path); got != text {
			t.Errorf("%s: became %q", name, got)
		}
	}
}

// Nobody can make submit write to another file by a link.
func TestLinks(t *testing.T) {
	for name, target := range map[string]string{"to a file": "important", "to an empty file": "", "to no file": "-"} {
		p := newPlace(t, request("a"))
		other := filepath.Join(t.TempDir(), "other")
		if target != "-" {
			p.write(other, target)
		}
		unchanged := func() {
			t.Helper()
			if _, err := os.Stat(other); target == "-" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: the file was made: %v", name, err)
			} else if target != "-" && p.read(other) != target {
				t.Errorf("%s: the file became %q", name, p.read(other))
			}
		}
		p.link(other, p.path)
		if _, err := submit.OpenPart(p.path, p.in); !errors.Is(err, submit.ErrNotPart) {
			t.Errorf("%s: error %v", name, err)
		}
		unchanged()
		if err := os.Remove(p.path); err != nil {
			t.Fatal(err)
		}
		part := p.open()
		if err := p.job(part, p.newAnswers()).Run(t.Context(), strings.NewReader(p.text)); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out")
		p.link(other, p.path+".sorted")
		p.link(other, out)
		if err := part.Finish(out); err == nil || !strings.Contains(err.Error(), "was made by another program") {
			t.Errorf("%s: error %v", name, err)
		}
		unchanged()
		if got := p.finish(part); !slices.Equal(got, []string{"a 200"}) { // into another output
			t.Errorf("%s: results %q", name, got)
		}
		unchanged()
	}
}

func TestPartIsPrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	p := newPlace(t, request("a"))
	for _, text := range []string{"", p.begun()} {
		p.write(p.path, text)
		if err := os.Chmod(p.path, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := p.open().Close(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(p.path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
}

// The file may end at any byte of what was written.
func TestResumeTorn(t *testing.T) {
	p := newPlace(t, request("a"), request("b"))
	part := p.open()
	if err := p.job(part, p.newAnswers()).Run(t.Context(), strings.NewReader(p.text)); err != nil {
		t.Fatal(err)
	}
	if err := part.Close(); err != nil {
		t.Fatal(err)
	}
	whole := p.read(p.path)
	for n := 0; n < len(whole); n += 3 {
		p.write(p.path, whole[:n])
		part := p.open()
		if err := p.job(part, p.newAnswers()).Run(t.Context(), strings.NewReader(p.text)); err != nil {
			t.Fatal(n, err)
		}
		if got := p.finish(part); !slices.Equal(got, []string{"a 200", "b 200"}) {
			t.Fatalf("%d bytes: results %q", n, got)
		}
	}
}
