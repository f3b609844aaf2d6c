# make demo and make test need nothing but a Debian machine with make: they install what is missing (with sudo when not
# root) and say so. See scripts/install-deps and scripts/ensure-go.

GO := scripts/go
# Packages run two at a time, with a guest each: a test waits for the host or for its guest much of the time. None
# measures time by the clock; that is for make bench.
TESTFLAGS ?= -count=1 -p 2 -timeout 40m
export VITRINE_TEST_VMS ?= 2
export CGO_ENABLED = 0

.PHONY: help demo test short bench lint build cross install-deps fuzz-seeds fuzz clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

demo: build ## boot a throw-away guest and look into it
	@scripts/install-deps guest
	@bin/vitrine demo

build: ## build bin/vitrine, static
	@scripts/install-deps go
	@echo "building bin/vitrine"
	@$(GO) build -trimpath -ldflags '-s -w' -o bin/vitrine ./cmd/vitrine

test: install-deps ## run all tests, those on real guests too
	@scripts/test $(TESTFLAGS)

short: ## run the tests that need no guest
	@scripts/install-deps go
	$(GO) test -short ./...

bench: ## measure on a real guest, one table (BENCHFLAGS=-smoke: quickly)
	@scripts/install-deps guest go
	$(GO) run ./bench $(BENCHFLAGS)

lint: ## formatting, vet, golangci-lint
	@scripts/install-deps go
	@scripts/lint

cross: ## vet what must build elsewhere
	@scripts/install-deps go
	@scripts/cross

fuzz-seeds: ## run the fuzz targets over their seeds
	@scripts/install-deps go
	$(GO) test -short -run '^Fuzz' ./...

fuzz: ## run each fuzz target for FUZZTIME (10s)
	@scripts/install-deps go
	@scripts/fuzz $(or $(FUZZTIME),10s)

install-deps: ## install the Debian packages that are missing
	@scripts/install-deps

clean: ## remove what make build made
	rm -rf bin
