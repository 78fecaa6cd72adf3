"""Visits made of real heads: how well the processing of visits together repeats, and whether it finds a known change.

    python benchmarks/longitudinal.py OUT HEAD [HEAD ...] --retests 3 --changes -5 -2 2 5
    python benchmarks/longitudinal.py OUT --tables-only

Each HEAD is a T1w; OUT keeps what was found, a JSON per head, and ``longitudinal.md``; heads that it has are not done
again. All visits of a head are one participant's: some differ in motion, voxel size, noise and bias field only, others
besides by a smooth deformation of the left hippocampus and, by as much the other way, of the lateral ventricles.

The stages of the app are called directly. To be quick the network sees a box of 116 mm around the deep structures,
which is one patch, unless ``--whole``; where brain and white matter lie is taken from the head's own labels, moved as
the visit is. There are no subfields.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))
from made_visits import Scan, change_of, growth, make_scan, random_scan, rigid_motion
from medsegmamba_bids.anatomy import OUTSIDE_BRAIN, WHITE_MATTER
from medsegmamba_bids.image.geometry import conform, labels_to_grid
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.intensity import normalize
from medsegmamba_bids.image.io import load_image, save_image, write_text
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.inference.device import use_threads
from medsegmamba_bids.inference.merge import Segmentation, merge_probabilities
from medsegmamba_bids.inference.segmenter import Segmenter, class_groups
from medsegmamba_bids.longitudinal.alignment import Alignment, Visit, align, common_masks, common_view, white_level
from medsegmamba_bids.longitudinal.change import both_volumes
from medsegmamba_bids.longitudinal.class_files import PosteriorFolder
from medsegmamba_bids.longitudinal.deformation import displacement, expansion, relative_volumes
from medsegmamba_bids.longitudinal.fusion import WEIGHT, fuse
from medsegmamba_bids.longitudinal.images import into_midspace, median_image, normalized_alike
from medsegmamba_bids.segmentations import ASEG
from medsegmamba_bids.stats.structures import structure_statistics

TARGETS = {"left hippocampus": (17,), "lateral ventricles": (4, 43)}
#: Whole within the box: the structures that are compared.
DEEP = (4, 43, 5, 44, 10, 49, 11, 50, 12, 51, 13, 52, 14, 17, 53, 18, 54, 26, 58)
ALONE, DEFORMED, BOTH = "each by itself", "by shape", "as the app"
COLUMNS = ("NVoxels", "Volume_mm3", "SoftVolume_mm3")
_DEEP_MM = 100  # and 8 mm on either side make a patch
_MARGIN = 25  # voxels around the brain that a visit shows
_SIDES = (192, 208, 192)  # of the middle, mm


def main() -> None:
    options = parse()
    if not options.tables_only:
        use_threads(options.threads)
        for number, path in enumerate(options.heads):
            one_head(path, number, options)
    report(options.out, options.measure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("heads", type=Path, nargs="*")
    parser.add_argument("--retests", type=int, default=3, help="visits without change")
    parser.add_argument("--changes", type=float, nargs="*", default=[-5, -2, 2, 5], help="percent, a visit each")
    parser.add_argument("--fusion", type=float, nargs="*", default=[0.0, WEIGHT], help="powers that are compared")
    parser.add_argument("--weights", type=Path, help="those of the package by default")
    parser.add_argument("--whole", action="store_true", help="the network sees all of the brain, ten times as slow")
    parser.add_argument("--measure", default="Volume_mm3", help="column of the volume table that is compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables-only", action="store_true")
    return parser.parse_args()


@dataclasses.dataclass
class Head:
    """A real head, cut to its brain, with the network's labels."""

    image: nib.Nifti1Image
    labels: np.ndarray

    @cached_property
    def grid(self) -> Grid:
        return Grid.of(self.image)

    def made(self, change: float, scan: Scan) -> tuple[nib.Nifti1Image, dict[int, float]]:
        """Return a scan of the head after a change of the targets, and how much larger structures are, in percent."""
        if not change:
            return make_scan(self.image, scan), {}
        signs = (change, -change)
        pulls = [
            growth(np.isin(self.labels, labels), self.grid, percent)[0]
            for labels, percent in zip(TARGETS.values(), signs, strict=True)
        ]
        pull = np.sum(pulls, axis=0)
        true = {label: change_of(self.labels == label, self.grid, pull) for label in DEEP if label in self.labels}
        return make_scan(self.image, scan, pull), true


