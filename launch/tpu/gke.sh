#!/usr/bin/env bash
# Runs a training on GKE: a JobSet (launch/tpu/jobset.yaml) with one pod per TPU host. All pods restart together, and the
# training resumes.
#
#   launch/tpu/gke.sh build --image IMAGE                        builds and pushes the image of launch/tpu/Dockerfile
#   launch/tpu/gke.sh render --name N --tpu v6e:4x4 ... -- COMMAND   prints the manifest
#   launch/tpu/gke.sh run    (the same flags)                    applies the manifest
#   launch/tpu/gke.sh status | logs --name N                     shows the state or the output of a run
#   launch/tpu/gke.sh delete --name N                            deletes a run; SIGTERM makes it save first
#
# Flags, as --flag VALUE or --flag=VALUE, or in a file given as --settings FILE, with one "flag=VALUE" per line:
#   --name NAME         name of the JobSet: lower-case letters, digits and dashes
#   --tpu KIND:TOPOLOGY slice, as for launch.compile: v4:2x2x4, v5e:4x4, v5p:2x2x4, v6e:16x16, ...
#   --image IMAGE       image in Artifact Registry, in the region of the cluster
#   --bucket BUCKET     Cloud Storage bucket, mounted at /bucket in every pod; put --workdir inside it
#   --slices N          number of equal slices, connected by the data-centre network (default 1)
#   --tier TIER         price tier: spot, on-demand (default) or the name of a reservation
#   --chips N           chips per host (default 4, or 1 for topology 1x1); 8 for v5e and v6e machines with 8 chips (2x4)
#   --restarts N        restarts until the run counts as failed (default 100); each preemption is one
#   --grace SECONDS     time from SIGTERM to SIGKILL (default 600)
#   --namespace NAME    Kubernetes namespace (default: default)
#   --service-account NAME   Kubernetes service account with write access to the bucket (default: default)
#   --dry-run           prints all commands and runs none
#
# The cluster must exist already. It needs one node pool per slice, with its machine type and topology, the JobSet
# controller, the Cloud Storage FUSE driver, and workload identity for the service account. `xpk cluster create` sets up
# all of this.
#
# Costs
# - Node pools cost as long as their nodes exist, with or without a run: let them scale to 0, or delete them.
# - spot nodes are the cheapest and can be preempted at any time. The JobSet then waits for new nodes and resumes.
#   Spot nodes stop seconds after the warning, even with a longer --grace: keep train.checkpoint_every low.
# - `python -m launch.compile` shows without a TPU which topology a config fits on.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

name='' tpu='' image='' bucket='' slices=1 tier=on-demand chips='' restarts=100 grace=600
namespace=default service_account=default dry_run=false
command=()

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

fail() {
  echo "error: $*" >&2
  exit 1
}

quote() {
  local word line=''
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word="'${word//\'/\'\\\'\'}'"; fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

execute() {
  if $dry_run; then quote "$@"; else "$@"; fi
}

set_flag() {
  case "$1" in
    name | tpu | image | bucket | tier | namespace | service-account)
      # The value is copied into the manifest, so it must not contain YAML syntax.
      [[ $2 =~ ^[A-Za-z0-9_./:@-]+$ ]] || fail "--$1 '$2' has invalid characters: use only letters, digits and _./:@-"
      printf -v "${1//-/_}" %s "$2"
      ;;
    slices | chips | restarts | grace)
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

need() {
  local flag
  for flag in "$@"; do [[ -n ${!flag} ]] || fail "--$flag is missing: see --help"; done
}

accelerator() {
  case "$1" in
    v4) echo tpu-v4-podslice ;;
    v5e) echo tpu-v5-lite-podslice ;;
    v5p) echo tpu-v5p-slice ;;
    v6e) echo tpu-v6e-slice ;;
    *) fail "--tpu $tpu has an unknown kind: choose v4, v5e, v5p or v6e" ;;
  esac
}

