"""Files of BIDS datasets as they lie in their folders: what their names say, and what of them does not belong there.

Entities are read from the path within the dataset, so that it does not matter what the folders above are called.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from bids_validator import BIDSValidator
from pathspec import GitIgnoreSpec

from medsegmamba_bids.errors import BIDSError, reason

IMAGE_EXTENSIONS = (".nii.gz", ".nii")
#: Entities that names of derivatives have and names of raw images have not.
DERIVED = ("space", "seg", "desc", "res", "den", "label", "atlas", "hemi", "from", "to", "mode")
#: Folders of a participant without anatomical images.
OTHER_FOLDERS = (
    "func", "dwi", "fmap", "perf", "eeg", "meg", "ieeg", "pet", "beh", "micr", "nirs", "motion", "mrs", "figures", "log"
)  # fmt: skip
_LABEL = re.compile(r"[a-zA-Z0-9+]+")
_NAME = re.compile(
    r"(?P<prefix>sub-[^_]+(?:_[a-zA-Z]+-[^_]+)*)_(?P<suffix>[a-zA-Z0-9]+)(?P<extension>\.[^/]+)", re.DOTALL
)
# Names that speak of a T1w image, well formed or not; "mod-T1w_defacemask" does not.
_T1W = re.compile(r"(?<!-)T1w", re.IGNORECASE)
_PHASE = {"P", "PHASE", "PHASE MAP", "I", "IMAGINARY"}


@dataclass(frozen=True)
class BIDSFile:
    """A file of a dataset.

    Attributes
    ----------
    root : Path
        The dataset.
    relative : str
        Path within it.
    """

    root: Path
    relative: str

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.root / self.relative

    @property
    def name(self) -> str:
        """Name with extension."""
        return PurePosixPath(self.relative).name

    @cached_property
    def _match(self) -> re.Match[str] | None:
        match = _NAME.fullmatch(self.name)
        keys = [part.split("-", 1)[0] for part in match["prefix"].split("_")] if match else []
        return match if len(set(keys)) == len(keys) else None  # "run-1_run-2" is no name

    @property
    def prefix(self) -> str:
        """The name without suffix and extension; empty for a name that is not BIDS'."""
        return self._match["prefix"] if self._match else ""

    @property
    def suffix(self) -> str:
        """Such as ``T1w``; empty for a name that is not BIDS'."""
        return self._match["suffix"] if self._match else ""

    @property
    def extension(self) -> str:
        """Such as ``.nii.gz``; empty for a name that is not BIDS'."""
        return self._match["extension"] if self._match else ""

    @cached_property
    def entities(self) -> dict[str, str]:
        """Entities of the name by their short forms."""
        return dict(part.split("-", 1) for part in self.prefix.split("_") if part)

    @property
    def derived(self) -> str:
        """What names it as a derivative, such as ``space-MNI152``; empty for a raw image."""
        return next((f"{key}-{self.entities[key]}" for key in DERIVED if key in self.entities), "")

    @property
    def misplaced(self) -> str:
        """Why it does not belong into its folder, as a copy or another participant's file does not; else empty."""
        for folder in PurePosixPath(self.relative).parts[:-1]:
            key, separator, label = folder.partition("-")
            if separator and key in ("sub", "ses") and self.entities and self.entities.get(key, label) != label:
                return f"it lies in the folder {folder}, but is named after {key}-{self.entities[key]}"
        return ""


