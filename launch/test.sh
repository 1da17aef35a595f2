#!/usr/bin/env bash
# From a fresh machine to a passed test suite, on the CPU:  bash launch/test.sh [pytest arguments]
# Tests that take minutes are left out unless asked for: -m slow (only them) or -m '' (all).
# Paths in the arguments are relative to the repository. The tests run even if the linter complains; both must pass.
# Each core takes whole files, so that what the tests of a file share is compiled once; -n 0 runs all in one process.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

# The TPU compiler that belongs to this jax, for the tests of launch.compile. In a folder of its own: where jax finds it
# without a TPU, every command begins with warnings. Without it (no network, no disk) those tests are skipped.
compiler="$ROOT/.venv/tpu_compiler"
if [[ ! -e $compiler/installed ]]; then
  version="$("$PYTHON" -c 'import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("jax") if "libtpu" in r))')"
  if run_quietly "Installing the TPU compiler for the tests (about 700 MB) ..." \
    "$PYTHON" -m pip install --disable-pip-version-check --no-input --no-deps --target "$compiler" --upgrade "$version"; then
    touch "$compiler/installed"
  else
    echo "continuing without it" >&2
  fi
fi
export PYTHONPATH="$compiler${PYTHONPATH:+:$PYTHONPATH}"

lint=0
"$PYTHON" -m ruff check --output-format concise . || lint=$?
"$PYTHON" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
exit "$lint"
