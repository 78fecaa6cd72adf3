"""Slurm jobs: an array with a task per participant or for some of them, and the group level after it."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from string import Template
from typing import Any

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data import data_path
from medsegmamba_bids.datasets.space_templates import home
from medsegmamba_bids.errors import ConfigError, reason
from medsegmamba_bids.interfaces.sink import write_new
from medsegmamba_bids.weights.folders import embedded_weights
from medsegmamba_bids.workflows.networks import choose_networks

# What a participant was seen to need (docs/hpc.md), with room for slower machines and larger images.
PROCESSORS = 2
MEMORY_GB = 6.0
START_MINUTES, IMAGE_MINUTES = 5, 10
GROUP_MEMORY_GB, GROUP_MINUTES = 4.0, 60
_PLANNED = 0.9  # share of a job's memory that steps plan with

# Options of sbatch that say where a job may run and who pays hold for the group level as well.
_FOR_BOTH = {"--partition", "--account", "--qos", "--reservation", "--clusters", "--export", "--wckey"}
_SHORT = {"-p": "--partition", "-A": "--account", "-q": "--qos", "-M": "--clusters", "-a": "--array"}
_OURS = {"--array", "--wrap"}
# Options of a run that belong to this submission or to the machine where it is made.
_NOT_STORED = {"bids_dir", "output_dir", "level", "participant_label", "exclude_participant_label", "run_id"}


@dataclass(frozen=True)
class Jobs:
    """What is submitted.

    Attributes
    ----------
    config : RunConfig
    chosen : frozenset of str
        Options that the user chose; the others follow from where a task runs.
    images : dict of str to int
        Participant -> number of images that are left to segment, visits that are processed together included.
    per_task : int
        Participants of a task.
    at_once : int or None
        Tasks that may run at once.
    image : Path or None
        A container's.
    options : tuple of str
        Of sbatch.
    """

    config: RunConfig
    chosen: frozenset[str]
    images: dict[str, int]
    per_task: int = 1
    at_once: int | None = None
    image: Path | None = None
    options: tuple[str, ...] = ()

    @property
    def participants(self) -> int:
        """How many there are."""
        return len(self.images)

    @property
    def tasks(self) -> list[list[str]]:
        """Participants of each task."""
        names = list(self.images)
        return [names[start : start + self.per_task] for start in range(0, len(names), self.per_task)]

    @property
    def minutes(self) -> int:
        """Time that the longest task may take."""
        most = max(sum(self.images[name] for name in task) for task in self.tasks)
        return START_MINUTES + IMAGE_MINUTES * most

    @property
    def processors(self) -> int:
        """Processors of a task."""
        return self.config.nprocs if "nprocs" in self.chosen else PROCESSORS

    @property
    def memory_gb(self) -> float:
        """Memory of a task, GB."""
        return self.config.mem_gb / _PLANNED if "mem_gb" in self.chosen else MEMORY_GB

    @property
    def folder(self) -> Path:
        """Folder of scripts and logs."""
        return self.config.output_dir / "logs" / "slurm" / self.config.run_id


def write_jobs(jobs: Jobs) -> Path:
    """Write the scripts; return the one that submits the others.

    Raises
    ------
    ConfigError
        Options of sbatch that cannot be taken, more tasks than Slurm takes, or a path that no container can see.
    """
    both = _check_options(jobs.options)
    _check_number(jobs)
    files = {name: jobs.folder / name for name in ("participants.sh", "group.sh", "submit.sh", "tasks.txt")}
    options = jobs.folder / "options.json"
    here = Path.cwd()
    tasks = len(jobs.tasks)
    common = {"here": _directive(here)}
    texts = {
        "tasks.txt": "".join(f"{' '.join(task)}\n" for task in jobs.tasks),
        "participants.sh": _fill(
            "participants.sh",
            **common,
            array=f"1-{tasks}" + (f"%{jobs.at_once}" if jobs.at_once else ""),
            processors=jobs.processors,
            memory=_megabytes(jobs.memory_gb),
            minutes=jobs.minutes,
            log=_directive(jobs.folder, "task-%a.log"),
            options=_directives(jobs.options),
            tasks=shlex.quote(str(files["tasks.txt"])),
            command=_command(jobs, "participant", options),
        ),
        "group.sh": _fill(
            "group.sh",
            **common,
            memory=_megabytes(GROUP_MEMORY_GB),
            minutes=GROUP_MINUTES,
            log=_directive(jobs.folder, "group.log"),
            options=_directives(both),
            command=_command(jobs, "group", options),
        ),
        "submit.sh": _fill(
            "submit.sh",
            participants=shlex.quote(str(files["participants.sh"])),
            group=shlex.quote(str(files["group.sh"])),
            tasks=tasks,
        ),
    }
    write_new(json.dumps(_stored(jobs), indent=2) + "\n", options)
    for name, text in texts.items():
        write_new(text, files[name])
    return files["submit.sh"]


def _fill(name: str, **values: Any) -> str:
    return Template(data_path(f"slurm/{name}").read_text(encoding="utf-8")).substitute(values)


def _megabytes(gigabytes: float) -> int:
    return math.ceil(gigabytes * 1000)


def _directive(folder: Path, name: str = "") -> str:
    """Return a path for an ``#SBATCH`` line: quoted, and its percent signs no patterns; those of ``name`` are."""
    text = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    if name:
        text = text.replace("%", "%%") + "/" + name
    return f'"{text}"'


