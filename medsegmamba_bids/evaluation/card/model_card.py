"""Measure weights on real cases and write their card.

The numbers go into tables beside the card (``.tsv``; ``_calibration.tsv`` for posteriors), a case at a time: what they
hold for the same weights is not measured again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import Template

import pandas as pd

from medsegmamba_bids import __version__
from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import CaseError
from medsegmamba_bids.evaluation.card.calibration_text import NOT_MEASURED, calibration_table, reliability_diagram
from medsegmamba_bids.evaluation.card.card_text import before, sections
from medsegmamba_bids.evaluation.card.cases import Case, read_cases
from medsegmamba_bids.evaluation.card.curve import read_curve, training_curve
from medsegmamba_bids.evaluation.card.measure import Networks, measure_calibration, measure_case
from medsegmamba_bids.image.io import write_text
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.weights.folders import resolve_weights
from medsegmamba_bids.weights.info import WeightsFile, WeightsInfo

logger = logging.getLogger(__name__)


def checksums(networks: Networks, subfields: bool) -> str:
    """Return the first line of a table of numbers: which weights they are for, those of the subfields perhaps too."""
    texts = [f"aseg {resolve_weights(networks.aseg, ASEG.task).info.checksum}"]
    texts += [f"{' and '.join(names)} {checksum}" for checksum, names in fold_checksums(networks).items()]
    if subfields:
        texts.append(f"hippocampus {resolve_weights(networks.hippocampus, HIPPOCAMPUS.task).info.checksum}")
    return "# weights: " + ", ".join(texts)


def fold_checksums(networks: Networks) -> dict[str, list[str]]:
    """Return the checksum of the weights of every fold, and which cases they judge."""
    folds: dict[str, list[str]] = {}
    for case, weights in networks.folds.items():
        folds.setdefault(resolve_weights(weights, ASEG.task).info.checksum, []).append(case)
    return folds


def judged_by(networks: Networks) -> str:
    """Return the card's sentence on cases that the released weights have seen."""
    folds = fold_checksums(networks)
    if not folds:
        return "All cases are judged by the released weights."
    texts = [f"{', '.join(names)} by those with the checksum `{checksum}`" for checksum, names in folds.items()]
    return "Weights of trainings that did not see them judge: " + "; ".join(texts) + "."


def read_numbers(path: Path, first_line: str) -> pd.DataFrame | None:
    """Return numbers that were measured before; None where there are none for these weights."""
    if not path.is_file():
        return None
    if path.read_text(encoding="utf-8").partition("\n")[0] != first_line:
        logger.warning("%s: is for other weights; everything is measured anew", path)
        return None
    return pd.read_csv(path, sep="\t", comment="#", keep_default_na=False, na_values=["n/a"])


def write_numbers(rows: pd.DataFrame, path: Path, first_line: str) -> None:
    """Write the table of numbers, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.6g", lineterminator="\n")
    write_text(path, f"{first_line}\n{text}")


def measure(
    cases: list[Case], of_case: Callable[[Case], pd.DataFrame], path: Path, first_line: str
) -> pd.DataFrame | None:
    """Return numbers of the cases, and of what the table at ``path`` holds already; it is rewritten after each case.

    None where there is neither.
    """
    rows = read_numbers(path, first_line)
    for case in cases:
        if rows is None or case.name not in set(rows["case"]):
            rows = pd.concat([part for part in (rows, of_case(case)) if part is not None])
            write_numbers(rows, path, first_line)
    return rows


def _with_reference(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.reference is not None]


def _calibration(cases: list[Case], aim_cases: list[str], networks: Networks, out: Path) -> dict[str, str]:
    """Measure posteriors of the cases that have a reference, and return the card's section on them."""
    table = out.with_name(f"{out.stem}_calibration.tsv")
    first_line = checksums(networks, subfields=False)
    rows = measure(_with_reference(cases), partial(measure_calibration, networks=networks), table, first_line)
    return calibration_fields(rows, aim_cases, out.with_name(f"{out.stem}_reliability.svg"))


def calibration_fields(rows: pd.DataFrame | None, aim_cases: list[str], diagram: Path) -> dict[str, str]:
    """Return the card's section on calibration over the cases that count, and write its diagram."""
    counted = None if rows is None else rows[rows["case"].isin(aim_cases)]
    if counted is None or not len(counted):
        return {"calibration_cases": "", "calibration": NOT_MEASURED, "diagram": ""}
    write_text(diagram, reliability_diagram(counted))
    names = ", ".join(counted["case"].unique())
    picture = f"![Reliability diagram]({diagram.name})"
    return {"calibration_cases": f"Cases: {names}.", "calibration": calibration_table(counted), "diagram": picture}


