#!/bin/sh
# Measures the original product in Python (autobatcher 0.10.0 of PyPI, library and serve)
# beside this one, against the same made-up provider, and prints a table: CPU (user and
# system) and memory at the peak, a call. All calls are made at once. Python has openai's
# SDK, and Go has openai-go: the last line is what openai-go costs without a Transport.
# CI does not run the script, since other load disturbs the figures.
#
#   .ci/compare-python/run.sh [calls of the library, 20000] [calls of serve, 5000]
#
# Needs Linux, Go, and Python 3.10 or newer. BATCH_SIZE is 1000 by default, as in Python.
# AUTOBATCHER=path uses an existing command instead of a new build.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
calls=${1:-20000} served=${2:-5000} size=${BATCH_SIZE:-1000} port=${PORT:-18970}
ulimit -n "$(ulimit -H -n)"
work=$(mktemp -d)
command=${AUTOBATCHER:-$work/autobatcher}
processes=
cleanup() {
	for process in $processes; do
		kill -TERM "$process" 2>/dev/null || true
		wait "$process" 2>/dev/null || true
	done
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cd "$here/../.."
[ -n "${AUTOBATCHER:-}" ] || go build -o "$command" ./cmd/autobatcher
go build -o "$work/measure" ./.ci/compare-python
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'autobatcher[serve]==0.10.0'

# start runs a server in the background, waits until it listens at the port, and sets pid.
start() {
	at=$1
	shift
	"$@" >"$work/$at.log" 2>&1 &
	pid=$!
	processes="$processes $pid"
	for _ in $(seq 100); do
		if python3 -c "import socket; socket.create_connection(('127.0.0.1', $at))" 2>/dev/null; then
			return
		fi
		sleep 0.1
	done
	cat "$work/$at.log" >&2
	exit 1
}

start "$port" "$command" sandbox --host 127.0.0.1 --port "$port" --turnaround 2
base=http://127.0.0.1:$port/v1
row() { printf '| %s | %s | %s µs | %s KB |\n' "$@"; }

echo '| | calls | CPU a call | memory a call |'
echo '|---|---|---|---|'
row 'library, Python 0.10.0' "$calls" $("$work/venv/bin/python" "$here/library.py" "$base" "$calls" "$size")
row 'library, Go' "$calls" $("$work/measure" library "$base" "$calls" "$size")
row 'of which openai-go' "$calls" $("$work/measure" direct "$base" "$calls" "$size")
flags="--base-url $base --api-key sk-compare --host 127.0.0.1 --batch-size $size --batch-window 1 --poll-interval 1 --mode batch"
start "$((port + 1))" "$work/venv/bin/autobatcher" serve $flags --port "$((port + 1))"
row 'serve, Python 0.10.0' "$served" $("$work/measure" serve "http://127.0.0.1:$((port + 1))/v1" "$served" "$pid")
start "$((port + 2))" "$command" serve $flags --port "$((port + 2))"
row 'serve, Go' "$served" $("$work/measure" serve "http://127.0.0.1:$((port + 2))/v1" "$served" "$pid")
