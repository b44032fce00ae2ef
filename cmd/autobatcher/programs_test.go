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

// httpMain is a client for the scripts: http [flags] METHOD URL [body]. It
// prints the body of the answer, and with -i the status and header first, and
// fails where the status is an error.
func httpMain() {
	flags := flag.NewFlagSet("http", flag.ExitOnError)
	key := flags.String("key", "", "send `KEY` as a bearer token")
	show := flags.Bool("i", false, "print status and header too")
	size := flags.Int("size", 0, "send a prompt of `N` bytes instead of a body")
	_ = flags.Parse(os.Args[1:])
	body := flags.Arg(2)
	if *size > 0 {
		body = `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", *size) + `"}]}`
	}
	req, err := http.NewRequest(flags.Arg(0), flags.Arg(1), strings.NewReader(body))
	must(err)
	if body != "" {
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

// sqlMain is another program that uses a SQLite file:
//
//	sql FILE STATEMENT         runs a statement
//	sql FILE locked PROGRAM…   runs a program while it keeps the file locked
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

// childMain is a program for autobatcher run to run.
//
//	child ask PROMPT…     asks all at once, prints the answers in order
//	child cat             copies stdin to stdout
//	child env NAME        prints a variable
//	child exit CODE       ends so
//	child die             is killed by SIGKILL
//	child args …          prints its arguments
//	child queued ROOT     returns when the proxy there holds a call
//	child wait            says where OpenAI is, and ends with 9 after a signal
//	child upstream        is a Batch API that never answers a cancellation
func childMain() {
	switch args := os.Args[2:]; os.Args[1] {
	case "ask":
		askAll(args)
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
	case "die":
		self, err := os.FindProcess(os.Getpid())
		must(err)
		must(self.Kill())
		time.Sleep(time.Minute)
	case "wait":
		c := make(chan os.Signal, 1)
		signal.Notify(c, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1)
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
		must(errors.New("no such child"))
	}
}

// awaitQueued returns when the proxy at root holds a call.
func awaitQueued(root string) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
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
