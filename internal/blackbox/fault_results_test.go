package blackbox_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
)

// truncateInLine ends a download within its last line, as if that were all.
func truncateInLine(w http.ResponseWriter, r *http.Request) bool {
	rec := &recorded{header: http.Header{}, status: http.StatusOK}
	batchtest.Proceed(rec, r)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(rec.status)
	w.Write(rec.body.Bytes()[:max(0, rec.body.Len()-20)])
	return true
}

// page answers 200 with something that is no result file.
func page(kind, text string) batchtest.Fault {
	return batchtest.Status(http.StatusOK, http.Header{"Content-Type": {kind}}, text)
}

// A file that ends within a line, and a page in place of the file, are broken
// downloads. Broken downloads are repeated for a day, since the results are paid
// for: nothing is bought again meanwhile.
func TestATruncatedFileIsDownloadedAgain(t *testing.T) {
	for name, fault := range map[string]batchtest.Fault{
		"ends within a line":       truncateInLine,
		"ends within its one line": batchtest.Truncate(50),
		"an HTML page":             batchtest.HTML(200),
		"an HTML page of lines":    page("text/html", "<html>\n<body>\n<h1>Sign in</h1>\n</body>\n</html>\n"),
		"an error object":          page("application/json", `{"error":{"message":"try again later","type":"server_error"}}`),
		"a text":                   page("text/plain", "upstream connect error\n"),
		"nothing":                  page("application/json", ""),
		"an empty line":            page("application/json", "\n"),
	} {
		broken := 10 * time.Minute
		if name == "an HTML page" {
			broken = 20 * time.Hour
		}
		setup{again: true}.run(t, name, func(s *scene) {
			restore := s.srv.Keep(batchtest.OpContent, fault)
			time.AfterFunc(broken, restore)
			for i, c := range s.chats(3) {
				if r := c.within(30 * time.Hour).says(fmt.Sprint("call ", i)); r.at > broken+time.Hour {
					s.Errorf("answered at %v; the file can be read since %v", r.at, broken)
				}
			}
			s.sent(3)
		})
	}
}

// A download that is always cut goes on where it was cut, if the server knows Range;
// if the server does not, and sends the whole file, reading starts anew.
func TestDownloadsThatAreAlwaysCut(t *testing.T) {
	long := strings.Repeat("long ", 4000)
	server := batchtest.Options{Answer: func(l batchtest.Line) batchtest.Outcome {
		o := batchtest.Echo(l)
		o.Body = []byte(strings.Replace(string(o.Body), "You said", long+"You said", 1))
		return o
	}}
	for name, ranges := range map[string]bool{"the server knows Range": true, "the server ignores Range": false} {
		setup{again: true, server: server}.run(t, name, func(s *scene) {
			at, cut := 0, 7000
			s.srv.Keep(batchtest.OpContent, func(w http.ResponseWriter, r *http.Request) bool {
				rec := &recorded{header: http.Header{}, status: http.StatusOK}
				batchtest.Proceed(rec, r)
				all := rec.body.Bytes()
				from, status := 0, http.StatusOK
				if first, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && ranges {
					from, _ = strconv.Atoi(strings.TrimSuffix(first, "-"))
					status = http.StatusPartialContent
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(all)-1, len(all)))
				} else if !ranges {
					cut += 15_000 // a little more each time
				}
				w.Header().Set("ETag", `"the file"`)
				w.Header().Set("Content-Length", strconv.Itoa(len(all)-from))
				w.WriteHeader(status)
				end := min(len(all), from+cut)
				w.Write(all[from:end])
				w.(http.Flusher).Flush()
				if at = max(at, end); end < len(all) {
					panic(http.ErrAbortHandler)
				}
				return true
			})
			for i, c := range s.chats(3) {
				if r := c.within(2 * time.Hour).says(fmt.Sprint("call ", i)); r.at > 30*time.Minute || strings.Count(r.body, long) != 1 {
					s.Errorf("status %d at %v, %d bytes; want the whole answer within half an hour", r.status, r.at, len(r.body))
				}
			}
			s.sent(3)
		})
	}
}

// A result line that is not strict JSON is still the paid answer of the call that
// its custom_id names. The caller gets the bytes of the body where they can be
// found, or else an error that says the line could not be read. In no case is
// the line bought again.
func TestAResultLineThatIsNotStrictJSON(t *testing.T) {
	const body = `{"id":"x","choices":[{"message":{"role":"assistant","content":"%s"}}]}`
	line := func(content string) string {
		return `{"id":"r","custom_id":"ID","response":{"status_code":200,"request_id":"q","body":` + fmt.Sprintf(body, content) + `},"error":null}`
	}
	for name, test := range map[string]string{
		"a raw tab":                 line("a\tb"),
		"an escape that is none":    line(`costs \$5`),
		"a number that is none":     strings.Replace(line("a"), `"id":"x"`, `"logprob":-Infinity`, 1),
		"NaN":                       strings.Replace(line("a"), `"id":"x"`, `"logprob":NaN`, 1),
		"a control character":       line("a\x01b"),
		"bytes that are not UTF-8":  line("a\xff\xfeb"),
		"a byte order mark":         "\ufeff" + line("a"),
		"cut off in its body":       line("a")[:150],
		"the id last, and a raw \t": strings.Replace(strings.Replace(line("a\tb"), `"custom_id":"ID",`, "", 1), `"error":null}`, `"error":null,"custom_id":"ID"}`, 1),
	} {
		setup{again: true, server: batchtest.Options{Answer: rawLine(test)}}.run(t, name, func(s *scene) {
			r := s.chat("text").within(30 * time.Hour)
			switch {
			case r.status == 424:
				r.fails("batch_line_unreadable")
			case r.status != 200 || r.body == "" || !strings.Contains(test, r.body):
				s.Errorf("status %d: %q; want the body's own bytes", r.status, r.body)
			}
			if r.at > time.Minute {
				s.Errorf("answered at %v; the file is complete, and looking again does not help", r.at)
			}
			s.sent(1)
		})
	}
}

// Results are looked for after a cancellation as long as the provider says that
// more will come, and not much longer: the calls are then resubmitted.
func TestResubmittingSoonAfterACancellation(t *testing.T) {
	u := doubleword(stuck, autobatcher.Options{Resubmits: 1})
	u.play(t, func(s *scene) {
		call := s.chat("text")
		s.until(12 * time.Second)
		s.cancel(s.batch().ID)
		s.until(72 * time.Second)
		if n := len(s.srv.Batches()); n != 2 {
			s.Errorf("%d batches a minute after the cancellation, want the call resubmitted", n)
		}
		if n := s.count("GET", "/content"); n > 30 { // two files with each poll
			s.Errorf("%d downloads within a minute", n)
		}
		call.left()
	})
}

// Lines that appear twice, in any order, answer each call once.
func TestResultLinesThatAppearTwice(t *testing.T) {
	setup{again: true}.play(t, func(s *scene) {
		s.srv.Keep(batchtest.OpContent, rewriteOutput(func(body []byte, _ http.Header) []byte {
			lines := strings.SplitAfter(string(body), "\n")
			return []byte(string(body) + lines[1] + lines[0] + string(body))
		}))
		for i, c := range s.chats(3) {
			c.want(200, 15*time.Second).says(fmt.Sprint("call ", i))
		}
		s.sent(3)
	})
}
