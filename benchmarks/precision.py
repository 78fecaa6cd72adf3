"""What a network loses in bfloat16 or float16: one JSON line per precision, each against float32.

    python benchmarks/precision.py WEIGHTS IMAGE [--precisions bfloat16 float16] [--device cpu] [--step-size N]
        [--reference LABELS]

WEIGHTS is a file or a name, IMAGE what the weights expect; it is conformed once. Agreement is that of the labels at
1 mm: over all voxels, and over those that either segmentation calls anything but background; Dice is the mean over
the structures that either has. float16 is for GPUs only. Weights for the hippocampus need an aseg of IMAGE, conformed:
--aseg-weights makes one.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from medsegmamba_bids.segmentations import HIPPOCAMPUS


def agreement(found, reference):
    """Two Segmentations of one image -> numbers, none of which is NaN."""
    same = found.labels == reference.labels
    anything = (found.labels > 0) | (reference.labels > 0)
    dice = {}
    for label in reference.voxels:
        here, there = found.labels == label, reference.labels == label
        if size := int(here.sum()) + int(there.sum()):
            dice[label] = 2 * int((here & there).sum()) / size
    worst = min(dice, key=dice.get, default=None)
    volumes = [
        abs(found.soft_volumes[label] - volume) / volume for label, volume in reference.soft_volumes.items() if volume
    ]
    return {
        "argmax_agreement": float(same.mean()),
        "argmax_agreement_labelled": float(same[anything].mean()) if anything.any() else 1.0,
        "mean_dice": float(np.mean(list(dice.values()))) if dice else 1.0,
        "worst_dice": dice.get(worst, 1.0),
        "worst_label": worst,
        "structures": len(dice),
        "largest_posterior_difference": float(np.abs(found.posterior - reference.posterior).max()),
        "mean_soft_volume_difference": float(np.mean(volumes)) if volumes else 0.0,
    }


def dice_loss(found, exact, reference):
    """How much Dice against an image of labels is lost from one Segmentation to another of the same image."""
    from medsegmamba_bids.image.geometry import labels_to_grid
    from medsegmamba_bids.image.grid import Grid

    truth = labels_to_grid(np.asanyarray(reference.dataobj), Grid.of(reference), exact.grid)
    present = [label for label in exact.voxels if (truth == label).any()]
    dice = [mean_dice(one.labels, truth, present) for one in (exact, found)]
    return {"mean_dice_loss": dice[0] - dice[1], "mean_dice_float32": dice[0], "mean_dice_here": dice[1]}


def mean_dice(labels, truth, present):
    one = [
        2 * np.count_nonzero((labels == label) & (truth == label))
        / (np.count_nonzero(labels == label) + np.count_nonzero(truth == label))
        for label in present
    ]  # fmt: skip
    return float(np.mean(one))


def segment(options, image, info, precision, aseg):
    """The image by the weights, in a precision: what was found, and seconds."""
    from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter

    segmenter = Segmenter(InferenceSettings(options.device, precision, options.step_size))
    segmenter.load(options.weights, info.task)
    start = time.perf_counter()
    if info.task == HIPPOCAMPUS.task:
        found = segmenter.segment_hippocampus(image, aseg, options.weights)
    else:
        found = segmenter.segment(image, options.weights)
    return found, time.perf_counter() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("image", type=Path)
    parser.add_argument("--precisions", nargs="+", choices=["bfloat16", "float16"], default=["bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--step-size", type=int)
    parser.add_argument("--reference", type=Path, help="labels of IMAGE: also say how much Dice against them is lost")
    parser.add_argument("--aseg-weights", help="for hippocampal weights only (default: those of the package)")
    options = parser.parse_args(argv)

    from medsegmamba_bids.image.geometry import conform
    from medsegmamba_bids.image.io import load_image, load_labels
    from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter
    from medsegmamba_bids.networks.kernels.memory import keep_freed_memory
    from medsegmamba_bids.weights.files import find_weights, read_info

    keep_freed_memory()
    info = read_info(find_weights(options.weights))
    image, aseg = conform(load_image(options.image)), None
    if info.task == HIPPOCAMPUS.task:
        aseg = Segmenter(InferenceSettings(options.device)).segment(image, options.aseg_weights).labels
    reference, seconds = segment(options, image, info, "float32", aseg)
    for precision in options.precisions:
        found, seconds_too = segment(options, image, info, precision, aseg)
        result = {"weights": info.name, "image": options.image.name, "precision": precision, "device": found.device}
        result |= agreement(found, reference)
        if options.reference:
            result |= dice_loss(found, reference, load_labels(options.reference))
        result |= {"seconds_float32": seconds, f"seconds_{precision}": seconds_too}
        print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in result.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
