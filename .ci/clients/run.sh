#!/bin/sh
# Checks that OpenAI clients, frameworks that use them, and curl work with
# `autobatcher serve --sandbox`. The script builds the command, installs the clients
# in a temporary directory, and runs the tests of all clients against two proxies: one
# answers within the grace period, the other one commits status 200 first and sends
# heartbeats until the answer arrives. The frameworks and openai-go make the same calls
# at two more proxies, which send calls at the flex tier: responses run in the background
# there. In all lanes, and in real time, each client must get the same objects.
#
# The script fails if a check fails or cannot run. AUTOBATCHER=path uses an existing
# command instead of a new build.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
proxies=
cleanup() {
	for proxy in $proxies; do
		kill -TERM "$proxy" 2>/dev/null || true
		wait "$proxy" || true
	done
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
	echo "clients: $*" >&2
	exit 1
}

for tool in go python3 node npm curl; do
	command -v "$tool" >/dev/null || fail "$tool is missing"
done

start=$(date +%s)
step() { echo "== clients: $* ($(($(date +%s) - start)) s)"; }

step install
command=${AUTOBATCHER:-$work/autobatcher}
cp "$here/package.json" "$here"/*.test.mjs "$work/"
(
	cd "$here/../.."
	[ -n "${AUTOBATCHER:-}" ] || CGO_ENABLED=0 go build -o "$command" ./cmd/autobatcher
	go test -c -o "$work/go.test" .ci/clients/openai_test.go
) &
go=$!
(cd "$work" && npm install --silent --no-audit --no-fund --no-save) &
npm=$!
# requirements.txt names all packages that the tests import, so that pip does not
# install the rest of the dependencies of the frameworks.
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile -r "$here/requirements.txt"
wait $go || fail "the build failed"
wait $npm || fail "npm install failed"

# serve starts a proxy with a name, a grace period, a batch window, and further flags. The
# window lets concurrent calls share a batch, and makes each answer of the proxy "late" late.
serve() {
	: >"$work/$1.log"
	name=$1 grace=$2 window=$3
	shift 3
	env -u OPENAI_BASE_URL -u OPENAI_API_KEY "$command" serve --sandbox --port 0 --batch-window "$window" --poll-interval 0.1 \
		--grace "$grace" --heartbeat 0.2 --client-key sk-test --allow-account-routes --journal off "$@" >"$work/$name.events" 2>"$work/$name.log" &
	proxy=$!
	proxies="$proxies $proxy"
	attempts=0
	until base=$(grep -o 'OPENAI_BASE_URL=[^" ]*' "$work/$name.log"); do
		attempts=$((attempts + 1))
		[ $attempts -lt 100 ] && kill -0 "$proxy" 2>/dev/null || { cat "$work/$name.log" >&2; fail "the proxy did not start"; }
		sleep 0.1
	done
	base=${base#OPENAI_BASE_URL=}
}
serve intime 10 0.2 --client-headers on
OPENAI_BASE_URL=$base
serve late 0.3 0.5
LATE_BASE_URL=$base
serve flex 10 0.2 --provider openai --mode flex --sandbox-flex-delay 0.2 --client-headers on
FLEX_BASE_URL=$base
serve flex-late 0.3 0.2 --provider openai --mode flex --sandbox-flex-delay 0.5
FLEX_LATE_BASE_URL=$base
export BATCH_BASE_URL="$OPENAI_BASE_URL"
export OPENAI_BASE_URL LATE_BASE_URL FLEX_BASE_URL FLEX_LATE_BASE_URL OPENAI_API_KEY=sk-test AUTOBATCHER_EVENTS="$work/intime.events"
unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy

failed=
# twice runs a command at both proxies at the same time.
twice() {
	name=$1
	shift
	env LATE=1 OPENAI_BASE_URL="$LATE_BASE_URL" AUTOBATCHER_EVENTS="$work/late.events" "$@" >"$work/output" 2>&1 &
	late=$!
	"$@" || failed="$failed $name"
	wait "$late" || failed="$failed $name-late"
	cat "$work/output"
}
# lanes runs a command at the proxies that send batches, and at the same time at those
# that send calls at the flex tier.
lanes() {
	name=$1
	shift
	env OPENAI_BASE_URL="$FLEX_BASE_URL" LATE_BASE_URL="$FLEX_LATE_BASE_URL" "$@" >"$work/output" 2>&1 &
	flex=$!
	"$@" || failed="$failed $name"
	wait "$flex" || failed="$failed $name-flex"
	cat "$work/output"
}
cd "$work"
python="$work/venv/bin/python -m pytest -q -W ignore -p no:cacheprovider --strict-markers"

step openai-python
twice openai-python $python "$here/test_python.py"
step Python frameworks
lanes python-frameworks $python "$here/test_frameworks.py"
step openai-node
twice openai-node node --test --test-reporter=dot node.test.mjs
step JavaScript frameworks
lanes node-frameworks node --test --test-reporter=dot frameworks.test.mjs
step same objects in each lane
$python "$here/test_same.py" || failed="$failed python-same"
node --test --test-reporter=dot same.test.mjs || failed="$failed node-same"
step the example that submits calls, and collects the answers in another process
"$command" sandbox --port 0 --turnaround 1 >"$work/sandbox" 2>&1 &
sandbox=$!
proxies="$proxies $sandbox"
tries=0
until base=$(sed -n 's/^ *export OPENAI_BASE_URL=//p' "$work/sandbox") && [ -n "$base" ]; do
	tries=$((tries + 1))
	[ $tries -lt 100 ] || fail "the sandbox does not start"
	sleep 0.1
done
for part in submit collect; do
	"$command" run --base-url "$base" --api-key key --batch-window 1 --journal "$work/jobs" -- "$work/venv/bin/python" "$here/../../examples/python/background.py" $part >"$work/output" 2>&1 ||
		failed="$failed background-$part"
	cat "$work/output"
done
grep -q '^20 answers, the first: .*square' "$work/output" || failed="$failed background-answers"
step openai-go
lanes go ./go.test
step curl
sh "$here/curl.sh" || failed="$failed curl"

# What was called at the flex proxies must have been sent at the flex tier.
for name in flex flex-late; do
	grep -q '"completion_window":"flex"' "$work/$name.events" || failed="$failed $name-tier"
	! grep '"event":"batch_submitted"' "$work/$name.events" | grep -qv '"completion_window":"flex"' || failed="$failed $name-batches"
done

# The proxies must still run after the tests, and must exit with status 0.
for proxy in $proxies; do
	kill -0 "$proxy" 2>/dev/null || fail "a proxy has exited: $(tail -n 5 "$work"/*.log)"
	kill -TERM "$proxy"
	wait "$proxy" || failed="$failed shutdown"
done
proxies=
if grep panic "$work"/*.log >&2; then
	failed="$failed panic"
fi

[ -z "$failed" ] || fail "failed:$failed"
step all checks passed
