"""The label maps of a configuration, prepared once and kept in a cache folder."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
from tqdm import tqdm

from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.image.io import load_image
from medsegmamba_bids.training.synthetic.label_maps import LabelMap, TemplateAtlas, prepare_map, read_lia
from medsegmamba_bids.training.synthetic.tissues import TissueTable
from medsegmamba_bids.training.training_config import Source, SynthesisConfig

if TYPE_CHECKING:
    from medsegmamba_bids.training.synthetic.subfields import SubfieldAtlas

_VOLUMES = "synthesis/hippoFS60_volumes.tsv"
#: Raised whenever preparing a map gives something else than before.
_VERSION = 4


def load_sources(config: SynthesisConfig, data_dir: Path, cache: Path, tissues: TissueTable) -> list[LabelMap]:
    """Prepare every label map of the configuration, or read it from the cache folder.

    A cached map is used only if it was made from the same files with the same settings.

    Raises
    ------
    ConfigError
        A source matches no file.
    ImageError
        A label map cannot be used; the message names the file.
    """
    data_dir = Path(data_dir)
    files = [(source, _label_files(source, data_dir)) for source in config.sources]
    atlas = TemplateAtlas(read_lia(data_dir / config.atlas)[0]) if config.atlas else None
    maps = []
    for source, paths in files:
        subfields = _subfield_atlas(source, data_dir)
        for path in tqdm(paths, desc="label maps", disable=None):
            key = _cache_key(config, source, data_dir, path, tissues)
            stored = cache / f"{path.name.split('.')[0]}-{key[:12]}.npz"
            if not stored.exists():
                stored.parent.mkdir(parents=True, exist_ok=True)
                image = _read_image(_image_name(source, path, data_dir), data_dir)
                own = subfields and _atlas_of(path, subfields, source.subfield_spread)
                prepare_map(path, tissues, atlas=atlas, image=image, stripped=source.stripped, subfields=own).save(
                    stored
                )
            maps.append(replace(LabelMap.load(stored), weight=source.weight))
    return maps


def _label_files(source: Source, data_dir: Path) -> list[Path]:
    paths = sorted(path for path in data_dir.glob(source.labels) if not path.name.startswith("."))
    if not paths:
        raise ConfigError(f"no label map matches {data_dir / source.labels}")
    return paths


def _cache_key(config: SynthesisConfig, source: Source, data_dir: Path, path: Path, tissues: TissueTable) -> str:
    """Return the checksum of all that a prepared map depends on; files count by path, size and time of change."""
    image = _image_name(source, path, data_dir)
    files = [path, *(data_dir / name for name in (config.atlas, image, *source.subfield_atlas) if name)]
    stamps = [(str(file.resolve()), *_stamp(file)) for file in files]
    parts = (_VERSION, stamps, image, source.stripped, tissues.rows.to_csv())
    if source.subfield_atlas:
        volumes = source.subfield_volumes and data_path(_VOLUMES).read_text(encoding="utf-8")
        parts += (volumes, source.subfield_spread, source.subfield_share)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    return (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else (0, 0)


def _image_name(source: Source, path: Path, data_dir: Path) -> str:
    """Return the image of one of a source's label maps: what its ``*`` stands for in the labels, it stands for in the
    image.

    Raises
    ------
    ConfigError
        The image has a ``*``, but the labels have not exactly one.
    """
    if "*" not in source.image:
        return source.image
    before, star, after = source.labels.partition("*")
    if not star or any(sign in before + after for sign in "*?["):
        raise ConfigError(f"image {source.image!r} has a *; labels {source.labels!r} must have one * and no ? or [")
    name = path.relative_to(data_dir).as_posix()
    return source.image.replace("*", name[len(before) : len(name) - len(after)])


def _read_image(name: str, data_dir: Path) -> nib.spatialimages.SpatialImage | None:
    """Return the real image of a source: a file, or ``mni152`` for the template that nilearn carries."""
    if name == "mni152":
        from nilearn.datasets import load_mni152_template

        return load_mni152_template(resolution=1)
    return load_image(data_dir / name) if name else None


def _subfield_atlas(source: Source, data_dir: Path) -> SubfieldAtlas | None:
    if not source.subfield_atlas:
        return None
    if len(source.subfield_atlas) != 2:
        raise ConfigError(f"subfield_atlas is {list(source.subfield_atlas)}; an image and its names are needed")
    from medsegmamba_bids.training.synthetic.subfields import load_atlas, with_published_volumes

    atlas = load_atlas(*(data_dir / name for name in source.subfield_atlas), share=source.subfield_share)
    return with_published_volumes(atlas) if source.subfield_volumes else atlas


def _atlas_of(path: Path, atlas: SubfieldAtlas, spread: float) -> SubfieldAtlas:
    from medsegmamba_bids.training.synthetic.subfields import of_a_person

    return of_a_person(atlas, path.name, spread)
