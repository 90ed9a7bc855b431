# SPDX-License-Identifier: MIT
.PHONY: setup demo test lint lab-up lab-down bench soak docs lock
VADPLAB := .venv/bin/vadplab

setup:
	@scripts/setup.sh

demo: setup
	@scripts/demo.sh

test: setup
	@scripts/test.sh

lint: setup
	@scripts/lint.sh

lab-up: setup
	$(VADPLAB) up

lab-down: setup
	$(VADPLAB) down

bench:
	@scripts/setup.sh bench
	.venv/bin/python -m bench

# Fifty kills at random instants of real backups; `make soak SEED=N INSTANTS=N` repeats what a seed drew.
soak: setup
	.venv/bin/python -m tests.soak $(if $(SEED),--seed $(SEED)) $(if $(INSTANTS),--instants $(INSTANTS))

# The page of error codes, from the classes that have them.
docs: setup
	.venv/bin/python -m scripts.error_page >docs/errors.md.new && mv docs/errors.md.new docs/errors.md

# Locks carry versions and hashes, no addresses. Needs uv on PATH.
lock:
	for n in dev go; do uv pip compile -q --generate-hashes --no-emit-index-url --no-header --python-version 3.11 requirements/$$n.in -o requirements/$$n.lock; done
