# make demo: from nothing to a report on the embedded survey. make test: from nothing to the checks passed.
PYTHON ?= python3
RUN := .venv/bin/python
STAMP := .venv/.installed
# Zoobot, which some tests compare with, without what it depends on: its likelihood needs torch alone.
ORACLE := zoobot==2.9.0 galaxy-datasets==0.0.25
# Overrides for all three scripts of the demo, for example DEMO="name=mine data.n_galaxies=2000".
DEMO ?=
# Tests to run, all by default, and in how many processes.
TESTS ?=
JOBS ?= auto
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)

.PHONY: install demo test check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "rarezoo needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into .venv (about 6 GB, of which torch is the most); this happens once."
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@$(RUN) -m pip install --quiet uv || echo "uv cannot be had; pip installs instead, more slowly"
	@if $(RUN) -m uv --version >/dev/null 2>&1; then \
		$(RUN) -m uv pip install --quiet --python $(RUN) -c constraints.txt -e '.[dev,imagenet]'; \
		$(RUN) -m uv pip install --quiet --python $(RUN) --no-deps --target .venv/oracle $(ORACLE); \
	else \
		$(RUN) -m pip install --quiet -c constraints.txt -e '.[dev,imagenet]'; \
		$(RUN) -m pip install --quiet --no-deps --target .venv/oracle $(ORACLE); \
	fi
	@touch $(STAMP)

demo: $(STAMP)
	$(RUN) train.py experiment=demo $(DEMO)
	$(RUN) embed.py experiment=demo $(DEMO)
	$(RUN) cluster.py experiment=demo $(DEMO)

check: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

test: check
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(JOBS) --dist loadfile $(TESTS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
