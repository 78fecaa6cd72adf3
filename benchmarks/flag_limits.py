"""The limits of quality flags, from label maps of ordinary heads: how rarely they flag a head that did not set them.

    python benchmarks/flag_limits.py LABELS... [--results OUT_DIR] [--judge LABELS...] [--share 0.05] [--write FILE]

LABELS are FreeSurfer-style label maps of one head each (aseg, aparc+aseg, or maps that name what is outside the brain
with 500 and more). Judged are the volume of each structure and how left and right differ, both as logarithms; the
results of a run of the app add how left and right subfields differ. Each is taken for a location plus a scale times a t
distribution, whose degrees of freedom all volumes share, and all differences; location, scale and degrees are fitted by
maximum likelihood, which an odd head hardly moves. A limit is a prediction limit: a head to come is beyond it with the
probability SHARE divided by the number of all that is judged, what location and scale may be wrong by included
(simulated). So SHARE bounds how many heads are flagged for anything. Heads beyond the limits then leave, and the rest
set the final ones.

Printed are the limits and the judgement: limits set without a head judge it, by the package's own code, pieces of label
maps included, whose limit is fixed. --judge names label maps that set nothing. --write makes a file for
--quality-thresholds.
"""

import argparse
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import optimize, stats

from medsegmamba_bids.image.labels import load_label_table, merge_parcels, side_of
from medsegmamba_bids.report.quality import QualityInputs, quality_flags, stray_shares
from medsegmamba_bids.report.thresholds import load_thresholds
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.stats.tables import COLUMNS

#: Labels outside the brain, of maps of whole heads: all fluid around the brain is CSF in these.
OUTSIDE = range(500, 1000)
DEGREES = (3, 4, 5, 6, 8, 10, 15, 30)
FEWEST = 6  # heads that a limit is set from


@dataclass(frozen=True)
class Head:
    """Volume tables by segmentation, as the app writes them; the share of voxels apart by label, of label maps."""

    tables: dict
    apart: dict

    def quantities(self):
        """What is judged and sets limits: ('volume' or 'asymmetry', name) -> logarithm."""
        if not self.apart:  # of the app's own volumes only those of subfields
            return differences(self.tables.get(HIPPOCAMPUS.name))
        rows = volumes(self.tables[ASEG.name])
        logarithms = {("volume", name): math.log(volume) for name, volume in rows.items()}
        return logarithms | differences(self.tables[ASEG.name])


def volumes(table):
    """Volume table -> mm3 by name, of what is there."""
    rows = table[table["Volume_mm3"] > 0]
    return dict(zip(rows["StructName"], rows["Volume_mm3"], strict=True))


def differences(table):
    """Volume table -> ('asymmetry', name without side): logarithm of left by right, of what is judged."""
    rows = {} if table is None else volumes(table)
    without = load_thresholds()["checks"]["asymmetry"]["except"]
    plain = [side_of(name)[1] for name in rows if side_of(name)[0] == "left"]
    pairs = [name for name in plain if f"Right-{name}" in rows and name not in without]
    return {("asymmetry", name): math.log(rows[f"Left-{name}"] / rows[f"Right-{name}"]) for name in pairs}


def read_label_map(path):
    """A label map -> its head."""
    image = nib.load(path)
    labels = merge_parcels(np.asarray(image.dataobj).astype(np.int32))
    structures = dict(load_label_table("aseg_brain").structures)
    if np.isin(labels, OUTSIDE).any():
        structures = {label: name for label, name in structures.items() if name != "CSF"}
    labels[~np.isin(labels, list(structures))] = 0
    voxels = np.bincount(labels.ravel(), minlength=max(structures) + 1)
    size = abs(np.linalg.det(image.affine[:3, :3]))
    rows = [
        dict.fromkeys(COLUMNS, math.nan)
        | {"SegId": label, "StructName": name, "NVoxels": voxels[label], "Volume_mm3": voxels[label] * size, "Flag": ""}
        for label, name in structures.items()
        if voxels[label]
    ]
    return Head({ASEG.name: pd.DataFrame(rows)}, stray_shares(labels))


