package batchtest

import (
	"fmt"
	"slices"
	"strings"
)

// A Tier is a service tier: how soon a provider executes a request, and at which price.
type Tier string

const (
	// TierBatch is the tier of the lines of batches.
	TierBatch Tier = "batch"
	// TierFlex is the tier of realtime calls that wait for spare capacity.
	TierFlex Tier = "flex"
	// TierDefault is the tier of ordinary realtime calls, at the full price.
	TierDefault Tier = "default"
	// TierPriority is the tier of realtime calls that are answered first.
	TierPriority Tier = "priority"
)

// tiered reports whether the calls of an endpoint have service tiers.
func tiered(url string) bool {
	return strings.HasSuffix(url, "/chat/completions") || strings.HasSuffix(url, responses)
}

// tierOf returns the service tier that a realtime call gets, or refuses the call.
func (s *Server) tierOf(l Line) (Tier, error) {
	raw := field(l.Body, "service_tier")
	asked, ok := unquote(raw)
	hasFlex := Tier(asked) != TierFlex || allowed(s.opts.FlexModels, l.Model)
	switch {
	case tiered(l.URL) && slices.Contains(s.behavior.Tiers, Tier(asked)) && hasFlex:
		return Tier(asked), nil
	case raw == nil, string(raw) == "null", tiered(l.URL) && ok && (asked == "auto" || asked == "default"):
		return TierDefault, nil
	case !s.behavior.RefuseTiers:
		return TierDefault, nil
	case !tiered(l.URL):
		return "", unknownParameter("service_tier")
	}
	return "", invalid("service_tier", "The model `%s` does not support the service tier %s.", l.Model, raw)
}

// noCapacity is the refusal of a flex call that the provider has no capacity for.
func (rules *Behavior) noCapacity() *apiError {
	if rules.NoCapacityStatus == 498 {
		return &apiError{
			status: 498, kind: "capacity_exceeded", code: "capacity_exceeded",
			message: "`flex` tier capacity exceeded. Please try again later.",
		}
	}
	return &apiError{
		status: rules.NoCapacityStatus, kind: "resource_unavailable", code: "resource_unavailable",
		message: fmt.Sprintf("Resource Unavailable: %s has no capacity for the service tier flex. Please try again later.", rules.Name),
	}
}

// nameTier writes the tier into the answer of a call that asks for a tier, or that gets
// another tier than usual.
func (o *Outcome) nameTier(l Line, tier Tier) {
	if tiered(l.URL) && o.isObject() && (tier != TierDefault || field(l.Body, "service_tier") != nil) {
		o.Body = withField(o.Body, "service_tier", tier)
	}
}
