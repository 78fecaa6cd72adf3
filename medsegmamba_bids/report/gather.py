"""The tables of all participants of an output folder, and what is wrong with the rest."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medsegmamba_bids.datasets.bids_files import BIDSFolder
from medsegmamba_bids.datasets.participants_table import Participants, read_participants
from medsegmamba_bids.datasets.scan_names import listed as names_listed
from medsegmamba_bids.errors import GroupError, TableError, ThresholdError, reason
from medsegmamba_bids.report.crashes import last_error
from medsegmamba_bids.report.derivatives import SEGMENTATIONS, Scan, scans_of, strangers_of
from medsegmamba_bids.report.provenance import Weights, version_of, weights_of
from medsegmamba_bids.report.quality import read_flags
from medsegmamba_bids.report.ratings import Rating, read_ratings
from medsegmamba_bids.segmentations import ASEG, of_name

logger = logging.getLogger(__name__)


@dataclass
class ScanTable:
    """A volume table of one T1w.

    Attributes
    ----------
    scan : Scan
    rows : pandas.DataFrame
        As ``stats.tables.read_tsv`` returns them.
    measures : dict of str to float
        Of the whole brain.
    weights : Weights
    version : str
        Of this package, when the table was made.
    """

    scan: Scan
    rows: pd.DataFrame
    measures: dict[str, float]
    weights: Weights
    version: str


@dataclass
class Gathered:
    """What an output folder holds.

    Attributes
    ----------
    tables : dict of str to list of ScanTable
        By segmentation, in order of participants and names.
    flags : dict of str to list of (segmentation, message)
        By T1w.
    failed : dict of str to str
        Participant, T1w or file -> what is wrong.
    missing : list of str
        Participants of ``participants.tsv`` without a folder.
    unlisted : list of str
        Participants with results that ``participants.tsv`` does not name, where there is one.
    participants : Participants or None
        ``participants.tsv``.
    ratings : dict of str to Rating
        By T1w, by people.
    discarded : list of str
        T1w images that were left out for their ratings.
    left_out : dict of str to dict of str to str
        By segmentation: participant or T1w -> why it is not in the tables of visits.
    old : dict of str to str
        T1w or visits of a participant -> why the last run may not have made their results; these are taken.
    """

    tables: dict[str, list[ScanTable]] = field(default_factory=lambda: {kind.name: [] for kind in SEGMENTATIONS})
    flags: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    participants: Participants | None = None
    ratings: dict[str, Rating] = field(default_factory=dict)
    discarded: list[str] = field(default_factory=list)
    left_out: dict[str, dict[str, str]] = field(default_factory=lambda: {kind.name: {} for kind in SEGMENTATIONS})
    old: dict[str, str] = field(default_factory=dict)

    @property
    def scans(self) -> list[Scan]:
        """Every T1w with a table, in order."""
        scans = {table.scan.prefix: table.scan for tables in self.tables.values() for table in tables}
        return [scans[prefix] for prefix in sorted(scans)]


def gather(
    output_dir: Path, participants_file: Path | None = None, labels: Iterable[str] = (), excluded: Iterable[str] = ()
) -> Gathered:
    """Read all tables of an output folder; what cannot be read is named and left out.

    Parameters
    ----------
    output_dir : Path
    participants_file : Path, optional
        ``participants.tsv``.
    labels : iterable of str
        Only these participants, without ``sub-``; empty for all.
    excluded : iterable of str
        Participants to leave out.

    Raises
    ------
    GroupError
        There is nothing to gather.
    """
    results = Gathered()
    wanted, unwanted = set(labels), set(excluded)
    folder = BIDSFolder(output_dir)
    present = [subject for subject in folder.participants if not wanted or subject in wanted]
    there = [subject for subject in present if subject not in unwanted]
    for name in folder.odd_folders if not wanted else ():
        results.failed[name] = "no participant's folder: labels are letters and digits"
    for subject in there:
        try:
            _gather_participant(output_dir, subject, results)
        except OSError as error:
            place = error.filename or output_dir / f"sub-{subject}"
            fail(results, f"sub-{subject}", TableError(f"{place}: cannot be read ({reason(error)})"), output_dir)
    results.participants = _read_participants(participants_file, results)
    listed = results.participants.labels if results.participants else []
    _tell_unknown(unwanted - {*folder.participants, *listed}, folder.participants)
    results.unlisted = [f"sub-{label}" for label in there if listed and label not in listed]
    expected = sorted(wanted) or listed
    results.missing = [f"sub-{label}" for label in expected if label not in {*there, *unwanted}]
    if not any(results.tables.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(results.failed.items())[:5])
        raise GroupError(
            f"{output_dir}: there are no volume tables to gather{f' ({reasons})' if reasons else ''}; "
            "run the participant level first"
        )
    return results


def _tell_unknown(unknown: Collection[str], there: Sequence[str]) -> None:
    """Name labels to leave out that nobody has: who is meant is in the tables."""
    if unknown:
        logger.warning(
            "--exclude-participant-label excludes nobody called %s; with results there are %s",
            *(", ".join(sorted(unknown)), names_listed(there, 10)),
        )


def _gather_participant(output_dir: Path, subject: str, results: Gathered) -> None:
    scans = scans_of(output_dir, subject)
    for prefix in strangers_of(output_dir, subject):
        results.failed[f"{prefix}_T1w in sub-{subject}"] = "its results lie in another image's folder"
    if not scans:
        results.failed[f"sub-{subject}"] = _why_empty(output_dir / f"sub-{subject}")
        return
    try:
        flags = read_flags(output_dir, subject)
        for prefix, segmentation, message in zip(flags["scan"], flags["segmentation"], flags["message"], strict=True):
            results.flags.setdefault(prefix, []).append((segmentation, message))
    except (ThresholdError, OSError) as error:
        fail(results, f"sub-{subject}", error, output_dir)
    for scan in scans:
        _gather_scan(scan, results)


def _gather_scan(scan: Scan, results: Gathered) -> None:
    for segmentation in results.tables:
        path = scan.path(of_name(segmentation).stats)
        try:
            rows = scan.table(segmentation)
            if rows is None:
                if segmentation == ASEG.name:
                    results.failed[f"{scan.prefix}_T1w"] = "it has no table of volumes; the log of its run may say why"
                continue
            sidecar = scan.sidecar(segmentation)
            table = ScanTable(
                scan, rows, scan.measures(segmentation), weights_of(sidecar, segmentation), version_of(sidecar)
            )
        except (TableError, OSError) as error:
            fail(results, path.name, error, scan.root)
            continue
        results.tables[segmentation].append(table)


def fail(results: Gathered, name: str, error: Exception, root: Path) -> None:
    """Add to what failed why a file or a participant is left out, without the folder and the file's own name."""
    text = str(error).replace(f"{root}/", "")
    results.failed[name] = text.split(": ", 1)[1] if text.split(": ", 1)[0].endswith(name) else text


