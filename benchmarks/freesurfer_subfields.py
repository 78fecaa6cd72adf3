"""How hippocampal subfields agree with those that FreeSurfer found in the same head.

    python benchmarks/freesurfer_subfields.py MRI [WEIGHTS ...] [--image norm.mgz] [--painted DATA]
        [--precision bfloat16]

MRI is the folder ``mri`` of a subject with subfields: ``[lr]h.hippoAmygLabels-T1.*.FS60.FSvoxelSpace.mgz``,
those of version 6 (``[lr]h.hippoSfLabels-T1.*.FSvoxelSpace.mgz``) or its finer (``[lr]h.hippoSfLabels-T1.v10.mgz``),
of which each voxel of the image takes the nearest, as FreeSurfer does. The image is segmented by the released
subcortical network and by each of WEIGHTS, files or names. With ``--painted`` subfields are painted into FreeSurfer's
own hippocampi (aseg.mgz, else aparc+aseg.mgz), too, as for a training, by the atlas below DATA.

Printed is a table, tab-separated: for every subfield and all together the mean Dice of both sides, and the volume by
FreeSurfer's, its geometric mean of both sides; at last the mean Dice of the 24 subfields, and by which factor their
volumes are off (geometric mean).
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to

from medsegmamba_bids.anatomy import LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS, SUBFIELDS_FROM
from medsegmamba_bids.evaluation.card.measure import Networks
from medsegmamba_bids.image.io import load_image
from medsegmamba_bids.stats.overlap import overlap_counts
from medsegmamba_bids.training.synthetic.subfields import paint_subfields
from subfield_favour import NAMES, SUBFIELDS, TABLE, read_atlas

FILES = (
    "hippoAmygLabels-T1.*.FS60.FSvoxelSpace.mgz",
    "hippoSfLabels-T1.*.FSvoxelSpace.mgz",
    "hippoSfLabels-T1.v??.mgz",
)
SIDES = {"lh": LEFT_HIPPOCAMPUS, "rh": RIGHT_HIPPOCAMPUS}


def read_subfields(mri, grid):
    """Folder, image -> FreeSurfer's subfields as classes of hippoFS60, on the image's grid."""
    labels = np.zeros(grid.shape, int)
    for side, hippocampus in SIDES.items():
        found = [path for name in FILES for path in sorted(mri.glob(f"{side}.{name}"))]
        if not found:
            raise SystemExit(f"error: {mri}: has none of {', '.join(f'{side}.{name}' for name in FILES)}")
        image = nib.load(found[0])
        if "FSvoxelSpace" not in found[0].name:
            image = resample_from_to(image, grid, order=0)
        if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, atol=1e-3):
            raise SystemExit(f"error: {found[0]}: is not on the grid of the image")
        here = np.asarray(image.dataobj).astype(int)
        labels[here > 0] = here[here > 0] + SUBFIELDS_FROM[hippocampus]
    return TABLE.to_indices(labels)  # the amygdala's nuclei, in the same files, are not in the table


def agreement(found, reference):
    """Classes found and FreeSurfer's -> Dice and volume ratio (rows) of subfields and of all together (columns)."""
    sides = [[name.startswith(side) for name in TABLE.names] for side in ("Left", "Right")]
    both, here, there = (numbers.astype(float) for numbers in overlap_counts(found, reference, len(NAMES)))
    out, dice_of_all, off = {}, [], []
    for name in SUBFIELDS:
        classes = [NAMES.index(name), len(NAMES) - NAMES[::-1].index(name) - 1]
        dice = 2 * both[classes] / (here[classes] + there[classes])
        ratios = np.maximum(here[classes], 0.5) / there[classes]
        dice_of_all, off = [*dice_of_all, *dice], [*off, *np.abs(np.log(ratios))]
        out[name] = (dice.mean(), np.exp(np.log(ratios).mean()))
    unions = [(np.isin(found, np.flatnonzero(side)), np.isin(reference, np.flatnonzero(side))) for side in sides]
    dice = [2 * (one & other).sum() / (one.sum() + other.sum()) for one, other in unions]
    out["all together"] = (np.mean(dice), np.exp(np.mean([np.log(one.sum() / other.sum()) for one, other in unions])))
    out["mean, off by"] = (np.mean(dice_of_all), np.exp(np.mean(off)))
    return pd.DataFrame(out, index=["Dice", "volume"]).T


def painted(mri, image, data_dir):
    """Folder, image, folder of the atlas -> classes painted into FreeSurfer's hippocampi."""
    names = ("aseg.mgz", "aparc+aseg.mgz")
    aseg = np.asarray(nib.load(next(mri / name for name in names if (mri / name).exists())).dataobj).astype(np.int32)
    return TABLE.to_indices(paint_subfields(aseg, read_atlas(data_dir), image.get_fdata(dtype=np.float32)))


def main(argv=None):
    """Segment, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mri", type=Path)
    parser.add_argument("weights", nargs="*")
    parser.add_argument("--image", default="norm.mgz")
    parser.add_argument("--painted", type=Path, metavar="DATA")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args(argv)
    from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter

    image = load_image(options.mri / options.image)
    reference = read_subfields(options.mri, image)
    segmenter = Segmenter(InferenceSettings(device="cpu", precision=options.precision))
    tables = {}
    for weights in options.weights:
        found = Networks(segmenter, None, weights).segment(image, True).hippocampus
        tables[Path(weights).stem] = agreement(TABLE.to_indices(found), reference)
    if options.painted:
        tables["painted"] = agreement(painted(options.mri, image, options.painted), reference)
    if not tables:
        parser.error("give WEIGHTS, or --painted DATA")
    table = pd.concat([columns.add_prefix(f"{name}: ") for name, columns in tables.items()], axis=1)
    print(table.round(3).to_csv(sep="\t", index_label="subfield"), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
