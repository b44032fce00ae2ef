package proxy

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher"
)

// A costCollector shows the estimates of the Transport as metrics. The label model
// has names of the table of prices only, since the names of further models are text
// that a client chooses. The label key is the name of a client key, such as "key 2". The
// label lane is batch, flex or realtime (escalated calls).
type costCollector struct{ stats func() autobatcher.Stats }

var (
	costDesc = prometheus.NewDesc("autobatcher_cost_usd_total",
		"Estimated cost of answers of batches, at the flex tier, and of escalated calls, in US dollars. Other calls in real time are not counted.", []string{"model", "key", "lane"}, nil)
	savingsDesc = prometheus.NewDesc("autobatcher_savings_usd",
		"Estimated savings against the price in real time, in US dollars.", []string{"model", "key", "lane"}, nil)
	unpricedDesc = prometheus.NewDesc("autobatcher_unpriced_answers_total",
		"Answers whose price is not known.", []string{"key"}, nil)
	otherTierDesc = prometheus.NewDesc("autobatcher_other_tier_answers_total",
		"Answers to calls at the flex tier that the provider billed at another tier.", []string{"key"}, nil)
	budgetDesc   = prometheus.NewDesc("autobatcher_budget_usd", "The limit of --budget, in US dollars.", nil, nil)
	spentDesc    = prometheus.NewDesc("autobatcher_budget_spent_usd", "What is spent of the budget, in US dollars; for a daily budget since midnight UTC.", nil, nil)
	reservedDesc = prometheus.NewDesc("autobatcher_budget_reserved_usd", "What is reserved of the budget for calls without an answer, in US dollars.", nil, nil)
	refusedDesc  = prometheus.NewDesc("autobatcher_budget_refused_total", "Calls that the budget refused.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c costCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{costDesc, savingsDesc, unpricedDesc, otherTierDesc, budgetDesc, spentDesc, reservedDesc, refusedDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c costCollector) Collect(to chan<- prometheus.Metric) {
	type series struct{ model, key, lane string }
	usd, savings, unpriced, other := map[series]float64{}, map[series]float64{}, map[string]float64{}, map[string]float64{}
	stats := c.stats()
	for _, p := range stats.Costs { // several accounts may have the same model and key
		if p.Cost.Priced > 0 {
			s := series{p.Model, p.Caller, string(p.Lane)}
			usd[s] += p.Cost.USD
			savings[s] += p.Cost.Savings
		}
		unpriced[p.Caller] += float64(p.Cost.Unpriced)
		other[p.Caller] += float64(p.Cost.OtherTier)
	}
	for s := range usd {
		to <- prometheus.MustNewConstMetric(costDesc, prometheus.CounterValue, usd[s], s.model, s.key, s.lane)
		// A gauge, since a batch can cost more than cached input in real time.
		to <- prometheus.MustNewConstMetric(savingsDesc, prometheus.GaugeValue, savings[s], s.model, s.key, s.lane)
	}
	for key, n := range unpriced {
		to <- prometheus.MustNewConstMetric(unpricedDesc, prometheus.CounterValue, n, key)
		to <- prometheus.MustNewConstMetric(otherTierDesc, prometheus.CounterValue, other[key], key)
	}
	if b := stats.Budget; b.LimitUSD > 0 {
		to <- prometheus.MustNewConstMetric(budgetDesc, prometheus.GaugeValue, b.LimitUSD)
		to <- prometheus.MustNewConstMetric(spentDesc, prometheus.GaugeValue, b.SpentUSD)
		to <- prometheus.MustNewConstMetric(reservedDesc, prometheus.GaugeValue, b.ReservedUSD)
		to <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(b.Refused))
	}
}
