#!/usr/bin/env bash
# From a fresh machine to generated videos, on 2 CPU cores in about 20 minutes:  bash launch/quickstart.sh
# Everything lands in runs/quickstart/; run it again and it goes on where it stopped, or reuses what is there.
# "bash launch/quickstart.sh runlocal" takes the same way in a minute with untrained toys, into runs/quickstart_runlocal/.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"
variant="${1:-}"
out="runs/quickstart${variant:+_$variant}"

echo '1/3  autoencoder: 64x64 pixels <-> 8x8x4 latents'
"$PYTHON" -m launch.train --config "configs/quickstart_autoencoder.py:$variant" --workdir "$out/autoencoder"

echo '2/3  MAGI: the transformer and its diffusion head'
"$PYTHON" -m launch.train --config "configs/quickstart.py:$variant" --workdir "$out/magi"

if [[ $out/report.html -nt $out/magi/config.json ]]; then
  echo "3/3  nothing new: the report is $out/report.html"
  exit
fi
echo '3/3  continuations of unseen videos, measured'
sizes=()
if [[ $variant == *runlocal* ]]; then
  sizes=(--clips 6 --frames 8)
  if [[ $variant != *digits* ]]; then sizes+=(--long_clips 6 --long_frames 12); fi
fi
"$PYTHON" -m launch.evaluate --workdir "$out/magi" --autoencoder "$out/autoencoder" --out "$out" \
  --made_by "bash launch/quickstart.sh${variant:+ $variant}" "${sizes[@]}"
echo "done: trained models in $out, generated videos in $out/report.html"