def read_results(folder):
    """A folder of the app's results -> heads by name, each with its volume tables."""
    tables = {}
    for path in sorted(folder.glob("sub-*/**/*_desc-medsegmamba_stats.tsv")):
        head, _, rest = path.name.partition("_seg-")
        rows = pd.read_csv(path, sep="\t", na_values="n/a", dtype={"Flag": object})
        tables.setdefault(head, {})[rest.split("_")[0]] = rows.assign(Flag=rows["Flag"].fillna(""))
    return {head: Head(parts, {}) for head, parts in tables.items()}


def judged_of(heads):
    """Heads by name -> what is judged, a row each, NaN where a head lacks it."""
    rows = {name: pd.Series(head.quantities()) for name, head in heads.items()}
    return pd.DataFrame(rows).T


def fit(values, degrees, rounds=100):
    """Values (heads, K), NaN where absent -> location and scale (K,) of a t distribution, by maximum likelihood."""
    location, square = np.nanmedian(values, axis=0), np.nanvar(values, axis=0)
    for _ in range(rounds):  # expectation maximisation: a value counts less the further out it lies
        weights = (degrees + 1) / (degrees + (values - location) ** 2 / square)
        weights[np.isnan(values)] = 0
        location = np.nansum(weights * values, axis=0) / weights.sum(axis=0)
        square = np.nanmean(weights * (values - location) ** 2, axis=0)
    return location, np.sqrt(square)


def likeliest_degrees(values):
    """Degrees of freedom that values (heads, K) share."""

    def likelihood(degrees):
        return np.nansum(stats.t.logpdf(values, degrees, *fit(values, degrees)))

    return max(DEGREES, key=likelihood)


@cache
def factor(degrees, heads, probability, samples=4000):
    """How many scales from the location a head to come lies beyond with a probability, both fitted to some heads."""
    drawn = stats.t.rvs(degrees, size=(heads, samples), random_state=np.random.default_rng(0))
    location, scale = fit(drawn, degrees, rounds=50)

    def excess(times):
        below, above = location - times * scale, location + times * scale
        return (stats.t.cdf(below, degrees) + stats.t.sf(above, degrees)).mean() - probability

    return optimize.brentq(excess, 1, 1000)


def limits_of(judged, share):
    """What is judged of ordinary heads -> lowest and highest, by ('volume' or 'asymmetry', name), and what set them."""
    judged = judged.loc[:, judged.notna().sum() >= FEWEST]
    probability = share / judged.shape[1]
    limits, degrees = {}, {}
    for check in ("asymmetry", "volume"):
        part = judged.loc[:, judged.columns.get_level_values(0) == check]
        degrees[check] = likeliest_degrees(part.to_numpy())
        location, scale = fit(part.to_numpy(), degrees[check])
        times = np.array([factor(degrees[check], int(heads), probability) for heads in part.notna().sum()])
        limits |= dict(zip(part, zip(location - times * scale, location + times * scale, strict=True), strict=True))
    return limits, degrees


def odd_heads(judged, limits):
    """Heads with anything beyond its limits."""
    low, high = (pd.Series({key: pair[end] for key, pair in limits.items()}) for end in (0, 1))
    inside = judged[list(limits)]
    return judged.index[((inside < low) | (inside > high)).any(axis=1)].tolist()


def robust_limits(judged, share):
    """As `limits_of`, without the heads that are odd by the limits of all; the third result names these."""
    odd = odd_heads(judged, limits_of(judged, share)[0])
    return *limits_of(judged.drop(index=odd), share), odd


def ratio(logarithm):
    """Logarithm of left by right -> their difference divided by their mean."""
    return 2 * math.tanh(logarithm / 2)


def as_thresholds(limits):
    """Limits -> what a file for --quality-thresholds holds: sides together, rounded to what flags less."""
    ranges, asymmetries = {}, {}
    for (check, name), (low, high) in limits.items():
        plain = side_of(name)[1]
        if check == "asymmetry":
            asymmetries[plain] = math.ceil(100 * ratio(max(-low, high))) / 100
        else:
            lowest, highest = ranges.get(plain, (math.inf, 0))
            ranges[plain] = [min(lowest, rounded(math.exp(low), math.floor)),
                             max(highest, rounded(math.exp(high), math.ceil))]  # fmt: skip
    return {"checks": {"asymmetry": {"limits": asymmetries}}, "volumes": {"ranges": ranges}}


