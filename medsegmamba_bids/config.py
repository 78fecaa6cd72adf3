"""What a run is asked to do: one frozen record, passed around and written as JSON with every run."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from medsegmamba_bids import __version__
from medsegmamba_bids.devices import PRECISIONS, check_precision, device_name
from medsegmamba_bids.errors import ConfigError, reason
from medsegmamba_bids.ownership import check_output_folder
from medsegmamba_bids.records import parse_json, unknown_keys, wrong_types

LEVELS = ("participant", "group")
#: Spaces that labels are written in anyway; users of other apps name them.
OWN_SPACES = ("native", "T1w", "anat", "conform")

_TEMPLATE = re.compile(r"[A-Za-z0-9]+(:cohort-[A-Za-z0-9]+)?(:res-[A-Za-z0-9]+)?")

_PATHS = {"bids_dir", "output_dir", "work_dir", "bids_filter_file", "bids_database_dir", "use_plugin"}
_PATHS |= {"ratings", "quality_thresholds"}


def new_run_id() -> str:
    """Return a name for a run that no other run has, sorted by time: ``20250131-174500_1b9d6bcd``."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on, apart from the data.

    Attributes
    ----------
    bids_dir, output_dir : Path
    level : {"participant", "group"}
    participant_label, session_label, run_label : tuple of str
        Without ``sub-``, ``ses-``, ``run-``; empty for all.
    exclude_participant_label : tuple of str
        Participants that are left out.
    bids_filter_file : Path or None
        JSON whose entry ``t1w`` holds more entities to select by.
    skip_bids_validation : bool
    bids_database_dir : Path or None
    derivatives : tuple of Path
        Datasets of fMRIPrep, sMRIPrep or FreeSurfer that hold brain masks.
    brain_mask : str or None
        A mask's path, in which ``{subject}``, ``{session}`` and ``{prefix}`` are replaced.
    work_dir : Path
    clean_workdir : bool
    nprocs, omp_nthreads : int
        Processors in all, and threads of one step at most.
    mem_gb : float
        Memory that steps may plan with at once, GB.
    device : str
    batch_size : int or None
    low_memory : bool
        Take less than 2 GiB of a GPU's memory.
    use_plugin : Path or None
        JSON or YAML with ``plugin`` and ``plugin_args`` for Nipype.
    aseg_weights, hippocampus_weights : str or None
        A file or a name; None is what comes with the package. ``none`` leaves the subfields out.
    step_size : int or None
        Distance between patches in voxels; None is what the weights say.
    precision : {"float32", "bfloat16", "float16"}
    force : bool
        Also process what is finished, and from the start.
    save_posteriors, fs_stats, reports_only, write_graph : bool
    longitudinal : bool
        Also process all sessions of a participant together.
    fs_subfields : bool
        Write the subfields also as FreeSurfer does, a file per side.
    meshes : bool
        Write a surface per structure.
    output_spaces : tuple of str
        Templates to whose space labels are brought as well.
    fetch_templates : bool
        Templates that are not there may be downloaded.
    quality_thresholds : Path or None
        JSON that replaces some of the package's thresholds of quality flags.
    ratings : Path or None
        Table of ratings of T1w images, for the group level.
    group_long, exclude_discarded, allow_mixed_weights, allow_mixed_versions : bool
        Of the group level.
    dry_run : bool
        Process and write nothing; tell what would be done.
    stop_on_first_crash : bool
        Start nothing more once a step has failed.
    resource_monitor : bool
        Write what is in use of memory and processors.
    verbose : int
    run_id : str
        Names the run's folders of logs.
    """

    bids_dir: Path
    output_dir: Path
    level: str = "participant"
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    run_label: tuple[str, ...] = ()
    exclude_participant_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    skip_bids_validation: bool = False
    bids_database_dir: Path | None = None
    derivatives: tuple[Path, ...] = ()
    brain_mask: str | None = None
    work_dir: Path = Path("work")
    clean_workdir: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float = 8.0
    device: str = "auto"
    batch_size: int | None = None
    low_memory: bool = False
    use_plugin: Path | None = None
    aseg_weights: str | None = None
    hippocampus_weights: str | None = None
    step_size: int | None = None
    precision: str = "float32"
    force: bool = False
    longitudinal: bool = False
    save_posteriors: bool = False
    fs_stats: bool = True
    fs_subfields: bool = False
    meshes: bool = False
    output_spaces: tuple[str, ...] = ()
    fetch_templates: bool = False
    reports_only: bool = False
    write_graph: bool = False
    quality_thresholds: Path | None = None
    ratings: Path | None = None
    exclude_discarded: bool = False
    group_long: bool = False
    allow_mixed_weights: bool = False
    allow_mixed_versions: bool = False
    dry_run: bool = False
    stop_on_first_crash: bool = False
    resource_monitor: bool = False
    verbose: int = 0
    run_id: str = ""

    def __post_init__(self) -> None:
        _check_types(self)
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in _PATHS and value is not None:
                value = Path(value).expanduser().absolute()
            elif entry.name == "derivatives":
                value = tuple(Path(path).expanduser().absolute() for path in value)
            elif entry.name == "device":
                value = device_name(value)
            elif entry.name == "output_spaces":
                value = _templates(value)
            elif isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, entry.name, value)
        if not self.run_id:
            object.__setattr__(self, "run_id", new_run_id())
        _check_numbers(self)

    @property
    def log_dir(self) -> Path:
        """Folder of this run's log and frozen options."""
        return self.output_dir / "logs" / self.run_id

    def participant_log_dir(self, subject: str) -> Path:
        """Return the folder of this run's files about a participant."""
        return self.output_dir / f"sub-{subject}" / "log" / self.run_id

    def to_json(self) -> str:
        """Return the JSON text that :meth:`from_json` reads; says also which version wrote it."""
        entries = {"version": __version__, **asdict(self)}
        return json.dumps(entries, indent=2, default=os.fspath) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read the JSON text that :meth:`to_json` wrote.

        Raises
        ------
        ConfigError
            The text is not JSON or holds an unknown option.
        """
        return cls(**options_from_json(text))


def options_from_json(text: str) -> dict[str, Any]:
    """Return the options in a JSON text, which need not name them all.

    Raises
    ------
    ConfigError
        The text is not a JSON object or holds an unknown option.
    """
    try:
        entries = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise ConfigError("not a JSON object of options")
    entries.pop("version", None)
    if sentence := unknown_keys(entries, [entry.name for entry in fields(RunConfig)], "options"):
        raise ConfigError(sentence)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}


_OPTIONS = {"mem_gb": "--mem", "run_label": "--run-id"} | {name: name for name in ("bids_dir", "output_dir", "level")}


def _check_types(config: RunConfig) -> None:
    """Refuse values of a wrong type: a file of options may hold anything."""
    for name, value, wanted in wrong_types(config):
        raise ConfigError(f"{_option(name)} is {value!r}; it must be {wanted}")


def _option(name: str) -> str:
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def _check_numbers(config: RunConfig) -> None:
    _check_choice("level", config.level, LEVELS)
    _check_choice("--precision", config.precision, PRECISIONS)
    check_precision(config.precision, config.device)
    for name, lowest in (("nprocs", 1), ("omp_nthreads", 1), ("batch_size", 1), ("step_size", 1)):
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise ConfigError(f"{_option(name)} is {value}; it must be {lowest} or more")
    if not config.mem_gb > 0:
        raise ConfigError(f"--mem is {config.mem_gb} GB; it must be positive")
    if config.dry_run and config.level == "group":
        raise ConfigError("--dry-run is for the participant level; the group level takes seconds")
    if config.dry_run and config.reports_only:
        raise ConfigError("--dry-run tells what would be segmented, and --reports-only segments nothing; leave one out")
    if config.omp_nthreads > config.nprocs:
        raise ConfigError(f"--omp-nthreads {config.omp_nthreads} is more than --nprocs {config.nprocs}")


def _templates(spaces: Sequence[str]) -> tuple[str, ...]:
    """Return the templates among output spaces, each once; those that are written anyway are left out."""
    named = tuple(dict.fromkeys(space for space in spaces if space not in OWN_SPACES))
    if odd := next((space for space in named if not _TEMPLATE.fullmatch(space)), None):
        raise ConfigError(
            f"--output-spaces: {odd!r} is no space; allowed are names of TemplateFlow's templates, such as "
            "MNI152NLin2009cAsym or MNI152NLin2009cAsym:res-2 (:cohort-N where a template has cohorts), and "
            f"{', '.join(OWN_SPACES)}, which are written anyway"
        )
    return named


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} is {value!r}; allowed are {', '.join(allowed)}")


def check_folders(config: RunConfig) -> None:
    """Refuse folders that would harm the data or cannot be written.

    Raises
    ------
    ConfigError
        The input is no folder; input and output are the same; the work folder lies in the input; the output
        holds results of another tool; the output or the work folder cannot be written, or its name is no text.
    """
    bids_dir, output, work = (path.resolve() for path in (config.bids_dir, config.output_dir, config.work_dir))
    if config.level == "participant" and not bids_dir.is_dir():
        raise ConfigError(f"{config.bids_dir}: no such folder; BIDS_DIR is the folder of a BIDS dataset")
    if output == bids_dir:
        raise ConfigError(
            f"{config.output_dir}: the output folder is the input folder; use another, such as "
            f"{config.bids_dir / 'derivatives' / 'medsegmamba'}"
        )
    if work == bids_dir or bids_dir in work.parents:
        raise ConfigError(f"{config.work_dir}: the work folder lies in the BIDS dataset; name another with -w")
    if config.level == "participant":
        _check_names(config.output_dir, work)
    if work == output:
        raise ConfigError(f"{config.work_dir}: the work folder is the output folder; name another with -w")
    for path in config.derivatives:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder (--derivatives)")
    check_output_folder(config.output_dir)
    if config.dry_run:
        return
    _require_writable(config.output_dir, "output")
    if config.level == "participant":
        _require_writable(config.work_dir, "work")


def is_text(path: Path) -> bool:
    r"""Return whether a path is UTF-8: Nipype, which writes down what a step reads and where, fails at any other.

    Examples
    --------
    >>> is_text(Path("mémoire")), is_text(Path(os.fsdecode(b"m\xe9moire")))
    (True, False)
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_names(output: Path, work: Path) -> None:
    """Refuse folders in which all steps would fail; ``work`` is the true path, in which steps find themselves."""
    for path, advice in ((output, "rename it, or give a link to it with another name"), (work, "name another with -w")):
        if not is_text(path):
            raise ConfigError(f"{path}: its name holds bytes that are no UTF-8; {advice}")


def _require_writable(path: Path, what: str) -> None:
    """Make a folder if need be, and write a file in it: permission bits alone do not tell."""
    trial = path / f".trial-{uuid.uuid4().hex}"  # jobs on several machines, or containers, share process numbers
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: the {what} folder cannot be written ({reason(error)})") from error
