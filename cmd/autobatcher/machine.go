package main

import (
	"cmp"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// unknownMemory is assumed where the memory of the machine cannot be read.
const unknownMemory = 4 << 30

// availableMemory returns the memory that this process may use, in bytes: the limit
// of the container, or the memory of the machine.
func availableMemory() int64 {
	machine := cmp.Or(machineMemory(), unknownMemory)
	return min(machine, containerMemory(os.DirFS("/")))
}

// containerMemory returns the smallest memory limit of the cgroups of this process,
// of version 1 or 2, or math.MaxInt64 without a limit. root is the root directory.
func containerMemory(root fs.FS) int64 {
	// Inside a container the files of its own group are at the top.
	limit := min(readLimit(root, "sys/fs/cgroup/memory.max"), readLimit(root, "sys/fs/cgroup/memory/memory.limit_in_bytes"))
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	for line := range strings.Lines(string(groups)) {
		// hierarchy:controllers:path; version 2 has no controllers
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 3 {
			continue
		}
		top, file := "sys/fs/cgroup", "memory.max"
		switch {
		case fields[1] == "":
		case strings.Contains(","+fields[1]+",", ",memory,"):
			top, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for group := path.Join(top, fields[2]); strings.HasPrefix(group, top+"/"); group = path.Dir(group) { // a parent may have a lower limit
			limit = min(limit, readLimit(root, path.Join(group, file)))
		}
	}
	return limit
}

// readLimit reads a limit in bytes, math.MaxInt64 if there is no limit.
func readLimit(root fs.FS, name string) int64 {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return math.MaxInt64
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n <= 0 { // "max"
		return math.MaxInt64
	}
	return n
}

// memoryBudget returns the bytes of request bodies that the proxy may hold: the value
// of --max-memory, or half of the available memory. The other half is for the
// answers, and for memory that waits for the garbage collector.
func (s *settings) memoryBudget() int64 { return cmp.Or(int64(s.maxMemory), availableMemory()/2) }

// limitHeap makes the garbage collector run more often before the process uses all
// available memory, unless the user has set GOMEMLIMIT.
func (p process) limitHeap() {
	if p.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(availableMemory() / 10 * 9)
	}
}

// An openFiles says how the file descriptors of the process are divided. 0 means no
// limit.
type openFiles struct {
	limit       int // of the process
	connections int // of callers
	upstream    int // connections to the provider
}

// lowOpenFiles is a limit below which serve warns at start.
const lowOpenFiles = 4096

// divide reserves descriptors for connections to the provider, the journal, the log
// and the refusing of callers, so that the work for the callers who were accepted
// goes on with any number of callers.
func divide(limit uint64) openFiles {
	if limit == 0 || limit > math.MaxInt32 {
		return openFiles{}
	}
	n := int(limit)
	reserve := min(64+n/8, n/2)
	return openFiles{limit: n, connections: n - reserve, upstream: max(reserve-48, reserve/4, 1)}
}

// flex returns how many calls may be sent at the flex tier at the same time.
func (f openFiles) flex() int {
	if f.upstream == 0 {
		return 0
	}
	return max(f.upstream/4, 1)
}

// passing returns how many requests may pass through at the same time. The
// connections to the provider that remain, besides those of flex, are for the batches.
func (f openFiles) passing() int {
	if f.upstream == 0 {
		return 0
	}
	return max(f.upstream/2, 1)
}
