#!/usr/bin/env bash
# Runs a training on a Cloud TPU slice (TPU VMs, queued resources): starts one command on every worker, and restarts it
# after preemptions.
#
#   launch/tpu/pod.sh create --name N --zone Z --type T    requests the slice and waits until it is ACTIVE
#   launch/tpu/pod.sh install ...                          installs HEAD of this checkout and the pinned packages
#   launch/tpu/pod.sh exec ... -- COMMAND                  runs a command on all workers and shows its output
#   launch/tpu/pod.sh run ... -- COMMAND                   starts a command on all workers in the background
#   launch/tpu/pod.sh watch ... -- COMMAND                 creates the slice, installs and runs; after a preemption it
#                                                          creates the slice again and restarts the command, which
#                                                          resumes; ends when the command is done
#   launch/tpu/pod.sh status ...                           shows the state of slice and workers
#   launch/tpu/pod.sh logs ...                             fetches the output of the workers
#   launch/tpu/pod.sh stop ...                             sends SIGTERM to the command, which saves a checkpoint
#   launch/tpu/pod.sh delete ...                           deletes the slice; only this ends its cost
#
# Flags, as --flag VALUE or --flag=VALUE, or in a file given as --settings FILE, with one "flag=VALUE" per line:
#   --name NAME        name of the queued resource and its nodes
#   --zone ZONE        zone; `gcloud compute tpus accelerator-types list --zone=ZONE` lists its types
#   --type TYPE        accelerator type: v4-32, v5litepod-16, v5p-32, v6e-16, ...
#   --project PROJECT  project; default: that of gcloud
#   --runtime VERSION  version of the VM image; default: the one for the type
#   --slices N         number of slices, connected by the data-centre network (default 1)
#   --tier TIER        price tier: spot, on-demand (default) or reserved
#   --bucket BUCKET    Cloud Storage bucket, mounted at ~/bucket on all workers; put --workdir inside it
#   --poll SECONDS     time between two checks of the state of the slice (default 60)
#   --failures N       failures of the command or the request until `watch` stops (default 3)
#   --lines N          lines of each worker's output that `logs` fetches (default 1000)
#   --iap              connect through Identity-Aware Proxy, for workers without external addresses
#   --yes              `delete` does not ask for confirmation
#   --dry-run          prints all commands and runs none
#
# Costs
# - All chips of a slice cost from ACTIVE until the slice is deleted, busy or idle. Waiting in the queue costs nothing.
# - spot is the cheapest tier and can be preempted at any time: use `watch`, and a low train.checkpoint_every.
#   on-demand stays until you delete it. reserved uses a reservation that the project has already bought.
# - Each TPU generation, region and tier has its own quota. Without quota the request fails.
# - The number in a type is TensorCores for v4 and v5p (v5p-32: 16 chips), chips for v5litepod and v6e.
#   `python -m launch.compile` shows without a TPU which slice a config fits on.
# - Keep the bucket in the region of the slice: reads across regions are slow and billed. Enable hierarchical namespace:
#   a checkpoint is completed by renaming a folder, which is then atomic.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
REMOTE=magi_jax # the project's folder in the home of every worker

name='' zone='' type='' project='' runtime='' slices=1 tier=on-demand bucket=''
poll=60 failures=3 lines=1000 iap=false yes=false dry_run=false
command=()

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

fail() {
  echo "error: $*" >&2
  exit 1
}

log() { echo "$(date '+%F %T') $*"; }

# quote WORD...: prints the words as one line, quoted for a shell.
quote() {
  local word line=''
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word="'${word//\'/\'\\\'\'}'"; fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command, or prints it with --dry-run.
execute() {
  if $dry_run; then quote "$@" >&3; else "$@" 3>&-; fi
}

set_flag() {
  case "$1" in
    name | zone | type | project | runtime | tier | bucket) printf -v "$1" %s "$2" ;;
    slices | poll | failures | lines)
      [[ $2 =~ ^[0-9]+$ ]] || fail "--$1 $2 is not a whole number: give digits only"
      printf -v "$1" %s "$2"
      ;;
    settings) read_settings "$2" ;;
    *) fail "unknown flag --$1: see --help" ;;
  esac
}

