# Every target sets up what it needs; `make setup` again is a matter of seconds.
PYTHON ?= python3
VENV   := .venv
MINKOWSKI := .venv-minkowski
DOCS   := .venv-docs
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CODE   := common commands cluster readers synthetic labelgen pairs train downstream study report configs tests benchmarks *.py
PACKAGES := common commands cluster readers synthetic labelgen pairs train downstream study report
DEMO   ?= demo
OLIVINE := $(CURDIR)/$(BIN)/olivine

.PHONY: help setup demo study-ground test unit soak lint types bench minkowski docs clean

help:
	@echo "make setup   install into $(VENV)          make demo   the whole pipeline on a synthetic data set"
	@echo "make test    every promise, lint and types  make soak   the long tests (up to an hour)"
	@echo "make bench   speed against peers            make lint   ruff alone (make types: mypy)"
	@echo "make docs    these pages as a site, build/docs/index.html; links checked"
	@echo "make labelgen | build-pairs | pretrain      DATASET=nuscenes ROOT=… CLUSTER=local|ray|slurm NODES=… GPUS=… PARTITION=…"
	@echo "make status  how far they are"

setup: $(STAMP)

# pip would compile every file on one core. compileall uses all cores, and leaves out tests and transformers' models, which
# Python compiles when they are imported. A file for a newer Python is no error, as with pip.
INSTALL := pip install --disable-pip-version-check --quiet --no-compile

# headless last: both OpenCV packages own the module cv2, and only the headless
# build imports on a machine without a display.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m $(INSTALL) -c constraints.txt setuptools wheel
	$(BIN)/python -m $(INSTALL) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m $(INSTALL) --no-deps --force-reinstall "$$(grep '^opencv-python-headless==' constraints.txt)"
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|testing/_internal|transformers/models)/' $(VENV)/lib || true
	mkdir -p $(VENV)/types && ln -sfn ../.. $(VENV)/types/olivine
	$(BIN)/olivine doctor --quick
	touch $(STAMP)

# The three commands as a user types them, in a folder of their own, on a synthetic data set. The probe computes each
# frame's features once: augmented, the network would run on every frame in each of 50 epochs, for both sets of weights.
demo: setup
	mkdir -p $(DEMO)
	cd $(DEMO) && $(OLIVINE) synth
	cd $(DEMO) && $(OLIVINE) labelgen --dataset nuscenes
	cd $(DEMO) && $(OLIVINE) build-pairs
	cd $(DEMO) && $(OLIVINE) pretrain
	cd $(DEMO) && $(OLIVINE) probe --no-augment
	cd $(DEMO) && $(OLIVINE) report
	cd $(DEMO) && $(OLIVINE) study
	@echo "Scores: $(DEMO)/runs/cpu/probe/scores.md   Page: $(DEMO)/report/index.html"
	@echo "Study:  $(DEMO)/runs/study-demo/table.md   Picture:  $(DEMO)/runs/study-demo/table.png"

# The study's streets: 100 for training, so that 1 % is one, and 34 for validation.
STUDY        ?= data/study
STUDY_SEED   ?= 880001
STUDY_SCENES ?= 134
STUDY_ERROR  ?= default
study-ground: setup
	$(OLIVINE) synth --seed $(STUDY_SEED) --scenes $(STUDY_SCENES) --frames 2 --out $(STUDY)/nuscenes
	$(OLIVINE) labelgen --dataset nuscenes --root $(STUDY)/nuscenes --out $(STUDY)/labels --error $(STUDY_ERROR)
	$(OLIVINE) build-pairs --labels $(STUDY)/labels --out $(STUDY)/pairs

# The streets, labels and shards of a study (study-methods, study-weak) by the commands that it names itself.
study-%-ground: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -ec "$$($(BIN)/python -c 'from olivine.study.config import load_study; print(load_study("study-$*").ground)')"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# In a fresh clone it reads torch's sources first, and takes its time: no part of `make test`.
types: setup
	MYPYPATH=$(VENV)/types $(BIN)/mypy $(foreach p,$(PACKAGES),-p olivine.$(p)) -m olivine.cli

test: lint unit

# Each process of pytest has one thread of its own: threads of several that wait for each other by spinning stand still.
# One process more than cores: many tests wait for a process of their own. These read the package's compiled files,
# also where the environment asks Python to write none: each would compile the package anew.
unit: setup
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not soak' -n $$($(BIN)/python -c 'import os; print(min(os.cpu_count(), 4) + 1)') --dist loadfile --no-loadscope-reorder

soak: setup $(VENV)/.installed-cluster
	$(BIN)/python -m pytest -m soak -rs

bench: setup
	for program in benchmarks/*_speed.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

# MinkowskiEngine in an environment of its own, over the packages of $(VENV); only the parity tests need it.
minkowski: setup
	@echo '#include <cblas.h>' | cc -E -xc - >/dev/null 2>&1 || { echo "OpenBLAS headers are needed: apt-get install libopenblas-dev"; exit 2; }
	test -x $(MINKOWSKI)/bin/python || $(BIN)/python -m venv $(MINKOWSKI)
	realpath $(VENV)/lib/python3*/site-packages > $$(echo $(MINKOWSKI)/lib/python3*/site-packages)/olivine-base.pth
	$(MINKOWSKI)/bin/python -m pip install -q -U 'setuptools>=77,<81' wheel ninja
	$(MINKOWSKI)/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("MinkowskiEngine") is None)' || PATH=$$PWD/$(MINKOWSKI)/bin:$$PATH SETUPTOOLS_USE_DISTUTILS=stdlib MAX_JOBS=2 $(MINKOWSKI)/bin/python -m pip install --no-deps --no-build-isolation MinkowskiEngine==0.5.4
	PYTHONPATH=$(VENV)/types $(MINKOWSKI)/bin/python -m pytest -m soak tests/sparse/test_minkowski_parity.py tests/downstream/test_weights.py

# The pages as a site, read by double click. Sphinx has an environment of its own: the pages need nothing of olivine's.
docs: $(DOCS)/.installed
	$(DOCS)/bin/python docs/site/build.py

$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt $$($(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

include cluster/cluster.mk

clean:
	rm -rf build dist *.egg-info $(DEMO) .pytest_cache .mypy_cache .ruff_cache
	find $(PACKAGES) -name '*.nb[ic]' -delete