@dataclass(frozen=True)
class BIDSFolder:
    """A dataset, raw or derived.

    Attributes
    ----------
    root : Path
    """

    root: Path

    @property
    def participants(self) -> list[str]:
        """Labels of the folders ``sub-*``, sorted."""
        return sorted(name[4:] for name in self._folders() if _LABEL.fullmatch(name[4:]))

    @property
    def odd_folders(self) -> list[str]:
        """Folders ``sub-*`` that are no participant's, such as ``sub-01_old`` or ``sub-01 copy``."""
        return sorted(name for name in self._folders() if not _LABEL.fullmatch(name[4:]))

    def _folders(self) -> Iterator[str]:
        return (path.name for path in self.root.glob("sub-*") if path.is_dir())

    def files(self, *folders: str) -> Iterator[BIDSFile]:
        """Yield files of folders ``sub-*``, all by default, in order, without hidden ones; links to folders are
        followed.
        """
        for folder in folders or sorted(self._folders()):
            for path in files_below(self.root / folder, OTHER_FOLDERS):
                yield BIDSFile(self.root, path.relative_to(self.root).as_posix())

    def t1w_images(self, *folders: str) -> list[BIDSFile]:
        """Return T1w images of a whole head that lie where they belong and that ``.bidsignore`` does not list."""
        return [
            file
            for file in self.files(*folders)
            if file.suffix == "T1w" and file.extension in IMAGE_EXTENSIONS
            if not (file.misplaced or self.ignores(file.relative) or why_unsuited(file))
        ]

    def t1w_files(self, folder: str) -> Iterator[BIDSFile]:
        """Return files of a folder ``sub-*`` whose names speak of a T1w image, well formed or not, without JSON
        files.
        """
        return (file for file in self.files(folder) if _T1W.search(file.name) and not file.name.endswith(".json"))

    @cached_property
    def ignores(self) -> Callable[[str], bool]:
        """Whether ``.bidsignore`` lists a path within the dataset.

        Raises
        ------
        BIDSError
            The file cannot be read.
        """
        path = self.root / ".bidsignore"
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
            return GitIgnoreSpec.from_lines(lines).match_file
        except (OSError, ValueError) as error:
            raise BIDSError(f"{path}: cannot be read ({reason(error)})") from error


def files_below(folder: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """Yield files of a folder and those below, in order of their names.

    Hidden files and folders, such as ``._`` files that macOS writes, are left out. Links to folders are followed,
    each folder once.

    Parameters
    ----------
    folder : Path
    without : collection of str
        Names of folders that are not looked into.
    """
    yield from _files_below(folder, without, {os.path.realpath(folder)})


def _files_below(folder: Path, without: Collection[str], seen: set[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif path.name not in without and (real := os.path.realpath(path)) not in seen:
            yield from _files_below(path, without, {*seen, real})


@lru_cache
def _validator() -> BIDSValidator:
    return BIDSValidator()


def is_bids(relative: str) -> bool:
    """Return whether BIDS allows a path within a raw dataset."""
    return _validator().is_bids(f"/{relative}")


def why_unsuited(file: BIDSFile, chosen: Collection[str] = ()) -> str:
    """Return why a T1w is no picture of a whole head with T1 contrast, by its name and JSON; else empty.

    Parameters
    ----------
    file : BIDSFile
    chosen : collection of str
        Entities that were chosen on purpose: a part of a volume (``chunk``) and an inversion (``inv``) may be.
    """
    entities = file.entities
    if (part := entities.get("part", "mag")) != "mag":
        return f"part-{part} is no magnitude image"
    if "inv" in entities and "inv" not in chosen:
        return f"inv-{entities['inv']} is an inversion image, not the T1w that is made of several"
    if "chunk" in entities and "chunk" not in chosen:
        return f"chunk-{entities['chunk']} is a part of a volume"
    if kinds := _PHASE.intersection(image_type(file.path)):
        return f"its JSON says ImageType {', '.join(sorted(kinds))}: it is no magnitude image"
    return ""


def image_type(path: Path) -> list[str]:
    """Return what the JSON beside an image says of its kind (DICOM's Image Type), in capitals; nothing where it cannot
    be.
    """
    sidecar = path.with_name(path.name.split(".nii")[0] + ".json")
    try:
        kinds = json.loads(sidecar.read_text(encoding="utf-8-sig")).get("ImageType", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [str(kind).upper() for kind in kinds] if isinstance(kinds, list) else str(kinds).upper().split("\\")
