"""Results as a run writes them, made of nothing: for tests, and for looking at pages.

``python tests/helpers/fake.py OUT T1w.nii.gz labels.nii.gz [subfields.nii.gz]`` writes those of a real head.
"""

import hashlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsegmamba_bids import __version__
from medsegmamba_bids.data.names import bidsignore, output_name
from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.segmentations import of_task
from medsegmamba_bids.stats.measures import brain_measures, intracranial_measures
from medsegmamba_bids.stats.structures import structure_statistics
from medsegmamba_bids.stats.tables import table_sidecar, to_tsv

LIA = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
ATLAS = "atlas-propagated: subfields of one left MNI atlas painted into hippocampi by shape"
# Structures as balls: label -> centre in mm (left negative) and radius.
BALLS = {
    2: ((-22, 0, 0), 20),
    3: ((-22, 0, 0), 26),
    4: ((-9, -4, 12), 6),
    5: ((-28, -26, -14), 2.5),
    7: ((-14, -44, -26), 7),
    8: ((-14, -44, -26), 12),
    10: ((-9, -16, 4), 8),
    11: ((-11, 14, 7), 6.5),
    12: ((-24, 4, -1), 7.5),
    13: ((-17, -2, -3), 5),
    14: ((0, -12, 2), 3.2),
    15: ((0, -34, -20), 4.5),
    16: ((0, -24, -30), 12),
    17: ((-24, -20, -12), 7.5),
    18: ((-22, -3, -16), 5.8),
    24: ((0, 22, -10), 3.5),
    26: ((-8, 20, -8), 3.5),
    28: ((-8, -10, -8), 5),
    31: ((-18, -26, 8), 3),
    77: ((-22, 20, 10), 2.5),
}
LEFT_TO_RIGHT = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 26: 58,
                 28: 60, 31: 63}  # fmt: skip
ORDER = (3, 2, 8, 7)  # larger balls first: later ones lie on top
SUBFIELDS = (203, 204, 205, 206, 208, 209, 210, 211, 212, 214, 215, 226)


def blob_labels(side=128, scale=1.0, seed=0):
    """A small brain of balls in a conformed grid of ``side`` voxels, with its affine."""
    affine = centred_affine(side)
    voxels = np.indices((side,) * 3).reshape(3, -1)
    mm = (affine[:3, :3] @ voxels + affine[:3, 3:]).reshape(3, side, side, side)
    random, labels = np.random.default_rng(seed), np.zeros((side,) * 3, np.int32)
    for label in (*ORDER, *(one for one in BALLS if one not in ORDER)):
        (x, y, z), radius = BALLS[label]
        for target, centre in [(label, x), (LEFT_TO_RIGHT.get(label), -x)]:
            if target is not None:
                reach = radius * scale * random.normal(1, 0.01)
                labels[(mm[0] - centre) ** 2 + (mm[1] - y) ** 2 + (mm[2] - z) ** 2 < reach**2] = target
    return labels, affine


def centred_affine(side):
    affine = LIA.copy()
    affine[:3, 3] = -LIA[:3, :3] @ np.full(3, side / 2)
    return affine


def blob_subfields(labels):
    """Slabs of the hippocampi from behind to the front."""
    out = np.zeros_like(labels)
    for label, offset in ((17, 1000), (53, 2000)):
        at = np.argwhere(labels == label)
        if len(at):
            depth = at[:, 2] - at[:, 2].min()
            part = depth * len(SUBFIELDS) // (depth.max() + 1)
            out[tuple(at.T)] = np.array(SUBFIELDS)[part] + offset
    return out


def blob_t1w(labels, seed=0):
    tissue = {2: 110, 41: 110, 7: 105, 46: 105, 16: 100, 3: 70, 42: 70, 8: 68, 47: 68, 4: 25, 43: 25, 14: 25, 15: 25}
    lookup = np.full(int(labels.max()) + 1, 80.0)
    lookup[0] = 12
    for label, value in tissue.items():
        lookup[label : label + 1] = value
    noise = np.random.default_rng(seed).normal(0, 5, labels.shape)
    return np.clip(ndimage.gaussian_filter(lookup[labels], 0.5) + noise, 0, 255).astype(np.uint8)


def entropy_of(labels):
    """High at borders."""
    edges = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
    return np.clip(ndimage.gaussian_filter(edges.astype(np.float32), 0.8), 0, 1) * 1.2


