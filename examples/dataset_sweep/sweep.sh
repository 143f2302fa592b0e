#!/bin/sh
# One experiment for each dataset from which psi is learned.
set -e
git add --all && git commit --quiet --message "State before the sweep" || true
dvc exp run --queue --set-param "pretrain.intent.dataset=${1:-arbitrary,arbitrary-third,arbitrary-tenth}" report
dvc exp run --run-all --jobs "${JOBS:-1}"
dvc exp show --no-pager --hide-workspace --precision 3 --sort-by top_ailot.return_mean \
    --drop '.*' --keep '.*pretrain\.intent\.dataset|.*_ailot\.(return_mean|success_rate)'
