"""Label images in BIDS derivatives, FreeSurfer subjects folders, SynthSeg's output and plain folders, by scan."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medsegmamba_bids.datasets.bids_files import IMAGE_EXTENSIONS, BIDSFolder
from medsegmamba_bids.datasets.scan_names import ScanName, listed, parse_name, scan_name
from medsegmamba_bids.errors import DatasetError
from medsegmamba_bids.image.file_checks import READABLE
from medsegmamba_bids.segmentations import of_table

logger = logging.getLogger(__name__)

#: T1-weighted images in ``mri/`` of a subject; the first that is there counts.
T1_FILES = ("T1.mgz", "orig.mgz", "nu.mgz", "orig_nu.mgz", "brain.mgz")
#: Spaces of BIDS derivatives that are the participant's own, the preferred one first.
_SPACES = ("", "T1w", "orig", "conform")
# SynthSeg and others write these beside labels; they are none.
_NO_LABELS = re.compile(r"_(T1w|T2w|FLAIR|resampled|posteriors|probseg|entropy|mask)$")
_PLACEHOLDER = re.compile(r"(\{participant\}|\{session\}|\{run\}|\*\*/|\*|\?)")
# What stands for any text, right beside a placeholder: it may take all but one letter of a label, or one may.
_OPEN_ENDED = re.compile(r"\{(participant|session|run)\}[*?{]|[*?}]\{(participant|session|run)\}")
_EXPECTED = (
    "expected are BIDS derivatives (sub-*/**/*_seg-{table}*_dseg.nii.gz), FreeSurfer or FastSurfer subjects "
    "(*/mri/{file}), label images (*.nii.gz, *.mgz), or a pattern such as FOLDER/{{participant}}_labels.nii.gz"
)

#: Label images that are one: a file, or one for each side; each with what is added to its labels.
Parts = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class LabelFiles:
    """A scan's label image, in one grid or several.

    Attributes
    ----------
    name : ScanName
    choices : tuple of Parts
        The same labels on different grids, the preferred one first.
    """

    name: ScanName
    choices: tuple[Parts, ...]


@dataclass(frozen=True)
class Place:
    """What was found somewhere.

    Attributes
    ----------
    path : str
    kind : str
        "BIDS derivatives", "FreeSurfer subjects", "label images", "pattern" or "one file".
    scans : dict of ScanName to LabelFiles
    incomplete : list of str
        Sentences about scans without labels.
    """

    path: str
    kind: str
    scans: dict[ScanName, LabelFiles]
    incomplete: list[str] = field(default_factory=list)


def find_labels(path: str, table: str) -> Place:
    """Find label images.

    Parameters
    ----------
    path : str
        A folder, a file, or a pattern with ``{participant}``, perhaps ``{session}``, ``{run}``, ``*`` and ``?``; some
        text stands between these.
    table : str
        The label table: of which segmentation they are.

    Raises
    ------
    DatasetError
        There is no such folder, nothing is found, a scan has two label images, or a pattern leaves open where a label
        ends.
    """
    if "{participant}" in path:
        return _place(path, "pattern", _by_pattern(path))
    folder = Path(path)
    if folder.is_file():
        return _place(path, "one file", [(parse_name(_stem(folder)), folder)])
    if not folder.is_dir():
        raise DatasetError(f"{path}: no such file or folder")
    if subjects := subject_folders(folder):
        return _freesurfer(path, subjects, table)
    scans, notes = derivative_labels(folder, table)
    if scans:
        return Place(path, "BIDS derivatives", scans, notes)
    plain = [(parse_name(_stem(file)), file) for file in _images(folder) if not _NO_LABELS.search(_stem(file))]
    if not plain:
        kind = of_table(table)
        expected = _EXPECTED.format(table=kind.short, file=kind.files[0][0][0])
        raise DatasetError(f"{path}: no label images found; {expected}")
    return _place(path, "label images", plain)


def _images(folder: Path) -> list[Path]:
    """Return images right in a folder, without hidden files such as ``._`` ones of macOS."""
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in files if file.name.lower().endswith(READABLE))


def _stem(file: Path) -> str:
    suffix = max((end for end in READABLE if file.name.lower().endswith(end)), key=len, default="")
    return file.name[: len(file.name) - len(suffix)]


def _place(path: str, kind: str, files: Iterable[tuple[ScanName, Path]]) -> Place:
    by_name: dict[ScanName, Path] = {}
    for name, file in files:
        if name in by_name:
            raise DatasetError(
                f"{path}: two label images for {name}, {by_name[name]} and {file}; "
                "name one of them by a pattern, such as FOLDER/{participant}_labels.nii.gz"
            )
        by_name[name] = file
    if not by_name:
        raise DatasetError(f"{path}: no file matches")
    return Place(path, kind, {name: LabelFiles(name, (((file, 0),),)) for name, file in by_name.items()})


def _by_pattern(pattern: str) -> Iterator[tuple[ScanName, Path]]:
    """Yield files that match, with what stands for the placeholders."""
    if beside := _OPEN_ENDED.search(pattern):
        raise DatasetError(
            f"{pattern}: where the label ends is open in {beside[0]}, so that names of two participants could be taken "
            "for one; put the text that lies between there, such as {participant}_*.nii.gz"
        )
    parts = _PLACEHOLDER.split(pattern)
    stars = "".join(_wildcard(part) for part in parts)
    seen: set[str] = set()
    expression = re.compile("".join(_expression(part, seen) for part in parts))
    for file in sorted(glob.glob(stars, recursive=True)):  # noqa: PTH207, the pattern may be absolute
        match = expression.fullmatch(file)
        if match and Path(file).is_file():
            yield _named(match.groupdict()), Path(file)


def _wildcard(part: str) -> str:
    if part.startswith("{"):
        return "*"
    return part if part in ("*", "**/", "?") else glob.escape(part)


def _expression(part: str, seen: set[str]) -> str:
    if part.startswith("{"):
        name = part[1:-1]
        again = name in seen
        seen.add(name)
        return f"(?P={name})" if again else f"(?P<{name}>[^/]+?)"
    return {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))


def _named(groups: dict[str, str]) -> ScanName:
    name = parse_name(groups["participant"])
    more = [(short, groups[long]) for long, short in (("session", "ses"), ("run", "run")) if groups.get(long)]
    if not more:
        return name
    values = {**dict(name.entities), **{key: value.removeprefix(f"{key}-") for key, value in more}}
    return scan_name(name.participant, list(values.items()))


def subject_folders(folder: Path) -> list[Path]:
    """Return FreeSurfer's subjects in a folder, in order; the folder itself where it is one."""
    if (folder / "mri").is_dir():
        return [folder]
    return [
        subject
        for subject in sorted(folder.iterdir())
        if (subject / "mri").is_dir() and not subject.name.startswith(("fsaverage", "."))
    ]


