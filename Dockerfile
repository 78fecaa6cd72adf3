# The BIDS App as an image; docs/installation.md tells how to build and run it.
#
#   docker build -t medsegmamba .                              for NVIDIA GPUs, and CPUs
#   docker build -t medsegmamba-cpu --build-arg VARIANT=cpu \
#       --build-arg PIP_ARGS="--extra-index-url INDEX" .       CPUs only; INDEX: of PyTorch's CPU builds
#
# Versions are those of constraints.txt. CUDA is that of the pinned PyTorch, which brings its own libraries;
# the compiler stays behind in the first stage.
ARG VARIANT=cuda
ARG CUDA_BUILD_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_RUN_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
ARG CPU_IMAGE=ubuntu:24.04

FROM ${CUDA_BUILD_IMAGE} AS build-cuda
FROM ${CPU_IMAGE} AS build-cpu
FROM ${CUDA_RUN_IMAGE} AS run-cuda
FROM ${CPU_IMAGE} AS run-cpu

# hadolint ignore=DL3006
FROM build-${VARIANT} AS build
ARG VARIANT
ARG PIP_ARGS=""
ARG MAX_JOBS=4
# Distributions keep one version of a package only, so that a pin would soon break.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && if [ "$VARIANT" = cuda ]; then apt-get install -y --no-install-recommends build-essential python3-dev; fi \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN sh containers/install.sh "$VARIANT"

# hadolint ignore=DL3006
FROM run-${VARIANT}
ARG VARIANT
ARG TAG=medsegmamba
# Triton, which comes with PyTorch's CUDA build, compiles its launchers where it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && if [ "$VARIANT" = cuda ]; then apt-get install -y --no-install-recommends gcc libc6-dev python3-dev; fi \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 medsegmamba
COPY --from=build /opt/medsegmamba /opt/medsegmamba
# TAG goes into the dataset_description.json of results.
ENV PATH=/opt/medsegmamba/bin:$PATH \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    MEDSEGMAMBA_CONTAINER=${TAG}
LABEL org.opencontainers.image.title="medsegmamba_bids" \
      org.opencontainers.image.description="MedSegMamba as a BIDS App" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001
# Any user may write here; without -w intermediate results go below it.
WORKDIR /tmp
ENTRYPOINT ["medsegmamba"]
CMD ["--help"]
