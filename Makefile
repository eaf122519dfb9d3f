# The two commands a newcomer needs are `make demo` and `make test`; both set up everything they use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow check native clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# A stamp for each set of extras: pip runs again only when pyproject.toml has changed.
$(VENV)/.%-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

demo: $(VENV)/.demo-installed
	$(BIN)/python examples/demo/demo.py

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m slow

# The native library, in place: onnx_attnq/libonnx_attnq.so. Needs CMake and a C++17 compiler.
native:
	cmake -S custom_ops -B build/native
	cmake --build build/native --parallel 2
	cmake --install build/native --prefix .

# What CI runs beside the tests.
check: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .demo
