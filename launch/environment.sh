# shellcheck shell=bash
# Sourced by the other scripts: makes .venv with exactly requirements.txt and this project itself, and sets
#   ROOT    the repository
#   PYTHON  the interpreter of .venv
# The project is installed in place (editable): .venv's python finds magi_jax from any folder, and sees every change.
# A finished installation leaves a copy of what it was made of in .venv (see describe_environment). Without that copy .venv
# is built anew; when the copy differs, the new versions are installed over the old ones. A .venv that is a link to a folder
# elsewhere is used as it is. Needs no root.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

# Prints the first interpreter that can make a virtual environment for us (a name on PATH may be a dead shim or lack ensurepip).
find_python() {
  local name
  for name in python3.12 python3.11 python3; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "error: no Python >= 3.11 with venv found; get one with 'sudo apt-get install python3.11-venv'," \
    "or without root with uv (https://docs.astral.sh/uv): 'uv python install 3.12'" >&2
  return 1
}

# show_seconds TEXT PID: rewrites "TEXT N s" each second on a terminal, until PID is gone or this job is killed.
show_seconds() {
  local began=$SECONDS
  while kill -0 "$2" 2>/dev/null; do
    printf '\r%s %d s ' "$1" "$((SECONDS - began))"
    sleep 1
  done
}

# run_quietly TEXT COMMAND...: the command's output goes to .venv/install.log, of which the end is shown if it fails.
run_quietly() {
  local text="$1" began=$SECONDS ticker='' status=0
  shift
  if [[ -t 1 ]]; then
    show_seconds "$text" $$ &
    ticker=$!
  else
    echo "$text"
  fi
  "$@" >"$ROOT/.venv/install.log" 2>&1 || status=$?
  if [[ -n $ticker ]]; then
    kill "$ticker" 2>/dev/null
    wait "$ticker" 2>/dev/null || true
    printf '\r'
  fi
  if ((status != 0)); then
    tail -n 5 "$ROOT/.venv/install.log" >&2
    echo "error: installation failed after $((SECONDS - began)) s; the whole log: $ROOT/.venv/install.log" >&2
    return "$status"
  fi
  echo "$text done in $((SECONDS - began)) s"
}

# Prints what .venv depends on; the place too, because the project is installed in place.
describe_environment() {
  echo "# $ROOT"
  cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml"
}

# Fetches what requirements.txt pins, then needs no network: setuptools, which installs the project, is among the pins.
install_all() {
  local pip=("$PYTHON" -m pip --disable-pip-version-check --no-input install)
  # --no-compile: half the time; Python compiles the few modules that are used when they are first imported.
  "${pip[@]}" --no-compile -r "$ROOT/requirements.txt" &&
    "${pip[@]}" --no-deps --no-build-isolation --editable "$ROOT"
}

make_environment() {
  local installed="$ROOT/.venv/requirements.installed" base
  if "$PYTHON" -c '' 2>/dev/null && { [[ -L $ROOT/.venv ]] || describe_environment | cmp -s - "$installed"; }; then
    return
  fi
  if [[ ! -e $installed ]] || ! "$PYTHON" -c '' 2>/dev/null; then
    base="$(find_python)" || return
    "$base" -m venv --clear "$ROOT/.venv" || return
  fi
  rm -f "$installed"
  run_quietly "Installing requirements.txt into .venv (about 1.3 GB) ..." install_all || return
  describe_environment >"$installed.new" && mv "$installed.new" "$installed"
}

make_environment || exit 1

# Large pages for XLA's buffers: a training step on the CPU is 1.8 times faster (no effect where glibc lacks the setting).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
