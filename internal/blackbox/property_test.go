package blackbox_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/autobatcher/autobatcher"
	"github.com/autobatcher/autobatcher/batchtest"
	"github.com/autobatcher/autobatcher/provider"
)

// A town is a provider, its troubles, and all its callers: the input of a
// property test.
type town struct {
	Provider   string
	Lines      int // a file may hold
	Bytes      int
	Inputs     int
	Turnaround time.Duration
	Validating time.Duration
	Lag        time.Duration
	PerMinute  int
	PerHour    int // creations
	Tokens     int64
	Seed       int
	Troubled   int // percent of the lines that do not simply succeed
	Faults     []mishap
	Ends       []ending
	Options    autobatcher.Options
	Guests     []guest
}

// A mishap is a request that goes wrong.
type mishap struct {
	Op   batchtest.Op
	Kind string
}

// An ending is a batch's that comes from outside: an owner, or the clock.
type ending struct {
	At     time.Duration
	Cancel bool // else it expires
}

// A guest makes a call, and again if it leaves before the answer.
type guest struct {
	Key, Model, Text string
	Path             string
	Inputs, Pad      int
	Stream, Bad      bool
	At               time.Duration
	Leaves           time.Duration // after so long; 0: never
	Returns          time.Duration // after so long, and stays; 0: never
	Deadline         time.Duration
}

func drawTown(t *rapid.T) *town {
	minutes := func(name string, from, to int) time.Duration {
		return time.Duration(rapid.IntRange(from, to).Draw(t, name)) * time.Minute
	}
	often := func(name string, n int) bool { return rapid.IntRange(0, n).Draw(t, name) > 0 }
	w := &town{
		Provider:   rapid.SampledFrom([]string{"openai", "doubleword", "llm-d", "azure", "siliconflow"}).Draw(t, "provider"),
		Lines:      rapid.IntRange(1, 6).Draw(t, "lines"),
		Bytes:      rapid.IntRange(1500, 6000).Draw(t, "bytes"),
		Inputs:     rapid.IntRange(4, 12).Draw(t, "inputs"),
		Turnaround: minutes("turnaround", 0, 40),
		Validating: minutes("validating", 0, 3),
		Lag:        time.Duration(rapid.IntRange(0, 5).Draw(t, "lag")) * time.Second,
		Seed:       rapid.IntRange(0, 1000).Draw(t, "seed"),
		Troubled:   rapid.SampledFrom([]int{0, 0, 20, 60}).Draw(t, "troubled"),
	}
	if !often("limited by minute", 3) {
		w.PerMinute = rapid.IntRange(20, 60).Draw(t, "per minute")
	}
	if !often("limited by hour", 2) {
		w.PerHour = rapid.IntRange(3, 6).Draw(t, "per hour")
	}
	if !often("limited tokens", 3) && w.Provider != "doubleword" { // that has no such limit
		w.Tokens = int64(rapid.IntRange(400, 1000).Draw(t, "tokens"))
	}
	w.Faults = rapid.SliceOfN(rapid.Custom(drawMishap), 0, 4).Draw(t, "faults")
	w.Guests = rapid.SliceOfN(rapid.Custom(drawGuest), 1, 16).Draw(t, "guests")
	if !often("ends early", 3) {
		w.Ends = []ending{{minutes("end", 1, 40), rapid.Bool().Draw(t, "cancelled")}}
	}
	w.Options = autobatcher.Options{
		BatchSize:    rapid.IntRange(1, 8).Draw(t, "batch size"),
		BatchWindow:  time.Duration(rapid.IntRange(1, 30).Draw(t, "window")) * time.Second,
		PollInterval: minutes("poll", 1, 3),
		Resubmits:    rapid.SampledFrom([]int{-1, 0, 2}).Draw(t, "resubmits"),
		AbandonAfter: rapid.SampledFrom([]time.Duration{-1, -1, 0}).Draw(t, "abandon"),
		Escalate:     rapid.SampledFrom([]autobatcher.Escalation{"never", "never", "failed", "deadline"}).Draw(t, "escalate"),
		Files:        rapid.SampledFrom([]autobatcher.FilePolicy{"keep", "expire", "delete"}).Draw(t, "files"),
	}
	return w
}

