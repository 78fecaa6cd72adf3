"""What a BIDS dataset holds for this run, looked up once, before any workflow is built.

Names and folders say what an image is; pybids, which reads entities from the absolute path, makes the index of
``--bids-database-dir`` and nothing else. No other module uses it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsegmamba_bids.config import RunConfig, is_text
from medsegmamba_bids.data.names import as_identifier
from medsegmamba_bids.datasets.bids_files import (
    IMAGE_EXTENSIONS,
    OTHER_FOLDERS,
    BIDSFile,
    BIDSFolder,
    image_type,
    is_bids,
    why_unsuited,
)
from medsegmamba_bids.datasets.scan_names import listed
from medsegmamba_bids.datasets.selection import Selection, numbered, read_selection
from medsegmamba_bids.errors import BIDSError, reason

if TYPE_CHECKING:
    from bids import BIDSLayout

logger = logging.getLogger(__name__)

_IGNORED = "listed in .bidsignore"
_FREESURFER_MASK = "brainmask.mgz"
_NOT_BIDS = "BIDS does not allow this name or folder (--skip-bids-validation does)"


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
        return f"T1w_{as_identifier(self.prefix)}_wf"


@dataclass(frozen=True)
class Inputs:
    """What a run processes, and what it does not.

    Attributes
    ----------
    images : list of T1wImage
        In order of participants, sessions and names.
    skipped : dict of str to str
        ``sub-X`` or the name of an image that should be processed, but cannot be -> why.
    left_out : dict of str to str
        Path within the dataset of what is no T1w image to process -> why; it counts as no failure.
    """

    images: list[T1wImage] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def subjects(self) -> dict[str, list[T1wImage]]:
        """Return images by participant."""
        images: dict[str, list[T1wImage]] = {}
        for image in self.images:
            images.setdefault(image.subject, []).append(image)
        return images


def collect_inputs(config: RunConfig) -> Inputs:
    """Find the T1w images that the options select, and brain masks for them.

    Raises
    ------
    BIDSError
        The folder is no BIDS dataset, a participant is unknown, the filter file or ``--brain-mask`` cannot be used, or
        the index is of another dataset.
    """
    selection = read_selection(config.bids_filter_file).replaced(
        sub=config.participant_label, ses=config.session_label, run=numbered(config.run_label)
    )
    _check_dataset(config)
    dataset = BIDSFolder(config.bids_dir)
    wanted = _check_participants(dataset, config)
    search = _Search(config, dataset, selection, _Index(config) if config.bids_database_dir else None)
    inputs = Inputs()
    for subject in wanted:
        part = search.participant(subject)
        inputs.images.extend(part.images)
        inputs.skipped.update(part.skipped)
        inputs.left_out.update(part.left_out)
    if not config.participant_label:
        _name_odd_folders(dataset, inputs)
    inputs.images.sort(key=lambda image: (image.subject, image.session or "", image.prefix))
    _drop_duplicates(inputs)
    _note_masks_of_others(inputs, config)
    _tell_left_out(inputs, config)
    _tell_no_visits(inputs, config)
    return inputs


def _check_dataset(config: RunConfig) -> None:
    for path in (config.bids_dir, *config.derivatives):
        if not is_text(path):
            raise BIDSError(
                f"{path}: its name holds bytes that are no UTF-8; rename it, or give a link to it with another name"
            )
    description = config.bids_dir / "dataset_description.json"
    if not description.is_file() and not config.skip_bids_validation:
        raise BIDSError(
            f"{config.bids_dir}: not a BIDS dataset, it has no dataset_description.json "
            "(--skip-bids-validation does without)"
        )
    if not any(path.is_dir() for path in config.bids_dir.glob("sub-*")):
        raise BIDSError(f"{config.bids_dir}: not a BIDS dataset, it has no folder sub-*")
    if not config.skip_bids_validation:
        _check_description(description)


def _check_description(path: Path) -> None:
    try:
        lacking = {"Name", "BIDSVersion"} - set(json.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, TypeError) as error:
        raise BIDSError(f"{path.parent}: cannot be read as a BIDS dataset: {path.name}: {error}") from error
    if lacking:
        raise BIDSError(f"{path.parent}: cannot be read as a BIDS dataset: {path.name} lacks {', '.join(lacking)}")


def _check_participants(dataset: BIDSFolder, config: RunConfig) -> list[str]:
    there = dataset.participants
    excluded = set(config.exclude_participant_label)
    unknown = [label for label in (*config.participant_label, *sorted(excluded)) if label not in there]
    if unknown:
        some = ", ".join(there[:10]) + (" …" if len(there) > 10 else "")
        raise BIDSError(f"{config.bids_dir}: no participant {', '.join(unknown)}; there are {some}")
    wanted = [label for label in sorted(set(config.participant_label)) or there if label not in excluded]
    if not wanted:
        raise BIDSError(f"{config.bids_dir}: --exclude-participant-label leaves none of the participants")
    return wanted


class _Index:
    """pybids' index of a dataset, made where there is none: which T1w images were there then."""

    def __init__(self, config: RunConfig) -> None:
        self.folder = config.bids_database_dir
        self.files: dict[str, list[BIDSFile]] = {}
        layout = _layout(config)
        root = Path(str(layout.root))
        if root.resolve() != config.bids_dir.resolve():
            raise BIDSError(
                f"{self.folder}: the index is of {root}, not of {config.bids_dir}; name another folder, or remove it"
            )
        for path in layout.get(suffix="T1w", return_type="filename"):
            file = BIDSFile(config.bids_dir, Path(path).relative_to(root).as_posix())
            if not file.name.endswith(".json"):
                self.files.setdefault(file.relative.split("/")[0], []).append(file)
        self.time = max((path.stat().st_mtime for path in self.folder.iterdir()), default=0.0)

    def files_of(self, folder: str, dataset: BIDSFolder) -> Iterator[tuple[BIDSFile, str]]:
        """Yield files of a folder ``sub-*``, each with what is wrong with the index about it."""
        known = self.files.get(folder, [])
        for file in known:
            gone = not os.path.lexists(file.path)
            yield file, f"it is in the index {self.folder}, but no longer there" if gone else ""
        if known and not self._changed(dataset.root / folder):
            return
        for file in dataset.t1w_files(folder):
            if file not in known:
                yield file, f"it is not in the index {self.folder}, which is older"

    def _changed(self, folder: Path) -> bool:
        """Return whether something was added to a participant's folders since."""
        folders = (folder, *folder.glob("anat"), *folder.glob("ses-*"), *folder.glob("ses-*/anat"))
        return any(path.stat().st_mtime >= self.time for path in folders)


