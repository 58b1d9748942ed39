#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice. Edit the three places marked EDIT; then, on your own machine:
#
#     gcloud config set project MY_PROJECT && gcloud config set compute/zone MY_ZONE
#     ssh-add ~/.ssh/google_compute_engine
#     experiments/pods/tpu.sh
#
# It waits for the slice, installs the last commit on all its hosts, runs, and deletes the slice. A
# slice that was preempted is asked for again. After an error the slice stays, to be looked at.
set -euo pipefail
cd "$(dirname "$0")/../.."

# EDIT: how many machines
accelerator=v5litepod-256 runtime=v2-alpha-tpuv5-lite # 256 chips

# EDIT: where results go
workdir=gs://my-bucket/runs/bsdata

# EDIT: what to run
command=(
    python -m defect_jax.main
    --config=configs/bsdata_unet.py
    --config.data.root=gs://my-bucket/BSData
    --config.method.width=32
    "--config.data.image_size=(512,512)"
    --config.dtype=bfloat16
    --config.train.batch_size=1024
    --workdir="$workdir"
)

name=${NAME:-defect-jax} # of the slice; another for each run at the same time
tpus=(gcloud compute tpus)
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT

state() {
    "${tpus[@]}" queued-resources list --filter="name~/$name\$" --format='value(state.state)'
}

delete() {
    "${tpus[@]}" queued-resources delete "$name" --force --quiet
}

on_all_hosts() {
    "${tpus[@]}" tpu-vm ssh "$name" --worker=all --command="$1"
}

# Asks for the slice and waits until it is there.
get_slice() {
    local now
    while now=$(state) && [[ $now != ACTIVE ]]; do
        case $now in
            "") "${tpus[@]}" queued-resources create "$name" --node-id="$name" --spot \
                --accelerator-type="$accelerator" --runtime-version="$runtime" ;;
            SUSPENDED) delete ;; # preempted
            FAILED) echo "error: Cloud TPU refused the slice; see ${tpus[*]}" \
                "queued-resources describe $name" >&2 && return 1 ;;
            *) sleep 30 ;;
        esac
    done
}

install() {
    git archive --format=tar.gz --output="$archive" HEAD
    "${tpus[@]}" tpu-vm scp "$archive" "$name:defect_jax.tar.gz" --worker=all
    on_all_hosts "mkdir -p defect_jax && tar -xzf defect_jax.tar.gz -C defect_jax &&
        cd defect_jax && pip install -q --user uv && PATH=\$HOME/.local/bin:\$PATH &&
        uv venv -q --allow-existing --python 3.11 && uv pip install -q -e '.[tpu,gs]'"
}

# 75 says that the run was told to stop, has saved a checkpoint and goes on where it was when it is
# started again. Any status may come of a slice that is no longer there.
status=75
while ((status == 75)) || [[ $(state) != ACTIVE ]]; do
    get_slice
    install
    status=0
    on_all_hosts "cd defect_jax && source .venv/bin/activate &&
        exec $(printf '%q ' "${command[@]}")" || status=$?
    ((status)) || break
done
((status)) || delete
exit "$status"