# chips_of KIND TOPOLOGY: prints the number of chips of 4x4 (v5e, v6e) or 2x2x4 (v4, v5p).
chips_of() {
  local pattern='^[0-9]+x[0-9]+$' edge product=1
  if [[ $1 == v4 || $1 == v5p ]]; then pattern='^[0-9]+x[0-9]+x[0-9]+$'; fi
  [[ $2 =~ $pattern ]] || fail "--tpu $tpu has an invalid topology: v5e and v6e need one like 4x4, v4 and v5p like 2x2x4"
  for edge in ${2//x/ }; do product=$((product * 10#$edge)); done
  echo "$product"
}

# json WORD...: prints the words as a JSON list, which is also a YAML list.
json() {
  local word list=''
  for word in "$@"; do
    word="${word//\\/\\\\}"
    word="${word//\"/\\\"}"
    word="${word//$'\n'/\\n}"
    word="${word//$'\t'/\\t}"
    word="${word//\$(/\$\$(}" # Kubernetes would expand a variable here
    list+="${list:+, }\"$word\""
  done
  printf '[%s]' "$list"
}

render() {
  local kind="${tpu%%:*}" topology="${tpu#*:}" all accelerator tier_line='' line word
  accelerator="$(accelerator "$kind")" || return
  all="$(chips_of "$kind" "$topology")" || return
  chips="${chips:-$((all < 4 ? all : 4))}"
  ((all > 0 && chips > 0 && slices > 0 && all % chips == 0)) ||
    fail "--tpu $tpu: $all chips cannot be divided over hosts of $chips: change --chips"
  ((slices == 1 || all > chips)) || fail "--tpu $tpu: slices of a single host cannot be connected: give --slices 1"
  case "$tier" in
    on-demand) ;;
    spot) tier_line='cloud.google.com/gke-spot: "true"' ;;
    *) tier_line="cloud.google.com/reservation-name: \"$tier\"" ;;
  esac
  # Replace one placeholder after the other and the command last, so that text in the command is not replaced.
  while IFS= read -r line; do
    if [[ $line == *@TIER@* && -z $tier_line ]]; then continue; fi
    for word in NAME="$name" NAMESPACE="$namespace" RESTARTS="$restarts" SLICES="$slices" HOSTS=$((all / chips)) \
      SERVICE_ACCOUNT="$service_account" GRACE="$grace" ACCELERATOR="$accelerator" TOPOLOGY="$topology" \
      TIER="$tier_line" IMAGE="$image" CHIPS="$chips" BUCKET="$bucket"; do
      line="${line//"@${word%%=*}@"/"${word#*=}"}"
    done
    if [[ $line == *@COMMAND@ ]]; then line="${line%@COMMAND@}$(json "${command[@]}")"; fi
    printf '%s\n' "$line"
  done < <(grep -v '^#' "$ROOT/launch/tpu/jobset.yaml")
}

kube() { execute kubectl "--namespace=$namespace" "$@"; }

apply() {
  local manifest="$ROOT/runs/pod/$name.yaml"
  mkdir -p "$ROOT/runs/pod"
  render >"$manifest"
  kube apply "--filename=$manifest"
}

main() {
  local action="${1:---help}"
  if (($#)); then shift; fi
  if [[ $action == --help || $action == help ]]; then usage && exit; fi
  read_flags "$@"
  case "$action" in
    build)
      need image
      execute docker build "--tag=$image" "--file=$ROOT/launch/tpu/Dockerfile" "$ROOT"
      execute docker push "$image"
      ;;
    render | run)
      need name tpu image bucket
      ((${#command[@]})) || fail 'the command is missing: put it after --'
      if [[ $action == render ]]; then render; else apply; fi
      ;;
    status)
      need name
      kube get jobset "$name"
      kube get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide
      ;;
    logs)
      need name
      kube logs "--selector=jobset.sigs.k8s.io/jobset-name=$name" --prefix --tail=1000 --max-log-requests=1000
      ;;
    delete)
      need name
      kube delete jobset "$name"
      ;;
    *) fail "unknown subcommand $action: see --help" ;;
  esac
}

main "$@"