func drawMishap(t *rapid.T) mishap {
	m := mishap{
		Op:   rapid.SampledFrom([]batchtest.Op{batchtest.OpUpload, batchtest.OpCreate, batchtest.OpCreate, batchtest.OpRetrieve, batchtest.OpList, batchtest.OpContent, batchtest.OpCancel, batchtest.OpDeleteFile}).Draw(t, "op"),
		Kind: rapid.SampledFrom([]string{"lost", "reset", "500", "page", "429", "slow", "silent"}).Draw(t, "kind"),
	}
	if m.Op == batchtest.OpContent && rapid.Bool().Draw(t, "partly") {
		m.Kind = rapid.SampledFrom([]string{"torn", "cut"}).Draw(t, "part")
	}
	return m
}

func (m mishap) fault() batchtest.Fault {
	switch m.Kind {
	case "lost":
		return batchtest.LoseAnswer()
	case "reset":
		return batchtest.Reset()
	case "500":
		return batchtest.Status(500, nil, `{"error":{"message":"oops","type":"server_error","param":null,"code":null}}`)
	case "page":
		return batchtest.HTML(502)
	case "429":
		return batchtest.RateLimit(20 * time.Second)
	case "slow":
		return batchtest.Delay(40 * time.Second)
	case "torn":
		return batchtest.Tear(700)
	case "cut":
		return batchtest.Truncate(700)
	}
	return batchtest.Hang()
}

func drawGuest(t *rapid.T) guest {
	g := guest{
		Key:    rapid.SampledFrom([]string{"sk-1", "sk-1", "sk-2"}).Draw(t, "key"),
		Model:  rapid.SampledFrom([]string{"a", "a", "b"}).Draw(t, "model"),
		Path:   rapid.SampledFrom([]string{"/chat/completions", "/chat/completions", "/embeddings", "/responses"}).Draw(t, "path"),
		Inputs: rapid.IntRange(1, 4).Draw(t, "inputs"),
		Pad:    rapid.IntRange(0, 600).Draw(t, "pad"),
		Stream: rapid.IntRange(0, 4).Draw(t, "stream") == 0,
		Bad:    rapid.IntRange(0, 9).Draw(t, "bad") == 0,
		At:     time.Duration(rapid.IntRange(0, 120).Draw(t, "at")) * time.Second,
	}
	g.Text = fmt.Sprintf("%s-%d", g.Key, rapid.IntRange(0, 5).Draw(t, "text"))
	switch rapid.IntRange(0, 5).Draw(t, "patience") {
	case 0:
		g.Leaves = time.Duration(rapid.IntRange(1, 1800).Draw(t, "leaves")) * time.Second
		g.Returns = time.Duration(rapid.IntRange(0, 600).Draw(t, "returns")) * time.Second
	case 1:
		g.Deadline = time.Duration(rapid.IntRange(1, 90).Draw(t, "deadline")) * time.Minute
	}
	return g
}

// maxLine is what the server takes on a line; a bad guest's body is larger.
const maxLine = 1000

// body is what the guest sends, the same each time.
func (g guest) body() string {
	pad := strings.Repeat("x", g.Pad)
	if g.Bad {
		pad = strings.Repeat("bad", maxLine/3)
	}
	if g.Path == "/embeddings" {
		return fmt.Sprintf(`{"model":%q,"user":%q,"input":["%s"%s]}`, g.Model, pad, g.Text, strings.Repeat(`,"more"`, g.Inputs-1))
	}
	stream := ""
	if g.Stream {
		stream = `"stream":true,`
	}
	messages := fmt.Sprintf(`[{"role":"user","content":%q}]`, g.Text)
	if g.Path == "/responses" {
		return fmt.Sprintf(`{%s"model":%q,"user":%q,"input":%s}`, stream, g.Model, pad, messages)
	}
	return fmt.Sprintf(`{%s"model":%q,"user":%q,"messages":%s}`, stream, g.Model, pad, messages)
}

// line is the same without what is no matter of the model's.
func (g guest) line(p provider.Profile) batchtest.Line {
	body := strings.Replace(g.body(), `"stream":true,`, "", 1)
	return batchtest.Line{URL: p.LineURL(g.Path), Model: g.Model, Body: []byte(body)}
}

// streams reports whether the answer is a stream of events.
func (g guest) streams() bool { return g.Stream && g.Path != "/embeddings" }

