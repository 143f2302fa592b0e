#!/bin/sh
# One experiment for each dataset that pretrain_intent may learn from; run it in the project's root.
set -e
datasets=${1:-hopper-arbitrary,hopper-tiny}
dvc exp run --queue --set-param "pretrain_intent.dataset=$datasets" evaluate
dvc queue start --jobs "${JOBS:-1}"
while dvc queue status | grep -Eq 'Queued|Running'; do sleep 5; done
dvc queue status
dvc exp show --only-changed --drop 'deps|data/|pipeline/|stages/|artifacts/shards' --hide-workspace
