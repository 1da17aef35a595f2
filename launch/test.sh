#!/usr/bin/env bash
# Installs everything, and runs linter, type checker and tests on the CPU: bash launch/test.sh [pytest arguments]
# Tests that take minutes are skipped by default. -m slow runs only these, and -m '' runs all tests.
# Paths in the arguments are relative to the repository. The tests also run if linter or type checker fail; all must pass.
# All tests of a file run in one process, so their programs are compiled once. -n 0 uses a single process for all files.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

# The TPU compiler for this version of jax, which the tests of launch.compile need. It has a separate folder, because jax
# prints warnings in every command if it finds the compiler without a TPU. Without the compiler these tests are skipped.
compiler="$ROOT/.venv/tpu_compiler"
if [[ ! -e $compiler/installed ]]; then
  version="$("$PYTHON" -c 'import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("jax") if "libtpu" in r))')"
  if run_quietly "Installing the TPU compiler for the tests (about 700 MB) ..." \
    "$PYTHON" -m pip install --disable-pip-version-check --no-input --no-deps --target "$compiler" --upgrade "$version"; then
    touch "$compiler/installed"
  else
    echo "warning: continuing without the TPU compiler, its tests are skipped" >&2
  fi
fi
export PYTHONPATH="$compiler${PYTHONPATH:+:$PYTHONPATH}"

lint=0
"$PYTHON" -m ruff check --output-format concise . || lint=$?
"$PYTHON" -m mypy --no-error-summary || lint=$?
"$PYTHON" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
exit "$lint"