def card(rows: pd.DataFrame, aim_cases: list[str], networks: Networks, more: dict[str, str]) -> str:
    """Return the whole card: the template of the package with its placeholders filled in, some of them given."""
    fields = {"version": __version__, **more, **sections(rows, aim_cases)}
    fields |= _described(ASEG.task, resolve_weights(networks.aseg, ASEG.task))
    if networks.subfields:
        fields |= _described(HIPPOCAMPUS.task, resolve_weights(networks.hippocampus, HIPPOCAMPUS.task))
    else:
        fields |= dict.fromkeys(_described_keys(HIPPOCAMPUS.task), "n/a")
    fields["judged_by"] = judged_by(networks)
    return Template(data_path("evaluation/model_card.md").read_text(encoding="utf-8")).substitute(fields)


def _described_keys(prefix: str) -> list[str]:
    return [f"{prefix}_{key}" for key in ("name", "checksum", "size", "origin", "licence", "training_data", "input")]


def _described(prefix: str, file: WeightsFile) -> dict[str, str]:
    info = file.info
    size = f"{file.path.stat().st_size / 1e6:.1f} MB"
    values = [info.name, info.checksum, size, info.origin, info.licence, info.training_data, _input_text(info)]
    return dict(zip(_described_keys(prefix), values, strict=True))


def _input_text(info: WeightsInfo) -> str:
    spec = info.input
    mirror = ", averaged with the mirror image" if spec.mirror else ""
    mirror += f" in voxels of {spec.mirror_voxel_size:g} mm" if spec.mirror_voxel_size else ""
    mirror += f", deep structures once more in voxels of {spec.deep_voxel_size:g} mm" if spec.deep_voxel_size else ""
    border = (
        f"; the outer border follows aseg's hippocampi ({spec.follow_aseg:g} log odds a mm)" if spec.follow_aseg else ""
    )
    tissues = f"; between tissues intensities count {spec.follow_intensities:g}" if spec.follow_intensities else ""
    return f"patches of {spec.patch_size}^3 voxels of {spec.voxel_size:g} mm, step {spec.step}{mirror}{border}{tissues}"


def _earlier(cases: list[Case], networks: Networks, out: Path) -> pd.DataFrame:
    """Return the numbers of earlier weights on cases with a reference."""
    path, first_line = out.with_name(f"{out.stem}_earlier.tsv"), checksums(networks, networks.subfields)
    return measure(_with_reference(cases), partial(measure_case, networks=networks), path, first_line)


def _draw_curve(table: Path, out: Path) -> str:
    picture = out.with_name(f"{out.stem}_curve.svg")
    write_text(picture, training_curve(read_curve(table)))
    return f"![Dice over the steps of training]({picture.name})"


def write_card(
    out: Path,
    case_table: Path,
    data_dir: Path,
    names: list[str] | None,
    networks: Networks,
    training: dict[str, str],
    earlier: Networks | None = None,
    curve: Path | None = None,
) -> None:
    """Measure and write.

    Parameters
    ----------
    out : Path
        The card, ``.md``; its numbers and its diagram go beside it.
    case_table : Path
        Table of the cases.
    data_dir : Path
        Folder that they are relative to.
    names : list of str, optional
        Measure only these; others keep the numbers that they have.
    networks : Networks
        What is measured.
    training : dict of str to str
        What the card says of the trainings: ``aseg_hours``, ``hippocampus_hours``, ``machine``.
    earlier : Networks, optional
        What they are compared with, on the same images.
    curve : Path, optional
        Table of the training; see :func:`~medsegmamba_bids.evaluation.card.curve.read_curve`.

    Raises
    ------
    CaseError
        The card's name is none, no case can be measured, or a fold is for a case that is not in the table.
    """
    if out.suffix != ".md":
        raise CaseError(f"{out}: the card's name must end with .md")
    everything = read_cases(case_table, data_dir)
    cases = read_cases(case_table, data_dir, names)
    read_cases(case_table, data_dir, list(networks.folds))
    first_line = checksums(networks, networks.subfields)
    rows = measure(cases, partial(measure_case, networks=networks), out.with_suffix(".tsv"), first_line)
    measured = set(rows["case"])
    aim_cases = [case.name for case in everything if case.aim and case.name in measured]
    if not aim_cases:
        raise CaseError(f"{case_table}: no case with aim 1 is measured; the card's means are over those")
    calibration = _calibration(cases, [case.name for case in everything if case.aim], networks, out)
    comparison = before(rows, None if earlier is None else _earlier(cases, earlier, out), aim_cases)
    drawn = {"curve": NOT_MEASURED if curve is None else _draw_curve(curve, out)}
    text = card(rows, aim_cases, networks, training | calibration | comparison | drawn)
    write_text(out, text)
    logger.info("wrote %s", out)
