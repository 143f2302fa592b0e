#!/usr/bin/env bash
# Throughput on a CUDA machine, in pieces that end within eight minutes each:
#
#     benchmarks/gpu.sh [output folder] [piece ...]
#
# Needs Python with PyTorch and Lightning. Peers, MuJoCo and WebDataset are measured where they are installed. Before a captured
# update is timed, the training has seen that it does what plain updates do, or the table says why it was not captured.
# SCALE=0.01 REPEATS=1 is a dry run, also on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
shift || true
pieces=("$@")
if [ ${#pieces[@]} -eq 0 ]; then pieces=(iql icvf metric sac replicas transport rest); fi
python=${PYTHON:-python3}
mkdir -p "$out" build/path/dynarep
for package in pipeline stages data configs; do ln -sfn "$PWD/$package" "build/path/dynarep/$package"; done
ln -sfn "$PWD/pipeline/root/__init__.py" build/path/dynarep/__init__.py
export PYTHONPATH="$PWD/build/path:$PWD${PYTHONPATH:+:$PYTHONPATH}"

failed=0
measure() {  # <piece> <regular expression of groups>
  echo "== $1"
  timeout 480 "$python" -m benchmarks.throughput --only "$2" --no-memory \
    --scale "${SCALE:-1}" --repeats "${REPEATS:-3}" --output "$out/$1.json" || { echo "$1: failed"; failed=1; }
}
for piece in "${pieces[@]}"; do
  case $piece in
    iql) measure iql '^IQL, 256' ;;
    icvf) measure icvf '^ICVF' ;;
    metric) measure metric '^Temporal metric' ;;
    sac) measure sac '^SAC' ;;
    replicas) measure replicas '^IQL by|^Labels by|^Batches by' ;;
    transport) measure transport 'Sinkhorn|^Labels, episodes' ;;
    rest) measure rest '^Loop|^Hopper|^Reading|^Batches of' ;;
    *) echo "$piece: unknown, expected some of iql icvf metric sac replicas transport rest"; failed=1 ;;
  esac
done
exit $failed
