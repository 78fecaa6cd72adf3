"""The training configuration: frozen records read from a TOML or YAML file, unknown keys refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.records import build, read_mapping
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, of_table

PRECISIONS = ("float32", "bfloat16")
#: Decide how fast a training runs and how its result is described, not what it is.
FREE_KEYS = ("workers", "save_every", "save_minutes", "log_every", "weights")
#: Keys that came later: they count only where they are set, so that older checkpoints stay valid.
LATER_SOURCE_KEYS = ("subfield_atlas", "subfield_volumes", "subfield_spread", "subfield_share")


@dataclass(frozen=True)
class WeightsTable:
    """``[weights]``: what the weights file says of itself; see ``weights.info`` for the keys.

    ``half`` stores the tensors in half precision. ``unweighted`` takes back that much (0 none, 1 all) of how the
    class weights of a training on synthesised images favour their classes. ``favour`` adds to the log odds of
    structures, by their names without a side: sizes can be met with it; see ``training.export.shift_log_odds``.
    """

    name: str
    task: str = ASEG.task
    voxel_size: float = 1.0
    patch_size: int = 96
    step: int = 48
    skull_stripped: bool = False
    intensity: str = "conformed"
    gaussian: bool = False
    mirror: bool = False
    mirror_voxel_size: float | None = None
    deep_voxel_size: float | None = None
    deep_patch_size: int = 96
    follow_aseg: float = 0.0
    follow_intensities: float = 0.0
    origin: str = ""
    licence: str = ""
    training_data: str = ""
    half: bool = True
    unweighted: float = 0.0
    favour: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Label maps for synthesis: a path or pattern, relative to the configuration's ``data_dir``.

    Attributes
    ----------
    labels : str
    weight : float, how often one of these maps is drawn
    image : str, a real image of the head, or ``mni152``; what ``*`` stands for in ``labels``, it stands for here
    stripped : bool, whether that image is skull-stripped
    subfield_atlas : image and names (JSON) of the hippocampal subfields to paint into labels 17 and 53
    subfield_volumes : bool, whether borders are moved to the proportions published for adults
    subfield_spread : float, how much the subfields' shares differ between the maps (logarithm's standard deviation)
    subfield_share : float, how much of labels 17 and 53 is subfields, whose borders then follow the image; 0: all of it
    """

    labels: str
    weight: float = 1.0
    image: str = ""
    stripped: bool = False
    subfield_atlas: tuple[str, ...] = ()
    subfield_volumes: bool = False
    subfield_spread: float = 0.0
    subfield_share: float = 0.0


@dataclass(frozen=True)
class Stage:
    """Some steps at one patch and voxel size; the rate falls from the first to the second as half a cosine."""

    steps: int
    patch_size: int
    voxel_size: tuple[float, float]
    rate: tuple[float, float]
    synthesis: dict[str, Any] = field(default_factory=dict)


class _Config:
    """What the configurations of both kinds of training can do."""

    @property
    def subfields(self) -> bool:
        """Whether it trains on hippocampal subfields."""
        return of_table(self.table) is HIPPOCAMPUS

    @property
    def digest(self) -> str:
        """Checksum of what decides the result; a checkpoint of another configuration is refused."""
        fields = dataclasses.asdict(self)
        for free in FREE_KEYS:
            fields.pop(free, None)
        for source in fields.get("sources", ()):
            for key in LATER_SOURCE_KEYS:
                if not source[key]:
                    source.pop(key)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SynthesisConfig(_Config):
    """Training on images synthesised from label maps.

    ``save_every`` steps lie between checkpoints, and at most ``save_minutes`` (0: any time).
    """

    name: str
    tissues: str
    network: dict[str, Any]
    sources: tuple[Source, ...]
    stages: tuple[Stage, ...]
    network_name: str = "medsegmamba"
    atlas: str = ""
    initial: str = ""
    seed: int = 0
    batch_size: int = 2
    weight_decay: float = 1e-3
    clip: float = 1.0
    ema: float = 0.997
    precision: str = "bfloat16"
    dice: float = 1.0
    cross_entropy: float = 1.0
    workers: int = 1
    save_every: int = 200
    save_minutes: float = 0.0
    log_every: int = 50
    weights: WeightsTable | None = None

    @property
    def table(self) -> str:
        """Name of the label table: that of the tissue table."""
        return self.tissues

    def varied(self, initial: str | None = None, leave_out: Sequence[str] = ()) -> SynthesisConfig:
        """Return the same training from other initial weights, or without some of its sources.

        Parameters
        ----------
        initial : str, optional
            A weights file, or the name of weights.
        leave_out : sequence of str
            ``labels`` of the sources that are left out, as in cross-validation.

        Raises
        ------
        ConfigError
            There is no such source, or none would be left.
        """
        named = [source.labels for source in self.sources]
        if unknown := [labels for labels in leave_out if labels not in named]:
            raise ConfigError(f"configuration {self.name}: no source has the labels {unknown}; there are {named}")
        sources = tuple(source for source in self.sources if source.labels not in leave_out)
        if not sources:
            raise ConfigError(f"configuration {self.name}: nothing to train on is left without {list(leave_out)}")
        return dataclasses.replace(self, sources=sources, initial=initial or self.initial)

    @property
    def patch_size(self) -> int:
        """Patch size of the finished network: that of the last stage."""
        return self.stages[-1].patch_size


