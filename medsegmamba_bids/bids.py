"""What a BIDS dataset holds for this run. The only user of pybids; queried once, before any workflow is built."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import BIDSError

if TYPE_CHECKING:
    from bids import BIDSLayout

IMAGE_EXTENSIONS = (".nii.gz", ".nii")
_T1W = re.compile(r"^(?P<prefix>sub-[^_]+(?:_[a-zA-Z]+-[^_]+)*)_T1w(?P<extension>\..+)$")
# What pybids need not look into: it takes seconds where a dataset has many files.
_OTHER_FOLDERS = "func|dwi|fmap|perf|eeg|meg|ieeg|pet|beh|micr|nirs|motion|mrs"


@dataclass(frozen=True)
class T1wImage:
    """A T1w image to process.

    Attributes
    ----------
    path : Path
    prefix : str
        Its name without ``_T1w`` and extension; names of results start with it.
    subject : str
    session : str or None
    relative : str
        Path within the dataset.
    mask : Path or None
        A brain mask in the same space.
    notes : tuple of str
        What a user should know about it, a sentence each.
    """

    path: Path
    prefix: str
    subject: str
    session: str | None
    relative: str
    mask: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def node_name(self) -> str:
        """A name for its part of the workflow: letters, digits and underscores, unlike any other's."""
        # Underscores separate entities and cannot stand within labels, so that this is one to one.
        return "T1w_" + re.sub(r"\W", "_", self.prefix) + "_wf"


@dataclass(frozen=True)
class Inputs:
    """What a run processes, and what it leaves out.

    Attributes
    ----------
    images : list of T1wImage
        In order of participants, sessions and names.
    skipped : dict of str to str
        ``sub-X`` or the name of an image -> why it is left out.
    """

    images: list[T1wImage] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def subjects(self) -> dict[str, list[T1wImage]]:
        """Images by participant."""
        found: dict[str, list[T1wImage]] = {}
        for image in self.images:
            found.setdefault(image.subject, []).append(image)
        return found


def collect_inputs(config: RunConfig) -> Inputs:
    """Find the T1w images that the options select, and brain masks for them.

    Raises
    ------
    BIDSError
        The folder is no BIDS dataset, a participant is unknown, the filter file cannot be used, or nothing is
        left to process.
    """
    filters = _read_filters(config.bids_filter_file)
    _check_dataset(config)
    wanted = _check_participants(config)
    inputs = Inputs()
    for path in _query(config, wanted, filters):
        _sort_in(path, config, inputs)
    inputs.images.sort(key=lambda image: (image.subject, image.session or "", image.prefix))
    _drop_duplicates(inputs)
    _note_shared_masks(inputs)
    found = {image.subject for image in inputs.images} | {name.split("_")[0][4:] for name in inputs.skipped}
    for subject in wanted:
        if subject not in found:
            inputs.skipped[f"sub-{subject}"] = _why_nothing(config, subject)
    return inputs


def _check_dataset(config: RunConfig) -> None:
    description = config.bids_dir / "dataset_description.json"
    if not description.is_file() and not config.skip_bids_validation:
        raise BIDSError(
            f"{config.bids_dir}: not a BIDS dataset, it has no dataset_description.json "
            "(--skip-bids-validation does without)"
        )
    if not participants_of(config.bids_dir):
        raise BIDSError(f"{config.bids_dir}: not a BIDS dataset, it has no folder sub-*")


def participants_of(folder: Path) -> list[str]:
    """Return the labels of the folders ``sub-*``, sorted."""
    return sorted(path.name[4:] for path in folder.glob("sub-*") if path.is_dir())


def _check_participants(config: RunConfig) -> list[str]:
    there = participants_of(config.bids_dir)
    unknown = [label for label in config.participant_label if label not in there]
    if unknown:
        some = ", ".join(there[:10]) + (" …" if len(there) > 10 else "")
        raise BIDSError(f"{config.bids_dir}: no participant {', '.join(unknown)}; there are {some}")
    return sorted(set(config.participant_label)) or there


def _read_filters(path: Path | None) -> dict[str, Any]:
    """The entry ``t1w`` of a filter file, as pybids takes it."""
    if path is None:
        return {}
    try:
        entry = json.loads(path.read_text(encoding="utf-8")).get("t1w", {})
    except (OSError, ValueError, AttributeError) as error:
        raise BIDSError(f"{path}: cannot be used as --bids-filter-file: {error}") from error
    if not isinstance(entry, dict):
        raise BIDSError(f'{path}: its entry "t1w" must hold entities, such as {{"acquisition": "mprage"}}')
    entry = {key: value for key, value in entry.items() if key not in ("datatype", "suffix", "extension", "scope")}
    return {key: _special(value) for key, value in entry.items()}


def _special(value: Any) -> Any:
    from bids.layout import Query

    return {"*": Query.ANY, "Query.ANY": Query.ANY, "Query.NONE": Query.NONE, None: Query.NONE}.get(
        value if isinstance(value, (str, type(None))) else "", value
    )


def _query(config: RunConfig, subjects: list[str], filters: dict[str, Any]) -> list[Path]:
    layout = _layout(config, subjects)
    chosen: dict[str, Any] = {"suffix": "T1w", **filters, "subject": subjects}
    if config.session_label:
        chosen["session"] = list(config.session_label)
    if config.run_label:
        chosen["run"] = [int(label) if label.isdigit() else label for label in config.run_label]
    try:
        return [Path(path) for path in layout.get(return_type="filename", invalid_filters="allow", **chosen)]
    except (ValueError, TypeError, AttributeError) as error:
        raise BIDSError(f"{config.bids_dir}: cannot be searched for {chosen}: {error}") from error


