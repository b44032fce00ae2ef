package price

import (
	"cmp"
	"log/slog"
	"sync"
)

// An otherTiers logs that the provider billed an answer at the flex tier at another tier,
// once for each model: Total.OtherTier counts the answers. It is safe for concurrent use.
type otherTiers struct {
	log *slog.Logger

	mu     sync.Mutex
	logged map[modelOf]struct{}
}

// A modelOf is a model at the provider of a profile.
type modelOf struct{ profile, model string }

// maxLogged bounds the models that are logged: their names come from callers.
const maxLogged = 1000

// maxTierName bounds what is logged of the name of a tier, in bytes.
const maxTierName = 40

// note logs an answer whose cost is t, and which names the tier, if the answer was billed
// at another tier. model is the name in the table of prices, if the call names no model.
func (o *otherTiers) note(c Call, model string, t *Total, tier string) {
	if t.OtherTier == 0 {
		return
	}
	k := modelOf{c.Profile.Name, cmp.Or(c.Model, model)}
	o.mu.Lock()
	_, done := o.logged[k]
	if done = done || len(o.logged) >= maxLogged; !done {
		if o.logged == nil {
			o.logged = make(map[modelOf]struct{})
		}
		o.logged[k] = struct{}{}
	}
	o.mu.Unlock()
	if done {
		return
	}
	o.log.Warn("the provider billed a call at the flex tier at another tier, whose price may be higher; check that the provider has a flex tier for the model, or send calls to the model in batches (mode batch). Further such answers of the model are counted, and not logged",
		"provider", k.profile, "model", k.model, "tier", tier[:min(len(tier), maxTierName)])
}
