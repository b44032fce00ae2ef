# The tasks of the project: `make test`, `make performance`, …

.PHONY: help build test race lint fuzz performance examples ci

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

build: ## bin/autobatcher
	CGO_ENABLED=0 go build -trimpath -o bin/autobatcher ./cmd/autobatcher

test: ## the tests, as in the README
	go test ./...

race: ## the tests under the race detector
	go test -race ./...

lint: ## format, vet, golangci-lint
	test -z "$$(gofmt -l .)"
	go vet ./...
	golangci-lint run

FUZZTIME ?= 20s
FUZZSHARE ?= 0/1
fuzz: ## every fuzz test for FUZZTIME, or with FUZZSHARE=1/4 every fourth one
	@grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' . | sed 's|/[^/]*:func | |' | sort -u | awk 'NR % $(notdir $(FUZZSHARE)) == $(patsubst %/,%,$(dir $(FUZZSHARE)))' | while read -r dir f; do \
	  echo "$$dir $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$dir || exit 1; done

performance: ## run the benchmarks, and print the tables of docs/performance.md
	go run ./internal/performance

examples: ## run each example that is a Go program, offline
	@for dir in examples/*/; do [ -f $$dir/main.go ] || continue; echo "== $$dir"; go run ./$$dir || exit 1; done

ci: ## all checks of CI
	.ci/run
