# make demo   the whole walk on the built-in demo world, from nothing: environment, dvc repro, results
# make test   the tests, from nothing; the rules of the house are tests of `make check`, the kills of `make faults`
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test faults fuzz check format bench bench-peers serve view

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# DVC's memory of hashes holds pickles, and lies in a folder open to all users unless another is set.
demo: $(VENV)/.installed
	@site="$$(python -c 'import pathlib, pipelines.workspace as w; print(w.find_site_cache(pathlib.Path()))')" \
		&& DVC_SITE_CACHE_DIR="$$site" dvc repro
	@python -m fer_pipeline results

# make check  format, lint, types, floors, spelling and the rules of the house
check: $(VENV)/.installed
	ruff format --check .
	ruff check .
	pyright
	lint-imports
	codespell
	OMP_NUM_THREADS=1 python -m pytest -q tests/house

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder \
		--ignore tests/house $(addprefix --ignore ,$(FAULTS))

# make faults  kills a deployed run in every place, on a real server and worker, and edits and kills runs through DVC at
#              random moments; three minutes (FER_RACES=50 for many moments)
FAULTS = tests/pipelines/test_faults.py tests/walk/test_races.py
faults: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m pytest -q $(FAULTS)

# make fuzz   2,500 changed files for every reader of files, in child processes: a table, and what repeats each fault; minutes
fuzz: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m tests.fuzz.run $(READERS)

# make serve  a Prefect server, its deployments and a worker on this machine, until Ctrl-C (PORT=4300 to choose)
serve: $(VENV)/.installed
	@exec python -m pipelines serve --port $(or $(PORT),4200)

# make view   the gallery of mined faces on this machine, for judging them, until Ctrl-C (PORT=8010 to choose)
view: $(VENV)/.installed
	@[ -e reports/gallery/index.js ] || python -m fer_pipeline mined gallery
	@exec python -m fer_pipeline mined view --port $(or $(PORT),8010)

# make bench  ours beside the peers in one run: a table of ratios and a dated result (WORKS="mtcnn scoring" to choose, QUICK=1)
bench: $(PEERS)/.installed
	python -m benchmarks.run $(if $(QUICK),--quick) $(WORKS)

bench-peers: $(PEERS)/.installed

# The peers see the project's packages behind their own, so that both sides run on one torch and one numpy.
$(PEERS)/.installed: benchmarks/peers.txt $(VENV)/.installed
	$(BIN)/python -m venv --clear $(PEERS)
	$(BIN)/python -c "import sysconfig as s; print('import site; site.addsitedir(%r)' % s.get_path('purelib'))" \
		> "$$($(PEERS)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/project.pth"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers.txt
	touch $@

# make format rewrite the code in the house's format
format: $(VENV)/.installed
	ruff format .
	ruff check --fix .