def facts(task, name=None, version=__version__, notes=(), fingerprint=None):
    """What the JSON beside a table says of the run, as nodes write it."""
    name = name or f"embedded-{task}"
    origin = ATLAS if task == "hippocampus" else "trained for this package on synthesised images"
    checksum = hashlib.sha256(name.encode()).hexdigest()
    weights = {"Name": name, "Checksum": checksum, "License": "Apache-2.0", "Origin": origin}
    if fingerprint:
        weights["Fingerprint"] = fingerprint
    return {
        "Notes": list(notes),
        "Missing": [],
        "Steps": [
            {"Name": "conform", "Seconds": 3.1, "PeakMemoryGB": 0.9},
            {"Name": task, "Seconds": 61.4, "PeakMemoryGB": 2.314, "Device": "cpu", "Precision": "float32",
             "StepSize": 32, "Weights": weights},
            {"Name": "normalize", "Seconds": 18.6, "PeakMemoryGB": 1.2},
        ],
        "Template": {"Name": "MNI152NLin2009aSym", "Volume_mm3": 1886539.0, "Source": "skull-stripped ICBM 152 2009a"},
        "Versions": {"medsegmamba_bids": version, "torch": "2.13.0", "numpy": "2.4.6"},
    }  # fmt: skip


def write_scan(root, prefix, labels, affine, t1w, subfields=None, own_grid=True, **changes):
    """Write a T1w's results."""

    def put(data, name, dtype):
        save_image(data, affine, root / output_name(prefix, name), dtype)

    put(t1w, "conformed", np.uint8)
    put(labels, "conformed_aseg", np.int16)
    put(labels > 0, "conformed_mask", np.uint8)
    put(entropy_of(labels), "aseg_entropy", np.float16)
    if own_grid:
        put(labels, "aseg", np.int16)
        put(labels > 0, "mask", np.uint8)
    write_table(root, prefix, "aseg", labels, t1w, **changes)
    if subfields is not None:
        put(subfields, "conformed_hippocampus", np.int16)
        put(entropy_of(subfields), "hippocampus_entropy", np.float16)
        write_table(root, prefix, "hippocampus", subfields, t1w, **changes)


def write_table(root, prefix, task, labels, guide, **changes):
    table = load_label_table("aseg_brain" if task == "aseg" else "hippoFS60")
    counts = np.bincount(table.to_indices(labels).ravel(), minlength=len(table.labels))
    soft = {int(label): float(n) * 0.98 for label, n in zip(table.labels, counts, strict=True)}
    sure = {int(label): 0.97 - 0.8 / (1 + n ** (1 / 3)) for label, n in zip(table.labels, counts, strict=True) if n}
    rows = structure_statistics(labels, guide, table, 1.0, soft, sure)
    measures = []
    if task == "aseg":
        measures = brain_measures(rows)
        brain = next((one.value for one in measures if one.name == "BrainSegVol"), None)
        etiv = 1.12 * np.count_nonzero(labels) if np.count_nonzero(labels) > 8e5 else 1.4e6
        measures += intracranial_measures(labels > 0, etiv, brain, "MNI152NLin2009aSym")
    write_rows(root, prefix, task, rows, measures, **changes)


def write_rows(root, prefix, task, rows, measures, **changes):
    path = root / output_name(prefix, f"{task}_stats")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_tsv(rows))
    text = json.dumps(table_sidecar(measures, facts(task, **changes), of_task(task).volumes), indent=1)
    (root / output_name(prefix, f"{task}_stats", ".json")).write_text(text)


def write_description(root):
    root.mkdir(parents=True, exist_ok=True)
    generated = [{"Name": "medsegmamba_bids", "Version": __version__}]
    entries = {"Name": "medsegmamba", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": generated}
    (root / "dataset_description.json").write_text(json.dumps(entries))
    (root / ".bidsignore").write_text("\n".join(bidsignore()) + "\n")


def write_blob_scan(root, prefix, scale=1.0, seed=0, side=112, **changes):
    labels, affine = blob_labels(side, scale, seed)
    write_scan(root, prefix, labels, affine, blob_t1w(labels, seed), blob_subfields(labels), **changes)


def write_real(root, prefix, t1w_file, labels_file, subfields_file=None):
    """A real head with FreeSurfer labels, both conformed."""
    t1w, labels = nib.load(t1w_file), nib.load(labels_file)
    data = np.asarray(labels.dataobj).astype(np.int32)
    data = load_label_table("aseg_brain").labels[load_label_table("aseg_brain").to_indices(data)]
    subfields = None if subfields_file is None else np.asarray(nib.load(subfields_file).dataobj).astype(np.int32)
    write_scan(root, prefix, data, labels.affine, np.asarray(t1w.dataobj).astype(np.uint8), subfields)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    write_description(out)
    write_real(out, Path(sys.argv[2]).name.removesuffix("_T1w.nii.gz"), *sys.argv[2:])
