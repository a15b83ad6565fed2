# `make study` runs the pipeline, and `make test` runs all checks. Both set up the environment first.

ifeq ($(OS),Windows_NT)
BIN := $(CURDIR)/.venv/Scripts
else
BIN := $(CURDIR)/.venv/bin
endif
export PATH := $(BIN):$(PATH)
# Without bytecode, each start of dvc takes seconds longer.
unexport PYTHONDONTWRITEBYTECODE

READY := .venv/ready

.PHONY: help setup study select pictures networks studies cluster backends test lint table results change record lock-gate docs reliability \
  machines benchmark lock clean

help:  ## List these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/'

setup: $(READY)  ## Create .venv; install Fashion-MNIST from the Debian package if available
	@sh scripts/install_data.sh

$(READY): requirements.txt scripts/uv.txt scripts/environment.sh scripts/plots_page.py pyproject.toml
	@sh scripts/environment.sh
	@touch $@

# Quote a variable as one word of the shell, even if it has spaces, quotes, $ or *.
quoted = '$(subst ','\'',$(value $1))'
option = $(if $(value $2),--$1=$(call quoted,$2) )
REQUIRE_GIT = git rev-parse --git-dir >/dev/null 2>&1 || { echo "headstart: this folder is not a git repository,\
 which DVC needs: run git init, or run python -m stages instead of DVC" >&2; exit 1; }

study: setup  ## Run the pipeline (dvc repro) for the study selected in params.yaml
	@$(REQUIRE_GIT)
	@python -m headstart.params
	dvc repro
	@python -m scripts.table

STUDY :=
FOLDER :=
NAME :=
SKIP :=
GROUP_BY :=
MINUTES :=

select: setup  ## Select a study, with the configurations of its record: make select STUDY=labels
	@python -m scripts.select_study $(STUDY)

pictures: setup  ## Run a study of your own images: make pictures FOLDER=~/flowers [MINUTES=N] [GROUP_BY=prefix] [SKIP=1]
	@$(REQUIRE_GIT)
	@python -m scripts.pictures $(call option,name,NAME)$(call option,minutes,MINUTES)$(call option,group-by,GROUP_BY)$(if \
	  $(SKIP),--skip-unusable )-- $(if $(value FOLDER),$(call quoted,FOLDER))
	@python -m scripts.run_study
	@python -m scripts.table

NETWORKS :=
FROM_TIMM :=
MAX_NETWORKS :=
FINETUNE :=
RUN := 1

networks: setup  ## Compare pretrained networks: make networks FOLDER=~/flowers [NETWORKS="resnet50 …"] [FINETUNE=3]
	@$(REQUIRE_GIT)
	@python -m scripts.networks $(call option,networks,NETWORKS)$(call option,from-timm,FROM_TIMM)$(call \
	  option,max-networks,MAX_NETWORKS)$(call option,study,STUDY)$(call option,name,NAME)$(call option,minutes,MINUTES)$(call \
	  option,group-by,GROUP_BY)$(call option,finetune,FINETUNE)$(if $(SKIP),--skip-unusable )-- $(if \
	  $(value FOLDER),$(call quoted,FOLDER))
	@$(if $(filter 0,$(RUN)),,python -m scripts.run_networks $(call option,finetune,FINETUNE))

NAMES :=

studies: setup  ## Run several studies, and compare them on one page: make studies NAMES="quick labels vtab-dtd"
	@$(REQUIRE_GIT)
	@python -m scripts.run_studies $(NAMES)

ENGINE :=
TARGETS :=
# ENGINE is the old name of BACKEND.
BACKEND := $(ENGINE)
BACKENDS := .venv/backends

backends: setup $(BACKENDS)  ## Install the Python packages of `make cluster`: for SLURM, Ray, SSH and S3

$(BACKENDS): cluster/requirements.txt $(READY)
	@uv pip install --quiet --python '$(BIN)/python' --require-hashes --requirement cluster/requirements.txt
	@touch $@

cluster: backends  ## Run the study on many GPUs or machines (settings: cluster.yaml): make cluster BACKEND=ray|slurm [TARGETS=probe_network]
	@python -m cluster $(BACKEND) $(TARGETS)
	@$(if $(TARGETS),,python -m scripts.table)

lint: setup  ## Run ruff and mypy
	ruff check .
	ruff format --check .
	mypy

TESTS :=

test: lint  ## Run all checks: ruff, mypy, pytest. For less: make test TESTS='-m "not slow"'
	@sh scripts/install_browser.sh
	@sh scripts/install_test_images.sh
	OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TESTS)

table: setup  ## Print the results of the selected study, with the differences from main
	@python -m scripts.table

results: setup  ## Compare all studies and DVC experiments
	@COLUMNS=120 python -m scripts.studies
	dvc metrics show
	COLUMNS=120 dvc exp show --drop '.*' --keep 'Experiment|best|effect|labels_saved|study$$' --no-pager

docs: setup  ## Update the tables of results in README.md and docs/results.md
	@python -m scripts.doc_tables

BASE := main
HEAD := HEAD

change: setup  ## Print a Markdown report that compares the results of HEAD with those of BASE: make change BASE=main
	@python -m scripts.change $(BASE) $(HEAD) $(if $(FIGURES_URL),--figures-url $(FIGURES_URL))

OPTIONS :=

record: setup  ## Write metrics/<study>/record.json (provenance of the results): make record STUDY=full
	@python -m scripts.record $(STUDY) $(OPTIONS)

lock-gate: setup  ## Check that dvc.lock and committed results match the code and params.yaml
	@python -m scripts.lock_gate

reliability: setup  ## Test that killed runs resume: kill a small study twenty times, share a DVC cache, compare the results
	python -m tests.kill_resume 20
	python -m tests.shared_cache

KILLS := 20

machines: backends  ## Kill nodes and processes while a small study runs on SLURM and on Ray: make machines KILLS=20
	sh scripts/install_cluster.sh
	python -m tests.kill_nodes slurm $(KILLS)
	python -m tests.kill_nodes ray $(KILLS)

benchmark: setup  ## Benchmark against a plain and a tuned training loop: make benchmark STUDY=full OPTIONS='--plain-epochs 1'
	dvc repro --quiet download
	python -m benchmarks.speed $(if $(STUDY),--study $(STUDY)) $(OPTIONS)

COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --quiet \
  pyproject.toml

lock: $(READY)  ## Recompile requirements.txt and cluster/requirements.txt from pyproject.toml, with versions and hashes
	$(COMPILE) --extra pipeline --extra export --extra test --output-file requirements.txt
	$(COMPILE) --extra pipeline --extra slurm --extra ray --extra ssh --extra s3 --constraint requirements.txt \
	  --output-file cluster/requirements.txt

clean:  ## Remove the environment, the outputs, and DVC's cache (unless a branch versions images with `dvc add`)
	rm -rf .venv .cluster audit checkpoints exports data/downloads data/raw data/prepared data/initial data/features models networks predictions probes \
	  report runs scores dvc_plots .dvc/tmp
	ls data/pictures/*.dvc >/dev/null 2>&1 || git log --all --format=%h -1 -- 'data/pictures/*.dvc' | grep -q '' || \
	  rm -rf .dvc/cache
