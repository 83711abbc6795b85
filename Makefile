# Two commands matter: `make up` (sets everything up, runs code in a sandbox, serves) and `make test`.
SHELL := /bin/bash
PY := .venv/bin/python
.DEFAULT_GOAL := help

.PHONY: help setup image up test check bench dev fmt proto openapi lock

help:            ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup:           ## packages, Python environment, guest artefacts; idempotent
	@scripts/setup host image

image: setup     ## rebuild the guest artefacts, with newer Debian packages where there are any
	@.venv/bin/wrenn image build --refresh

up: setup        ## set up, start, run a program in a sandbox, serve: make up ARGS="--data-dir D --listen HOST:PORT"
	@exec .venv/bin/wrenn up --hello $(ARGS)

test:            ## everything: checks, unit, platform, machine, each with its time
	@scripts/setup host test image
	@$(PY) scripts/stages.py

check:           ## format, lint, types, imports, sizes, names; under 30 s
	@scripts/setup host test
	@$(PY) scripts/stages.py check

bench: setup     ## measure the promises of SPECIFICATION.md
	@scripts/setup test
	@$(PY) -m tests.bench $(ARGS)

dev:             ## the Python environment alone
	@scripts/setup test

fmt:             ## format and sort imports
	@.venv/bin/ruff check --fix-only -q src tests scripts; .venv/bin/ruff format -q src tests scripts

proto:           ## regenerate src/wrenn_sandbox/rpc/gen from proto/
	@PATH="$(CURDIR)/.venv/bin:$$PATH" buf lint && PATH="$(CURDIR)/.venv/bin:$$PATH" buf generate

openapi:         ## write docs/openapi.json from the routes
	@$(PY) -m wrenn_sandbox.controlplane openapi > docs/openapi.json

lock:            ## resolve the Python dependencies anew
	@for name in host guest uv; do scripts/lock $$name; done
