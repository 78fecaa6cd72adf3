"""``medsegmamba-stats``: the tables of volumes from any image of FreeSurfer's labels."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegmamba_bids.cli.common import add_verbosity, check_tables, make_parser, set_up_logging, user_errors
from medsegmamba_bids.segmentations import ASEG, SEGMENTATIONS, of_name

if TYPE_CHECKING:
    from medsegmamba_bids.image.labels import LabelTable

logger = logging.getLogger(__name__)

_OWN = "MadeFrom"  # the key by which the JSON beside a table is known as this command's


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        "medsegmamba-stats",
        "Volumes and intensities of the structures of a label image by FreeSurfer's numbers: of this package, "
        "FreeSurfer, FastSurfer, SynthSeg or another tool. The table is that of the app, with a JSON file beside it.",
    )
    parser.add_argument("labels", type=Path, metavar="LABELS", help="NIfTI or MGZ; aparc+aseg is taken as aseg")
    parser.add_argument("output", type=Path, metavar="OUT.tsv", help="where the table goes; its JSON goes beside it")
    parser.add_argument(
        "--norm",
        type=Path,
        metavar="NORM",
        help="intensities on the same grid, bias field corrected, such as FreeSurfer's norm.mgz: for volumes corrected "
        "for partial volume (default: voxels are counted)",
    )
    parser.add_argument(
        "--posteriors",
        type=Path,
        metavar="FILE",
        help="probabilities of all classes of the table, 4D, on the same grid (default: none)",
    )
    parser.add_argument(
        "--table", choices=[kind.name for kind in SEGMENTATIONS], default=ASEG.name, help="whose structures are listed"
    )
    parser.add_argument(
        "--fs-stats", type=Path, metavar="OUT.stats", help="also write FreeSurfer's aseg.stats (default: not)"
    )
    parser.add_argument(
        "--sum", action="store_true", help="end with sums: whole hippocampi without the fissure, or all structures"
    )
    add_verbosity(parser)
    return parser


def write_statistics(options: argparse.Namespace) -> None:
    """Read the images, measure, write the tables."""
    import numpy as np

    from medsegmamba_bids.errors import ImageError
    from medsegmamba_bids.image.grid import Grid
    from medsegmamba_bids.image.io import load_image, load_labels
    from medsegmamba_bids.image.labels import load_label_table
    from medsegmamba_bids.stats.any_labels import describe_norm, measure_labels, with_sums
    from medsegmamba_bids.stats.tables import table_sidecar, to_aseg_stats, to_tsv

    beside = options.output.with_suffix(".json")
    check_tables([options.output, beside, options.fs_stats], [options.labels, options.norm, options.posteriors])
    _check_sidecar(beside)
    image = load_labels(options.labels)
    grid = Grid.of(image)
    table = load_label_table(of_name(options.table).listed)
    norm = None
    if options.norm:
        norm_image = load_image(options.norm)
        _check_grid(norm_image, options.norm, image, options.labels)
        norm = np.asanyarray(norm_image.dataobj)
    soft = _soft_volumes(options.posteriors, image, options, table) if options.posteriors else None
    try:
        measured = measure_labels(np.asanyarray(image.dataobj), norm, table, grid.voxel_mm3, soft)
    except ImageError as error:
        raise ImageError(f"{options.labels}: {error}") from error
    if norm is not None and (odd := describe_norm(norm, np.asanyarray(image.dataobj), measured.rows)):
        logger.warning("%s: %s", options.norm, odd)
    rows = with_sums(measured.rows, table) if options.sum else measured.rows
    _write(to_tsv(rows), options.output)
    sources = {name: str(path) for name in ("labels", "norm", "posteriors") if (path := getattr(options, name))}
    voxels = {"Description": f"Voxels of {grid.voxel_mm3:.6g} mm3 with this label", "Units": "voxel"}  # not the app's
    sidecar = table_sidecar(measured.measures, {"NVoxels": voxels, _OWN: sources}, measured.definition)
    _write(json.dumps(sidecar, indent=2) + "\n", beside)
    if options.fs_stats:
        files = {"SegVolFile": options.labels.name}
        files |= {key: options.norm.name for key in ("InVolFile", "PVVolFile") if options.norm}
        subject = options.labels.name.split(".")[0]
        text = to_aseg_stats(measured.rows, measured.measures, subject, files, grid.voxel_mm3, "medsegmamba-stats")
        _write(text, options.fs_stats)


def _check_sidecar(path: Path) -> None:
    """Refuse to replace a JSON file that this command has not written: the user has only named the table."""
    from medsegmamba_bids.errors import ImageError

    try:
        own = _OWN in json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError):
        own = False
    if not own:
        raise ImageError(
            f"{path}: is there and not of this command, which writes a JSON file of this name beside the table; "
            "name another OUT.tsv, or move that file"
        )


def _check_grid(image: Any, path: Path, labels: Any, labels_path: Path) -> None:
    from medsegmamba_bids.errors import ImageError
    from medsegmamba_bids.image.grid import Grid

    here, there = Grid.of(image), Grid.of(labels)
    if not here.same_as(there):
        raise ImageError(
            f"{path}: its grid ({_told(here)}) is not that of {labels_path} ({_told(there)}); "
            "resample one of them first, labels by nearest neighbour"
        )


def _told(grid: Any) -> str:
    shape = " x ".join(map(str, grid.shape))
    corner = ", ".join(f"{value:.1f}" for value in grid.affine[:3, 3])
    return f"{shape} voxels of {' x '.join(f'{zoom:g}' for zoom in grid.zooms.round(3))} mm, the first at {corner}"


def _soft_volumes(path: Path, image: Any, options: argparse.Namespace, table: LabelTable) -> dict[int, float]:
    """Sum the probabilities, mm3, by label; the number of classes says which table they have."""
    from medsegmamba_bids.errors import ImageError
    from medsegmamba_bids.image.grid import Grid
    from medsegmamba_bids.image.io import open_series
    from medsegmamba_bids.image.labels import load_label_table
    from medsegmamba_bids.stats.any_labels import sums_of_posteriors

    posteriors = open_series(path)
    tables = {len(known.labels): known.labels for known in map(load_label_table, of_name(options.table).tables)}
    classes = posteriors.shape[3] if len(posteriors.shape) == 4 else 0
    if classes not in tables:
        allowed = " or ".join(map(str, sorted(tables)))
        raise ImageError(f"{path}: has the shape {posteriors.shape}; probabilities of {allowed} classes are needed, 4D")
    _check_grid(posteriors, path, image, options.labels)
    try:
        sums = sums_of_posteriors(posteriors.dataobj, classes)
    except (ImageError, OSError, ValueError) as error:
        raise ImageError(f"{path}: {error}") from error
    return dict(zip(map(int, tables[classes]), sums * Grid.of(image).voxel_mm3, strict=True))


def _write(text: str, path: Path) -> None:
    from medsegmamba_bids.image.io import write_text

    write_text(path, text)
    logger.info("wrote %s", path)


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        Exit code: 0, or 1 if something was refused.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.table != ASEG.name and options.fs_stats:
        parser.error("--fs-stats is FreeSurfer's aseg.stats; it needs --table aseg")
    set_up_logging(options.verbose)
    write_statistics(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
