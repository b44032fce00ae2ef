package triage

import "github.com/autobatcher/autobatcher/internal/backend"

// Failed describes a batch that the provider failed. answered is the number of results
// that were read.
func Failed(s *backend.Status, answered int) Rejection {
	return Rejection{
		Problems: problems(s.Problems...), Completed: s.Counts.Completed, Failed: s.Counts.Failed,
		HasFiles: len(s.Sources) > 0, Ran: answered, InputDeleted: s.Handle.InputDeleted,
	}
}

// Refused describes an upload or a create that the provider refused.
func Refused(e *backend.Error) Rejection {
	return Rejection{
		Status: e.Status, Uploading: e.Uploading,
		Problems: problems(backend.Problem{Code: e.Code(), Message: e.Message(), Line: e.Line()}),
	}
}

func problems(all ...backend.Problem) (converted []Problem) {
	for _, p := range all {
		converted = append(converted, Problem(p))
	}
	return converted
}
