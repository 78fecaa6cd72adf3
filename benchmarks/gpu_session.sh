#!/bin/bash
# Everything that a GPU is needed for, in one command within nine minutes; each step's result is in $OUT as it ends:
#
#   benchmarks/gpu_prepare.sh DATA            once, where there is a network and the label maps
#   OUT=folder benchmarks/gpu_session.sh      on the machine with the GPU; it needs the checkout with runs/gpu alone
#
#   tests.log, backends.txt   tests/gpu: the kernels against the reference; a scan backend that fails is not used below
#   gpu.log                   benchmarks/gpu.py: the table of docs/performance.md
#   train.log, log.jsonl      training of the embedded network, from the last checkpoint, for the time that is left
#   base-aseg.safetensors     its weights, as training_state keeps them, written anew every minute
#
# --small tries it in a minute or two on a CPU: tiny sizes, whose numbers mean nothing. SECONDS_IN_ALL=540 can be set.
set -u
cd "$(dirname "$0")/.."
small=; [ "${1:-}" = --small ] && small=1
limit=${SECONDS_IN_ALL:-$([ $small ] && echo 150 || echo 540)}
python=${PYTHON:-python3}; export OUT=${OUT:-runs/gpu/out} PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
mkdir -p "$OUT"
left() { echo $((limit - SECONDS)); }
say() { echo "[${SECONDS}s] $*" | tee -a "$OUT/session.log"; }

if compgen -G "runs/gpu/wheels/*.whl" >/dev/null && ! "$python" -c "import nibabel" 2>/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --target runs/gpu/site runs/gpu/wheels/*.whl
    export PYTHONPATH=$PWD:$PWD/runs/gpu/site
fi
device=$("$python" -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")
[ "$device" = cuda ] || [ $small ] || { say "no CUDA device: nothing was done (--small tries the script on a CPU)"; exit 1; }
say "device $device, $(nproc) cores, limit $limit s"

data=runs/gpu/data
sed -e 's/^steps = .*/steps = 30000/' -e "s/^batch_size = .*/batch_size = $([ $small ] && echo 2 || echo 8)/" \
    -e "s/^save_every = .*/save_every = 1000000\nsave_minutes = 1\nworkers = $(nproc)\nlog_every = $([ $small ] && echo 1 || echo 20)/" \
    -e 's#^name = "embedded-aseg2-base"#&\ninitial = "training_state/base-aseg.safetensors"#' \
    -e 's/^image = "mni152"/image = "mni152.nii.gz"/' \
    medsegmamba_bids/data/training/embedded_aseg2_base.toml >runs/gpu/session.toml
[ $small ] && sed -i -e 's/^patch_size = .*/patch_size = 32/' -e 's/^step = 40/step = 16/' \
    -e 's/^voxel_size = \[.*/voxel_size = [2.9, 3.1]/' runs/gpu/session.toml
# Label maps are prepared by one core meanwhile, some seconds each.
[ -d $data/synthesis_labels ] && "$python" -c "
from pathlib import Path
from medsegmamba_bids.training.synthetic.sources import load_sources
from medsegmamba_bids.training.synthetic.tissues import load_tissue_table
from medsegmamba_bids.training.training_config import read_synthesis_config
config = read_synthesis_config(Path('runs/gpu/session.toml'))
load_sources(config, Path('$data'), Path('runs/gpu/training/maps'), load_tissue_table(config.tissues))
" >"$OUT/maps.log" 2>&1 &
maps=$!

# 1. The kernels against the reference. Warm-up compiles them, which later steps need too.
timeout $((limit / 4)) "$python" -m pytest -q -p no:cacheprovider tests/gpu >"$OUT/tests.log" 2>&1
say "tests/gpu ended with $?: $(tail -1 "$OUT/tests.log")"
failed() { grep -qE "^(FAILED|ERROR).*$1" "$OUT/tests.log"; }
if failed "test_scan.*triton|test_triton"; then
    if "$python" -c "import selective_scan_cuda" 2>/dev/null && ! failed "test_scan.*\[cuda"; then
        export MEDSEGMAMBA_SCAN=cuda
    else
        export MEDSEGMAMBA_SCAN=reference
    fi
fi
say "scan backend: ${MEDSEGMAMBA_SCAN:-the best that works}"; echo "${MEDSEGMAMBA_SCAN:-best}" >"$OUT/backends.txt"

# 2. The table of docs/performance.md. Each case is a line of gpu.log as it ends.
image=(); [ -f runs/gpu/data/mni152.nii.gz ] && image=(--image runs/gpu/data/mni152.nii.gz)
options=(--device "$device" "${image[@]}"); [ $small ] && options+=(--tiny --runs 1 --scans 1)
timeout $((limit * 2 / 5)) "$python" benchmarks/gpu.py "${options[@]}" >"$OUT/gpu.log" 2>&1
say "benchmarks/gpu.py ended with $?"

# 3. Training for the time that is left, with half a minute to write the weights.
if [ ! -d $data/synthesis_labels ]; then say "no training: $data is missing (benchmarks/gpu_prepare.sh)"; exit 0; fi
weights() {
    "$python" -m medsegmamba_bids.cli.train export runs/gpu/training runs/gpu/session.toml --out "$OUT/base-aseg.safetensors" \
        >>"$OUT/train.log" 2>&1 && cp runs/gpu/training/log.* "$OUT" 2>/dev/null
}
wait $maps; say "label maps prepared: $(ls runs/gpu/training/maps 2>/dev/null | wc -l)"
seconds=$(($(left) - 30)); [ $seconds -gt 20 ] || { say "no time is left for training"; exit 0; }
timeout --kill-after=15 $seconds "$python" -m medsegmamba_bids.cli.train synthetic runs/gpu/session.toml \
    --data-dir $data --out runs/gpu/training --device "$device" \
    >>"$OUT/train.log" 2>&1 &
training=$!
while sleep $([ $small ] && echo 20 || echo 60) && kill -0 $training 2>/dev/null; do weights; done
wait $training; say "training ended with $?"
weights && say "weights: $OUT/base-aseg.safetensors" || say "no checkpoint was written: see train.log"