@dataclass(frozen=True)
class PairsConfig(_Config):
    """Training on images with FreeSurfer's labels, as the paper describes it (section 2.4).

    The paper does not give the rates, the weights of the cross-entropy or the lengths of the cosine's periods.
    Its 15 and 63 epochs are 1 + 2 + 4 + 8 (+ 16 + 32), hence periods that double.

    Attributes
    ----------
    name : str
    table : str, label table: aseg, aseg_brain or hippoFS60
    image : str, file in ``mri/`` of a FreeSurfer subject; BIDS datasets give their T1w images
    segmentation : str, how the ``seg-`` entity of BIDS label images begins; by default the table decides
    background : tuple of int, labels that are not classes and may occur; None: those that FreeSurfer writes
    epochs, patch_size : int
    patches_per_axis : int, patches side by side (overlapping) over the brain's box; gradients add up over a scan
    entropy_epochs : int, epochs with weighted cross-entropy beside Dice
    rate, rate_low : float, learning rate at a restart and where the cosine ends
    restart_epochs, restart_factor : int, first period of the cosine and what each next one is multiplied by
    ema : float, decay of the exponential average of the weights; 0: none
    save_every : int, scans between checkpoints; there is always one at the end of an epoch
    """

    name: str
    table: str
    network: dict[str, Any]
    network_name: str = "medsegmamba"
    initial: str = ""
    image: str = "brain.mgz"
    segmentation: str = ""
    background: tuple[int, ...] | None = None
    epochs: int = 15
    patch_size: int = 96
    patches_per_axis: int = 3
    entropy_epochs: int = 1
    rate: float = 1e-3
    rate_low: float = 0.0
    restart_epochs: int = 1
    restart_factor: int = 2
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "float32"
    seed: int = 0
    workers: int = 1
    save_every: int = 100
    weights: WeightsTable | None = None


Config = SynthesisConfig | PairsConfig
_AT_LEAST_ONE = ("steps", "epochs", "batch_size", "patches_per_axis", "save_every", "log_every", "restart_epochs")


def find_config(path_or_name: str | Path) -> Path:
    """Return the file that a user means: a path, or the name of a configuration of the package.

    Raises
    ------
    ConfigError
        There is neither.
    """
    path, embedded = Path(path_or_name), data_path(f"training/{path_or_name}.toml")
    if path.is_file():
        return path
    if embedded.is_file():
        return embedded
    names = sorted(file.stem for file in embedded.parent.glob("*.toml"))
    raise ConfigError(f"{path}: no such file, and no configuration of the package ({', '.join(names)})")


def read_config(path: Path) -> Config:
    """Read either kind of configuration; one with ``[[sources]]`` is for synthesis."""
    fields = _read_fields(path)
    return _synthesis_config(fields, path) if "sources" in fields else _pairs_config(fields, path)


def read_synthesis_config(path: Path) -> SynthesisConfig:
    """Read a TOML file with ``[[sources]]`` and ``[[stages]]``; raises ``ConfigError``."""
    return _synthesis_config(_read_fields(path), path)


def read_pairs_config(path: Path) -> PairsConfig:
    """Read the configuration of a training on pairs; raises ``ConfigError``."""
    return _pairs_config(_read_fields(path), path)


def _read_fields(path: Path) -> dict[str, Any]:
    form = "yaml" if Path(path).suffix in (".yaml", ".yml") else "toml"
    return read_mapping(path, "a training configuration", form)


def _synthesis_config(fields: dict[str, Any], path: Path) -> SynthesisConfig:
    for key, kind in (("sources", Source), ("stages", Stage)):
        if not isinstance(fields.get(key, []), list):
            raise ConfigError(f"{path}: {key} is {fields[key]!r}; it must be [[{key}]] tables")
        fields[key] = tuple(
            _build(kind, entry, f"{path}, [[{key}]] number {i + 1}") for i, entry in enumerate(fields.get(key, ()))
        )
        if not fields[key]:
            raise ConfigError(f"{path}: needs at least one [[{key}]] table")
    return _with_weights(SynthesisConfig, fields, path)


def _pairs_config(fields: dict[str, Any], path: Path) -> PairsConfig:
    return _with_weights(PairsConfig, fields, path)


def _with_weights(kind: type, fields: dict[str, Any], path: Path) -> Any:
    if "weights" in fields:
        fields["weights"] = _build(WeightsTable, fields["weights"], f"{path}, [weights]")
    config = _build(kind, fields, str(path))
    if config.precision not in PRECISIONS:
        raise ConfigError(f"{path}: precision {config.precision!r} is unknown; allowed are {', '.join(PRECISIONS)}")
    return config


def _build(kind: type, entries: Any, where: str) -> Any:
    """Return a record from a table of the file; says which key is unknown, missing, of a wrong type or too small."""
    record = build(kind, entries, where)
    for key in _AT_LEAST_ONE:
        if getattr(record, key, 1) < 1:
            raise ConfigError(f"{where}: {key} is {getattr(record, key)}; it must be 1 or more")
    return record
