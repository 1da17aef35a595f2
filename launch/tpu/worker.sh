#!/usr/bin/env bash
# launch/tpu/pod.sh runs this script on every worker of a TPU slice, in the project folder. Do not call it by hand.
#
#   worker.sh install [BUCKET]   installs Python and .venv with the tpu extra, and mounts BUCKET at ~/bucket
#   worker.sh start COMMAND...   starts a command in the background; it continues when the connection closes
#   worker.sh exec COMMAND...    runs a command in the foreground
#   worker.sh status             prints "worker: running", "worker: exited STATUS" or "worker: idle"
#   worker.sh tail LINES         prints the last lines of the command's output
#   worker.sh stop               sends SIGTERM; training then saves a checkpoint and exits
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
STATE=runs/pod # files pid, exit and log of the command
MOUNT=~/bucket

# The command and all its child processes form one process group. The file pid holds its number.
is_running() {
  [[ -s $STATE/pid ]] && kill -0 -- "-$(<"$STATE/pid")" 2>/dev/null
}

# Ubuntu 22.04, the image of TPU VMs, does not include Python >= 3.11 with venv.
install_python() {
  local name
  for name in python3.12 python3.11; do
    if "$name" -c 'import venv, ensurepip' 2>/dev/null; then return; fi
  done
  python3 -m pip install -q --user uv
  python3 -m uv python install -q 3.12
  PATH="$(dirname "$(python3 -m uv python find 3.12)"):$PATH"
}

# A TPU VM has no shared disk, but every host must see the same work folder.
mount_bucket() {
  if mountpoint -q "$MOUNT"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    local keys=/usr/share/keyrings/cloud.google.asc host=https://packages.cloud.google.com/apt
    curl -fsS "$host/doc/apt-key.gpg" | sudo tee "$keys" >/dev/null
    echo "deb [signed-by=$keys] $host gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -q
    sudo apt-get install -q -y gcsfuse
  fi
  mkdir -p "$MOUNT"
  gcsfuse --implicit-dirs "$1" "$MOUNT"
}

install() {
  if is_running; then
    echo 'error: a command is running on this worker: stop it before installing' >&2
    return 1
  fi
  install_python
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  "$PYTHON" -m pip install -q --disable-pip-version-check --no-input -e '.[tpu]' -c requirements.txt
  if (($#)); then mount_bucket "$1"; fi
}

start() {
  if is_running; then
    echo 'worker: running already'
    return
  fi
  mkdir -p "$STATE"
  rm -f "$STATE/exit"
  # The outer shell ignores SIGTERM to its group, so that it can record the exit status of the command.
  # shellcheck disable=SC2016
  setsid nohup bash -c 'trap : TERM; status=0; "$@" || status=$?; echo "$status" >"$0/exit"' "$STATE" "$@" \
    >>"$STATE/log" 2>&1 </dev/null &
  echo $! >"$STATE/pid"
  echo 'worker: started'
}

status() {
  if is_running; then
    echo 'worker: running'
  elif [[ -s $STATE/exit ]]; then
    echo "worker: exited $(<"$STATE/exit")"
  elif [[ -s $STATE/pid ]]; then
    echo 'worker: exited 137' # killed, or the machine was restarted, so no exit status was recorded
  else
    echo 'worker: idle'
  fi
}

action="${1:-}"
if (($#)); then shift; fi
case "$action" in
  install) install "$@" ;;
  start | exec)
    export PATH="$PWD/.venv/bin:$PATH"
    if [[ $action == exec ]]; then exec "$@"; fi
    start "$@"
    ;;
  status) status ;;
  tail) tail -n "${1:-100}" "$STATE/log" ;;
  stop) if is_running; then kill -TERM -- "-$(<"$STATE/pid")"; fi ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ $action == --help ]]
    ;;
esac
