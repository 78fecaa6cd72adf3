"""The training configuration: frozen records read from a TOML or YAML file, unknown keys refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, of_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("float32", "bfloat16")
#: Decide how fast a training runs and how its result is described, not what it is.
FREE_KEYS = ("workers", "save_every", "log_every", "weights")
#: Keys that came later: they count only where they are set, so that older checkpoints stay valid.
LATER_SOURCE_KEYS = ("subfield_atlas",)


@dataclass(frozen=True)
class WeightsTable:
    """``[weights]``: what the weights file says of itself; see ``weights.info`` for the keys.

    ``half`` stores the tensors in half precision. ``unweighted`` takes back that much (0 none, 1 all) of how the
    class weights of a training on synthesised images favour their classes; see ``training.export.unweigh``.
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
    origin: str = ""
    licence: str = ""
    training_data: str = ""
    half: bool = True
    unweighted: float = 0.0


@dataclass(frozen=True)
class Source:
    """Label maps for synthesis: a path or pattern, relative to the configuration's ``data_dir``.

    Attributes
    ----------
    labels : str
    weight : float, how often one of these maps is drawn
    image : str, a real image of the head, or ``mni152``
    stripped : bool, whether that image is skull-stripped
    subfield_atlas : image and names (JSON) of the hippocampal subfields to paint into labels 17 and 53
    """

    labels: str
    weight: float = 1.0
    image: str = ""
    stripped: bool = False
    subfield_atlas: tuple[str, ...] = ()


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
    """Training on images synthesised from label maps."""

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
    log_every: int = 50
    weights: WeightsTable | None = None

    @property
    def table(self) -> str:
        """Name of the label table: that of the tissue table."""
        return self.tissues

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
_SCALARS = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "dict[str, Any]": (dict,)}
_AT_LEAST_ONE = ("steps", "epochs", "batch_size", "patches_per_axis", "save_every", "log_every", "restart_epochs")


def find_config(path_or_name: str | Path) -> Path:
    """The file that a user means: a path, or the name of a configuration of the package.

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
    """Reads either kind of configuration; one with ``[[sources]]`` is for synthesis."""
    fields = _read_fields(path)
    return _synthesis_config(fields, path) if "sources" in fields else _pairs_config(fields, path)


def read_synthesis_config(path: Path) -> SynthesisConfig:
    """Reads a TOML file with ``[[sources]]`` and ``[[stages]]``; raises ``ConfigError``."""
    return _synthesis_config(_read_fields(path), path)


def read_pairs_config(path: Path) -> PairsConfig:
    """Reads the configuration of a training on pairs; raises ``ConfigError``."""
    return _pairs_config(_read_fields(path), path)


def _read_fields(path: Path) -> dict[str, Any]:
    path = Path(path)
    try:
        text = path.read_text()
        fields = _from_yaml(text, path) if path.suffix in (".yaml", ".yml") else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: holds no keys with values")
    return fields


def _from_yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(f"{path}: reading YAML needs PyYAML (pip install medsegmamba_bids[train])") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


def _synthesis_config(fields: dict[str, Any], path: Path) -> SynthesisConfig:
    for key, kind in (("sources", Source), ("stages", Stage)):
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


def _build(kind: type, fields: dict[str, Any], where: str) -> Any:
    """A record from a table of the file; says which key is unknown, missing or of a wrong type."""
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: must be a table of keys, not {fields!r}")
    names = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise ConfigError(f"{where}: unknown keys {unknown}; allowed are {sorted(names)}")
    missing = [n for n, f in names.items() if n not in fields and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{where}: the keys {missing} are missing")
    for key, value in fields.items():
        _check_value(key, value, str(names[key].type), where)
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _check_value(key: str, value: Any, kind: str, where: str) -> None:
    allowed = (list, tuple) if kind.startswith("tuple") else _SCALARS.get(kind)
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
        raise ConfigError(f"{where}: {key} is {value!r}, which is not {kind}")
    if kind == "tuple[float, float]" and (len(value) != 2 or not all(isinstance(v, (int, float)) for v in value)):
        raise ConfigError(f"{where}: {key} is {value!r}; two numbers are needed")
    if key in _AT_LEAST_ONE and value < 1:
        raise ConfigError(f"{where}: {key} is {value}; it must be 1 or more")
