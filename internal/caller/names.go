package caller

import (
	"maps"
	"slices"
)

// Names are what calls have in common: the models, the names of the callers and the
// traces, each once.
type Names struct {
	Models  []string // sorted, without calls that name no model; never nil
	Callers []string // sorted, without callers that have no name
	Traces  []string // of the first calls, at most maxTraces
}

// Model returns the model that all calls name, or "" if they name several or none.
func (n *Names) Model() string {
	if len(n.Models) != 1 {
		return ""
	}
	return n.Models[0]
}

// maxTraces is the number of traces that a batch records: OpenTelemetry's default
// limit on the links of a span.
const maxTraces = 128

// NamesOf returns the names of calls. of returns the model and the caller of a call.
func NamesOf[C any](calls []C, of func(C) (model string, by *Caller)) Names {
	models, callers := make(map[string]struct{}), make(map[string]struct{})
	var traces []string
	for _, c := range calls {
		model, by := of(c)
		if model != "" {
			models[model] = struct{}{}
		}
		if by.Name != "" {
			callers[by.Name] = struct{}{}
		}
		if by.Trace != "" && len(traces) < maxTraces && !slices.Contains(traces, by.Trace) {
			traces = append(traces, by.Trace)
		}
	}
	n := Names{Models: slices.AppendSeq([]string{}, maps.Keys(models)), Callers: slices.Sorted(maps.Keys(callers)), Traces: traces}
	slices.Sort(n.Models)
	return n
}