def rounded(value, direction, digits=2):
    """A number of few digits, by `math.floor` or `math.ceil`."""
    unit = 10 ** max(0, math.floor(math.log10(value)) + 1 - digits)
    return direction(value / unit) * unit


def combined(changes):
    """The package's thresholds with changes in their place."""
    thresholds = load_thresholds()
    thresholds["checks"]["asymmetry"]["limits"].update(changes["checks"]["asymmetry"]["limits"])
    thresholds["volumes"]["ranges"].update(changes["volumes"]["ranges"])
    return thresholds


def flags_of(name, head, thresholds):
    """A head's flags of structures as 'check structure value (limit)'."""
    apart = {segmentation: {} for segmentation in head.tables} | {ASEG.name: head.apart}
    return [
        f"{flag.check} {flag.structure} {flag.value:.3g} ({flag.threshold})"
        for flag in quality_flags(QualityInputs(name, head.tables, apart=apart), thresholds)
        if flag.check in ("asymmetry", "pieces", "volume")
    ]


def flags_by_others(heads, share):
    """Heads by name -> flags of each by limits that the others set."""
    judged, flags = judged_of(heads), {}
    for name, head in heads.items():
        limits, _, _ = robust_limits(judged.drop(index=name), share)
        flags[name] = flags_of(name, head, combined(as_thresholds(limits)))
    return flags


def print_rate(flags):
    """Print how many heads are flagged, with the exact (Clopper-Pearson) 95 % interval, and which."""
    if not flags:
        return
    flagged, heads = sum(map(bool, flags.values())), len(flags)
    interval = stats.binomtest(flagged, heads).proportion_ci()
    low, high = interval.low, interval.high
    print(f"{flagged} of {heads} flagged: {flagged / heads:.0%}, 95 % interval {low:.0%} to {high:.0%}")
    for head, texts in flags.items():
        for text in texts:
            print(f"  {head}: {text}")


def print_limits(limits, judged):
    """Print what is judged, its limits, and what the heads have that set them."""
    for (check, name), (low, high) in limits.items():
        seen = judged[check, name]
        if check == "asymmetry":
            print(f"{check} {name}: up to {ratio(max(-low, high)):.2f}; seen up to {ratio(seen.abs().max()):.2f}")
        else:
            print(f"{check} {name}: {math.exp(low):.0f} to {math.exp(high):.0f} mm3; "
                  f"seen {math.exp(seen.min()):.0f} to {math.exp(seen.max()):.0f}")  # fmt: skip


def main(args=None):
    """Command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="+", type=Path, metavar="LABELS")
    parser.add_argument("--share", type=float, default=0.05, help="of ordinary heads that may be flagged")
    parser.add_argument("--judge", nargs="+", type=Path, default=[], metavar="LABELS", help="of other heads")
    parser.add_argument("--results", type=Path, metavar="OUT_DIR", help="results of the app")
    parser.add_argument("--write", type=Path, metavar="FILE", help="for --quality-thresholds")
    given = parser.parse_args(args)
    maps, others = (
        {path.name.split(".")[0]: read_label_map(path) for path in paths} for paths in (given.labels, given.judge)
    )
    results = read_results(given.results) if given.results else {}
    judged = judged_of(maps | results)
    limits, degrees, odd = robust_limits(judged, given.share)
    print(f"{len(judged)} heads, {len(limits)} quantities; degrees of freedom {degrees}; set without {odd}")
    print_limits(limits, judged.drop(index=odd))
    by_others = flags_by_others(maps | results, given.share)
    for title, heads in (("label maps", maps), ("results", results)):
        print(f"{title}, each judged by limits that the others set:")
        print_rate({name: by_others[name] for name in heads})
    changes = as_thresholds(limits)
    for title, heads in (("label maps", maps), ("results", results), ("others", others)):
        print(f"{title}, judged by the limits above:")
        print_rate({name: flags_of(name, head, combined(changes)) for name, head in heads.items()})
    if given.write:
        given.write.write_text(json.dumps(changes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
