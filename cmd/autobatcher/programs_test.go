package main

import (
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/autobatcher/autobatcher/batchtest"
)

// httpMain is an HTTP client for the scripts: http [flags] METHOD URL [body]. The
// client prints the body of the response, with -i after the status and the header.
// An error status makes the client fail.
func httpMain() {
	flags := flag.NewFlagSet("http", flag.ExitOnError)
	key := flags.String("key", "", "send `KEY` as a bearer token")
	show := flags.Bool("i", false, "print status and header too")
	header := make(http.Header)
	flags.Func("H", "send the header `NAME: VALUE`", func(line string) error {
		name, value, _ := strings.Cut(line, ": ")
		header.Add(name, value)
		return nil
	})
	size := flags.Int("size", 0, "send a prompt of `N` bytes instead of a body")
	_ = flags.Parse(os.Args[1:])
	body := flags.Arg(2)
	if *size > 0 {
		body = `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", *size) + `"}]}`
	}
	req, err := http.NewRequest(flags.Arg(0), flags.Arg(1), strings.NewReader(body))
	must(err)
	req.Header, req.Host = header, header.Get("Host")
	if body != "" && header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if *key != "" {
		req.Header.Set("Authorization", "Bearer "+*key)
	}
	res, err := http.DefaultClient.Do(req)
	must(err)
	if *show {
		fmt.Println(res.StatusCode)
		must(res.Header.Write(os.Stdout))
	}
	_, err = io.Copy(os.Stdout, res.Body)
	must(err)
	if res.StatusCode >= 400 {
		os.Exit(1)
	}
}

// sqlMain is a second program that uses a SQLite file:
//
//	sql FILE STATEMENT         runs a statement
//	sql FILE locked PROGRAM…   runs a program while the file is locked
func sqlMain() {
	db, err := sql.Open("sqlite", os.Args[1])
	must(err)
	db.SetMaxOpenConns(1)
	if os.Args[2] != "locked" {
		_, err = db.Exec(os.Args[2])
		must(err)
		return
	}
	_, err = db.Exec("begin immediate")
	must(err)
	cmd := exec.Command(os.Args[3], os.Args[4:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		os.Exit(failed.ExitCode())
	}
	must(err)
}

// childMain is a program for autobatcher run.
//
//	child ask PROMPT…     makes one call per prompt, concurrently, and prints the
//	                      answers in order
//	child ask-in-turn PROMPT…  the same, one call after the other
//	child cat             copies stdin to stdout
//	child env NAME        prints a variable
//	child exit CODE       exits with the code
//	child pause           waits until a further signal is a second signal
//	child die             is killed by SIGKILL
//	child linger          ignores signals for two and a half seconds after the first
//	child count           counts signals until half a second after SIGTERM
//	child nap             waits for a tenth of a second
//	child args …          prints the arguments
//	child queued ROOT     returns when the proxy at ROOT holds a call
//	child wait            prints the base URL, and exits with 9 after a signal
//	child wait-with-key   the same, and prints the key
//	child upstream        serves a Batch API that never answers a cancellation
func childMain() {
	switch args := os.Args[2:]; os.Args[1] {
	case "ask":
		askAll(args)
	case "ask-in-turn":
		for _, prompt := range args {
			fmt.Println(ask(prompt))
		}
	case "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		must(err)
	case "env":
		fmt.Println(os.Getenv(args[0]))
	case "args":
		fmt.Printf("%q\n", args)
	case "exit":
		var code int
		_, err := fmt.Sscan(args[0], &code)
		must(err)
		os.Exit(code)
	case "pause":
		time.Sleep(repeatTime + 100*time.Millisecond)
	case "count":
		countSignals()
	case "linger":
		c := make(chan os.Signal, 10)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("lingering at OPENAI_BASE_URL=" + os.Getenv("OPENAI_BASE_URL"))
		<-c
		time.Sleep(stillRunning + repeatTime/2)
	case "nap":
		time.Sleep(repeatTime / 10)
	case "die":
		self, err := os.FindProcess(os.Getpid())
		must(err)
		must(self.Kill())
		time.Sleep(time.Minute)
	case "wait-with-key", "wait":
		if os.Args[1] == "wait-with-key" {
			fmt.Println("OPENAI_API_KEY=" + os.Getenv("OPENAI_API_KEY"))
		}
		c := make(chan os.Signal, 1)
		signal.Notify(c, passedSignals...)
		fmt.Println("waiting at OPENAI_BASE_URL=" + os.Getenv("OPENAI_BASE_URL"))
		fmt.Println("got", <-c)
		os.Exit(9)
	case "queued":
		awaitQueued(args[0])
	case "upstream":
		api := batchtest.NewServer(batchtest.Options{Turnaround: time.Hour})
		api.Control(batchtest.OpCancel, batchtest.Hang())
		fmt.Println("OPENAI_BASE_URL=" + api.URL)
		time.Sleep(time.Hour)
	default:
		must(errors.New("unknown child command"))
	}
}

// countSignals prints how many signals arrived until half a second after SIGTERM.
func countSignals() {
	c := make(chan os.Signal, 10)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGHUP)
	fmt.Println("counting at OPENAI_BASE_URL=" + os.Getenv("OPENAI_BASE_URL"))
	counts := map[os.Signal]int{}
	var end <-chan time.Time
	for {
		select {
		case s := <-c:
			counts[s]++
			if s == syscall.SIGTERM && end == nil {
				end = time.After(repeatTime / 2)
			}
		case <-end:
			fmt.Printf("%v %d, %v %d\n", syscall.SIGTERM, counts[syscall.SIGTERM], syscall.SIGHUP, counts[syscall.SIGHUP])
			return
		}
	}
}

// awaitQueued returns when the proxy at root holds a call.
func awaitQueued(root string) {
	for deadline := time.Now().Add(testTimeout); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		res, err := http.Get(root + "/metrics")
		must(err)
		metrics, err := io.ReadAll(res.Body)
		must(err)
		if regexp.MustCompile(`(?m)^autobatcher_calls_queued 1$`).Match(metrics) {
			return
		}
	}
	must(errors.New("no call is queued"))
}

func askAll(prompts []string) {
	answers := make([]string, len(prompts))
	var wg sync.WaitGroup
	for i, prompt := range prompts {
		wg.Go(func() { answers[i] = ask(prompt) })
	}
	wg.Wait()
	for _, answer := range answers {
		fmt.Println(answer)
	}
}

func ask(prompt string) string {
	body := fmt.Sprintf(`{"model":"gpt-4o-mini","messages":[{"role":"user","content":%q}]}`, prompt)
	req, err := http.NewRequest(http.MethodPost, os.Getenv("OPENAI_BASE_URL")+"/chat/completions", strings.NewReader(body))
	must(err)
	req.Header.Set("Authorization", "Bearer "+os.Getenv("OPENAI_API_KEY"))
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	must(err)
	answer, err := io.ReadAll(res.Body)
	must(err)
	return fmt.Sprint(res.StatusCode, " ", string(answer))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}
