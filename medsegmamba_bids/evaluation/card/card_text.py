"""The measured part of the model card: a table of numbers in, Markdown out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from medsegmamba_bids.evaluation.card.measure import BRAIN_MASK, HIPPOCAMPUS, ORIGINAL, REFERENCE, TWIN
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.segmentations import ASEG

#: Structures that FreeSurfer itself finds unreliably and the means leave out: choroid plexus, hypointensities.
APART = (31, 63, 77)
#: What is to be reached.
MEAN_AIM, CASE_AIM, STRUCTURE_AIM, MASK_AIM, UNION_AIM = 0.86, 0.83, 0.65, 0.96, 0.84
POOR_DICE, POOR_PERCENT = 0.75, 20.0
#: Variants of a case, with their titles.
_CHANGED = {"flipped": "flipped back", "rotated": "rotated", "noisy": "noisy", "thick": "thick slices"}


def counted_labels() -> list[int]:
    """Return the 28 structures that the means are over: all of aseg but ``APART``."""
    return [label for label in load_label_table(ASEG.published).labels[1:].tolist() if label not in APART]


def select(rows: pd.DataFrame, variant: str, against: str, labels: Sequence[int] | None = None) -> pd.DataFrame:
    """Return rows of a variant and a comparison, of some labels or all."""
    chosen = (rows["variant"] == variant) & (rows["against"] == against)
    return rows[chosen if labels is None else chosen & rows["label"].isin(labels)]


def mean_dice(rows: pd.DataFrame, variant: str, against: str = REFERENCE) -> pd.Series:
    """Return mean Dice over the counted structures of every case."""
    return select(rows, variant, against, counted_labels()).groupby("case", sort=False)["dice"].mean()


def table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, the first column left-aligned.

    Examples
    --------
    >>> print(table(["case", "Dice"], [["a", 0.5], ["b", float("nan")]]))
    | case | Dice |
    |:---|---:|
    | a | 0.500 |
    | b | n/a |
    """
    rule = "|:---|" + "---:|" * (len(header) - 1)
    body = ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(header) + " |", rule, *body])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def aims(rows: pd.DataFrame, aim_cases: Sequence[str]) -> str:
    """Return what is to be reached, and what was."""
    counted = rows[rows["case"].isin(aim_cases)]
    cases = mean_dice(counted, "plain")
    structures = _structure_means(rows, aim_cases)["dice"]
    masks = _masks(counted)
    lines = [
        ["mean Dice over 28 structures, mean of the cases", MEAN_AIM, float(cases.mean())],
        ["the same, lowest case", CASE_AIM, float(cases.min())],
        [f"lowest mean of a structure ({structures.idxmin()})", STRUCTURE_AIM, float(structures.min())],
        ["brain mask Dice, lowest case", MASK_AIM, float(masks.min())],
    ]
    unions = select(rows, "plain", HIPPOCAMPUS)
    for case, group in unions.groupby(unions["case"].where(~unions["case"].isin(aim_cases), "these cases"), sort=False):
        text = f"union of the subfields against aseg's hippocampus, lowest of {case}"
        lines.append([text, UNION_AIM, float(group["dice"].min())])
    names = ", ".join(cases.index)
    marked = [[*line, "yes" if line[2] >= line[1] else "**no**"] for line in lines]
    return f"Cases: {names}.\n\n" + table(["measure", "aim", "measured", "reached"], marked)


def _masks(rows: pd.DataFrame) -> pd.Series:
    plain = select(rows, "plain", REFERENCE)
    return plain[plain["structure"] == BRAIN_MASK].set_index("case")["dice"]


def _structure_means(rows: pd.DataFrame, cases: Sequence[str]) -> pd.DataFrame:
    """Return means over the cases of every counted structure; the index holds the names."""
    counted = select(rows[rows["case"].isin(cases)], "plain", REFERENCE, counted_labels())
    return counted.groupby("structure", sort=False)[["dice", "error_percent", "assd_mm"]].mean()


def per_structure(rows: pd.DataFrame, column: str, aim_cases: Sequence[str], labels: Sequence[int]) -> str:
    """Return a line per structure, a column per case and one for the mean of the cases that count."""
    plain = select(rows, "plain", REFERENCE, labels)
    cases = list(plain["case"].unique())
    wide = plain.pivot_table(index="structure", columns="case", values=column, sort=False, dropna=False)[cases]
    counted = [case for case in cases if case in aim_cases]
    lines = [[name, *map(float, row), float(row[counted].mean())] for name, row in wide.iterrows()]
    lines.append(["mean", *map(float, wide.mean()), float(wide[counted].mean(axis=None))])
    return table(["structure", *cases, f"mean of {len(counted)}"], lines)


def volume_errors(rows: pd.DataFrame, labels: Sequence[int]) -> str:
    """Return found minus reference of every case, mm3 and percent."""
    plain = select(rows, "plain", REFERENCE, labels)
    cases = list(plain["case"].unique())
    text = [
        "n/a" if math.isnan(percent) else f"{error:+.0f} ({percent:+.0f} %)"
        for error, percent in zip(plain["error_mm3"], plain["error_percent"], strict=True)
    ]
    wide = plain.assign(text=text).pivot(index="structure", columns="case", values="text")
    return table(["structure", *cases], [[name, *wide.loc[name, cases]] for name in plain["structure"].unique()])


