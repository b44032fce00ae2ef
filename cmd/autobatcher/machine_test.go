package main

import (
	"math"
	"testing"
	"testing/fstest"
)

func TestContainerMemory(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no cgroups": {nil, math.MaxInt64},
		"version 2, in a container": {map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "536870912\n",
		}, 512 << 20},
		"version 2, in a service": {map[string]string{
			"proc/self/cgroup":                                             "0::/system.slice/autobatcher.service\n",
			"sys/fs/cgroup/system.slice/memory.max":                        "max\n",
			"sys/fs/cgroup/system.slice/autobatcher.service/memory.max":    "1073741824\n",
			"sys/fs/cgroup/other.slice/memory.max":                         "1\n",
			"sys/fs/cgroup/system.slice/autobatcher.service/x/memory.max":  "1\n",
			"sys/fs/cgroup/system.slice/autobatcher.service/memory.high":   "1\n",
			"sys/fs/cgroup/system.slice/autobatcher.service/memory.swap.m": "1\n",
		}, 1 << 30},
		"version 2, the parent's limit is lower": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "1000000", "sys/fs/cgroup/a/b/memory.max": "2000000",
		}, 1000000},
		"version 1, in a container": {map[string]string{
			"proc/self/cgroup": "9:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n",
		}, 256 << 20},
		"version 1, in a service": {map[string]string{
			"proc/self/cgroup":                                          "4:hugetlb,memory:/system.slice/a\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":                "9223372036854771712\n",
			"sys/fs/cgroup/memory/system.slice/a/memory.limit_in_bytes": "268435456\n",
		}, 256 << 20},
		"nonsense": {map[string]string{"proc/self/cgroup": "x\n::\n", "sys/fs/cgroup/memory.max": "-5"}, math.MaxInt64},
	} {
		root := fstest.MapFS{}
		for path, text := range test.files {
			root[path] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := containerMemory(root); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
	if got := availableMemory(); got < 64<<20 {
		t.Errorf("this process may use %d bytes", got)
	}
}

func TestDivideOpenFiles(t *testing.T) {
	for _, limit := range []uint64{1, 2, 16, 64, 100, 256, 1024, 4096, 1 << 20, math.MaxInt32} {
		f := divide(limit)
		if f.connections < 1 && limit > 1 || f.upstream < 1 || f.passing() < 1 || f.flex() < 1 || limit >= 64 && f.passing()+f.flex() >= f.upstream || limit >= 64 && f.connections+f.upstream >= int(limit) {
			t.Errorf("%d open files: %+v", limit, f)
		}
	}
	for _, limit := range []uint64{0, math.MaxInt64, math.MaxUint64} {
		if f := divide(limit); f != (openFiles{}) || f.passing() != 0 || f.flex() != 0 {
			t.Errorf("%d open files: %+v, want no limit", limit, f)
		}
	}
	if f := divide(256); f.connections < 128 {
		t.Errorf("256 open files: %+v", f)
	}
}
