#!/usr/bin/env bash
# From a fresh machine to a passed test suite, on the CPU:  bash launch/test.sh [pytest arguments]
# Paths in the arguments are relative to the repository. The tests run even if the linter complains; both must pass.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

lint=0
"$PYTHON" -m ruff check --output-format concise . || lint=$?
"$PYTHON" -m pytest "$@"
exit "$lint"
