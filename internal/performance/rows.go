package main

// groups are the tables of docs/performance.md, in the order of the sections.
var groups = []group{
	{
		title: "The Transport", pkg: ".", bench: "BenchmarkCalls|BenchmarkUpload", iterate: "3x",
		rows: []row{
			{"50,000 calls: CPU per call, against the JSONL alone", metric{"Calls", "cpu-µs/call", ""}, metric{"Calls", "floor-µs/call", ""}, 4},
			{"50,000 calls: CPU, against the JSONL and the callers together", metric{"Calls", "x-floor+callers", "times"}, metric{}, 1.5},
			{"50,000 calls without a Transport: CPU per call", metric{"Calls", "callers-µs/call", ""}, metric{}, 0},
			{"memory of a held call beyond its body", metric{"Calls", "held-B/call", ""}, metric{}, 1300},
			{"memory that an upload of 200 MB allocates", metric{"Upload", "alloc-MB", ""}, metric{}, 16},
		},
	},
	{
		title: "An SDK", pkg: "./internal/performance", bench: "BenchmarkSDK", iterate: "1x",
		rows: []row{
			{"20,000 calls: CPU per call, against the SDK alone", metric{"SDK", "cpu-µs/call", ""}, metric{"SDK", "floor-cpu-µs/call", ""}, 1.06},
			{"20,000 calls: CPU per call, against calls in real time", metric{"SDK", "cpu-µs/call", ""}, metric{"SDK", "realtime-cpu-µs/call", ""}, 0.75},
			{"20,000 calls: peak memory per call, against the SDK alone", metric{"SDK", "KB/call", ""}, metric{"SDK", "floor-KB/call", ""}, 1},
		},
	},
	{
		title: "The proxy", pkg: "./internal/proxy", bench: "BenchmarkHeld", iterate: "1x", env: "AUTOBATCHER_BENCH_CALLS=http1:5000,h2c:50000",
		rows: []row{
			{"HTTP/1.1, 5,000 calls: CPU per call", metric{"Held/http1:5000", "µs/call", ""}, metric{"Held/http1:5000", "bare-µs/call", ""}, 1.1},
			{"HTTP/1.1, 5,000 calls: memory per held call", metric{"Held/http1:5000", "KB/call", ""}, metric{"Held/http1:5000", "bare-KB/call", ""}, 1.2},
			{"HTTP/1.1, 5,000 calls, no Transport: CPU per call", metric{"Held/http1:5000", "proxy-µs/call", ""}, metric{"Held/http1:5000", "bare-µs/call", ""}, 0},
			{"HTTP/1.1, 5,000 calls, no Transport: memory per held call", metric{"Held/http1:5000", "proxy-KB/call", ""}, metric{"Held/http1:5000", "bare-KB/call", ""}, 0},
			{"h2c, 50,000 calls: CPU per call", metric{"Held/h2c:50000", "µs/call", ""}, metric{"Held/h2c:50000", "bare-µs/call", ""}, 1.25},
			{"h2c, 50,000 calls: memory per held call", metric{"Held/h2c:50000", "KB/call", ""}, metric{"Held/h2c:50000", "bare-KB/call", ""}, 1.3},
			{"h2c, 50,000 calls, no Transport: CPU per call", metric{"Held/h2c:50000", "proxy-µs/call", ""}, metric{"Held/h2c:50000", "bare-µs/call", ""}, 0},
			{"h2c, 50,000 calls, no Transport: memory per held call", metric{"Held/h2c:50000", "proxy-KB/call", ""}, metric{"Held/h2c:50000", "bare-KB/call", ""}, 0},
		},
	},
	{
		title: "The command", pkg: "./internal/performance", bench: "BenchmarkServe", iterate: "1x",
		rows: []row{
			{"CPU per call, `--journal off`", metric{"Serve", "cpu-µs/call", ""}, metric{"Serve", "floor-cpu-µs/call", ""}, 1.15},
			{"CPU per call, with a journal", metric{"Serve", "journal-cpu-µs/call", ""}, metric{"Serve", "floor-cpu-µs/call", ""}, 1.15},
			{"peak memory of the process, `--journal off`", metric{"Serve", "peak-MB", ""}, metric{"Serve", "floor-peak-MB", ""}, 1.2},
			{"peak memory of the process, with a journal", metric{"Serve", "journal-peak-MB", ""}, metric{"Serve", "floor-peak-MB", ""}, 1.2},
		},
	},
	{
		title: "Latency", pkg: "./internal/performance", bench: "BenchmarkAnswers|BenchmarkUpload", iterate: "1x",
		rows: []row{
			{"50,000 lines: from \"completed\" to the last answer", metric{"Answers", "s", ""}, metric{"Answers", "floor-s", ""}, 0},
			{"50,000 lines: from the call that fills the batch to the upload", metric{"Upload/Full", "ms", ""}, metric{"Upload/Full", "floor-ms", ""}, 0},
			{"from the last call to the upload, with the default options", metric{"Upload/Quiet", "ms", ""}, metric{}, 0},
			{"from the last call to the upload, with `QuietAfter: -1`", metric{"Upload/Window", "ms", ""}, metric{}, 0},
		},
	},
	{
		title: "Streams", pkg: "./internal/sse", bench: ".", iterate: "1s",
		rows: []row{
			{"a finished 1 KB chat as a stream of events", metric{"AppendChat1KB", "ns/op", ""}, metric{}, 0},
			{"a finished 1 KB response as a stream of events", metric{"AppendResponse1KB", "ns/op", ""}, metric{}, 0},
		},
	},
	{
		title: "The journal: SQLite, time per line", pkg: "./journal/sqlite", bench: "BenchmarkStore", iterate: "5x",
		rows: []row{
			{"the whole life of a batch", metric{"Store/Life", "ns/line", ""}, metric{"Store/LifeFloor", "ns/line", ""}, 1.3},
			{"begin", metric{"Store/Begin", "ns/line", ""}, metric{}, 0},
			{"take-over that finds nothing", metric{"Store/TakeOverMiss", "ns/line", ""}, metric{}, 0},
			{"take-over that finds every line", metric{"Store/TakeOverHit", "ns/line", ""}, metric{}, 0},
			{"deliver", metric{"Store/Deliver", "ns/line", ""}, metric{}, 0},
		},
	},
	{
		title: "The journal: PostgreSQL, time per line", pkg: "./journal/postgres", bench: "BenchmarkStore", iterate: "5x",
		rows: []row{
			{"the whole life of a batch", metric{"Store/Life", "ns/line", ""}, metric{"Store/LifeFloor", "ns/line", ""}, 1.3},
			{"begin", metric{"Store/Begin", "ns/line", ""}, metric{}, 0},
			{"take-over that finds nothing", metric{"Store/TakeOverMiss", "ns/line", ""}, metric{}, 0},
			{"take-over that finds every line", metric{"Store/TakeOverHit", "ns/line", ""}, metric{}, 0},
			{"deliver", metric{"Store/Deliver", "ns/line", ""}, metric{}, 0},
		},
	},
}

// scripts are the tables of docs/performance.md that benchmarks do not measure.
var scripts = []script{
	{"Lanes", "", tests("TestLaneTimes")},
	{"With webhooks", "", tests("TestWebhookRequests")},
	{"When a batch is sent", "", tests("TestQuietTimes")},
	{"Scale: measured, limit", "AUTOBATCHER_SCALE=full", tests("TestManyCalls$|TestManyKeys|TestLargeFiles")},
	{"Beside the original in Python", "", []string{".ci/compare-python/run.sh"}},
}

// tests is a command that runs tests of internal/blackbox.
func tests(names string) []string {
	return []string{"go", "test", "-count", "1", "-timeout", "0", "-v", "-run", names, "./internal/blackbox"}
}
