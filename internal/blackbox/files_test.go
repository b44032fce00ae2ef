package blackbox_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// filesAt is a setup of a provider and what becomes of its files.
func filesAt(p provider.Profile, m batchtest.Behavior, policy autobatcher.FilePolicy) setup {
	return setup{server: batchtest.Options{Behavior: m}, options: autobatcher.Options{Provider: &p, Files: policy}}
}

// created is the body of the only create there was, read on its way.
func created(u *setup) *string {
	body := new(string)
	u.base = func(base http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/batches") {
				text, err := io.ReadAll(req.Body)
				if err != nil {
					return nil, err
				}
				req.Body.Close()
				*body = string(text)
				req = req.Clone(req.Context())
				req.Body = io.NopCloser(strings.NewReader(*body))
			}
			return base.RoundTrip(req)
		})
	}
	return body
}

func TestFilesKeep(t *testing.T) {
	u := filesAt(provider.OpenAI(), batchtest.OpenAI(), "")
	create := created(&u)
	u.play(t, func(s *scene) {
		s.chat("a").want(200, 15*time.Second)
		s.until(time.Hour)
		if form := s.upload().Form; len(form) != 1 || strings.Contains(*create, "expires") || s.count("DELETE") != 0 {
			s.Errorf("form %v, create %s, %d deletions; want files left to the provider", form, *create, s.count("DELETE"))
		}
	})
}

func TestFilesExpire(t *testing.T) {
	for _, tt := range []struct {
		profile  provider.Profile
		behavior batchtest.Behavior
		input    string // seconds
		output   string
	}{
		{provider.OpenAI(), batchtest.OpenAI(), "259200", `"seconds":259200`},
		{provider.Azure(), batchtest.Azure(), "1209600", `"seconds":1209600`},
		{provider.Doubleword(), batchtest.Doubleword(), "259200", ""},
		{provider.Groq(), batchtest.Groq(), "", ""},
		{provider.Generic(), batchtest.OpenAI(), "", ""},
	} {
		u := filesAt(tt.profile, tt.behavior, autobatcher.FilesExpire)
		create := created(&u)
		u.run(t, tt.profile.Name, func(s *scene) {
			s.chat("a").wait().want(200, s.elapsed())
			form := s.upload().Form
			if got := form.Get("expires_after[seconds]"); got != tt.input || (got != "") != (form.Get("expires_after[anchor]") == "created_at") {
				s.Errorf("form = %v, want %q seconds", form, tt.input)
			}
			if has := strings.Contains(*create, "output_expires_after"); has != (tt.output != "") || !strings.Contains(*create, tt.output) {
				s.Errorf("create = %s, want %s", *create, tt.output)
			}
			s.until(time.Hour)
			if n := s.count("DELETE"); n != 0 {
				s.Errorf("%d deletions", n)
			}
		})
	}
}

// deletions are the moments at which files were deleted.
func (s *scene) deletions() (at []time.Duration) {
	for _, r := range s.srv.Requests() {
		if r.Method == http.MethodDelete {
			at = append(at, r.Time.Sub(s.begin))
		}
	}
	return at
}

// kept are the uploads that were not deleted.
func (s *scene) kept() (ids []string) {
	for _, u := range s.srv.Uploads() {
		if !u.Deleted {
			ids = append(ids, u.ID)
		}
	}
	return ids
}