def _layout(config: RunConfig) -> BIDSLayout:
    from bids import BIDSLayout, BIDSLayoutIndexer

    # The index is kept for other runs, so it knows all participants. What has no T1w would take seconds.
    ignored = [rf"/(?:{'|'.join(OTHER_FOLDERS)})(?:/|$)", r"^/(?!sub-)(?:[^/]+/)", r"/\."]
    # Metadata is not needed, and one invalid JSON file anywhere would break the index.
    indexer = BIDSLayoutIndexer(
        validate=not config.skip_bids_validation, ignore=[re.compile(text) for text in ignored], index_metadata=False
    )
    try:
        return BIDSLayout(
            config.bids_dir,
            validate=not config.skip_bids_validation,
            indexer=indexer,
            database_path=config.bids_database_dir,
            reset_database=False,
        )
    except Exception as error:  # pybids has no common class of errors
        raise BIDSError(
            f"{config.bids_dir}: cannot be indexed in {config.bids_database_dir} (--bids-database-dir): {error}"
        ) from error


@dataclass(frozen=True)
class _Search:
    """What a dataset is searched for, and how."""

    config: RunConfig
    dataset: BIDSFolder
    selection: Selection
    index: _Index | None

    def participant(self, subject: str) -> Inputs:
        """Return a participant's images; none, with the reason, where its folders cannot be read."""
        folder = f"sub-{subject}"
        try:
            return self._search(folder)
        except OSError as error:
            why = f"{error.filename or self.dataset.root / folder}: cannot be read ({reason(error)})"
            return Inputs(skipped={folder: why})

    def _search(self, folder: str) -> Inputs:
        inputs = Inputs()
        files = self._files(folder)
        for file, outdated in files:
            self._sort_in(file, outdated, inputs)
        _forgive_files_beside(inputs)
        on_purpose = set(inputs.left_out.values()) == {_IGNORED}
        if not (inputs.images or inputs.skipped or on_purpose):
            inputs.skipped[folder] = _why_nothing([file for file, _ in files], inputs.left_out)
        return inputs

    def _files(self, folder: str) -> list[tuple[BIDSFile, str]]:
        """Return files of a participant, those in their own folder first, each with what is wrong with the index about
        it.
        """
        if self.index:
            files = list(self.index.files_of(folder, self.dataset))
        else:
            files = [(file, "") for file in self.dataset.t1w_files(folder)]
        return sorted(files, key=lambda entry: (not _in_own_folder(entry[0]), entry[0].relative))

    def _sort_in(self, file: BIDSFile, outdated: str, inputs: Inputs) -> None:
        if reason := self._why_left_out(file):
            inputs.left_out[file.relative] = reason
        elif not self.selection.accepts(file.entities, file.extension):
            return
        elif file.extension not in IMAGE_EXTENSIONS:
            allowed = " and ".join(IMAGE_EXTENSIONS)
            inputs.skipped[file.name] = f"its extension is {file.extension}; BIDS allows {allowed} for T1w images"
        elif outdated:
            inputs.skipped[file.name] = f"{outdated}; remove the index, and it is made anew"
        elif absent := _absent_mask(file, self.config):
            inputs.skipped[file.name] = f"{absent}: no such file (--brain-mask)"
        else:
            inputs.images.append(_image(file, self.config))

    def _why_left_out(self, file: BIDSFile) -> str:
        if self.dataset.ignores(file.relative):
            return _IGNORED
        if file.suffix != "T1w":
            return "its name is not that of a T1w image in BIDS"
        if file.misplaced:
            return file.misplaced
        if file.derived:
            return f"{file.derived} names a derivative"
        if unsuited := why_unsuited(file, self.selection.wanted):
            return unsuited
        lax = self.config.skip_bids_validation or file.extension not in IMAGE_EXTENSIONS
        return "" if lax or is_bids(file.relative) else _NOT_BIDS