def _layout(config: RunConfig, subjects: list[str]) -> BIDSLayout:
    from bids import BIDSLayout, BIDSLayoutIndexer

    database = config.bids_database_dir
    # The index is kept for other runs, so it must know all participants then.
    ignored = [re.compile(rf"/(?:{_OTHER_FOLDERS})(?:/|$)")]
    ignored += [re.compile(r"^/(?!sub-)(?:[^/]+/)"), re.compile(r"/\.")]
    if database is None and config.participant_label:
        ignored.append(re.compile(rf"^/sub-(?!(?:{'|'.join(map(re.escape, subjects))})(?:/|$))"))
    # Metadata is not needed, and one invalid JSON file anywhere would break the index.
    indexer = BIDSLayoutIndexer(validate=not config.skip_bids_validation, ignore=ignored, index_metadata=False)
    try:
        return BIDSLayout(
            config.bids_dir,
            validate=not config.skip_bids_validation,
            indexer=indexer,
            database_path=database,
            reset_database=False,
        )
    except Exception as error:  # pybids has no common class of errors
        raise BIDSError(f"{config.bids_dir}: cannot be read as a BIDS dataset: {error}") from error


def _sort_in(path: Path, config: RunConfig, inputs: Inputs) -> None:
    """Add a T1w to those that are processed or left out."""
    match = _T1W.match(path.name)
    if match is None or match["extension"] == ".json":
        return
    prefix = match["prefix"]
    if match["extension"] not in IMAGE_EXTENSIONS:
        allowed = " and ".join(IMAGE_EXTENSIONS)
        inputs.skipped[path.name] = f"its extension is {match['extension']}; BIDS allows {allowed} for T1w images"
        return
    entities = dict(part.split("-", 1) for part in prefix.split("_"))
    subject, session = entities["sub"], entities.get("ses")
    inputs.images.append(
        T1wImage(
            path=path,
            prefix=prefix,
            subject=subject,
            session=session,
            relative=path.relative_to(config.bids_dir).as_posix(),
            mask=find_mask(config, prefix, subject, session),
            notes=tuple(_sidecar_notes(path, prefix)),
        )
    )


def _sidecar_notes(path: Path, prefix: str) -> Iterable[str]:
    sidecar = path.with_name(f"{prefix}_T1w.json")
    if not sidecar.is_file():
        return
    try:
        json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{sidecar.name} is not valid JSON ({error}); it is not needed here"


def _drop_duplicates(inputs: Inputs) -> None:
    """Keep one of two files that differ in extension only, as they would write the same results."""
    seen: dict[str, T1wImage] = {}
    for image in inputs.images:
        if image.prefix in seen:
            other = seen[image.prefix].path.name
            inputs.skipped[image.path.name] = f"the same image as {other} by its name, which is processed"
        else:
            seen[image.prefix] = image
    inputs.images[:] = seen.values()


def _note_shared_masks(inputs: Inputs) -> None:
    """Say where one mask serves several images: it was made in the space of one of them, or of their average."""
    counts = Counter(image.mask for image in inputs.images if image.mask)
    for place, image in enumerate(inputs.images):
        if image.mask and counts[image.mask] > 1:
            note = f"the brain mask {image.mask} serves {counts[image.mask]} images; see that it fits this one"
            inputs.images[place] = replace(image, notes=(*image.notes, note))


def _why_nothing(config: RunConfig, subject: str) -> str:
    """Say what is there instead of a T1w."""
    folder = config.bids_dir / f"sub-{subject}"
    others = sorted({path.name for path in folder.rglob("*T1w*") if path.suffix != ".json"})
    if not others:
        return "it has no T1w image"
    some = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
    return f"none of its files is a T1w that BIDS and the options allow; there is {some}"


def find_mask(config: RunConfig, prefix: str, subject: str, session: str | None) -> Path | None:
    """Find a brain mask for a T1w: as ``--brain-mask`` says, else in the derivatives, the first that is there.

    Raises
    ------
    BIDSError
        ``--brain-mask`` names a file that is not there.
    """
    if config.brain_mask:
        return _named_mask(config.brain_mask, prefix, subject, session)
    for folder in config.derivatives:
        for candidate in _mask_candidates(folder, prefix, subject, session):
            if candidate.exists():
                return candidate
    return None


def _named_mask(template: str, prefix: str, subject: str, session: str | None) -> Path:
    try:
        path = Path(template.format(subject=subject, session=session or "", prefix=prefix)).expanduser()
    except (LookupError, ValueError, AttributeError, RuntimeError) as error:
        raise BIDSError(
            f"--brain-mask {template}: only {{subject}}, {{session}} and {{prefix}} can be replaced"
        ) from error
    if not path.is_file():
        raise BIDSError(f"{path}: no such file (--brain-mask, for {prefix})")
    return path.absolute()


def _mask_candidates(folder: Path, prefix: str, subject: str, session: str | None) -> Iterable[Path]:
    """Where fMRIPrep, sMRIPrep and FreeSurfer keep masks in the T1w's own space, best first."""
    within = f"ses-{session}/anat" if session else "anat"
    for extension in IMAGE_EXTENSIONS:
        yield folder / f"sub-{subject}" / within / f"{prefix}_desc-brain_mask{extension}"
    names = [f"sub-{subject}_ses-{session}"] if session else []
    for name in [*names, f"sub-{subject}"]:
        yield folder / name / "mri" / "brainmask.mgz"
        yield folder / "sourcedata" / "freesurfer" / name / "mri" / "brainmask.mgz"
    # fMRIPrep merges sessions into one T1w space unless there is a single one.
    for extension in IMAGE_EXTENSIONS:
        yield folder / f"sub-{subject}" / "anat" / f"sub-{subject}_desc-brain_mask{extension}"
