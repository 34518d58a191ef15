# Two commands for a newcomer: `make demo`, then `make test`. Needs Python 3.11+ and make; a C++ compiler is optional.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# A test computes in one thread, so two files at a time halve the wait; those with Ray share one Ray, so one at a time.
TWO := -n 2 --dist loadfile
TEST = $(RUN) -m pytest $(TWO) -m "not ray and not drill" && $(RUN) -m pytest -m "ray and not drill"
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test check quick drill audit clean

demo: $(VENV)/.installed  ## run the pipeline on built-in phantoms
	$(RUN) jobs/pipeline.py

test: $(VENV)/.installed  ## all tests
	$(TEST)

quick: $(VENV)/.installed  ## the tests that need neither Ray nor patience
	$(RUN) -m pytest $(TWO) -m "not ray and not slow"

drill: $(VENV)/.installed  ## faults and lost nodes: minutes each, on a quiet machine
	$(RUN) -m pytest -s -m drill

check: $(VENV)/.installed  ## the one gate: format, lint, types, tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(MAKE) --no-print-directory audit
	$(TEST)

audit: $(VENV)/.installed  ## known weaknesses of the pinned versions; skipped with a word where that cannot be asked
	@rm -f $(VENV)/audit.json
	@$(RUN) -m pip_audit --version >/dev/null 2>&1 || { echo "audit: skipped, pip-audit is not installed"; exit 0; }; \
	$(RUN) -m pip_audit --no-deps --disable-pip -r cluster/constraints.txt -f json -o $(VENV)/audit.json 2>$(VENV)/audit.log; found=$$?; \
	test -e $(VENV)/audit.json || { echo "audit: skipped, nobody answers"; exit 0; }; cat $(VENV)/audit.log; exit $$found

$(VENV)/.installed: pyproject.toml cluster/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint cluster/constraints.txt -e '.[dev]'
	touch $@

clean:  ## remove the environment and every run
	rm -rf $(VENV) runs
