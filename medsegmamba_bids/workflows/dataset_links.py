"""Names of other datasets in BIDS URIs: what one means in an output folder stays, whatever later runs read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from urllib.parse import quote

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.report.run_records import read_record

RAW = "raw"  # the input dataset
MASKS = "masks"  # the folder of --brain-mask
DERIVATIVES = "derivatives"  # those of --derivatives are numbered from 1; others of the kinds above from 2


def dataset_links(config: RunConfig) -> dict[str, str]:
    """Return name -> link of all datasets that results in the output folder name: those of runs before, and of this.

    Results that stay name datasets as they were called when they were made, so that no name gets another meaning.
    Links are relative to the output folder, so that all can move together.
    """
    before = read_record(config.output_dir / "dataset_description.json").get("DatasetLinks")
    links = dict(before) if isinstance(before, dict) else {}
    for kind, path in _datasets(config):
        link = _link(path, config)
        if link not in links.values():
            links[next(name for name in _names(kind) if name not in links)] = link
    return links


def dataset_uri(folder: Path, relative: str, config: RunConfig) -> str:
    """Return the BIDS URI of a file in one of the datasets that a run reads."""
    link = _link(folder, config)
    name = next(name for name, known in dataset_links(config).items() if known == link)
    return f"bids:{name}:{relative}"


def mask_folder(template: str) -> Path:
    """Return the folder of ``--brain-mask`` down to where the first thing is replaced.

    Examples
    --------
    >>> mask_folder("/masks/all/sub-{subject}/mask.nii.gz").as_posix()
    '/masks/all'
    """
    path = Path(template).expanduser().absolute()
    return next(parent for parent in path.parents if "{" not in str(parent))


def _datasets(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """Yield what a run reads, each with the kind that its name begins with."""
    yield RAW, config.bids_dir
    for path in config.derivatives:
        yield DERIVATIVES, path
    if config.brain_mask:
        yield MASKS, mask_folder(config.brain_mask)


def _names(kind: str) -> Iterator[str]:
    if kind != DERIVATIVES:
        yield kind
    for number in count(1 if kind == DERIVATIVES else 2):
        yield f"{kind}{number}"


def _link(path: Path, config: RunConfig) -> str:
    # ".." behind a link to a folder is where that lies, hence the true paths.
    return quote(os.fsencode(os.path.relpath(path.resolve(), config.output_dir.resolve())))
