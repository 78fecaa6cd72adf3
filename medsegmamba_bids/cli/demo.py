"""A demonstration: segments the MNI152 template that nilearn carries, as a BIDS App would."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from medsegmamba_bids.cli.common import make_parser, user_errors
from medsegmamba_bids.errors import ConfigError

_DESCRIPTION = {"Name": "Demonstration: the MNI152 template", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
_README = "One image: the skull-stripped ICBM 152 2009a template at 1 mm, as nilearn carries it.\n"
_PREFIX = "sub-mni152"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = make_parser(
        "python -m medsegmamba_bids.cli.demo",
        "Make a dataset of one image, the skull-stripped MNI152 template, and process it.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where dataset, results and work go")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="more options of medsegmamba, after --")
    return parser


@user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; return the exit code."""
    arguments = build_parser().parse_args(argv)
    bids, output = arguments.folder / "bids", arguments.folder / "derivatives"
    make_dataset(bids)
    from medsegmamba_bids.cli.main import main as medsegmamba

    work = ["-w", str(arguments.folder / "work")]
    code = medsegmamba([str(bids), str(output), "participant", *work, *arguments.options])
    if code == 0:
        code = medsegmamba([str(bids), str(output), "group"])
    if code == 0:
        print_results(output)
    return code


def make_dataset(folder: Path) -> None:
    """Write a BIDS dataset with the template as its only T1w."""
    from medsegmamba_bids.interfaces.sink import copy_new, write_new
    from medsegmamba_bids.stats.intracranial import nilearn_template

    description = folder / "dataset_description.json"
    if description.exists() and _DESCRIPTION["Name"] not in description.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{folder}: is a dataset already; name another folder for the demonstration")
    write_new(json.dumps(_DESCRIPTION, indent=2) + "\n", description)
    write_new(_README, folder / "README")
    copy_new(nilearn_template(), folder / _PREFIX / "anat" / f"{_PREFIX}_T1w.nii.gz")


def print_results(output: Path) -> None:
    """Print the table of volumes and where everything is."""
    from medsegmamba_bids.data.names import output_name
    from medsegmamba_bids.stats.tables import read_tsv

    for product in ("aseg_stats", "hippocampus_stats"):
        path = output / output_name(_PREFIX, product)
        if path.is_file():
            rows = read_tsv(path)[["SegId", "StructName", "NVoxels", "Volume_mm3", "MeanPosterior"]]
            print(f"\n{path.name}\n{rows.to_string(index=False, na_rep='n/a')}")
    print("\nwritten:")
    width = shutil.get_terminal_size().columns
    for name in sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file()):
        if not {"log", "logs"}.intersection(name.parts):
            print(f"  {output / name}" if len(str(output / name)) < width else f"  {name}")
    print("\nto look at, in a browser:")
    for page in (f"{_PREFIX}.html", "group.html"):
        print(f"  {output / page}")


if __name__ == "__main__":
    sys.exit(main())
