#!/bin/bash
# Puts what gpu_session.sh needs into the ignored folder runs/gpu of the checkout, for a machine without a network:
#
#   benchmarks/gpu_prepare.sh DATA [PYTHON_VERSION]
#
# DATA holds synthesis_labels/ and hippocampus/mni_aparc+aseg.nii.gz, as docs/training.md says. The MNI152 image comes from
# nilearn; wheels are those that a machine with torch, triton, numba, pandas, scipy, safetensors and pytest lacks.
# About 29 MiB; the checkout itself is 28 MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: gpu_prepare.sh DATA [PYTHON_VERSION]}; version=${2:-3.12}; python=${PYTHON:-python}
mkdir -p runs/gpu/data/hippocampus runs/gpu/wheels
cp -rL "$data/synthesis_labels" runs/gpu/data/
cp -L "$data/hippocampus/mni_aparc+aseg.nii.gz" runs/gpu/data/hippocampus/
"$python" -c "
from nilearn.datasets import load_mni152_template
load_mni152_template(resolution=1).to_filename('runs/gpu/data/mni152.nii.gz')"
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$version" -d runs/gpu/wheels \
    nibabel platformdirs tqdm importlib_resources psutil || echo "some wheels could not be had; see runs/gpu/wheels"
du -sh runs/gpu/data runs/gpu/wheels
