#!/bin/sh
# Build the CPU variant without a registry of images: for docker or podman, as a folder, and for Apptainer.
#
# usage, in the checkout:  sh tests/containers/build.sh FOLDER [image] [folder] [apptainer]
#
# Needs root and debootstrap, and for image: buildah; folder: podman; apptainer: apptainer.
# WHEELS: a folder with the wheel of PyTorch's CPU build (default: none; then PIP_ARGS must name an index).
# PIP_ARGS: more options of pip; WHEELS is seen at /mnt, so "--cert /mnt/ca.crt" is a certificate in that folder.
# DEBIAN: a mirror of Debian. APPTAINER: how apptainer is called.
set -eu

folder=${1:?usage: sh tests/containers/build.sh FOLDER [image] [folder] [apptainer]}
shift
[ $# -gt 0 ] || set -- image folder apptainer
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
wheels=${WHEELS:-$folder/wheels}
mkdir -p "$wheels"
pip_args="--find-links /mnt ${PIP_ARGS:-}"
base=localhost/medsegmamba-base
image=localhost/medsegmamba-cpu

if [ ! -d "$folder/base/usr" ]; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$folder/base" ${DEBIAN:+"$DEBIAN"}
    rm -rf "$folder/base/dev/"*  # an unprivileged user cannot copy devices
fi

for kind in "$@"; do
    case $kind in
        image)
            tar -C "$folder/base" -c . | podman import - "$base"
            buildah bud --isolation chroot --network host --volume "$wheels:/mnt:ro" \
                --build-arg VARIANT=cpu --build-arg "CPU_IMAGE=$base" \
                --build-arg "CUDA_BUILD_IMAGE=$base" --build-arg "CUDA_RUN_IMAGE=$base" \
                --build-arg "PIP_ARGS=$pip_args" --build-arg TAG=medsegmamba-cpu --tag "$image" .
            ;;
        folder)
            rm -rf "$folder/files"
            mkdir -p "$folder/files"
            container=$(podman create "$image")
            podman export "$container" | tar -C "$folder/files" -x
            podman rm "$container"
            mkdir -p "$folder/files/ch"
            podman inspect --format '{{range .Config.Env}}{{println .}}{{end}}' "$image" > "$folder/files/ch/environment"
            ;;
        apptainer)
            # Not compressed: that takes longer than all the rest.
            ${APPTAINER:-apptainer} build --force --bind "$wheels:/mnt" --mksquashfs-args "-noI -noD -noF -noX" \
                --build-arg BOOTSTRAP=localimage --build-arg VARIANT=cpu \
                --build-arg "BUILD_IMAGE=$folder/base" --build-arg "RUN_IMAGE=$folder/base" \
                --build-arg "PIP_ARGS=$pip_args" "$folder/medsegmamba-cpu.sif" Singularity.def
            ;;
        *)
            echo "'$kind' cannot be built; there are image, folder, apptainer" >&2
            exit 1
            ;;
    esac
done
echo "MEDSEGMAMBA_TEST_IMAGE=$image MEDSEGMAMBA_TEST_FOLDER=$folder/files MEDSEGMAMBA_TEST_SIF=$folder/medsegmamba-cpu.sif"