// rules is the profile that the callers have of the provider.
func (w *town) rules() provider.Profile {
	p, err := provider.ByName(w.Provider)
	if err != nil {
		panic(err) // the names are ours
	}
	p.MaxLines, p.MaxBytes, p.MaxInputs = w.Lines, int64(w.Bytes), w.Inputs
	p.MaxLineBytes, p.MinPoll = 0, 0
	p.CreationsPerHour = w.PerHour
	return p
}

func (w *town) server() *batchtest.Server {
	m := map[string]func() batchtest.Behavior{
		"openai": batchtest.OpenAI, "doubleword": batchtest.Doubleword, "llm-d": batchtest.LLMD,
		"azure": batchtest.Azure, "siliconflow": batchtest.SiliconFlow,
	}[w.Provider]()
	m.MaxLines, m.MaxFileBytes, m.MaxInputs, m.MaxLineBytes = int64(w.Lines), int64(w.Bytes), int64(w.Inputs), maxLine
	m.CreationsPerHour, m.VisibleAfter = w.PerHour, w.Lag
	m.SilentFailure = m.SilentFailure && w.Tokens == 0 // a limit that is never named cannot be waited for
	s := batchtest.New(batchtest.Options{
		Behavior: m, Turnaround: w.Turnaround, Validating: w.Validating, Answer: w.outcome,
		RequestsPerMinute: w.PerMinute, MaxEnqueuedTokens: w.Tokens,
	})
	for _, f := range w.Faults {
		s.Control(f.Op, f.fault())
	}
	return s
}

// outcome is what becomes of a line; equal lines fare alike.
func (w *town) outcome(l batchtest.Line) batchtest.Outcome {
	if l.BatchID == "" {
		return batchtest.Outcome{Delay: time.Second} // real time works
	}
	h := fnv.New32a()
	fmt.Fprint(h, w.Seed, l.Key())
	n := int(h.Sum32() % 1000)
	if n >= 10*w.Troubled {
		return batchtest.Outcome{}
	}
	return []batchtest.Outcome{
		{Status: 400},
		{Status: 429},
		{Status: 500},
		{Code: "request_timeout", Message: "slow"},
		{Missing: true},
		{Garbage: "{"},
		{Delay: 50 * time.Minute},
		{Displaced: true},
		{Body: []byte("no JSON")},
	}[n%9]
}

// lucky reports whether nothing stands between the guest and its answer.
func (w *town) lucky(g guest) bool {
	o := w.outcome(batchtest.Line{BatchID: "any", URL: g.line(w.rules()).URL, Body: g.line(w.rules()).Body})
	plain := (o.Status == 0 || o.Status == 200) && o.Code == "" && !o.Missing && o.Garbage == "" && o.Body == nil
	return plain && !g.Bad && g.Deadline == 0 && len(w.Ends) == 0
}

// A visit is how a guest's call ended.
type visit struct {
	guest
	status int
	mode   string
	body   string
	err    error
	began  time.Time
	ended  time.Time
	left   bool // and did not come again
	tries  int
}

// A play is a town in motion.
type play struct {
	*town
	srv    *batchtest.Server
	tr     *autobatcher.Transport
	visits []visit
	faults []string
}

func (p *play) wrong(format string, args ...any) {
	if len(p.faults) < 20 {
		p.faults = append(p.faults, fmt.Sprintf(format, args...))
	}
}

// patience is longer than anything may take.
const patience = 120 * time.Hour

// modelPrices are the prices of the models that guests name.
const modelPrices = `{"a": {"input_cost_per_token": 0.1, "output_cost_per_token": 0.2}, "b": {"input_cost_per_token": 0.3, "output_cost_per_token": 0.4}}`

