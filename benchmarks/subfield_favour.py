"""How much each subfield must be favoured so that subfields come out as large as they were painted.

    python benchmarks/subfield_favour.py WEIGHTS --data-dir DATA --set IMAGE=LABELS ... [--judge IMAGE=LABELS ...]
        [--precision bfloat16]

IMAGE is a T1w image, LABELS FreeSurfer's aseg of it (or aparc+aseg); paths are relative to DATA, where the subfields'
atlas is. The subfields are painted into the hippocampi of LABELS in the published proportions and as the image has
them, as for a training, and found there by WEIGHTS, a file or a name. Log odds are added to every subfield, alike on
both sides, until its share of the volumes (sums of probabilities, as the tables have them) in all heads of --set
together is what was painted. They go to [weights], favour, of the configuration, added to what WEIGHTS has there.

Printed are that line, and one JSON line each for the heads that set it and those of --judge, before and after: the mean
Dice of subfields against painted ones, the share of voxels in both hippocampi that agree, volume found by volume
painted, and by how much that is off in the geometric mean.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from medsegmamba_bids.evaluation.card.cases import Case
from medsegmamba_bids.evaluation.card.measure import read_reference
from medsegmamba_bids.image.geometry import conform, labels_to_grid
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import load_image
from medsegmamba_bids.image.labels import load_label_table, side_of
from medsegmamba_bids.segmentations import HIPPOCAMPUS
from medsegmamba_bids.training.synthetic.subfields import load_atlas, paint_subfields, with_published_volumes

ATLAS = ("hippocampus/mni_left_hippoamyg.nii.gz", "hippocampus/mni_left_hippoamyg_labels.json")
TABLE = load_label_table("hippoFS60")
NAMES = [side_of(name)[1] for name in TABLE.names]  # of every class, without its side
SUBFIELDS = list(dict.fromkeys(NAMES[1:]))
SHARE = 0.88  # of FreeSurfer's hippocampi, as in the configurations
MARGIN_MM = 4
SURE = 0.999  # what is background with more than that counts for nothing
ROUNDS = 60


@dataclass(frozen=True)
class Head:
    """Voxels that are or may be hippocampus: log probabilities (C, V) and painted classes (V,)."""

    logarithms: np.ndarray
    painted: np.ndarray

    def probabilities(self, favour):
        """Log odds by subfield -> probabilities (C, V)."""
        shifts = np.array([favour.get(name, 0) for name in NAMES], np.float32)
        return special.softmax(self.logarithms + shifts[:, None], axis=0)


def read_atlas(data_dir):
    """Folder of the atlas -> the atlas as trainings paint it."""
    return with_published_volumes(load_atlas(*(data_dir / name for name in ATLAS), share=SHARE))


def read_head(segmenter, weights, case, atlas):
    """A case -> its head: painted and found within the same hippocampi."""
    image = load_image(case.image)
    conformed = conform(image)
    aseg = labels_to_grid(read_reference(case, image), Grid.of(image), Grid.of(conformed))
    painted = TABLE.to_indices(paint_subfields(aseg, atlas, conformed.get_fdata(dtype=np.float32)))
    near = Box.around(painted > 0, MARGIN_MM)
    posteriors = np.zeros((len(NAMES), *painted[near].shape), np.float32)

    def keep(index, box, posterior):
        whole = np.zeros(painted.shape, np.float32)
        whole[box] = posterior
        posteriors[index] = whole[near]

    segmenter.segment_hippocampus(conformed, aseg, weights, keep)
    counts = (painted[near] > 0) | (posteriors[0] < SURE)
    return Head(np.log(posteriors[:, counts] + 1e-7), painted[near][counts])


def by_subfield(classes):
    """A number of every class (C,) -> their sums of both sides (S,)."""
    return np.array([classes[[name == subfield for name in NAMES]].sum() for subfield in SUBFIELDS])


def volumes(heads, favour):
    """Heads -> mm3 found and painted, of all together (S,) each."""
    found = sum(head.probabilities(favour).sum(1) for head in heads)
    painted = sum(np.bincount(head.painted, minlength=len(NAMES)) for head in heads)
    return by_subfield(found), by_subfield(painted)


def meet_volumes(heads):
    """Heads -> log odds by subfield with which their shares of the hippocampi are those painted."""
    favour = dict.fromkeys(SUBFIELDS, 0.0)
    for _ in range(ROUNDS):
        found, painted = (sizes / sizes.sum() for sizes in volumes(heads, favour))
        for name, wrong in zip(SUBFIELDS, np.log(found / painted), strict=True):
            favour[name] -= float(wrong)
    return {name: round(shift, 2) for name, shift in favour.items()}


def judge(heads, favour):
    """Heads -> the numbers of one line."""
    dice, agreement = [], []
    for head in heads:
        found, painted = head.probabilities(favour).argmax(0), head.painted
        both = (found > 0) & (painted > 0)
        agreement.append((found == painted)[both].mean())
        for index in np.unique(painted[painted > 0]):
            here, there = found == index, painted == index
            dice.append(2 * (here & there).sum() / (here.sum() + there.sum()))
    found, painted = volumes(heads, favour)
    ratios = found / painted
    return {
        "heads": len(heads),
        "dice": round(float(np.mean(dice)), 4),
        "agreement": round(float(np.mean(agreement)), 4),
        "off_by": round(float(np.exp(np.abs(np.log(ratios)).mean())), 3),
        "found_by_painted": dict(zip(SUBFIELDS, ratios.round(2).tolist(), strict=True)),
    }


def pair(text):
    """IMAGE=LABELS -> both."""
    image, _, labels = text.partition("=")
    if not (image and labels):
        raise argparse.ArgumentTypeError(f"{text}: must be IMAGE=LABELS")
    return image, labels


def main():
    """Read the heads, meet their volumes, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--set", nargs="+", type=pair, required=True, metavar="IMAGE=LABELS")
    parser.add_argument("--judge", nargs="+", type=pair, default=[], metavar="IMAGE=LABELS")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter

    segmenter = Segmenter(InferenceSettings(device="cpu", precision=options.precision))
    if list(segmenter.load(options.weights, HIPPOCAMPUS.task)[1].labels) != TABLE.labels.tolist():
        parser.error(f"{options.weights}: its classes are not those of hippoFS60")
    atlas = read_atlas(options.data_dir)

    def heads_of(pairs):
        cases = [Case(image, options.data_dir / image, options.data_dir / labels) for image, labels in pairs]
        return [read_head(segmenter, options.weights, case, atlas) for case in cases]

    sets = heads_of(options.set)
    favour = meet_volumes(sets)
    print("favour = {", ", ".join(f"{name} = {shift:.2f}" for name, shift in favour.items()), "}", flush=True)
    for what, heads in (("set", sets), ("judge", heads_of(options.judge))):
        for when, shifts in (("before", {}), ("after", favour)):
            if heads:
                print(json.dumps({what: when, **judge(heads, shifts)}), flush=True)


if __name__ == "__main__":
    main()
