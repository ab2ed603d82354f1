# Troth: `make demo` shows it, `make test` proves it. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
BUILD := build
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)
LDFLAGS := -s -w -X main.version=$(VERSION)
TOOL := $(GO) tool -modfile=tools/go.mod
# Everything but the daemon that speaks to libvirt is pure Go and static.
PURE := ./cmd/troth ./cmd/troth-hook ./cmd/troth-registered ./cmd/troth-verifierd
# The rooms whose tests need nothing but Go; the lab, stories and real parts run under `make test`.
FUZZTIME ?= 20s

.PHONY: help deps demo test test-gate test-crash test-bypass test-differential check build fmt vet lint rules short bench fuzz golden mutate soak generate clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

deps: ## install what build, tests and demo need from Debian (root)
	@test/setup/install.sh

demo: build lab ## a proven VM from one command, then the cheats (root)
	@$(BUILD)/tell -build $(BUILD)

build: deps ## build the programs into build/
	@mkdir -p $(BUILD)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BUILD)/ $(PURE)
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BUILD)/ ./cmd/troth-hostd

.PHONY: lab
lab: ## build the lab and the demo into build/
	@mkdir -p $(BUILD)
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BUILD)/lab ./test/lab/cmd/lab
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BUILD)/tell ./test/demo

check: deps fmt vet lint short ## format, vet, lint, rules, short tests: no root, no real parts

fmt:
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); if [ -n "$$out" ]; then echo "not gofmt'd: $$out"; exit 1; fi

vet:
	$(GO) vet ./...

lint:
	$(TOOL) golangci-lint run ./...

rules: ## the rules of the house, as tests
	$(GO) test ./test/rules

short: ## tests that need neither root nor real parts
	$(GO) test -short ./...

# What only asks whether there is a way round the gate has targets of its own.
GATE := bypass|crash|differential|matrix|race|strays

test: build lab ## the tests of the main job and of each room, on real swtpm, libvirtd and QEMU (root, 10 minutes)
	$(GO) test -timeout 30m $$($(GO) list ./... | grep -v /test/) ./test/rules ./test/units
	# One package at a time where hosts are made: some compare the machine's processes and namespaces before and after.
	$(GO) test -timeout 30m -p 1 $$($(GO) list ./test/... | grep -Ev '/test/($(GATE)|rules|units)$$')

test-gate: build lab ## strays, races, sockets, polkit: the gate under attack, at small counts (root, 6 minutes)
	$(GO) test -timeout 30m -p 1 ./test/bypass ./test/crash ./test/differential ./test/race ./test/strays

test-crash: build lab ## kill hostd and libvirtd for real at every step, and crash 10,000 simulated points (root, 5 minutes)
	TROTH_CRASH=all $(GO) test -timeout 30m -count=1 -v -run 'TestAttack/R-POWER|TestCheckSees' ./launcher | grep -v '^=== '
	$(GO) test -timeout 30m -count=1 ./hostd/journal ./hostd/audit
	TROTH_KILLS=52 $(GO) test -timeout 30m -count=1 -v ./test/crash

test-differential: deps ## our reading of 20,000 domains against libvirt's (root, 2 minutes); test-gate takes a sample
	$(GO) test -timeout 30m -count=1 -v -run TestDifferential ./test/differential -args -documents 20000

test-bypass: build lab ## every way round the gate, with hook and hostd alive and gone; the table is in build/bypass.txt (root, 6 minutes)
	$(GO) test -timeout 30m -count=1 -v -run TestMatrix ./test/matrix

soak: build lab ## test-crash with 300 kills, the demo killed 20 times, races at their full counts (root)
	TROTH_CRASH=all $(GO) test -timeout 30m -count=1 -v -run 'TestAttack/R-POWER|TestCheckSees' ./launcher
	TROTH_SOAK=1 $(GO) test -timeout 30m -count=1 -v -run TestAttack/L-TOCTOU-XML/race ./launcher
	TROTH_SOAK=1 $(GO) test -timeout 30m -count=1 -v -run TestDemoKilled ./test/demo
	# These two side by side: each waits for its libvirtd most of the time.
	TROTH_SOAK=1 $(GO) test -timeout 100m -count=1 -v -p 2 ./test/crash ./test/race

bench: deps ## ratios measured within one run
	$(GO) test -run '^$$' -bench . -benchtime 1s ./...

fuzz: ## every fuzz target for FUZZTIME
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg 2>/dev/null | grep '^Fuzz' || :); do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; done; done

golden: ## write golden files anew; read the difference before you commit it
	$(GO) test -short ./proof ./tpm/... ./launcher/... -update

mutate: deps ## remove every check of proof.Verify, the appraisal and Decide, one at a time
	$(GO) run ./test/mutate

generate: ## write generated code anew from the OpenAPI files
	$(GO) generate ./...

clean:
	rm -rf $(BUILD)
