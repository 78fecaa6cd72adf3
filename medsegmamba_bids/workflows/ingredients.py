"""What the results of a T1w are made from: the record that tells later whether the same would come out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from medsegmamba_bids import __version__
from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.report.run_records import fingerprint, size_and_time
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.workflows.networks import Networks

# Of the options, those that change results; device, batch size, threads and memory do not.
_OPTIONS = ("step_size", "precision", "save_posteriors", "fs_stats", "fs_subfields", "meshes", "output_spaces")


def made_from(image: T1wImage, config: RunConfig, networks: Networks, template: Template) -> dict[str, Any]:
    """Return what a T1w's results depend on, apart from the content of the files that are read for it."""
    used = {ASEG.task: networks.aseg, HIPPOCAMPUS.task: networks.hippocampus, "brain": networks.brain}
    return {
        "Version": __version__,
        "T1w": image.relative,
        "Weights": {name: network.info.fingerprint for name, network in used.items() if network},
        "Options": {name: _as_json(getattr(config, name)) for name in _OPTIONS},
        "Template": _template(template),
    }


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@lru_cache(maxsize=8)
def _template(template: Template) -> dict[str, Any]:
    return {"Name": template.name, "Volume_mm3": template.volume, "SHA256": fingerprint(template.path).get("SHA256")}


def files_read(image: T1wImage) -> dict[str, Path]:
    """Return files that a T1w's results are made from, by name."""
    return {"T1w": image.path} | ({"mask": image.mask} if image.mask else {})


def files_now(image: T1wImage) -> dict[str, dict[str, Any]]:
    """Return path, size and time of the files that are read, to tell later whether they changed meanwhile."""
    return {name: {"Path": str(path), **size_and_time(path)} for name, path in files_read(image).items()}