// run plays all calls and checks how they ended.
func (w *town) run(t *testing.T) (faults []string) {
	p := &play{town: w, srv: w.server(), visits: make([]visit, len(w.Guests))}
	rules := w.rules()
	o := w.Options
	o.Base, o.Provider = p.srv.Transport(), &rules
	o.Prices, o.Budget = []byte(modelPrices), autobatcher.Budget{USD: 1e9}
	var err error
	o.QuietAfter = cmp.Or(o.QuietAfter, -1) // the times below are those of whole windows
	if p.tr, err = autobatcher.New(o); err != nil {
		t.Fatal(err)
	}
	defer p.tr.Close()
	for _, e := range w.Ends {
		go p.endAll(e)
	}
	var all sync.WaitGroup
	for i, g := range w.Guests {
		all.Go(func() { p.visits[i] = p.attend(g) })
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		return []string{"somebody still waits after five days"}
	}
	time.Sleep(25 * time.Hour) // what was left behind comes to its end
	synctest.Wait()
	p.judge()
	return p.faults
}

// endAll ends every batch that runs at that moment.
func (p *play) endAll(e ending) {
	time.Sleep(e.At)
	for _, b := range p.srv.Batches() {
		if !b.Ended.IsZero() {
			continue
		}
		if !e.Cancel {
			_ = p.srv.Expire(b.ID) // it has ended by itself
			continue
		}
		p.cancel(b)
	}
}

func (p *play) cancel(b batchtest.Batch) {
	ctx, leave := context.WithTimeout(context.Background(), time.Minute)
	defer leave()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.srv.URL+"/batches/"+b.ID+"/cancel", strings.NewReader("{}"))
	if err != nil {
		panic(err) // the addresses are ours
	}
	req.Header.Set("Authorization", "Bearer "+b.APIKey)
	if res, err := p.srv.Transport().RoundTrip(req); err == nil {
		res.Body.Close()
	}
}

func (p *play) attend(g guest) visit {
	time.Sleep(g.At)
	v := visit{guest: g, began: time.Now()}
	ctx, leave := context.WithCancel(context.Background())
	if g.Leaves > 0 {
		time.AfterFunc(g.Leaves, leave)
	}
	p.try(ctx, &v)
	leave()
	if g.Leaves == 0 || v.err == nil {
		return v
	}
	if v.left = g.Returns == 0; v.left {
		return v
	}
	time.Sleep(g.Returns)
	v.err = nil
	p.try(context.Background(), &v)
	return v
}

func (p *play) try(ctx context.Context, v *visit) {
	v.tries++
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.srv.URL+v.Path, strings.NewReader(v.guest.body()))
	if err != nil {
		panic(err) // the addresses are ours
	}
	req.Header.Set("Authorization", "Bearer "+v.Key)
	req.Header.Set("Content-Type", "application/json")
	if v.Deadline > 0 {
		req.Header.Set("Autobatcher-Deadline", v.Deadline.String())
	}
	res, err := p.tr.RoundTrip(req)
	v.ended = time.Now()
	if err != nil {
		v.err = err
		return
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	v.status, v.mode, v.body, v.err = res.StatusCode, res.Header.Get("Autobatcher-Mode"), string(text), err
}

// judge looks for broken promises.
func (p *play) judge() {
	for _, v := range p.visits {
		p.judgeVisit(v)
	}
	p.judgeFiles()
	p.judgeBill()
	s := p.tr.Stats()
	if s.Queued != 0 || s.Running != 0 {
		p.wrong("no caller waits, but the stats say %d queued and %d running", s.Queued, s.Running)
	}
	if s.Budget.ReservedUSD > 1e-6 || s.Budget.SpentUSD < s.Cost.USD-1e-6 {
		p.wrong("everything has ended, and the answers cost %v dollars, but the budget is %+v", s.Cost.USD, s.Budget)
	}
}

// statuses are those that a call may end with beside 200.
var statuses = []int{400, 429, 500, 424}

func (p *play) judgeVisit(v visit) {
	who := fmt.Sprintf("%s %q of model %s", v.Path, v.Text, v.Model)
	switch {
	case v.left:
		if !errors.Is(v.err, context.Canceled) {
			p.wrong("%s left, and got the error %v", who, v.err)
		}
		return
	case v.err != nil:
		p.wrong("%s got the error %v", who, v.err)
		return
	case !p.rules().Batches(v.Path):
		return // it passed through
	case v.status == 200:
		p.judgeAnswer(who, v)
	case !slices.Contains(statuses, v.status) || !strings.Contains(v.body, `"error"`):
		p.wrong("%s got status %d: %.200s", who, v.status, v.body)
	case p.lucky(v.guest):
		p.wrong("%s got status %d, though nothing was wrong with it: %.300s", who, v.status, v.body)
	}
	if v.Bad && v.status != 400 && v.mode == "" && v.status != 424 {
		p.wrong("%s has a bad line, and got status %d", who, v.status)
	}
	if late := v.ended.Sub(v.began) - v.Deadline; v.Deadline > 0 && late > 2*time.Second {
		p.wrong("%s ended %v after its deadline", who, late)
	}
}