read_settings() {
  local line
  [[ -r $1 ]] || fail "settings file $1 does not exist or is not readable: check --settings"
  while IFS= read -r line || [[ -n $line ]]; do
    case "$line" in
      '' | '#'*) ;;
      iap | yes) printf -v "$line" true ;;
      *=*) set_flag "${line%%=*}" "${line#*=}" ;;
      *) fail "$1: '$line' is not flag=VALUE: see --help" ;;
    esac
  done <"$1"
}

read_flags() {
  local flag
  while (($#)); do
    case "$1" in
      --)
        shift
        command=("$@")
        return
        ;;
      --dry-run) dry_run=true ;;
      --iap) iap=true ;;
      --yes) yes=true ;;
      --help) usage && exit ;;
      --*=*)
        flag="${1%%=*}"
        set_flag "${flag#--}" "${1#*=}"
        ;;
      --*)
        (($# > 1)) || fail "$1 needs a value: see --help"
        set_flag "${1#--}" "$2"
        shift
        ;;
      *) fail "'$1' is not a flag: put the command after --" ;;
    esac
    shift
  done
}

# tpus GROUP ARGUMENTS...: runs gcloud in the zone and project of the flags.
tpus() { execute gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}; }

# connect ssh|scp ARGUMENTS...: connects to every worker of every slice.
connect() {
  local flags=(--node=all --worker=all)
  if $iap; then flags+=(--tunnel-through-iap); fi
  tpus queued-resources "$@" "${flags[@]}"
}

# on_workers SUBCOMMAND...: runs worker.sh with this subcommand on every worker.
on_workers() { connect ssh "$name" "--command=$(quote bash "$REMOTE/launch/tpu/worker.sh" "$@")"; }

nodes() {
  local number
  if ((slices == 1)); then echo "$name"; fi
  for ((number = 0; slices > 1 && number < slices; number++)); do echo "$name-$number"; done
}

# Prints the state of the queued resource, or of a node that is not READY if the resource is ACTIVE. The state can also
# be MISSING or UNREACHABLE.
pod_state() {
  local state node
  state="$(describe queued-resources "$name" 'value(state.state)')"
  if [[ $state == ACTIVE || $dry_run == true ]]; then
    for node in $(nodes); do
      node="$(describe tpu-vm "$node" 'value(state)')"
      if [[ $node == MISSING ]]; then node=PREEMPTED; fi # its queued resource still exists
      if [[ $node != READY ]]; then state="$node"; fi
    done
  fi
  if $dry_run; then state=ACTIVE; fi
  echo "$state"
}

describe() {
  local answer
  if answer="$(tpus "$1" describe "$2" "--format=$3" 2>&1)"; then
    tail -n 1 <<<"$answer"
  elif [[ $answer == *NOT_FOUND* || $answer == *'not found'* ]]; then
    echo MISSING
  else
    echo "$answer" >&2
    echo UNREACHABLE
  fi
}

runtime_of_type() {
  case "$type" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "no runtime version is known for --type '$type': give --runtime" ;;
  esac
}

request() {
  local flags=("--accelerator-type=$type" "--runtime-version=$runtime")
  if ((slices == 1)); then flags+=("--node-id=$name"); else flags+=("--node-count=$slices" "--node-prefix=$name"); fi
  case "$tier" in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
  esac
  tpus queued-resources create "$name" "${flags[@]}"
}

create() {
  local state=MISSING
  if ! $dry_run; then state="$(pod_state)"; fi
  if [[ $state == MISSING ]]; then request || return; fi
  while true; do
    state="$(pod_state)"
    log "$name: $state"
    case "$state" in
      ACTIVE) return ;;
      MISSING | FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED) return 1 ;;
    esac
    sleep "$poll"
  done
}

# Each step returns on failure by itself: set -e has no effect in a function whose status is tested.
install() {
  local archive="$ROOT/runs/pod/$name.tar.gz" unpack
  if [[ -n $(git -C "$ROOT" status --porcelain) ]]; then
    log 'warning: uncommitted changes are not installed, the workers get HEAD'
  fi
  execute mkdir -p "$ROOT/runs/pod" || return
  execute git -C "$ROOT" archive --format=tar.gz "--output=$archive" HEAD || return
  connect scp "$archive" "$name:$REMOTE.tar.gz" || return
  # Remove files that only an older HEAD had; keep runs/ and .venv.
  unpack="mkdir -p $REMOTE && cd $REMOTE && rm -rf magi_jax launch configs tests && tar -xzf ../$REMOTE.tar.gz"
  connect ssh "$name" "--command=$unpack && $(quote bash launch/tpu/worker.sh install ${bucket:+"$bucket"})"
}

