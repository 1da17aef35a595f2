# shellcheck shell=bash
# Creates .venv with the packages of requirements.txt and this project. Other scripts source this file. It sets
#   ROOT    the repository
#   PYTHON  the interpreter of .venv
# The project is installed in place (editable), so .venv's Python finds magi_jax from any folder and sees every change.
# A complete installation stores its inputs in .venv (see describe_environment). Without them .venv is created again. If
# they differ, the new versions are installed over the old ones. A .venv that is a symbolic link is used unchanged.
# Root rights are not needed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

# Prints the first interpreter that can create a virtual environment. A name on PATH may be broken or lack ensurepip.
find_python() {
  local name
  for name in python3.12 python3.11 python3; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "error: no Python >= 3.11 with venv found: install it with 'sudo apt-get install python3.11-venv'," \
    "or without root with uv (https://docs.astral.sh/uv): 'uv python install 3.12'" >&2
  return 1
}

# show_seconds TEXT PID: updates "TEXT N s" every second on a terminal, until PID exits or this job is killed.
show_seconds() {
  local began=$SECONDS
  while kill -0 "$2" 2>/dev/null; do
    printf '\r%s %d s ' "$1" "$((SECONDS - began))"
    sleep 1
  done
}

# run_quietly TEXT COMMAND...: redirects the output of a command to .venv/install.log, and shows its end on failure.
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
    echo "error: installation failed after $((SECONDS - began)) s: see $ROOT/.venv/install.log" >&2
    return "$status"
  fi
  echo "$text done in $((SECONDS - began)) s"
}

# Prints the inputs of .venv. The path is one of them, because the project is installed in place.
describe_environment() {
  echo "# $ROOT"
  cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml"
}

# Installs the pinned packages, then the project. The second step needs no network, because setuptools is pinned too.
install_all() {
  local pip=("$PYTHON" -m pip --disable-pip-version-check --no-input install)
  # --no-compile takes half the time. Python compiles modules at their first import, and few are imported.
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

# Huge pages for XLA's buffers make a training step on the CPU 1.8 times faster. Other versions of glibc ignore this.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
