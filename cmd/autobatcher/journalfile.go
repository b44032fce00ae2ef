package main

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/autobatcher/autobatcher/journal"
)

// openTo reports whether the mode of a file has one of the bits. Windows has no such
// bits.
func openTo(file fs.FileInfo, bits fs.FileMode) bool {
	return runtime.GOOS != "windows" && file.Mode().Perm()&bits != 0
}

// warnAboutMode warns if other users can read or write the file of the journal. A
// journal that this program made has mode 0600.
func (p process) warnAboutMode(log *slog.Logger, place string) {
	if isPostgres(place) {
		return
	}
	path, err := p.journalPath(place)
	if err != nil {
		return
	}
	if file, err := os.Stat(path); err == nil && openTo(file, 0o077) {
		log.Warn("other users of this machine can read or write the journal; chmod 600 the file", "journal", path, "mode", file.Mode().String())
	}
}

// A monitoredJournal is a Store that records whether the last heartbeat succeeded.
// The Transport sends a heartbeat every few seconds.
type monitoredJournal struct {
	journal.Store
	failing atomic.Bool
}

// Heartbeat implements journal.Store.
func (m *monitoredJournal) Heartbeat(ctx context.Context, owner string, lease time.Duration) (expired bool, err error) {
	expired, err = m.Store.Heartbeat(ctx, owner, lease)
	m.failing.Store(err != nil)
	return expired, err
}

// register adds the state of the journal to the metrics.
func (m *monitoredJournal) register(metrics *prometheus.Registry) {
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "autobatcher_journal_up", Help: "1 if the journal accepted the last heartbeat, 0 if the journal fails.",
	}, func() float64 {
		if m.failing.Load() {
			return 0
		}
		return 1
	}))
}