def robustness(rows: pd.DataFrame) -> str:
    """Return mean Dice over the counted structures of every case, as it is and changed."""
    against_reference = [mean_dice(rows, variant) for variant in ("plain", *_CHANGED)]
    against_original = [mean_dice(rows, variant, ORIGINAL) for variant in _CHANGED]
    masks = _masks(rows)
    lines = [
        [
            case,
            float(masks[case]),
            *(float(means.get(case, math.nan)) for means in against_reference + against_original),
        ]
        for case in against_reference[0].index
    ]
    own = [f"{title}, against the unchanged" for title in _CHANGED.values()]
    return table(["case", "brain mask", "as it is", *_CHANGED.values(), *own], lines)


def before(rows: pd.DataFrame, earlier: pd.DataFrame | None, aim_cases: Sequence[str]) -> dict[str, str]:
    """Return how earlier weights did on the same images: by case, by structure, on changed images."""
    if earlier is None:
        return dict.fromkeys(("before", "before_structures", "before_robustness"), "Not measured.")
    return {
        "before": _before_by_case(rows, earlier),
        "before_structures": _before_by_structure(rows, earlier, aim_cases),
        "before_robustness": robustness(earlier),
    }


def _before_by_case(rows: pd.DataFrame, earlier: pd.DataFrame) -> str:
    columns = [of(part) for of in (lambda part: mean_dice(part, "plain"), _masks) for part in (earlier, rows)]
    lines = [[case, *(float(column.get(case, math.nan)) for column in columns)] for case in columns[0].index]
    return table(["case", "Dice, before", "Dice, now", "brain mask, before", "brain mask, now"], lines)


def _before_by_structure(rows: pd.DataFrame, earlier: pd.DataFrame, aim_cases: Sequence[str]) -> str:
    old, new = (_structure_means(part, aim_cases) for part in (earlier, rows))
    lines = [
        [name, *(float(value) for key in ("dice", "assd_mm") for value in (old.loc[name, key], new.loc[name, key]))]
        + [f"{part.loc[name, 'error_percent']:+.0f} %" for part in (old, new)]
        for name in new.index
    ]
    header = [f"{what}, {when}" for what in ("Dice", "ASSD", "volume") for when in ("before", "now")]
    return table(["structure", *header], lines)


def twins(rows: pd.DataFrame) -> str:
    """Return volumes of a head from two tools: the mean and the largest difference, and Dice."""
    pairs = select(rows, "plain", TWIN)
    if not len(pairs):
        return "Not measured."
    lines = []
    for case, group in pairs.groupby("case", sort=False):
        counted = group[group["label"].isin(counted_labels())].set_index("structure")
        percent = counted["error_percent"].abs()
        largest = f"{percent.max():.2f} % ({percent.idxmax()})"
        lines.append([case, float(counted["dice"].mean()), f"{percent.mean():.2f} %", largest])
    return table(["case", "mean Dice", "mean difference of volumes", "largest difference"], lines)


def subfields(rows: pd.DataFrame) -> str:
    """Return unions against aseg's hippocampus, labels found on each side, and consistency under flipping."""
    unions = select(rows, "plain", HIPPOCAMPUS)
    if not len(unions):
        return "Not measured."
    lines = []
    for case, group in unions.groupby("case", sort=False):
        of_case = rows[(rows["case"] == case) & (rows["label"] > 1000)]
        own, flipped = (select(of_case, variant, ORIGINAL) for variant in ("plain", "flipped"))
        present = [int(((own["label"] // 1000 == side) & (own["found_mm3"] > 0)).sum()) for side in (1, 2)]
        dice = group.set_index("label")["dice"]
        lines.append(
            [
                case,
                float(dice[17]),
                float(dice[53]),
                *present,
                float(flipped["dice"].mean()),
                float(flipped["dice"].min()),
            ]
        )
    header = ["case", "union, left", "union, right", "labels left (of 12)", "labels right (of 12)"]
    return table([*header, "flipped back, mean Dice", "lowest"], lines)


def poor(rows: pd.DataFrame, aim_cases: Sequence[str]) -> str:
    """Return structures with low Dice or wrong volumes, worst first."""
    means = _structure_means(rows, aim_cases).sort_values("dice")
    chosen = means[(means["dice"] < POOR_DICE) | (means["error_percent"].abs() > POOR_PERCENT)]
    lines = [
        f"- {name}: Dice {row['dice']:.2f}, volume {row['error_percent']:+.0f} %, ASSD {row['assd_mm']:.2f} mm"
        for name, row in chosen.iterrows()
    ]
    return "\n".join(lines) or "- no structure"


def sections(rows: pd.DataFrame, aim_cases: Sequence[str]) -> dict[str, str]:
    """Return every measured section of the card by the name of its placeholder."""
    rows = rows.assign(label=rows["label"].astype(np.int64))
    brain = [2, 41, 3, 42]
    counted = counted_labels()
    return {
        "aims": aims(rows, aim_cases),
        "dice": per_structure(rows, "dice", aim_cases, counted),
        "assd": per_structure(rows, "assd_mm", aim_cases, counted),
        "volumes": volume_errors(rows, counted),
        "apart": per_structure(rows, "dice", aim_cases, APART),
        "apart_volumes": volume_errors(rows, APART),
        "apart_assd": per_structure(rows, "assd_mm", aim_cases, APART),
        "brain": per_structure(rows, "dice", aim_cases, brain) if rows["label"].isin(brain).any() else "Not measured.",
        "robustness": robustness(rows),
        "twins": twins(rows),
        "subfields": subfields(rows),
        "poor": poor(rows, aim_cases),
    }
