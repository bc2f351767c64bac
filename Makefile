# make         set up .venv
# make demo    the digits study, from nothing to its report
# make test    all tests
# make test-fast   tests of units alone, without servers, workflows and other processes
# make test-kernels   a GPU's kernels, by Triton's interpreter on the CPU
# make test-wheel  the wheel in a bare environment, outside of the checkout: one to two minutes
# make check   lint, formatting and types
# make docs    the API reference, docs/api/index.html; fails if it would have holes
# make ui      browse the runs in MLflow
# make fuzz    mutated bundles, records, configs, checkpoints, data: ten minutes of new ones
# make soak    kills trainers at 200 random moments, and compares how the runs ended
# make bench   benchmarks; ratios measured in one run
# make samples the committed reports and their bundles anew, from the records in the bundles and this config
# make lock    renew requirements.lock from pyproject.toml
# make slurm-up, make slurm-down   a throw-away Slurm cluster on this machine, in .slurm

PYTHON ?= python3
CORES  ?= $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
PORT   ?= 5000

BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: setup demo test test-fast fuzz test-kernels test-wheel check docs ui soak bench samples lock slurm-up slurm-down clean

setup: .venv/ready

demo: .venv/ready
	@snakemake --cores $(CORES) --quiet host rules -- digits
	@echo
	@printf 'report:     %s\n' "$$PWD/results/reports/digits/index.html"
	@echo "MLflow UI:  make ui, then http://127.0.0.1:$(PORT)"

# one process more than there are cores, since many tests wait for servers and clusters
test: .venv/ready
	@OMP_NUM_THREADS=1 pytest --numprocesses $$(($(CORES) + 1)) --dist loadscope --no-loadscope-reorder $(PYTEST)

test-fast: .venv/ready
	@OMP_NUM_THREADS=1 pytest --numprocesses $(CORES) --dist loadscope -m 'not (slow or integration or faults or slurm)' --ignore tests/fuzz $(PYTEST)

fuzz: .venv/ready
	@OFQ_FUZZ=1 OMP_NUM_THREADS=1 pytest tests/fuzz --numprocesses $(CORES) --timeout 900 $(PYTEST)

test-kernels: .venv/ready
	@pip install --quiet --disable-pip-version-check --editable '.[kernels]'
	@TRITON_INTERPRET=1 pytest tests/quantization/test_kernels.py

test-wheel: .venv/ready
	@python tests/wheel.py

check: .venv/ready
	@ruff check .
	@ruff format --check .
	@snakefmt --check Snakefile workflow
	@mypy

docs: .venv/ready
	@python docs/reference.py docs/api
	@printf 'API reference:  %s\n' "$$PWD/docs/api/index.html"

ui: .venv/ready
	@ofq track ui --port $(PORT)

soak: .venv/ready
	@OMP_NUM_THREADS=1 python tests/faults/soak.py --jobs $(CORES) --json benchmarks/results/soak.json

bench: .venv/ready
	@for model in deit_tiny_patch16_224 deit_small_patch16_224 swin_tiny_patch4_window7_224; do \
	   python benchmarks/step.py --model $$model || exit; \
	 done
	@python benchmarks/agreement.py
	@python benchmarks/loader.py
	@python benchmarks/dag.py
	@python benchmarks/report.py
	@python benchmarks/recording.py
	@python benchmarks/tracking.py

# in folders like the bundle's own checkout, so that nothing of this one gets into it; the pages hold the
# figures, which are no files beside them
samples: .venv/ready
	@here=$$PWD; for file in reports/*.tar.xz; do \
	   study=$$(basename "$$file" .tar.xz); folder=$$(mktemp -d); \
	   ofq unbundle "$$file" --out "$$folder/$$study" && \
	   (cd "$$folder/$$study" && for path in $$(find config -mindepth 2 -type f); do \
	      if [ -f "$$here/$$path" ]; then cp "$$here/$$path" "$$path" || exit; fi; done) && \
	   (cd "$$folder/$$study" && ofq report "$$study" && \
	      ofq bundle "$$study" --records-only --out "$$here/$$file") && \
	   rm -rf "reports/$$study" && cp -r "$$folder/$$study/reports/$$study" reports && \
	   rm -rf "reports/$$study/figures" reports/"$$study"/*.parquet && \
	   if [ $$study = fashion ]; then \
	     cp "$$folder/fashion/reports/fashion/figures/claims.png" docs/pictures || exit; fi && \
	   if [ $$study = digits ]; then \
	     for name in accuracy oscillation_over_training; do \
	       cp "$$folder/digits/reports/digits/figures/$$name.png" docs/pictures || exit; done; fi && \
	   rm -rf "$$folder" || exit; \
	 done; \
	 folder=$$(mktemp -d) && cp -r config reports "$$folder" && \
	 sed -i 's|^reports: .*|reports: reports|' "$$folder/config/config.yaml" && \
	 (cd "$$folder" && ofq overview) && cp "$$folder/reports/index.html" reports && rm -rf "$$folder"

slurm-up slurm-down: slurm-%: .venv/ready
	@python tests/support/cluster.py $* $(SLURM)

# The environment is complete when the file exists; a changed pin makes it anew.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	@echo "setting up .venv (one to two minutes)"
	@$(PYTHON) -m venv .venv
	@pip install --quiet --disable-pip-version-check --requirement requirements.lock --editable .
	@touch $@

lock:
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install --quiet --disable-pip-version-check '.[dev]'
	@{ echo "# Every version, for reproducibility; written by 'make lock'."; \
	   .venv-lock/bin/pip freeze --exclude ofq | sed 's/+cpu$$//'; } > requirements.lock
	@rm -rf .venv-lock

clean:
	@rm -rf .venv .venv-lock .pytest_cache .mypy_cache .ruff_cache build *.egg-info