need_command() { ((${#command[@]})) || fail 'the command is missing: put it after --'; }

run() { on_workers start "${command[@]}"; }

# Prints one line "worker: STATE" for each worker; the state is "not installed" before the installation.
workers() {
  local script="$REMOTE/launch/tpu/worker.sh"
  connect ssh "$name" "--command=if [ -e $script ]; then bash $script status; else echo 'worker: not installed'; fi"
}

logs() {
  local folder="$ROOT/runs/pod/$name" script
  execute mkdir -p "$folder"
  script="$(quote bash "$REMOTE/launch/tpu/worker.sh" tail "$lines")"
  connect ssh "$name" "--command=$script" "--output-directory=$folder"
  log "output of the workers: $folder"
}

delete() {
  local quiet=()
  if $yes || [[ ${1:-} == --quiet ]]; then quiet=(--quiet); fi
  tpus queued-resources delete "$name" --force "${quiet[@]}"
}

recreate() {
  if [[ $1 != MISSING ]]; then delete --quiet || return; fi
  create && install && run
}

# Counts a failure in `failed`, and exits after too many of them.
count_failure() {
  failed=$((failed + 1))
  log "failure $failed of $failures: $1"
  ((failed < failures)) || fail "$failures failures: see '$0 logs', fix the cause, then run watch again"
}

# Checks the slice once and does the next step; returns 0 when the command is done.
check_once() {
  local state states
  state="$(pod_state)"
  case "$state" in
    ACTIVE) ;;
    MISSING | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED | FAILED)
      log "$name: $state; requesting it again"
      if [[ $state == FAILED ]]; then count_failure 'the request for the slice failed'; fi
      recreate "$state" || log 'creating the slice failed; trying again'
      return 1
      ;;
    *)
      log "$name: $state"
      return 1
      ;;
  esac
  if ! states="$(workers)"; then
    log 'the workers are unreachable'
    return 1
  fi
  states="$(grep -o 'worker: .*' <<<"$states" | sort | uniq -c || true)"
  log "${states//$'\n'/,}"
  case "$states" in
    *running*) return 1 ;; # also if some have exited: the others notice it and exit too
    *'not installed'*) install || return 1 ;;
    *idle*) ;;
    *)
      if ! grep -qv 'exited 0$' <<<"$states"; then return 0; fi
      if grep -qvE 'exited (0|143)$' <<<"$states"; then count_failure 'the command failed'; fi
      ;;
  esac
  run || log 'starting the command failed; trying again'
  return 1
}

watch() {
  failed=0
  until check_once; do sleep "$poll"; done
  log 'done: every worker exited with status 0. The slice still costs money: delete it'
}

# Prints the commands that follow a preemption, for --dry-run.
print_watch_commands() {
  pod_state >/dev/null
  workers
  recreate SUSPENDED
}

main() {
  local action="${1:---help}"
  if (($#)); then shift; fi
  if [[ $action == --help || $action == help ]]; then usage && exit; fi
  read_flags "$@"
  exec 3>&1
  [[ -n $name && -n $zone ]] || fail '--name or --zone is missing: give both, see --help'
  [[ $tier =~ ^(spot|on-demand|reserved)$ ]] || fail "--tier $tier is unknown: choose spot, on-demand or reserved"
  ((slices > 0)) || fail '--slices is 0: give at least 1'
  if [[ $action == create || $action == watch ]]; then
    [[ -n $type ]] || fail "--type is missing: $action needs it"
    runtime="${runtime:-$(runtime_of_type)}"
  fi
  if $dry_run; then log() { echo "# $*" >&3; }; fi
  case "$action" in
    create) create || fail "the slice was not created: run '$0 delete' before the next try" ;;
    install) install ;;
    exec) need_command && on_workers exec "${command[@]}" ;;
    run) need_command && run ;;
    watch) need_command && if $dry_run; then print_watch_commands; else watch; fi ;;
    status)
      log "$name: $(pod_state)"
      workers
      ;;
    logs) logs ;;
    stop) on_workers stop ;;
    delete) delete ;;
    *) fail "unknown subcommand $action: see --help" ;;
  esac
}

main "$@"