def read_head(path: Path, out: Path, segmenter: Segmenter, weights: Path | None) -> Head:
    """Return a head with the network's labels, which are kept."""
    image = load_image(path)
    kept = out / f"{path.name.split('.')[0]}_labels.nii.gz"
    if not kept.is_file():
        conformed = conform(image)
        found = segmenter.segment(conformed, weights)
        save_image(labels_to_grid(found.labels, found.grid, Grid.of(image)), image.affine, kept, np.int16)
    labels = np.asarray(nib.load(kept).dataobj)
    box = Box.around(labels, margin=_MARGIN)
    grid = Grid.of(image).cut(box)
    return Head(nib.Nifti1Image(np.asarray(image.dataobj)[box], grid.affine), labels[box])


def one_head(path: Path, number: int, options: argparse.Namespace) -> None:
    """Make the visits of a head, process them, and keep volumes and truth."""
    kept = options.out / f"{path.name.split('.')[0]}.json"
    if kept.is_file():
        return
    segmenter = Segmenter()
    head = read_head(path, options.out, segmenter, options.weights)
    changes = [0.0] * options.retests + list(options.changes)
    folder = options.out / "work" / path.name.split(".")[0]
    stages = Stages(segmenter, options.weights, options.whole, folder)
    visits, truth, found = [], [], {ALONE: []}
    for place, change in enumerate(changes):
        scan = random_scan(np.random.default_rng([options.seed, number, place]))
        image, true = head.made(change, scan)
        visit, table = stages.alone(head, image, scan, f"v{place}")
        visits.append(visit)
        truth.append(true)
        found[ALONE].append(table)
        print(path.name, "visit", place, "by itself", flush=True)
    entry = {"network": segmenter.load(options.weights, ASEG.task)[1].name, "changes": changes, "true": truth}
    for way, tables in stages.together(visits, options.fusion):
        found[way] = tables
        write_text(kept, json.dumps({**entry, "found": found}, indent=1))


