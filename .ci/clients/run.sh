#!/bin/sh
# Checks that the official OpenAI clients, and curl, are content with
# `autobatcher serve --sandbox`: builds the command, installs the clients below a
# temporary directory, runs their tests against one running proxy.
#
# It fails if anything could not be checked. AUTOBATCHER=path uses a command that
# is built already.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
proxy=
cleanup() {
	if [ -n "$proxy" ]; then
		kill -TERM "$proxy" 2>/dev/null || true
		wait "$proxy" || true
	fi
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
	[ "$tool" = go ] && [ -n "${AUTOBATCHER:-}" ] && continue
	command -v "$tool" >/dev/null || fail "$tool is missing"
done

command=${AUTOBATCHER:-$work/autobatcher}
[ -n "${AUTOBATCHER:-}" ] || (cd "$here/../.." && CGO_ENABLED=0 go build -o "$command" ./cmd/autobatcher)

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
cp "$here/package.json" "$here/node.test.mjs" "$work/"
(cd "$work" && npm install --silent --no-audit --no-fund --no-save)

# A window of 0.3 s gathers what is asked side by side; the short grace makes the
# proxy keep answers alive in some of the tests.
env -u OPENAI_BASE_URL -u OPENAI_API_KEY "$command" serve --sandbox --port 0 --batch-window 0.3 --poll-interval 0.1 \
	--grace 1 --heartbeat 0.2 --client-key sk-test >"$work/events" 2>"$work/log" &
proxy=$!

tries=0
until base=$(grep -o 'OPENAI_BASE_URL=[^" ]*' "$work/log"); do
	tries=$((tries + 1))
	[ $tries -lt 100 ] && kill -0 "$proxy" 2>/dev/null || { cat "$work/log" >&2; fail "the proxy did not start"; }
	sleep 0.1
done
export "$base" OPENAI_API_KEY=sk-test AUTOBATCHER_EVENTS="$work/events"
unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy

failed=
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider --strict-markers "$here/test_python.py" || failed="$failed python"
(cd "$work" && node --test --test-reporter=spec node.test.mjs) || failed="$failed node"
sh "$here/curl.sh" || failed="$failed curl"

# The proxy must survive it all, and end cleanly.
kill -0 "$proxy" 2>/dev/null || fail "the proxy has died: $(tail -n 5 "$work/log")"
kill -TERM "$proxy"
wait "$proxy" || failed="$failed shutdown"
proxy=
if grep -q panic "$work/log"; then
	grep panic "$work/log" >&2
	failed="$failed panic"
fi

[ -z "$failed" ] || fail "failed:$failed"
echo "clients: all checked"
