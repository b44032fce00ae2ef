#!/bin/sh
# Tests of curl with the proxy at OPENAI_BASE_URL. run.sh runs this script.
set -eu

root=${OPENAI_BASE_URL%/v1}
call() { curl -sS -H "Authorization: Bearer $OPENAI_API_KEY" -H 'Content-Type: application/json' "$@"; }
expect() { # NAME WANTED TEXT
	case $3 in
	*"$2"*) echo "ok   curl: $1" ;;
	*)
		echo "FAIL curl: $1: no $2 in: $3" >&2
		exit 1
		;;
	esac
}

chat='{"model":"m","messages":[{"role":"user","content":"Hello there"}]}'
expect health ok "$(curl -sS "$root/health")"
expect chat '"content":"You said: Hello there"' "$(call "$OPENAI_BASE_URL/chat/completions" -d "$chat")"
expect 'chat, query and gzip' 'You said: Hello there' "$(call --compressed "$OPENAI_BASE_URL/chat/completions?x=1" -d "$chat")"
expect 'chat over HTTP/2 without TLS' 'HTTP/2 200' "$(call -i --http2-prior-knowledge "$OPENAI_BASE_URL/chat/completions" -d "$chat")"
expect 'Expect: 100-continue' 'You said: Hello there' "$(call -H 'Expect: 100-continue' "$OPENAI_BASE_URL/chat/completions" -d "$chat")"
expect embeddings '"object":"embedding"' "$(call "$OPENAI_BASE_URL/embeddings" -d '{"model":"m","input":["a","b"]}')"
expect responses '"status":"completed"' "$(call "$OPENAI_BASE_URL/responses" -d '{"model":"m","input":"Hello"}')"
expect stream 'data: [DONE]' "$(call -N "$OPENAI_BASE_URL/chat/completions" -d '{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello"}]}')"
expect models '"object":"list"' "$(call "$OPENAI_BASE_URL/models")"
expect 'a line with status 429' ' 429 ' "$(call -i "$OPENAI_BASE_URL/chat/completions" -d '{"model":"m","messages":[{"role":"user","content":"sandbox: status 429"}]}' | tr '\r' ' ')"
expect 'no key' 401 "$(curl -sS -o /dev/null -w '%{http_code}' "$OPENAI_BASE_URL/models")"
expect metrics autobatcher_calls_total "$(call "$root/metrics")"
