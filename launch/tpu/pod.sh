#!/usr/bin/env bash
# A training run on a Cloud TPU slice (TPU VMs, queued resources): one command on every worker, also after preemptions.
#
#   launch/tpu/pod.sh create --name N --zone Z --type T    asks for the slice and waits until it is ACTIVE
#   launch/tpu/pod.sh install ...                          this checkout's HEAD and the pinned packages on all workers
#   launch/tpu/pod.sh exec ... -- COMMAND                  runs a command on all workers and shows its output
#   launch/tpu/pod.sh run ... -- COMMAND                   starts it on all workers in the background
#   launch/tpu/pod.sh watch ... -- COMMAND                 all of the above until the command is done: creates what is
#                                                          missing, recreates after preemption, starts the same command
#                                                          again, which resumes
#   launch/tpu/pod.sh status | logs | stop ...             state of slice and workers | their output | SIGTERM (saves)
#   launch/tpu/pod.sh delete ...                           gives the slice back: only this ends its cost
#
# Flags, as --flag VALUE or --flag=VALUE, or one "flag=VALUE" a line in a file given as --settings FILE:
#   --name NAME        of the queued resource and its nodes
#   --zone ZONE        where; `gcloud compute tpus accelerator-types list --zone=ZONE` tells what it has
#   --type TYPE        v4-32, v5litepod-16, v5p-32, v6e-16, ...
#   --project PROJECT  default: gcloud's own
#   --runtime VERSION  of the VM image; default: the one for the type
#   --slices N         several slices joined by the data-centre network (default 1)
#   --tier TIER        spot, on-demand (default) or reserved
#   --bucket BUCKET    Cloud Storage bucket mounted at ~/bucket on all workers: put --workdir below it
#   --poll SECONDS     between looks at a waiting or watched slice (default 60)
#   --failures N       of the command or the request, after which `watch` gives up (default 3)
#   --lines N          of each worker's output, in `logs` (default 1000)
#   --iap              connect through Identity-Aware Proxy: workers without external addresses
#   --yes              `delete` does not ask
#   --dry-run          prints every command and runs none
#
# What decides the cost
# - A slice costs from ACTIVE until it is deleted, busy or not, all its chips; waiting in the queue costs nothing.
# - spot is the cheapest tier and may be taken away at any moment: use `watch`, and a low train.checkpoint_every.
#   on-demand is kept until you delete it. reserved uses a reservation that the project has already bought.
# - Quota is counted for each TPU generation, region and tier apart; without it the request is refused or fails.
# - The number in a type is TensorCores for v4 and v5p (v5p-32: 16 chips), chips for v5litepod and v6e.
#   `python -m launch.compile` tells without a TPU which slice a config fits on.
# - Keep the bucket in the slice's region: reading across regions is slow and is billed. With hierarchical namespace its
#   folders are renamed at once, which is how a checkpoint is completed.
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

say() { echo "$(date '+%F %T') $*"; }

# quote WORD...: as one line that a shell reads back as the same words.
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
      [[ $2 =~ ^[0-9]+$ ]] || fail "--$1 $2 is not a whole number"
      printf -v "$1" %s "$2"
      ;;
    settings) read_settings "$2" ;;
    *) fail "no flag --$1; see --help" ;;
  esac
}

read_settings() {
  local line
  [[ -r $1 ]] || fail "no settings file $1"
  while IFS= read -r line || [[ -n $line ]]; do
    case "$line" in
      '' | '#'*) ;;
      iap | yes) printf -v "$line" true ;;
      *=*) set_flag "${line%%=*}" "${line#*=}" ;;
      *) fail "$1: '$line' is not flag=VALUE" ;;
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
        (($# > 1)) || fail "$1 needs a value"
        set_flag "${1#--}" "$2"
        shift
        ;;
      *) fail "'$1' is no flag; the command goes after --" ;;
    esac
    shift
  done
}

# gcloud VERB-GROUP ARGUMENTS..., in the zone and project of the flags.
tpus() { execute gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}; }

# connect ssh|scp ARGUMENTS..., with every worker of every slice.
connect() {
  local flags=(--node=all --worker=all)
  if $iap; then flags+=(--tunnel-through-iap); fi
  tpus queued-resources "$@" "${flags[@]}"
}

# on_workers SUBCOMMAND... of worker.sh.
on_workers() { connect ssh "$name" "--command=$(quote bash "$REMOTE/launch/tpu/worker.sh" "$@")"; }

nodes() {
  local number
  if ((slices == 1)); then echo "$name"; fi
  for ((number = 0; slices > 1 && number < slices; number++)); do echo "$name-$number"; done
}

