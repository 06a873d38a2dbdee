# The commands a developer needs. Each runs with no terminal and says by its exit status how it went.

python := .venv/bin/python
benchmarks := boot start hypercall evtchn grantcopy

.PHONY: help setup demo test test-full bench docs clean

help:
	@echo 'make setup      install what is missing: Debian packages, .venv, guest kernels'
	@echo 'make demo       boot the unmodified Debian kernel as a Xen guest'
	@echo 'make test       linters, type checker and tests, but for the slow ones'
	@echo 'make test-full  the slow tests too'
	@echo 'make bench      boot time against plain QEMU, and what single operations cost'
	@echo 'make docs       write the generated tables of docs/limits.md'
	@echo 'make clean      remove what the build made, guest kernels included'

setup:
	@scripts/setup

demo: setup
	@$(python) scripts/demo.py

test: setup
	@$(python) scripts/check.py

test-full: setup
	@$(python) scripts/check.py --full

bench: setup
	@status=0; for name in $(benchmarks); do \
		echo "--- $$name"; $(python) benchmarks/$$name.py || status=1; \
	done; exit $$status

docs: setup
	@$(python) scripts/gen_limits.py

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