def _freesurfer(path: str, subjects: list[Path], table: str) -> Place:
    scans: dict[ScanName, LabelFiles] = {}
    folders: dict[ScanName, Path] = {}
    incomplete = []
    for subject in subjects:
        name = parse_name(subject.name)
        parts = subject_labels(subject / "mri", table)
        if parts is None:
            wanted = [pattern for patterns in of_table(table).files for pattern, _ in patterns]
            incomplete.append(f"{subject}: has none of mri/{{{','.join(wanted)}}} and is left out")
        elif name in folders:
            raise DatasetError(
                f"{path}: two subjects for {name}, {folders[name].name} and {subject.name}; name the files by a "
                "pattern, such as FOLDER/{participant}/mri/aseg.mgz"
            )
        else:
            folders[name], scans[name] = subject, LabelFiles(name, (parts,))
    if not scans:
        raise DatasetError(f"{path}: no subject has labels; {incomplete[0]}")
    return Place(path, "FreeSurfer subjects", scans, incomplete)


def subject_labels(mri: Path, table: str) -> Parts | None:
    """Return label images in ``mri/`` of a subject, the latest versions; None where there are none."""
    for patterns in of_table(table).files:
        parts = tuple((_latest(mri, pattern), added) for pattern, added in patterns)
        if all(file is not None for file, _ in parts):
            return parts
    return None


def _first(folder: Path, patterns: Iterable[str]) -> Path | None:
    return next((file for pattern in patterns if (file := _latest(folder, pattern)) is not None), None)


