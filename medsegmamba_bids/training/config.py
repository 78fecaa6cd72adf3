"""The training configuration: frozen records read from a TOML file, unknown keys refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A training configuration that cannot be used."""


@dataclass(frozen=True)
class Source:
    """Label maps for synthesis: a path or pattern, relative to the configuration's ``data_dir``."""

    labels: str
    weight: float = 1.0
    image: str = ""
    stripped: bool = False


@dataclass(frozen=True)
class Stage:
    """Some steps at one patch and voxel size; the rate falls from the first to the second as half a cosine."""

    steps: int
    patch_size: int
    voxel_size: tuple[float, float]
    rate: tuple[float, float]
    synthesis: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SynthesisConfig:
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

    @property
    def digest(self) -> str:
        """Checksum of what decides the result; a checkpoint of another configuration is refused."""
        fields = dataclasses.asdict(self)
        for free in ("workers", "save_every", "log_every"):
            fields.pop(free)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _build(kind: type, fields: dict[str, Any], where: str) -> Any:
    """A record from a table of the file; says which key is unknown or missing."""
    names = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise ConfigError(f"{where}: unknown keys {unknown}; allowed are {sorted(names)}")
    missing = [n for n, f in names.items() if n not in fields and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{where}: the keys {missing} are missing")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def read_synthesis_config(path: Path) -> SynthesisConfig:
    """Reads a TOML file with ``[[sources]]`` and ``[[stages]]``; raises ``ConfigError``."""
    try:
        fields = tomllib.loads(Path(path).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for key, kind in (("sources", Source), ("stages", Stage)):
        fields[key] = tuple(
            _build(kind, entry, f"{path}, [[{key}]] number {i + 1}") for i, entry in enumerate(fields.get(key, ()))
        )
        if not fields[key]:
            raise ConfigError(f"{path}: needs at least one [[{key}]] table")
    return _build(SynthesisConfig, fields, str(path))
