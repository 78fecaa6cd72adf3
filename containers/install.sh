#!/bin/sh
# Install the package into /opt/medsegmamba: the steps that Dockerfile and Singularity.def share.
#
# usage, in the folder of the sources:  sh containers/install.sh cuda|cpu
#
# Needs python3 with venv; for cuda also Python's headers, a C++ compiler and nvcc.
# PIP_ARGS: more options of pip, such as --extra-index-url, --find-links or --cert.
# MAX_JOBS: compilers at once (default 4; each may take several GB).
set -eu

variant=${1:?usage: sh containers/install.sh cuda|cpu}
prefix=/opt/medsegmamba

pin() {
    sed -n "s/^$1==\([^; ]*\).*/\1/p" constraints.txt | head -n 1
}

install() {
    # shellcheck disable=SC2086 # several options
    "$prefix/bin/pip" install --no-cache-dir --no-compile --constraint constraints.txt ${PIP_ARGS:-} "$@"
}

case $variant in
    cpu | cuda) ;;
    *)
        echo "the variant is '$variant'; allowed are cuda, cpu" >&2
        exit 1
        ;;
esac
python3 -m venv "$prefix"
case $variant in
    cpu)
        # Only the CPU build bears this name, so that the CUDA build of several GB can never come instead.
        install setuptools "torch==$(pin torch)+cpu" || {
            echo "torch $(pin torch)+cpu was not found: name the index of PyTorch's CPU builds in PIP_ARGS" >&2
            echo "(--extra-index-url ..., see 'Get started' on pytorch.org), or a folder with --find-links" >&2
            exit 1
        }
        ;;
    cuda)
        install "torch==$(pin torch)" einops ninja packaging setuptools transformers wheel
        export CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE
        export MAX_JOBS="${MAX_JOBS:-4}"
        install --no-build-isolation --no-deps causal-conv1d mamba-ssm
        # "import mamba_ssm" works without the extension that matters.
        "$prefix/bin/python" -c "import torch, selective_scan_cuda"
        ;;
esac
# With the setuptools that is installed, not with one that pip would fetch for the purpose.
install --no-build-isolation '.[train]'
"$prefix/bin/pip" check || [ "$variant" = cuda ]  # mamba-ssm asks for more than is used
"$prefix/bin/medsegmamba-weights" verify embedded-aseg3 embedded-hippocampus4
