#!/usr/bin/env bash
# Installs everything, trains both models and generates videos, in 20 minutes on 2 CPU cores: bash launch/quickstart.sh
# All results are in runs/quickstart/. The same command resumes an interrupted run and keeps finished parts.
# "bash launch/quickstart.sh runlocal" runs the same in a minute, with tiny models, in runs/quickstart_runlocal/.
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
  echo "3/3  the report is up to date: $out/report.html"
  exit
fi
echo '3/3  continue unseen videos and evaluate them'
sizes=()
if [[ $variant == *runlocal* ]]; then
  sizes=(--clips 6 --frames 8)
  if [[ $variant != *digits* ]]; then sizes+=(--long_clips 6 --long_frames 12); fi
fi
"$PYTHON" -m launch.evaluate --workdir "$out/magi" --autoencoder "$out/autoencoder" --out "$out" \
  --made_by "bash launch/quickstart.sh${variant:+ $variant}" "${sizes[@]}"
echo "done: the trained models are in $out, the generated videos in $out/report.html"