func TestFilesDelete(t *testing.T) {
	half := func(l batchtest.Line) batchtest.Outcome {
		if strings.Contains(string(l.Body), "bad") {
			return batchtest.Outcome{Status: 400}
		}
		return batchtest.Outcome{}
	}
	for name, u := range map[string]setup{
		"openai":     filesAt(provider.OpenAI(), batchtest.OpenAI(), autobatcher.FilesDelete),
		"doubleword": filesAt(provider.Doubleword(), batchtest.Doubleword(), autobatcher.FilesDelete),
	} {
		u.server.Answer, u.server.Turnaround = half, 10*time.Minute
		u.run(t, name+"/input, output and errors", func(s *scene) {
			good, bad := s.chat("good"), s.chat("bad")
			good.wait().want(200, s.elapsed())
			bad.wait().want(400, s.elapsed())
			synctest.Wait()
			s.until(s.elapsed() + time.Minute)
			if at := s.deletions(); len(at) != 3 || len(s.kept()) != 0 || at[0] < 10*time.Minute {
				s.Errorf("deletions at %v, %d inputs left; want three, once the batch has ended", at, len(s.kept()))
			}
			if b := s.batch(); b.Status != "completed" || b.CancelRequested {
				s.Errorf("deleting changed the batch: %s", b.Status)
			}
		})
		u.run(t, name+"/a failed deletion costs no caller", func(s *scene) {
			s.srv.Keep(batchtest.OpDeleteFile, batchtest.Status(500, nil, `oops`))
			s.chat("good").wait().want(200, s.elapsed())
		})
		u.run(t, name+"/a deletion that fails once is tried again", func(s *scene) {
			s.srv.Control(batchtest.OpDeleteFile, batchtest.Status(503, nil, `busy`))
			s.chat("good").wait().want(200, s.elapsed())
			s.until(s.elapsed() + 10*time.Minute)
			if n := len(s.kept()); n != 0 {
				s.Errorf("%d inputs left", n)
			}
		})
	}
	t.Run("what was not delivered is kept", func(t *testing.T) {
		u := filesAt(provider.OpenAI(), batchtest.OpenAI(), autobatcher.FilesDelete)
		for name, fault := range map[string]batchtest.Fault{
			"the download is broken":    batchtest.Reset(),
			"the download is forbidden": batchtest.Status(403, nil, `{}`),
			"the download is torn":      batchtest.Tear(10),
		} {
			u.run(t, name, func(s *scene) {
				s.srv.Keep(batchtest.OpContent, fault)
				s.chat("a").wait().want(424, s.elapsed())
				s.until(s.elapsed() + time.Hour)
				for _, r := range s.srv.Requests() {
					if r.Method == http.MethodDelete && !strings.HasSuffix(r.Path, s.upload().ID) {
						s.Errorf("results that were paid for and never read were deleted at %v", r.Time.Sub(s.begin))
					}
				}
			})
		}
		garbage := u
		garbage.server.Answer = func(batchtest.Line) batchtest.Outcome { return batchtest.Outcome{Garbage: `{"custom_id":`} }
		garbage.run(t, "a line is not understood", func(s *scene) {
			s.chat("a").wait().want(424, s.elapsed())
			s.until(s.elapsed() + time.Hour)
			if n := len(s.deletions()); n > 1 {
				s.Errorf("%d deletions; the results hold a line that no caller got", n)
			}
		})
	})
	t.Run("a batch that never ended", func(t *testing.T) {
		u := filesAt(provider.Doubleword(), batchtest.Doubleword(), autobatcher.FilesDelete)
		u.server.Answer = stuck.Answer
		u.options.PollInterval = time.Hour
		u.play(t, func(s *scene) {
			s.chat("a").wait().fails("batch_overdue")
			s.until(s.elapsed() + time.Hour)
			if n := len(s.deletions()); n != 0 {
				s.Errorf("%d deletions while the batch runs on", n)
			}
		})
	})
	t.Run("a refused batch", func(t *testing.T) {
		u := poisoned(false)
		u.options.Files = autobatcher.FilesDelete
		u.run(t, "for a bad line", func(s *scene) {
			good, bad := s.chat("good"), s.chat(poison)
			bad.wait().want(400, s.elapsed())
			good.wait().want(200, s.elapsed())
			s.until(s.elapsed() + time.Minute)
			if n := len(s.kept()); n != 0 {
				s.Errorf("%d of %d inputs left", n, len(s.srv.Uploads()))
			}
		})
		u = queueOf(5000, true, 10*time.Minute)
		u.options.Files = autobatcher.FilesDelete
		u.run(t, "for too many tokens", func(s *scene) {
			long := strings.Repeat("x", 4000)
			s.rush(8, func(i int) (string, string) { return "/chat/completions", chatBody(fmt.Sprint(i, long)) })
			s.until(s.elapsed() + time.Minute)
			if n := len(s.kept()); n != 0 {
				s.Errorf("%d of %d inputs left", n, len(s.srv.Uploads()))
			}
		})
		u = filesAt(provider.OpenAI(), batchtest.OpenAI(), autobatcher.FilesDelete)
		u.run(t, "by create", func(s *scene) {
			s.srv.Control(batchtest.OpCreate, batchtest.Status(402, nil, `{}`))
			s.chat("a").wait().want(402, s.elapsed())
			s.until(s.elapsed() + time.Minute)
			if n := len(s.kept()); n != 0 {
				s.Errorf("%d inputs left", n)
			}
		})
	})
	t.Run("not the file of a batch that may exist", func(t *testing.T) {
		u := filesAt(provider.Doubleword(), batchtest.Doubleword(), autobatcher.FilesDelete)
		u.play(t, func(s *scene) {
			s.srv.Control(batchtest.OpCreate, batchtest.LoseAnswer())
			s.srv.Keep(batchtest.OpList, batchtest.Status(404, nil, `no such list`))
			s.chat("a").wait().want(424, s.elapsed()).fails("batch_create_unknown")
			s.until(s.elapsed() + time.Hour)
			if n := len(s.deletions()); n != 0 {
				s.Errorf("%d deletions; the batch may exist, and be paid for", n)
			}
		})
	})
}

// Each attempt has a file of its own. Every file is deleted.
func TestFilesOfEachAttemptAreDeleted(t *testing.T) {
	attempts := 0
	u := filesAt(provider.OpenAI(), batchtest.OpenAI(), autobatcher.FilesDelete)
	u.again = true
	u.server.Answer = func(batchtest.Line) batchtest.Outcome {
		attempts++
		return batchtest.Outcome{Missing: attempts == 1}
	}
	u.play(t, func(s *scene) {
		s.chat("a").wait().want(200, s.elapsed())
		s.until(s.elapsed() + time.Minute)
		s.sent(1, 1)
		if left := s.kept(); len(left) != 0 {
			s.Errorf("inputs %v left", left)
		}
	})
}
