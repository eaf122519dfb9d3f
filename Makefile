# The two commands a newcomer needs are `make demo` and `make test`; both set up everything they use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-pipeline mutation check docs native native-sanitize native-aarch64 native-windows wheel-check conda-check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.build-tools-installed: | $(BIN)/python
	$(BIN)/python -m pip install --quiet 'scikit-build-core>=0.10' cmake ninja
	@touch $@

# A stamp for each set of extras: pip runs again only when pyproject.toml has changed. Without build isolation, as CMake
# starts anew in each new environment: the native library is compiled once and not again for each set of extras.
$(VENV)/.%-installed: pyproject.toml | $(VENV)/.build-tools-installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[$*]'
	@touch $@

demo: $(VENV)/.demo-installed
	$(BIN)/python examples/demo/demo.py

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.test,examples-installed
	$(BIN)/python -m pytest -m slow

# Export, evaluation and deployment, of trained models: what needs torch (2 GB with what comes with it).
test-pipeline: $(VENV)/.test,examples-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'pipeline and not slow' tests

# Small wrong changes, one at a time, and whether the tests nearest to them notice. MUTATION_OF narrows it down, such as
# MUTATION_OF="onnx_attnq/scheme --sample 40": all of it takes days.
mutation: $(VENV)/.test,mutation-installed
	$(BIN)/python benchmarks/mutation.py $(MUTATION_OF)

# The native library, in place: onnx_attnq/libonnx_attnq.so. Needs CMake and a C++17 compiler.
native:
	cmake -S custom_ops -B build/native
	cmake --build build/native --parallel 2
	cmake --install build/native --prefix .

# The kernels' own test under each sanitizer, under an emulator on another architecture, and under wine as on Windows.
native-sanitize:
	for sanitizer in address undefined thread; do \
	  cmake -S custom_ops -B build/$$sanitizer -DONNX_ATTNQ_PROGRAMS=ON -DONNX_ATTNQ_SANITIZE=$$sanitizer && \
	  cmake --build build/$$sanitizer --parallel 2 && \
	  for program in build/$$sanitizer/simd_test_*; do $$program || exit 1; done && \
	  for isa in "" avx2; do ONNX_ATTNQ_ISA=$$isa build/$$sanitizer/self_test || exit 1; done; \
	done

native-aarch64:
	cmake -S custom_ops -B build/aarch64 -DONNX_ATTNQ_PROGRAMS=ON -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	cmake --build build/aarch64 --parallel 2
	qemu-aarch64-static -L /usr/aarch64-linux-gnu build/aarch64/simd_test_neon
	for isa in scalar neon; do ONNX_ATTNQ_ISA=$$isa qemu-aarch64-static -L /usr/aarch64-linux-gnu build/aarch64/self_test || exit 1; done

native-windows:
	cmake -S custom_ops -B build/windows -DONNX_ATTNQ_PROGRAMS=ON -DCMAKE_SYSTEM_NAME=Windows \
	  -DCMAKE_CXX_COMPILER=x86_64-w64-mingw32-g++-posix
	cmake --build build/windows --parallel 2
	for isa in scalar avx2; do ONNX_ATTNQ_ISA=$$isa wine build/windows/self_test.exe || exit 1; done

# The wheel as a user has it: built, named by auditwheel, installed without a compiler; and examples/ci with it.
wheel-check: $(BIN)/python
	$(BIN)/python release/check_wheel.py

# The conda recipe, built by rattler-build with the compiler and the packages of this machine, and its tests.
conda-check: $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet 'py-rattler-build>=0.73'
	$(BIN)/python release/check_conda.py

# What CI runs beside the tests.
check: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror custom_ops/*.cpp custom_ops/*.h benchmarks/*.c
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml examples/ci/.github/workflows/*.yml

# The pages, in build/docs. The examples of the tests are what the table of supported forms is made of.
docs: $(VENV)/.docs-installed
	$(BIN)/python tests/forms_page.py
	$(BIN)/sphinx-build -j 2 -W --keep-going -n -b html docs build/docs

clean:
	rm -rf $(VENV) build dist .demo