@dataclasses.dataclass
class Stages:
    """The steps of the app, called directly; what the next one reads lies in a folder."""

    segmenter: Segmenter
    weights: Path | None
    whole: bool
    folder: Path

    @property
    def info(self) -> Any:
        return self.segmenter.load(self.weights, ASEG.task)[1]

    def alone(self, head: Head, image: nib.Nifti1Image, scan: Scan, name: str) -> tuple[Visit, dict]:
        """Process a visit by itself; return its files and its table."""
        conformed = conform(image)
        seen = Grid(rigid_motion(scan, head.grid) @ head.grid.affine, head.grid.shape)
        labels = moved_labels(head.labels, seen, Grid.of(conformed))
        box = Box.around(labels, margin=_MARGIN)
        grid, labels = Grid.of(conformed).cut(box), labels[box]
        data, brain = np.asarray(conformed.dataobj)[box], (labels > 0) & ~np.isin(labels, OUTSIDE_BRAIN)
        paths = {key: self.folder / f"{name}_{key}.nii" for key in ("native", "conformed", "labels", "mask")}
        save_image(np.asarray(image.dataobj), image.affine, paths["native"])
        save_image(data, grid.affine, paths["conformed"])
        save_image(labels, grid.affine, paths["labels"], np.int16)
        save_image(brain, grid.affine, paths["mask"], np.uint8)
        found = self.segment(nib.Nifti1Image(data, grid.affine), labels)
        norm = normalize(data, brain, np.isin(labels, WHITE_MATTER))
        return Visit(name, *paths.values()), table_of(found, norm, brain)

    def segment(self, image: nib.Nifti1Image, labels: np.ndarray, name: str | None = None) -> Segmentation:
        """Segment the box around the deep structures, or all; keep the classes under a name."""
        around = Box.around((labels > 0) & ~np.isin(labels, OUTSIDE_BRAIN)) if self.whole else deep_box(labels)
        if name is None:
            return self.segmenter.segment(image, self.weights, brain=around)
        with PosteriorFolder(self.folder / f"{name}_classes") as classes:
            return self.segmenter.segment(image, self.weights, classes, around)

    def together(self, visits: Sequence[Visit], powers: Iterable[float]) -> Iterable[tuple[str, list[dict]]]:
        """Process visits together; yield their tables, by shape and by the power of the fusion."""
        alignment = align(visits)
        centre = np.array(alignment.grid.shape) // 2
        middle = Box(slice(c - side // 2, c + side // 2) for c, side in zip(centre, _SIDES, strict=True))
        alignment = dataclasses.replace(alignment, grid=alignment.grid.cut(middle))
        brain, white = common_masks(visits, alignment)
        norms = self.images(visits, alignment, brain, white)
        labels = self.common_labels(visits, alignment)
        names = [visit.name for visit in visits]
        median = median_image([self.folder / f"{name}_seen.nii" for name in names])
        template = self.segment(median, labels, "template").labels
        shapes = [relative_table(found) for found in self.deformed(norms, brain, template)]
        yield DEFORMED, shapes
        for name in names:
            self.segment(nib.load(self.folder / f"{name}_seen.nii"), labels, name)
            print(self.folder.name, name, "in the middle", flush=True)
        for power in powers:
            tables = [self.fused(name, names, power, norm, brain, alignment.grid) for name, norm in norms.items()]
            yield f"by labels, w = {power:g}", tables
            if power == WEIGHT:
                yield BOTH, [table_of_both(*pair) for pair in zip(tables, shapes, strict=True)]

    def deformed(
        self, norms: dict[str, np.ndarray], brain: np.ndarray, labels: np.ndarray
    ) -> Iterable[dict[int, float]]:
        """Yield how many times larger the template's structures are in each visit."""
        template = np.median(list(norms.values()), axis=0).astype(np.float32)
        around = brain if self.whole else np.zeros_like(brain)
        if not self.whole:
            box = deep_box(labels)
            around[box] = brain[box]
        for norm in norms.values():
            field, box = displacement(template, norm, around)
            yield relative_volumes(labels[box], expansion(field))

    def images(
        self, visits: Sequence[Visit], alignment: Alignment, brain: np.ndarray, white: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Bring all visits into the middle; return the normalised images."""
        level, norms = white_level(visits), {}
        view, _ = common_view(visits, alignment, brain)
        for visit, matrix in zip(visits, alignment.transforms, strict=True):
            image = nib.load(visit.native)
            here = Grid(matrix @ image.affine, image.shape)
            moved = into_midspace(np.asarray(image.dataobj), here, alignment.grid, view)
            norms[visit.name], seen = normalized_alike(moved, brain, white, level)
            save_image(seen, alignment.grid.affine, self.folder / f"{visit.name}_seen.nii", np.uint8)
        return norms

    def common_labels(self, visits: Sequence[Visit], alignment: Alignment) -> np.ndarray:
        """Return the first visit's labels in the middle: where the box goes."""
        image = nib.load(visits[0].labels)
        seen = Grid(alignment.transforms[0] @ image.affine, image.shape)
        return moved_labels(np.asarray(image.dataobj), seen, alignment.grid)

    def fused(
        self, name: str, names: Sequence[str], power: float, norm: np.ndarray, brain: np.ndarray, grid: Grid
    ) -> dict:
        """Fuse a visit with all, and measure."""
        own, *others = (
            PosteriorFolder.of(self.folder / f"{one}_classes" / "posteriors.json") for one in (name, *names, "template")
        )
        probabilities, box = fuse(own, others if power else [own], power)
        found = merge_probabilities(probabilities, box, grid, self.info.labels, class_groups(self.info))
        return table_of(found, norm, brain)


def moved_labels(labels: np.ndarray, grid: Grid, to_grid: Grid) -> np.ndarray:
    """The nearest label on another grid."""
    back = to_grid.to_voxels_of(grid)
    return ndimage.affine_transform(labels, back[:3, :3], back[:3, 3], to_grid.shape, order=0)


def deep_box(labels: np.ndarray) -> Box:
    """A box of 100 mm around hippocampi and lateral ventricles."""
    middle = np.mean([np.argwhere(np.isin(labels, pair)).mean(0) for pair in ((4, 43), (17, 53))], axis=0)
    starts = np.round(middle).astype(int) - _DEEP_MM // 2
    return Box(slice(int(start), int(start) + _DEEP_MM) for start in starts)


def table_of(found: Segmentation, norm: np.ndarray, brain: np.ndarray) -> dict[str, dict[str, float]]:
    """Volumes of the deep structures by column of the volume table and label."""
    guide = np.where(brain, norm, np.float32(0))
    rows = structure_statistics(found.labels, guide, load_label_table(ASEG.widest), soft_volumes=found.soft_volumes)
    rows = rows[rows["SegId"].isin(DEEP)]
    return {name: {str(k): float(v) for k, v in zip(rows["SegId"], rows[name], strict=True)} for name in COLUMNS}


def relative_table(relative: dict[int, float]) -> dict[str, dict[str, float]]:
    """As `table_of`, a structure of the template having a volume of 1000."""
    volumes = {str(label): 1000 * relative[label] for label in DEEP if label in relative}
    return dict.fromkeys(COLUMNS, volumes)


def table_of_both(labels: dict, shapes: dict) -> dict[str, dict[str, float]]:
    """What the app makes of tables by labels and by shape of one visit."""
    out = {}
    for column, volumes in labels.items():
        known = [label for label in volumes if label in shapes[column]]
        pair = (np.array([table[column][label] for label in known], float) for table in (labels, shapes))
        out[column] = dict(zip(known, both_volumes(*pair, np.array(known, int)).tolist(), strict=True))
    return out


def report(out: Path, measure: str) -> None:
    """Write what was found as tables of Markdown."""
    heads = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    if not heads:
        raise SystemExit(f"{out}: nothing was measured yet; name heads")
    told = f"{len(heads)} heads, {sum(len(head['changes']) for head in heads)} visits, {heads[0]['network']}"
    text = "\n\n".join([told, repeated(heads, measure), *(changed(heads, measure, name) for name in TARGETS)])
    write_text(out / "longitudinal.md", text + "\n")
    print(text)


def differences(head: dict, way: str, measure: str) -> pd.DataFrame:
    """Differences of all visits from the first in percent of the mean of both, and the true ones; a row each."""
    first, *others = head["found"][way]
    rows = []
    for number, other in enumerate(others, 1):
        for label, before in first[measure].items():
            true = head["true"][number].get(label, 0.0)
            after = other[measure][label]
            if before + after:
                found = 200 * (after - before) / (after + before)
                rows.append((number, int(label), head["changes"][number], 200 * true / (200 + true), found))
    return pd.DataFrame(rows, columns=["visit", "label", "change", "true", "found"])


def scatter(head: dict, way: str, measure: str) -> pd.Series:
    """Variance of volumes of visits without change, around their mean, in squared percent of it; by label."""
    same = [table[measure] for table, change in zip(head["found"][way], head["changes"], strict=True) if not change]
    volumes = pd.DataFrame(same)
    volumes.columns = volumes.columns.astype(int)
    return (100 * volumes / volumes.mean()).var()


def repeated(heads: list[dict], measure: str) -> str:
    """Standard deviation of the difference of two scans of one head, by structure."""
    names = load_label_table(ASEG.widest)
    title = dict(zip(map(int, names.labels), names.names, strict=True))
    ways = list(heads[0]["found"])
    # The difference of two scans has twice the variance of one.
    table = pd.DataFrame(
        {way: np.sqrt(2 * sum(scatter(head, way, measure) for head in heads) / len(heads)) for way in ways}
    )
    lines = [f"Standard deviation of the difference of two scans, percent ({measure})", ""]
    lines += ["| structure | " + " | ".join(ways) + " | ratio |", "|---" * (len(ways) + 2) + "|"]
    ratio = table[BOTH if BOTH in table else DEFORMED] / table[ALONE]
    for label, row in table.iterrows():
        lines.append(f"| {title[label]} | " + " | ".join(f"{v:.2f}" for v in row) + f" | {ratio[label]:.2f} |")
    lines.append("| median | " + " | ".join(f"{v:.2f}" for v in table.median()) + f" | {ratio.median():.2f} |")
    lines.append(f"| higher | {' |' * len(ways)} {int((ratio > 1).sum())} of {len(ratio)} |")
    return "\n".join(lines)


def changed(heads: list[dict], measure: str, name: str) -> str:
    """Found against true changes of a deformed structure, and the slope through the origin."""
    columns, true, change = {}, None, None
    for way in heads[0]["found"]:
        rows = pd.concat([differences(head, way, measure).assign(head=n) for n, head in enumerate(heads)])
        rows = rows[(rows["change"] != 0) & rows["label"].isin(TARGETS[name])]
        means = rows.groupby(["change", "head"])[["true", "found"]].mean()  # over both ventricles
        columns[way], true = means["found"], means["true"]
    table = pd.DataFrame(columns)
    slopes = (table.mul(true, axis=0)).sum() / (true**2).sum()
    lines = [f"{name}: symmetrised change in percent, mean of {len(heads)} heads", ""]
    lines += ["| true | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for change, part in table.groupby(level="change"):
        lines.append(f"| {true[change].mean():+.2f} | " + " | ".join(f"{v:+.2f}" for v in part.mean()) + " |")
    lines.append("| slope | " + " | ".join(f"{v:.2f}" for v in slopes) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