def _forgive_files_beside(inputs: Inputs) -> None:
    """Leave out files of another extension beside an image of the same name, such as its checksum: no failure."""
    names = {f"{image.prefix}_T1w" for image in inputs.images}
    for name in [name for name in inputs.skipped if name.split(".")[0] in names]:
        inputs.left_out[name] = inputs.skipped.pop(name)


def _in_own_folder(file: BIDSFile) -> bool:
    session = f"ses-{file.entities['ses']}/" if "ses" in file.entities else ""
    return file.relative == f"sub-{file.entities.get('sub')}/{session}anat/{file.name}"


def _image(file: BIDSFile, config: RunConfig) -> T1wImage:
    subject, session = file.entities["sub"], file.entities.get("ses")
    mask = find_mask(config, file.prefix, subject, session)
    return T1wImage(
        path=file.path,
        prefix=file.prefix,
        subject=subject,
        session=session,
        relative=file.relative,
        mask=mask,
        notes=(*_sidecar_notes(file.path, file.prefix), *_mask_notes(config, file.prefix, subject, session, mask)),
    )


def _name_odd_folders(dataset: BIDSFolder, inputs: Inputs) -> None:
    """Name folders ``sub-*`` that are no participant's: copies, and labels that BIDS does not allow."""
    for folder in dataset.odd_folders:
        place = inputs.skipped if _holds_its_own(dataset, folder) else inputs.left_out
        place[folder] = "no participant's folder: labels are letters and digits"


def _holds_its_own(dataset: BIDSFolder, folder: str) -> bool:
    """Return whether a folder holds T1w images that are named after it, as far as it can be read."""
    with contextlib.suppress(OSError):
        return any(f"sub-{file.entities.get('sub')}" == folder for file in dataset.t1w_files(folder))
    return False


def _tell_left_out(inputs: Inputs, config: RunConfig) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, why in inputs.left_out.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        logger.warning("%s: left out: %s (%s)", config.bids_dir, listed(names, 5), why)


def _tell_no_visits(inputs: Inputs, config: RunConfig) -> None:
    """Say where ``--longitudinal`` has nothing to do at all; that some participants have one session is common."""
    sessions = ({image.session for image in images if image.session} for images in inputs.subjects().values())
    if config.longitudinal and all(len(of_one) < 2 for of_one in sessions):
        logger.warning("--longitudinal: none of the participants has T1w images of two sessions to process together")


