"""``medsegmamba-segment``: label one image, without BIDS."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medsegmamba_bids.cli.common import add_verbosity, check_tables, make_parser, set_up_logging, user_errors
from medsegmamba_bids.devices import PRECISIONS

if TYPE_CHECKING:
    from medsegmamba_bids.inference.predict import Progress
    from medsegmamba_bids.inference.segmenter import InferenceSettings

logger = logging.getLogger(__name__)

SCAN_BACKENDS = ("numba", "reference", "triton", "cuda")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        "medsegmamba-segment",
        "Segment subcortical structures, and on request hippocampal subfields, in one T1-weighted image. The labels "
        "are FreeSurfer's numbers, on the image's own grid.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="NIfTI or MGZ, whole head or what the weights expect")
    parser.add_argument("output", type=Path, metavar="OUT.nii.gz", help="where the labels go (.nii, .nii.gz or .mgz)")
    _add_weights(parser)
    _add_tables(parser)
    _add_network(parser)
    add_verbosity(parser)
    return parser


def _add_weights(parser: argparse.ArgumentParser) -> None:
    package = "(default: those of the package)"
    parser.add_argument("--weights", metavar="NAME|FILE", help=f"what medsegmamba-weights lists, or a file {package}")
    parser.add_argument(
        "--hippocampus-out", type=Path, metavar="FILE", help="write the hippocampal subfields as well (default: not)"
    )
    parser.add_argument("--hippocampus-weights", metavar="NAME|FILE", help=f"weights for the subfields {package}")


def _add_tables(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tables")
    group.add_argument(
        "--volumes", type=Path, metavar="OUT.tsv", help="write volumes, a row per structure (default: not)"
    )
    group.add_argument(
        "--fs-stats", type=Path, metavar="OUT.stats", help="write FreeSurfer's aseg.stats (default: not)"
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the network runs")
    group.add_argument("--device", default="auto", help="auto (a GPU that works, else the CPU), cpu, cuda, cuda:N, mps")
    group.add_argument("--precision", choices=PRECISIONS, default="float32", help="float16 is for GPUs")
    for options, text in (
        (["--step-size"], "voxels between patches; smaller is slower (default: by the weights)"),
        (["--batch-size"], "patches at once (default: 4 on a GPU, 1 on a CPU)"),
        (["--threads", "--nthreads"], "threads on the CPU (default: as many as there are processors)"),
    ):
        group.add_argument(*options, type=_positive, metavar="N", help=text)
    window = group.add_mutually_exclusive_group()
    for option, gaussian, text in (
        ("--gaussian", True, "weight the middle of a patch more in the average (default: by the weights)"),
        ("--uniform", False, "weight all of a patch alike, as published (default: by the weights)"),
    ):
        window.add_argument(option, dest="gaussian", action="store_const", const=gaussian, default=None, help=text)
    group.add_argument(
        "--half-accumulator", action="store_true", help="average in float16: half the memory, errors of up to 0.001"
    )
    group.add_argument("--low-memory", action="store_true", help="take less than 2 GiB of a GPU's memory; slower")
    group.add_argument(
        "--scan-backend",
        choices=SCAN_BACKENDS,
        help="what computes the selective scan (default: the fastest that works)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive whole number"


def check_paths(image: Path, outputs: list[Path]) -> None:
    """Refuse, before any work, outputs that cannot be written or would replace the image or each other.

    Raises
    ------
    ImageError
        Naming the file.
    """
    from medsegmamba_bids.errors import ImageError
    from medsegmamba_bids.image.io import check_writable

    for path in outputs:
        check_writable(path)
        if path.resolve() == image.resolve():
            raise ImageError(f"{path}: is the image itself; name another file for the labels")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ImageError(f"{outputs[0]}: named for both outputs; two files are needed")


def segment(options: argparse.Namespace) -> None:
    """Read the image, segment it, write the labels."""
    from medsegmamba_bids import api
    from medsegmamba_bids.errors import SegmentationError
    from medsegmamba_bids.inference.segmenter import Segmenter

    subfields_out = options.hippocampus_out
    check_paths(options.image, [options.output] + ([subfields_out] if subfields_out else []))
    check_tables([options.volumes, options.fs_stats], [options.image, options.output, subfields_out])
    segmenter = Segmenter(_settings(options))
    segmented = api.segment(
        options.image,
        hippocampus=subfields_out is not None,
        weights=options.weights,
        hippocampus_weights=options.hippocampus_weights,
        segmenter=segmenter,
    )
    for path in segmented.save(options.output, subfields_out, options.volumes, options.fs_stats):
        logger.info("wrote %s", path)
    if subfields_out and segmented.subfields is None:
        raise SegmentationError(f"{subfields_out}: not written, no hippocampus was found in {options.image}")


def _settings(options: argparse.Namespace) -> InferenceSettings:
    from medsegmamba_bids.inference.segmenter import InferenceSettings

    return InferenceSettings(
        device=options.device,
        precision=options.precision,
        step=options.step_size,
        batch_size=options.batch_size,
        gaussian=options.gaussian,
        half_accumulator=options.half_accumulator,
        low_memory=options.low_memory,
        scan_backend=options.scan_backend,
        progress=_progress_bar(),
    )


def _progress_bar() -> Progress:
    """Return what shows the patches of each pass in a bar of its own, on terminals only."""
    from tqdm import tqdm

    bar = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, unit="patch", disable=None)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
            bar = None

    return show


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.hippocampus_weights and not options.hippocampus_out:
        parser.error("--hippocampus-weights needs --hippocampus-out, where the subfields go")
    set_up_logging(options.verbose)
    from medsegmamba_bids.inference.device import use_threads
    from medsegmamba_bids.networks.kernels.memory import keep_freed_memory

    keep_freed_memory()
    if options.threads:
        use_threads(options.threads)
    segment(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