def _directives(options: tuple[str, ...]) -> str:
    return f"#SBATCH {shlex.join(options)}" if options else ""


def _stored(jobs: Jobs) -> dict[str, Any]:
    """Return options for the tasks: what was chosen, with absolute paths."""
    names = (jobs.chosen | {"work_dir"}) - _NOT_STORED
    config = jobs.config
    options = {entry.name: getattr(config, entry.name) for entry in fields(config) if entry.name in names}
    for name in ("aseg_weights", "hippocampus_weights", "brain_mask"):
        value = options.get(name)
        if value and (name == "brain_mask" or Path(value).is_file()):
            options[name] = Path(value).expanduser().absolute()
    return json.loads(json.dumps(options, default=str))


def _check_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse options of sbatch that are made here; return those that hold for the group level as well.

    Examples
    --------
    >>> _check_options(("-p", "long", "--gres=gpu:1", "--account=lab"))
    ('-p', 'long', '--account=lab')
    """
    both: list[str] = []
    name = ""
    for option in options:
        if "\n" in option:
            raise ConfigError(f"the option {option!r} of sbatch holds a line break")
        if option.startswith("-"):
            name = option.split("=", 1)[0] if option.startswith("--") else option[:2]
            name = _SHORT.get(name, name)
        if not name:
            raise ConfigError(f"{option!r} after -- is no option of sbatch; they start with a dash")
        if name in _OURS:
            raise ConfigError(f"{name} is not for you to give: the array is made from the participants")
        if name in _FOR_BOTH:
            both.append(option)
    return tuple(both)


def _check_number(jobs: Jobs) -> None:
    """Refuse an array that is longer than Slurm allows, where Slurm is there to tell."""
    most = _largest_array()
    if most and len(jobs.tasks) > most:
        needed = math.ceil(jobs.participants / most)
        raise ConfigError(
            f"{len(jobs.tasks)} tasks are more than this cluster takes in an array ({most}); "
            f"use --per-task {needed} or more"
        )


def _largest_array() -> int:
    """Return the most tasks of an array; 0 where that is not known."""
    if shutil.which("scontrol") is None:
        return 0
    told = subprocess.run(
        ["scontrol", "show", "config"], capture_output=True, encoding="utf-8", errors="replace", check=False
    ).stdout
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", told, re.MULTILINE)
    return int(match[1]) - 1 if match else 0  # indices start at 0 there, at 1 here


def _command(jobs: Jobs, level: str, options: Path) -> str:
    config = jobs.config
    arguments = [str(config.bids_dir), str(config.output_dir), level, "--config-file", str(options)]
    if jobs.image is None:
        return shlex.join([sys.executable, "-m", "medsegmamba_bids", *arguments])
    binds = [part for bind in _binds(config) for part in ("-B", bind)]
    rest = shlex.join(["run", "--nv", *binds, str(jobs.image), *arguments])
    return f'"$(command -v apptainer || echo singularity)" {rest}'


def _binds(config: RunConfig) -> list[str]:
    """Return folders that a container must see, under their own names: what is read, then what is written."""
    templates = _templates(config)
    read = [config.bids_dir, *config.derivatives, *([] if config.fetch_templates else templates)]
    files = [config.bids_filter_file, config.use_plugin, config.quality_thresholds, config.ratings, config.brain_mask]
    files += _weights_files(config)
    read += [_folder_of(Path(file).absolute()) for file in files if file]
    written = [config.output_dir, config.work_dir, *([config.bids_database_dir] if config.bids_database_dir else [])]
    written += templates if config.fetch_templates else []
    binds = [f"{path}:{path}:ro" for path in dict.fromkeys(read)]
    binds += [f"{path}:{path}" for path in dict.fromkeys(written)]
    for path in (*read, *written):
        if set(str(path)) & set(":,"):
            raise ConfigError(f"{path}: a colon or a comma in its name keeps a container from seeing it (--image)")
    return binds


def _templates(config: RunConfig) -> list[Path]:
    """Return TemplateFlow's folder, if it is needed and there: what is not there cannot be bound."""
    if not config.output_spaces:
        return []
    try:
        if config.fetch_templates:
            home().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{home()}: templates cannot be kept there ({reason(error)}); set TEMPLATEFLOW_HOME"
        raise ConfigError(message) from error
    return [home()] if home().is_dir() else []


def _weights_files(config: RunConfig) -> list[Path]:
    """Return weights files that the options name, by path or by name; a container has those of the package."""
    networks = choose_networks(config)
    used = [network.path for network in (networks.aseg, networks.hippocampus) if network]
    return [path for path in used if path not in embedded_weights()]


def _folder_of(path: Path) -> Path:
    """Return the folder that a file lies in; of a pattern, the last one without a placeholder."""
    while "{" in str(path.parent):
        path = path.parent
    return path.parent