def _sidecar_notes(path: Path, prefix: str) -> Iterable[str]:
    sidecar = path.with_name(f"{prefix}_T1w.json")
    if not sidecar.is_file():
        return
    try:
        json.loads(sidecar.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        yield f"{sidecar.name} is not valid JSON ({error}); it is not needed here"
    kinds = image_type(path)
    if {"DERIVED", "SECONDARY"} <= set(kinds):
        yield f"{sidecar.name} says ImageType {', '.join(kinds)}: the scanner made it of other images"


def _drop_duplicates(inputs: Inputs) -> None:
    """Keep one of two files that differ in extension only, as they would write the same results."""
    seen: dict[str, T1wImage] = {}
    for image in inputs.images:
        if image.prefix in seen:
            other = seen[image.prefix].path.name
            name = image.path.name if image.path.name != other else image.relative
            inputs.skipped[name] = f"the same image as {other} by its name, which is processed"
        else:
            seen[image.prefix] = image
    inputs.images[:] = seen.values()


def _note_masks_of_others(inputs: Inputs, config: RunConfig) -> None:
    """Say where a mask may have been made in the space of another image, or of an average of several."""
    counts = Counter(image.mask for image in inputs.images if image.mask)
    for place, image in enumerate(inputs.images):
        if doubt := _doubt_of_mask(image, counts[image.mask], config):
            note = f"the brain mask {image.mask} {doubt}; see that it fits this one"
            inputs.images[place] = replace(image, notes=(*image.notes, note))


def _doubt_of_mask(image: T1wImage, images: int, config: RunConfig) -> str:
    """Say what speaks against an image's mask, which serves a number of images; empty where nothing does."""
    if images > 1:
        return f"serves {images} images"
    if image.mask is None or config.brain_mask:  # what the user names may be called anything
        return ""
    # FreeSurfer calls the folder of all its files after the image.
    name = image.mask.parent.parent.name if image.mask.name == _FREESURFER_MASK else image.mask.name
    lacks = [entity for entity in image.prefix.split("_") if entity not in name.split("_")]
    named = " and ".join(filter(None, [", ".join(lacks[:-1]), *lacks[-1:]]))
    return f"is not named after {named} and may be that of several images merged" if lacks else ""


def _why_nothing(files: list[BIDSFile], reasons: Mapping[str, str]) -> str:
    """Say what is there instead of a T1w."""
    if not files:
        return "it has no T1w image"
    shown = {file.name: reasons.get(file.relative, "") if file.suffix == "T1w" else "" for file in files}
    some = [f"{name} ({reason})" if reason else name for name, reason in sorted(shown.items())]
    more = " …" if len(some) > 3 else ""
    return f"none of its files is a T1w that BIDS and the options allow; there is {', '.join(some[:3])}{more}"


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


def _mask_notes(config: RunConfig, prefix: str, subject: str, session: str | None, mask: Path | None) -> Iterable[str]:
    """Say where --derivatives holds no mask for an image, which is then processed without."""
    if config.derivatives and mask is None and not config.brain_mask:
        candidates = [
            path for folder in config.derivatives for path in _mask_candidates(folder, prefix, subject, session)
        ]
        if absent := next((path for path in candidates if path.is_symlink()), None):
            why = f"{absent} is a link to a file that is not there (datalad get fetches it)"
        else:
            why = f"{listed(folder.name for folder in config.derivatives)} holds none for it"
        note = f"no brain mask is taken from --derivatives: {why}; one is made instead"
        logger.warning("%s_T1w: %s", prefix, note)
        yield note


def _absent_mask(file: BIDSFile, config: RunConfig) -> Path | None:
    """Return the mask that ``--brain-mask`` names for this image among others, where it is not there."""
    if not config.brain_mask or "{" not in config.brain_mask:
        return None
    path = _mask_path(config.brain_mask, file.prefix, file.entities["sub"], file.entities.get("ses"))
    return None if path.is_file() else path


def _named_mask(template: str, prefix: str, subject: str, session: str | None) -> Path:
    path = _mask_path(template, prefix, subject, session)
    if not path.is_file():
        raise BIDSError(f"{path}: no such file (--brain-mask, for {prefix})")
    return path.absolute()


def _mask_path(template: str, prefix: str, subject: str, session: str | None) -> Path:
    try:
        return Path(template.format(subject=subject, session=session or "", prefix=prefix)).expanduser()
    except (LookupError, ValueError, AttributeError, RuntimeError) as error:
        raise BIDSError(
            f"--brain-mask {template}: only {{subject}}, {{session}} and {{prefix}} can be replaced"
        ) from error


def _mask_candidates(folder: Path, prefix: str, subject: str, session: str | None) -> Iterable[Path]:
    """Yield where fMRIPrep, sMRIPrep and FreeSurfer keep masks in the T1w's own space, best first."""
    within = f"ses-{session}/anat" if session else "anat"
    for extension in IMAGE_EXTENSIONS:
        yield folder / f"sub-{subject}" / within / f"{prefix}_desc-brain_mask{extension}"
    names = [f"sub-{subject}_ses-{session}"] if session else []
    for name in [*names, f"sub-{subject}"]:
        yield folder / name / "mri" / _FREESURFER_MASK
        yield folder / "sourcedata" / "freesurfer" / name / "mri" / _FREESURFER_MASK
    # fMRIPrep merges sessions into one T1w space unless there is a single one.
    for extension in IMAGE_EXTENSIONS:
        yield folder / f"sub-{subject}" / "anat" / f"sub-{subject}_desc-brain_mask{extension}"