# State of the queued resource; of the first node that is not READY once it is ACTIVE; MISSING; UNREACHABLE.
pod_state() {
  local state node
  state="$(describe queued-resources "$name" 'value(state.state)')"
  if [[ $state == ACTIVE || $dry_run == true ]]; then
    for node in $(nodes); do
      node="$(describe tpu-vm "$node" 'value(state)')"
      if [[ $node == MISSING ]]; then node=PREEMPTED; fi # its queued resource is still there
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
    *) fail "no runtime version is known for --type '$type'; give --runtime" ;;
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
    say "$name: $state"
    case "$state" in
      ACTIVE) return ;;
      MISSING | FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED) return 1 ;;
    esac
    sleep "$poll"
  done
}

# Not left to set -e, which is off in functions whose status is asked for: a step that fails ends the function.
install() {
  local archive="$ROOT/runs/pod/$name.tar.gz" unpack
  if [[ -n $(git -C "$ROOT" status --porcelain) ]]; then
    say 'note: uncommitted changes stay here; the workers get HEAD'
  fi
  execute mkdir -p "$ROOT/runs/pod" || return
  execute git -C "$ROOT" archive --format=tar.gz "--output=$archive" HEAD || return
  connect scp "$archive" "$name:$REMOTE.tar.gz" || return
  # What an older HEAD had and this one has not must go; runs/ and .venv stay.
  unpack="mkdir -p $REMOTE && cd $REMOTE && rm -rf magi_jax launch configs tests && tar -xzf ../$REMOTE.tar.gz"
  connect ssh "$name" "--command=$unpack && $(quote bash launch/tpu/worker.sh install ${bucket:+"$bucket"})"
}

need_command() { ((${#command[@]})) || fail 'the command is missing: put it after --'; }

run() { on_workers start "${command[@]}"; }

# One "worker: ..." line from each worker; "worker: bare" before the installation.
workers() {
  local script="$REMOTE/launch/tpu/worker.sh"
  connect ssh "$name" "--command=if [ -e $script ]; then bash $script status; else echo 'worker: bare'; fi"
}

logs() {
  local folder="$ROOT/runs/pod/$name" script
  execute mkdir -p "$folder"
  script="$(quote bash "$REMOTE/launch/tpu/worker.sh" tail "$lines")"
  connect ssh "$name" "--command=$script" "--output-directory=$folder"
  say "output of the workers: $folder"
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

# Gives up after too many failures, else counts one more in `failed`.
count_failure() {
  failed=$((failed + 1))
  say "failure $failed of $failures: $1"
  ((failed < failures)) || fail "$failures failures; look at '$0 logs', mend the cause, then watch again"
}

# One look at the slice and what it calls for; returns 0 when the command is done.
look() {
  local state answers
  state="$(pod_state)"
  case "$state" in
    ACTIVE) ;;
    MISSING | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED | FAILED)
      say "$name: $state; asking for it again"
      if [[ $state == FAILED ]]; then count_failure 'the request could not be met'; fi
      recreate "$state" || say 'that did not work; trying again'
      return 1
      ;;
    *)
      say "$name: $state"
      return 1
      ;;
  esac
  if ! answers="$(workers)"; then
    say 'the workers cannot be reached'
    return 1
  fi
  answers="$(grep -o 'worker: .*' <<<"$answers" | sort | uniq -c || true)"
  say "${answers//$'\n'/,}"
  case "$answers" in
    *running*) return 1 ;; # also when others have ended: they see it and end, too
    *bare*) install || return 1 ;;
    *idle*) ;;
    *)
      if ! grep -qv 'exited 0$' <<<"$answers"; then return 0; fi
      if grep -qvE 'exited (0|143)$' <<<"$answers"; then count_failure 'the command failed'; fi
      ;;
  esac
  run || say 'the command could not be started; trying again'
  return 1
}

watch() {
  failed=0
  until look; do sleep "$poll"; done
  say 'done: every worker has ended with status 0. The slice still costs: delete it'
}

# What a preempted slice calls for, in order.
plan_of_watch() {
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
  [[ -n $name && -n $zone ]] || fail '--name and --zone are needed; see --help'
  [[ $tier =~ ^(spot|on-demand|reserved)$ ]] || fail "--tier $tier is not one of spot, on-demand, reserved"
  ((slices > 0)) || fail '--slices must be at least 1'
  if [[ $action == create || $action == watch ]]; then
    [[ -n $type ]] || fail "--type is needed to $action"
    runtime="${runtime:-$(runtime_of_type)}"
  fi
  if $dry_run; then say() { echo "# $*" >&3; }; fi
  case "$action" in
    create) create || fail "the slice was not given; '$0 delete' it before asking again" ;;
    install) install ;;
    exec) need_command && on_workers exec "${command[@]}" ;;
    run) need_command && run ;;
    watch) need_command && if $dry_run; then plan_of_watch; else watch; fi ;;
    status)
      say "$name: $(pod_state)"
      workers
      ;;
    logs) logs ;;
    stop) on_workers stop ;;
    delete) delete ;;
    *) fail "no subcommand $action; see --help" ;;
  esac
}

main "$@"