// judgeAnswer checks that the answer is the one to the guest's own call.
func (p *play) judgeAnswer(who string, v visit) {
	l := v.line(p.rules())
	if o := p.outcome(batchtest.Line{BatchID: "any", URL: l.URL, Body: l.Body}); o.Body != nil && v.mode == "" {
		return // it is what the provider made of it
	}
	want := string(batchtest.Echo(l).Body)
	switch {
	case v.streams():
		if !strings.Contains(v.body, v.Text) {
			p.wrong("%s got another's stream: %.300s", who, v.body)
		}
	case v.mode == "" && v.body != want:
		p.wrong("%s got %.200s; want %.200s", who, v.body, want)
	case !strings.Contains(v.body, v.Text) && v.Path != "/embeddings":
		p.wrong("%s got another's answer: %.200s", who, v.body)
	}
}

// judgeFiles checks that no file was refused for what we could have known.
func (p *play) judgeFiles() {
	rules := p.rules()
	for _, u := range p.srv.Uploads() {
		if len(u.Lines) > p.Lines || len(u.Content) > p.Bytes {
			p.wrong("a file of %d lines and %d bytes", len(u.Lines), len(u.Content))
		}
		ids, models, urls := map[string]bool{}, map[string]bool{}, map[string]bool{}
		for _, l := range u.Lines {
			ids[l.CustomID], models[l.Model], urls[l.URL] = true, true, true
			if other := map[string]string{"sk-1": "sk-2-", "sk-2": "sk-1-"}[u.APIKey]; bytes.Contains(l.Body, []byte(other)) {
				p.wrong("a line of another's in the file of %s: %.200s", u.APIKey, l.Body)
			}
		}
		if len(ids) != len(u.Lines) || rules.OneModel && len(models) > 1 || rules.OneEndpoint && len(urls) > 1 {
			p.wrong("a file of %d lines, %d ids, %d models, %d urls", len(u.Lines), len(ids), len(models), len(urls))
		}
	}
	for _, b := range p.srv.Batches() {
		for _, e := range b.Errors {
			if e.Code != "token_limit_exceeded" && !strings.Contains(e.Message, "maximum of 1000") {
				p.wrong("a batch was refused: %+v", e)
			}
		}
	}
	for _, r := range p.srv.Requests() {
		if r.Status == 413 || r.Status == 401 || r.Status == 400 && strings.HasSuffix(r.Path, "/batches") {
			p.wrong("%s %s was refused with %d", r.Method, r.Path, r.Status)
		}
	}
}

// judgeBill checks that nothing was done twice that was to be done once.
func (p *play) judgeBill() {
	type work struct{ key, line string }
	rules, asked := p.rules(), map[work]int{}
	for _, v := range p.visits {
		w := work{v.Key, v.line(rules).Key()}
		asked[w]++
		if v.mode == "realtime" || v.tries > 1 && cmp.Or(p.Options.AbandonAfter, 1) > 0 {
			asked[w]++ // late in its batch; or its batch was cancelled before it came again
		}
	}
	done := map[work]int{}
	for _, e := range p.srv.Executed() {
		if o := e.Outcome; o.Status >= 200 && o.Status <= 299 && o.Code == "" && !o.Missing && o.Garbage == "" && e.BatchID != "" {
			done[work{e.APIKey, e.Key()}]++
		}
	}
	for w, n := range done {
		if n > asked[w] {
			p.wrong("%s paid %d times for work that was asked for %d times", w.key, n, asked[w])
		}
	}
}

// Whoever calls, whatever goes wrong: every call ends with its own answer, and is paid once.
func TestWhatMustAlwaysHold(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := drawTown(rt)
		var faults []string
		synctest.Test(t, func(t *testing.T) { faults = w.run(t) })
		if len(faults) > 0 {
			rt.Fatalf("%s\nin %+v", strings.Join(faults, "\n"), *w)
		}
	})
}