def _why_empty(folder: Path) -> str:
    crashes = sorted(folder.glob("log/*/crash-*"))
    if crashes:
        place = crashes[-1].relative_to(folder.parent)
        why = last_error(crashes[-1].read_text(encoding="utf-8", errors="replace"))
        return f"it has no results; it failed: {why} (see {place})"
    return "it has no results"


def _read_participants(path: Path | None, results: Gathered) -> Participants | None:
    """Return ``participants.tsv``; a file that is damaged or contradicts itself is named and left out."""
    if path is None or not os.path.lexists(path):
        return None
    try:
        people = read_participants(path)
        people.of_scans([(scan.entities["sub"], scan.entities.get("ses", "")) for scan in results.scans])
        return people
    except TableError as error:
        fail(results, path.name, error, path.parent)
        return None


def rate(results: Gathered, path: Path, exclude: bool) -> None:
    """Read ratings of T1w images; leave those out that are to be discarded, if that is asked for.

    Raises
    ------
    TableError
        The ratings cannot be used.
    GroupError
        Nothing is left.
    """
    results.ratings = read_ratings(path, results.scans)
    for prefix, rating in results.ratings.items():
        if rating.others:
            logger.warning("%s_T1w is rated differently (%s); the latest counts", prefix, ", ".join(rating.others))
    if not exclude:
        return
    discarded = {prefix for prefix, rating in results.ratings.items() if rating.rating == "discard"}
    for name, tables in results.tables.items():
        results.tables[name] = [table for table in tables if table.scan.prefix not in discarded]
    results.discarded = sorted(discarded)
    if not any(results.tables.values()):
        raise GroupError(f"{path}: every T1w with results is rated to be discarded; nothing is left to gather")


