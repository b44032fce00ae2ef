package proxy

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// cancelPath cancels the batch in the query: POST /autobatcher/cancel?id=…
const cancelPath = "/autobatcher/cancel"

// cancelTimeout is how long the provider may take to accept a cancellation.
const cancelTimeout = 30 * time.Second

// pageHeader must be in a request that cancels, unless the request is from a form. A page
// of another origin cannot send the header: the preflight fails. checkAccess refuses such
// a page already; the header also stops a browser that sends neither Origin nor
// Sec-Fetch-Site.
const pageHeader = "Autobatcher-Page"

// fromForm reports whether a form of the page sends the request, as the page does without
// JavaScript. A browser names the origin of the page: checkAccess has refused all others.
func fromForm(r *http.Request) bool {
	named := r.Header.Get("Sec-Fetch-Site") == "same-origin" || r.Header.Get("Origin") != ""
	return r.Header.Get(pageHeader) == "" && named
}

// serveCancel cancels a batch for a person who looks at the page.
func (p *Proxy) serveCancel(rw *responseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	if refusal := p.checkCancel(r, id); refusal != nil {
		rw.writeFailure(*refusal)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), cancelTimeout)
	defer cancel()
	if err := p.opts.CancelBatch(ctx, id); err != nil {
		rw.writeFailure(failCancel(p.opts.Secrets.Text(err.Error())))
		return
	}
	rw.Header().Set("Cache-Control", "no-store")
	if !fromForm(r) {
		rw.WriteHeader(http.StatusNoContent)
		return
	}
	page := url.URL{Path: "../"}
	if key := r.URL.Query().Get("key"); key != "" {
		page.RawQuery = url.Values{"key": {key}}.Encode()
	}
	rw.Header().Set("Location", page.String())
	rw.WriteHeader(http.StatusSeeOther)
}

// checkCancel returns why a person may not cancel a batch, or nil. With client keys,
// a key cancels batches that have only its own calls, as all routes that change what
// other clients have are closed. A key for the page does not cancel: such a key must
// not be able to spend money.
func (p *Proxy) checkCancel(r *http.Request, id string) *failure {
	switch {
	case p.opts.CancelBatch == nil || p.opts.BatchCallers == nil:
		return &failNotFound
	case r.Method != http.MethodPost:
		return &failCancelMethod
	case !p.acceptsPage():
		return &failClosedPage
	case r.Header.Get(pageHeader) == "" && !fromForm(r):
		return &failCancelHeader
	}
	key := p.keys.ofBrowser(r)
	switch {
	case key < 0 && p.pageKeys.ofBrowser(r) >= 0:
		return &failCancelKey
	case key < 0 && len(p.pageKeys) > 0:
		return &failInvalidPageKey
	}
	callers, found := p.opts.BatchCallers(id)
	if !found {
		return &failCancelUnknown
	}
	if p.closesAccountRoutes() {
		others := func(name string) bool { return name != p.keys[key].caller.Name }
		if len(callers) == 0 || slices.ContainsFunc(callers, others) {
			return &failCancelOthers
		}
	}
	return nil
}

var (
	failCancelMethod = failure{status: http.StatusMethodNotAllowed, code: "method_not_allowed", message: "this path supports only POST"}
	failCancelHeader = failure{
		status: http.StatusForbidden, code: "cross_origin", noRetry: true,
		message: "the request has no header " + pageHeader + ", which the page sends and pages of other origins cannot send",
	}
	failCancelKey = failure{
		status: http.StatusForbidden, code: "route_closed", noRetry: true,
		message: "a key of --page-key cannot cancel batches; the operator can (autobatcher batches cancel)",
	}
	failCancelUnknown = failure{
		status: http.StatusNotFound, code: "not_found",
		message: "no batch with this id runs at this process; autobatcher batches cancel cancels the batches in the journal",
	}
	failCancelOthers = failure{
		status: http.StatusForbidden, code: "route_closed", noRetry: true,
		message: "the batch may have calls of other client keys; the operator can cancel the batch (autobatcher batches cancel), or open all routes to all clients (--allow-account-routes)",
	}
)

// failCancel is for a cancellation that the provider did not accept.
func failCancel(why string) failure {
	return failure{status: http.StatusBadGateway, code: "cancel_failed", message: "the provider did not accept the cancellation: " + why}
}
