// Package measure holds what several benchmarks need: what a process has used, and
// calls that a server holds.
package measure

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Usage is what a process has used so far.
type Usage struct {
	CPU  time.Duration // of all threads, in the process and in the kernel
	RSS  int64         // bytes that are resident now
	Peak int64         // the most bytes that were resident at once
}

// Process returns the usage of a process of this machine that was not waited for. The
// peak is that of /proc, since getrusage counts the memory of the parent at the start,
// too.
func Process(pid int) (u Usage, err error) {
	const schedClock = 2 // clock_getcpuclockid(3): the clock of all threads of a process
	var spent unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|schedClock, &spent); err != nil {
		return u, fmt.Errorf("the CPU time of process %d: %w", pid, err)
	}
	u.CPU = time.Duration(spent.Nano())
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	u.RSS, u.Peak = kilobytes(string(status), "VmRSS:"), kilobytes(string(status), "VmHWM:")
	if u.RSS == 0 || u.Peak == 0 {
		return u, fmt.Errorf("no memory in /proc/%d/status: the process has ended", pid)
	}
	return u, nil
}

// kilobytes returns a field of /proc/PID/status in bytes.
func kilobytes(status, name string) int64 {
	for line := range strings.Lines(status) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name {
			kb, _ := strconv.ParseInt(fields[1], 10, 64) // 0 is reported by Process
			return kb << 10
		}
	}
	return 0
}
