package main

import (
	"bytes"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScript runs the scripts in testdata, which show how to use the command and
// what the command does. In addition to the commands of testscript, a script can use
//
//	exits CODE program [args]     checks that the program ends with the exit code
//	start NAME [VAR=value] program [args]
//	                              starts a program in the background and waits for
//	                              the output OPENAI_BASE_URL=…; sets BASE to the
//	                              URL, ROOT to the URL without the path, and PORT;
//	                              if the output has OPENAI_API_KEY=…, sets KEY
//	signal SIGNAL NAME            sends INT, TERM or HUP
//	end NAME [CODE]               sends SIGTERM, unless the script has sent a signal
//	                              before; checks the exit code (default 0); writes
//	                              the output to NAME.out and NAME.err
//	await PATTERN NAME            waits for output that matches
//	http …, child … and sql …     see programs_test.go
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  scriptExits,
			"start":  scriptStart,
			"signal": scriptSignal,
			"end":    scriptEnd,
			"await":  scriptAwait,
		},
		Setup: func(env *testscript.Env) error {
			env.Values[serversKey{}] = map[string]*server{}
			env.Setenv("GORACE", raceOptions)
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state")) // the directory of the journal
			return nil
		},
	})
}

// raceOptions stops the race detector from delaying the exit of every process by a
// second.
const raceOptions = "atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"autobatcher": main, "http": httpMain, "child": childMain, "sql": sqlMain})
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE program [args]")
	}
	code := 0
	err := ts.Exec(args[1], args[2:]...)
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		code = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%s ended with %d, not %s", args[1], code, args[0])
	}
}

// A server is a program in the background of a script.
type server struct {
	cmd      *exec.Cmd
	out, err lockedBuffer
	signaled bool
	done     chan error
}

type serversKey struct{}

func serversOf(ts *testscript.TestScript) map[string]*server {
	return ts.Value(serversKey{}).(map[string]*server)
}

func scriptStart(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: start NAME [VAR=value] program [args]")
	}
	name, env := args[0], []string{
		"PATH=" + ts.Getenv("PATH"), "HOME=/no-home", "XDG_STATE_HOME=" + ts.Getenv("XDG_STATE_HOME"), "GORACE=" + raceOptions,
	}
	for args = args[1:]; regexp.MustCompile(`^[A-Z_]+=`).MatchString(args[0]); args = args[1:] {
		env = append(env, args[0])
	}
	s := &server{cmd: exec.Command(args[0], args[1:]...), done: make(chan error, 1)}
	s.cmd.Env, s.cmd.Dir = env, ts.Getenv("WORK")
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.err
	ts.Check(s.cmd.Start())
	go func() { s.done <- s.cmd.Wait() }()
	serversOf(ts)[name] = s
	ts.Defer(func() { _ = s.cmd.Process.Kill() })
	found := s.await(ts, baseURL)
	ts.Setenv("BASE", found[1])
	u, err := url.Parse(found[1])
	ts.Check(err)
	ts.Setenv("ROOT", "http://"+u.Host)
	ts.Setenv("PORT", u.Port())
	if key := apiKey.FindStringSubmatch(s.out.String()); key != nil {
		ts.Setenv("KEY", key[1])
	}
}

var baseURL = regexp.MustCompile(`OPENAI_BASE_URL=(http://[^\s"]+)`)

var apiKey = regexp.MustCompile(`(?m)^OPENAI_API_KEY=(\S+)`)

// testTimeout is long enough for a busy machine.
const testTimeout = 30 * time.Second

// await waits until the output of the server matches pattern.
func (s *server) await(ts *testscript.TestScript, pattern *regexp.Regexp) []string {
	for deadline := time.Now().Add(testTimeout); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if found := pattern.FindStringSubmatch(s.out.String() + s.err.String()); found != nil {
			return found
		}
		select {
		case err := <-s.done:
			s.done <- err
			ts.Fatalf("the program has ended: %v\n%s%s", err, s.out.String(), s.err.String())
		default:
		}
	}
	ts.Fatalf("no output matched %s\n%s%s", pattern, s.out.String(), s.err.String())
	return nil
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || serversOf(ts)[args[1]] == nil {
		ts.Fatalf("usage: await PATTERN NAME")
	}
	serversOf(ts)[args[1]].await(ts, regexp.MustCompile(args[0]))
}

func scriptSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || serversOf(ts)[args[1]] == nil {
		ts.Fatalf("usage: signal SIGNAL NAME")
	}
	signals := map[string]os.Signal{"INT": os.Interrupt, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP}
	s := serversOf(ts)[args[1]]
	s.signaled = true
	ts.Check(s.cmd.Process.Signal(signals[args[0]]))
}

func scriptEnd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || serversOf(ts)[args[0]] == nil {
		ts.Fatalf("usage: end NAME [CODE]")
	}
	s, code := serversOf(ts)[args[0]], "0"
	if len(args) > 1 {
		code = args[1]
	}
	if !s.signaled {
		ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
	}
	select {
	case <-s.done:
	case <-time.After(testTimeout):
		ts.Fatalf("%s did not end within %v\n%s", args[0], testTimeout, s.err.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".out"), []byte(s.out.String()), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".err"), []byte(s.err.String()), 0o600))
	if got := s.cmd.ProcessState.ExitCode(); strconv.Itoa(got) != code {
		ts.Fatalf("%s ended with %d, not %s\n%s", args[0], got, code, s.err.String())
	}
}

// A lockedBuffer is a buffer that is safe for concurrent use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
