package caller

import "slices"

// Names are what calls have in common: the models, the names of the callers and the
// traces, each once.
type Names struct {
	Models  []string // sorted
	Callers []string // sorted, without callers that have no name
	Traces  []string // of the first calls, at most maxTraces
}

// maxTraces is the number of traces that a batch records: OpenTelemetry's default
// limit on the links of a span.
const maxTraces = 128

// NamesOf returns the names of calls. of returns the model and the caller of a call.
func NamesOf[C any](calls []C, of func(C) (model string, by *Caller)) Names {
	var n Names
	for _, c := range calls {
		model, by := of(c)
		n.Models = append(n.Models, model)
		if by.Name != "" {
			n.Callers = append(n.Callers, by.Name)
		}
		if by.Trace != "" && len(n.Traces) < maxTraces && !slices.Contains(n.Traces, by.Trace) {
			n.Traces = append(n.Traces, by.Trace)
		}
	}
	slices.Sort(n.Models)
	slices.Sort(n.Callers)
	n.Models, n.Callers = slices.Compact(n.Models), slices.Compact(n.Callers)
	return n
}
