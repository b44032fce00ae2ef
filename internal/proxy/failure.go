package proxy

import (
	"bufio"
	"cmp"
	"net/http"

	"github.com/tidwall/gjson"

	"github.com/autobatcher/autobatcher/internal/reply"
)

// A Failure is a held call that ended without an OK answer.
type Failure struct {
	BatchID  string // "": the call was in no batch
	Status   int    // HTTP status of the answer, also if the client gets another status; 0: no answer
	Code     string // error.code, or else error.type, of the answer; "" if the answer has none
	FromLine bool   // the provider answered the call's line with an error
	Refused  bool   // the Transport did not accept the call
}

// maxCodeSearch is the number of bytes of an error in which the code is searched.
const maxCodeSearch = 4 << 10

// reportFailure reports an answer with an error. Errors of calls that were answered
// in real time are reported without the code, since their bodies may still arrive.
func (c *heldCall) reportFailure(res *http.Response) {
	if c.p.opts.OnFailure == nil || res.StatusCode < 400 {
		return
	}
	f := Failure{BatchID: res.Header.Get("Autobatcher-Batch-Id"), Status: res.StatusCode}
	if body, ok := res.Body.(*reply.Body); ok {
		f.FromLine = body.Receiver != nil && body.Receiver.FromLine()
		f.Refused = body.Receiver == nil && res.StatusCode != http.StatusFailedDependency // 424: the deadline came
		start := bufio.NewReaderSize(c.result, maxCodeSearch)
		text, _ := start.Peek(maxCodeSearch) // an error comes again when the body is read
		object := gjson.GetBytes(text, "error")
		f.Code = cmp.Or(object.Get("code").String(), object.Get("type").String())
		c.result = start
	}
	c.p.opts.OnFailure(f)
}