def _latest(folder: Path, pattern: str) -> Path | None:
    return max(folder.glob(pattern), default=None)


def derivative_labels(folder: Path, table: str, called: str = "") -> tuple[dict[ScanName, LabelFiles], list[str]]:
    """Return segmentations of BIDS derivatives in the participants' own spaces.

    Parameters
    ----------
    folder : Path
    table : str
        The label table.
    called : str, optional
        How the value of ``seg-`` must begin; by default as that of the table's segmentation does.

    Returns
    -------
    dict of ScanName to LabelFiles
        What is on the T1w image's own grid comes first.
    list of str
        Sentences about files that are left out.

    Raises
    ------
    DatasetError
        A scan has two that are equally good.
    """
    ranked: dict[ScanName, list[tuple[tuple[int, int], Path]]] = {}
    notes = []
    for file in BIDSFolder(folder).files():
        if file.suffix != "dseg" or file.extension not in IMAGE_EXTENSIONS:
            continue
        kind, space = _rank(file.entities, table, called), file.entities.get("space", "")
        if file.misplaced:
            notes.append(f"{file.path}: {file.misplaced}; it is left out")
        elif kind is not None and space in _SPACES:
            ranked.setdefault(parse_name(_stem(file.path)), []).append(((kind, _SPACES.index(space)), file.path))
    return {name: _best(name, sorted(files), folder) for name, files in ranked.items()}, notes


def _rank(entities: dict[str, str], table: str, called: str) -> int | None:
    """Return 0 for files that name their segmentation as we do, more for fMRIPrep's; None for other segmentations."""
    kind = of_table(table)
    if "seg" in entities:
        return 0 if entities["seg"].startswith(called or kind.short) else None
    return None if called else kind.described_as.get(entities.get("desc", ""))


def _best(name: ScanName, ranked: list[tuple[tuple[int, int], Path]], folder: Path) -> LabelFiles:
    best = [(rank, file) for rank, file in ranked if rank[0] == ranked[0][0][0]]
    if len({rank for rank, _ in best}) < len(best):
        raise DatasetError(
            f"{folder}: several segmentations for {name}: {listed(file.name for _, file in best)}; one must be named: "
            "to compare by a pattern, such as FOLDER/{participant}/anat/*_desc-mine_dseg.nii.gz, to train by the "
            "beginning of its seg- (segmentation in the configuration)"
        )
    return LabelFiles(name, tuple(((file, 0),) for _, file in best))


def find_images(path: str) -> dict[ScanName, Path]:
    """Return T1-weighted images in a folder of any kind, a pattern or one file; nothing is no error.

    Parameters
    ----------
    path : str
        As for :func:`find_labels`; of a folder of files those that end in ``_T1w``.
    """
    folder = Path(path)
    if "{participant}" in path:
        images = list(_by_pattern(path))
    elif folder.is_file():
        images = [(parse_name(_stem(folder)), folder)]
    elif not folder.is_dir():
        images = []
    elif subjects := subject_folders(folder):
        firsts = ((parse_name(subject.name), _first(subject / "mri", T1_FILES)) for subject in subjects)
        images = [(name, file) for name, file in firsts if file is not None]
    else:
        files = [file.path for file in BIDSFolder(folder).t1w_images()]
        files += [file for file in _images(folder) if _stem(file).endswith("_T1w")]
        images = [(parse_name(_stem(file)), file) for file in files if _own_space(file)]
    return _one_a_scan(images)


def _one_a_scan(images: list[tuple[ScanName, Path]]) -> dict[ScanName, Path]:
    """Return the image without ``space-`` where there are several of a scan, else the last by name, which is said."""
    chosen: dict[ScanName, Path] = {}
    for name, file in sorted(images, key=lambda image: ("_space-" not in image[1].name, image[1].name)):
        if name in chosen and ("_space-" in file.name) == ("_space-" in chosen[name].name):
            logger.warning("%s: several images, %s and %s; the second is taken", name, chosen[name], file)
        chosen[name] = file
    return {name: chosen[name] for name, _ in images}


def _own_space(file: Path) -> bool:
    entities = dict(part.split("-", 1) for part in _stem(file).split("_") if "-" in part)
    return entities.get("space", "") in _SPACES