def keep_one_version(results: Gathered, segmentation: str) -> None:
    """Leave out tables that another version of this package made than most were; they are named as failed."""
    tables = results.tables[segmentation]
    counts = Counter(table.version for table in tables)
    if len(counts) < 2:
        return
    kept = max(counts, key=lambda version: (counts[version], version))
    for table in tables:
        if table.version != kept:
            path = table.scan.path(of_name(segmentation).stats)
            results.failed[path.name] = (
                f"it was made by version {table.version or 'unknown'} of medsegmamba_bids, most tables by {kept}; "
                "left out (--allow-mixed-versions takes it in)"
            )
    results.tables[segmentation] = [table for table in tables if table.version == kept]


def check_template(results: Gathered, segmentation: str) -> None:
    """Refuse to put intracranial volumes by different templates into one table.

    Raises
    ------
    GroupError
        They differ; the message names them and how many tables each made.
    """
    scans_by: dict[str, list[str]] = {}
    for table in results.tables[segmentation]:
        if "eTIV" in table.measures:
            used = table.scan.sidecar(ASEG.name).get("Template", {})
            name = f"{used.get('Name', 'unknown')} (constant {used.get('Volume_mm3', 'unknown')} mm3)"
            scans_by.setdefault(name, []).append(table.scan.prefix)
    what = "intracranial volumes (eTIV) were estimated with different templates, which are not comparable: "
    _refuse_mixture(scans_by.items(), what, "one version of medsegmamba_bids")


def check_weights(results: Gathered, segmentation: str) -> None:
    """Refuse to put volumes by different weights into one table.

    Raises
    ------
    GroupError
        They differ; the message names them and how many tables each made.
    """
    groups: dict[str, list[ScanTable]] = {}
    for table in results.tables[segmentation]:
        groups.setdefault(table.weights.key, []).append(table)
    names = different_names([tables[0].weights for tables in groups.values()])
    scans_by = list(zip(names, [[table.scan.prefix for table in tables] for tables in groups.values()], strict=True))
    what = f"volumes of seg-{segmentation} were made with different weights, which are not comparable: "
    _refuse_mixture(scans_by, what, "the same weights, or take all with --allow-mixed-weights")


def different_names(weights: Sequence[Weights]) -> list[str]:
    """Return names of weights that differ: with their settings where the tensors are the same."""
    names = [one.label for one in weights]
    if len(set(names)) == len(names):
        return names
    settings = [one.fingerprint[:12] or "that were not recorded" for one in weights]
    return [f"{name} with the settings {those}" for name, those in zip(names, settings, strict=True)]


def _refuse_mixture(scans_by: Collection[tuple[str, list[str]]], what: str, advice: str) -> None:
    """Refuse tables that were made in more than one way; each comes with its scans."""
    if len(scans_by) > 1:
        named = "; ".join(f"{name} for {len(scans)} of the T1w images, such as {scans[0]}" for name, scans in scans_by)
        raise GroupError(f"{what}{named}. Run the participants anew with {advice}")
