# Everything that is done with this repository, one target each. Needs Go; what
# needs more says so. The modules of go.work are found, not listed.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c

# Kafka brokers for test-kafka and test-kafka-all, version:scenarios.
KAFKA     = 4.4.0:all 3.9.1:main
KAFKA_ALL = 4.4.0:all 4.0.1:main 4.0.0:all 3.9.1:main 2.8.2:main 1.1.1:main

# How long fuzz spends on each target.
FUZZTIME ?= 5m

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s%s\n", $$1, $$2 }' Makefile

# The workspace hides a module whose own go.mod is wrong, and runs other versions
# of dependencies than a user gets: hence each module once more without it.
.PHONY: test
test: ## test every module, with the race detector if there is a C compiler
	@race=-race; \
	if [ "$$(go env CGO_ENABLED)" != 1 ]; then \
		race=; echo "make test: no C compiler found, testing WITHOUT the race detector" >&2; \
	fi; \
	echo "go test $$race -shuffle=on -timeout 10m work"; \
	go test $$race -shuffle=on -timeout 10m work
	@modules=$$(go list -m -f '{{.Dir}}'); \
	for dir in $$modules; do \
		echo "GOWORK=off go vet, go mod tidy -diff: $$dir"; \
		GOWORK=off go -C "$$dir" vet ./...; \
		GOWORK=off go -C "$$dir" mod tidy -diff; \
	done

.PHONY: test-kafka
test-kafka: ## run the scenarios on real brokers (Java, Maven): all on one version, the main ones on another
	@.ci/require-kafka $@
	KGROUP_KAFKA="$(KAFKA)" go -C e2e test -tags kafka -count=1 -timeout 30m ./...

.PHONY: test-kafka-all
test-kafka-all: ## run every scenario on every broker version in every mode, and write docs/TESTED.md
	@.ci/require-kafka $@
	KGROUP_FULL=1 KGROUP_KAFKA="$(KAFKA_ALL)" KGROUP_TESTED="$(CURDIR)/docs/TESTED.md" go -C e2e test -tags kafka -count=1 -timeout 3h ./...

.PHONY: lint
lint: tools ## check style, imports and formatting
	bin/golangci-lint config verify
	@packages=$$(go list -m -f '{{.Dir}}/...'); \
	echo "bin/golangci-lint run, every module"; \
	bin/golangci-lint run $$packages
	@files=$$(gofmt -l .); \
	if [ -n "$$files" ]; then printf 'make lint: not formatted by gofmt:\n%s\n' "$$files" >&2; exit 1; fi
	@files=$$(grep -rl --include='*_test.go' 'time\.Sleep(' *_test.go internal | xargs -r grep -LE '"testing/synctest"|inBubble|onEngine|withRig' || true); \
	if [ -n "$$files" ]; then printf 'make lint: time.Sleep outside testing/synctest; wait for the event itself:\n%s\n' "$$files" >&2; exit 1; fi
	GOWORK=off go -C tools mod tidy -diff

# Always built, because only the go command knows whether they are up to date
# with tools/go.mod and with Go itself: minutes the first time, a second after.
.PHONY: tools
tools: ## build bin/golangci-lint and bin/benchstat, pinned in tools/go.mod
	GOWORK=off go -C tools build -o ../bin/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint golang.org/x/perf/cmd/benchstat

.PHONY: bench
bench: ## measure what kgroup costs over the bare engine, as ratios
	go run ./bench overhead

.PHONY: fuzz
fuzz: ## run every fuzz target of every module for FUZZTIME (5m)
	@found=; packages=$$(go list work); \
	for package in $$packages; do \
		targets=$$(go test -list '^Fuzz' "$$package" | sed -n '/^Fuzz/p'); \
		for target in $$targets; do \
			found=yes; \
			echo "$$package $$target for $(FUZZTIME)"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzzminimizetime 10x -fuzztime $(FUZZTIME) "$$package"; \
		done; \
	done; \
	if [ -z "$$found" ]; then echo "make fuzz: no fuzz target found" >&2; exit 1; fi

.PHONY: mutants
mutants: ## take out one safeguard at a time; the test named for it must fail
	go run ./internal/mutants

.PHONY: clean
clean: ## remove the tools that were built, and what tests left in .cache
	rm -rf bin .cache
