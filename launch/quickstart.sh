#!/usr/bin/env bash
# From a fresh machine to a generated video, on 2 CPU cores in under 20 minutes:  bash launch/quickstart.sh
# Everything lands in runs/quickstart/; run it again and it goes on where it stopped, or reuses what is there.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"
out=runs/quickstart

echo '1/3  autoencoder: 64x64 pixels <-> 8x8x4 latents'
"$PYTHON" -m launch.train --config configs/quickstart_autoencoder.py --workdir "$out/autoencoder"

echo '2/3  MAGI: the transformer and its diffusion head'
"$PYTHON" -m launch.train --config configs/quickstart.py --workdir "$out/magi"

if [[ $out/report.html -nt $out/magi/config.json ]]; then
  echo "3/3  nothing new: the report is $out/report.html"
  exit
fi
echo '3/3  continuations of unseen videos, measured'
"$PYTHON" -m launch.evaluate --workdir "$out/magi" --autoencoder "$out/autoencoder" --out "$out"
