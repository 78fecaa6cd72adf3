"""Real FreeSurfer references: our metrics agree with SimpleITK's, to 1e-6 (Dice, VS) and 1e-3 mm (ASSD)."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medsegmamba_bids.evaluation.metrics import structure_metrics
from medsegmamba_bids.image.geometry import labels_to_grid
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import load_labels
from medsegmamba_bids.image.labels import load_label_table

STRUCTURES = load_label_table("aseg").labels[1:].tolist()


def simpleitk_metrics(found, reference, zooms, label):
    """Dice, volume similarity and ASSD of one structure, by SimpleITK's filters."""
    box = Box.around((found == label) | (reference == label), margin=1)
    pair = []
    for array in (found, reference):
        mask = np.pad(array[box] == label, 1).astype(np.uint8)
        pair.append(sitk.GetImageFromArray(mask.transpose(2, 1, 0)))
        pair[-1].SetSpacing([float(zoom) for zoom in zooms])
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*pair)
    # Theirs is the difference over the mean of both volumes: twice Taha's, and signed.
    similarity = 1 - abs(overlap.GetVolumeSimilarity(1)) / 2
    borders = [sitk.LabelContour(image, fullyConnected=False) for image in pair]
    fields = [sitk.SignedMaurerDistanceMap(one, squaredDistance=False, useImageSpacing=True) for one in borders]
    masks = [sitk.GetArrayViewFromImage(border) > 0 for border in borders]
    distances = [np.abs(sitk.GetArrayViewFromImage(fields[1 - side])[masks[side]]) for side in (0, 1)]
    return overlap.GetDiceCoefficient(1), similarity, float(np.concatenate(distances).mean())


def check(found, reference, zooms, labels=STRUCTURES):
    """Compare all structures that both have; returns how many."""
    rows = structure_metrics(found, reference, zooms, labels)
    rows = rows[(rows["found_mm3"] > 0) & (rows["reference_mm3"] > 0)]
    for row in rows.to_dict("records"):
        dice, similarity, assd = simpleitk_metrics(found, reference, zooms, row["label"])
        assert row["dice"] == pytest.approx(dice, abs=1e-6)
        assert row["volume_similarity"] == pytest.approx(similarity, abs=1e-6)
        assert row["assd_mm"] == pytest.approx(assd, abs=1e-3)
    return len(rows)


def nudged(labels, affine):
    """A segmentation that errs: the reference turned by 3 degrees and moved by fractions of a voxel."""
    angle = np.radians(3)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre = affine @ [*(np.array(labels.shape) / 2), 1]
    turn[:3, 3] = centre[:3] - turn[:3, :3] @ centre[:3] + [0.7, -0.4, 1.2]
    return labels_to_grid(labels, Grid(turn @ affine, labels.shape), Grid(affine, labels.shape))


@pytest.mark.parametrize("name", ["head_sub-02", "brain_a", "brain_b", "head_sub-05"])
def test_real_references(shared, name):
    image = load_labels(shared / f"data/reference/{name}_aseg.nii.gz")
    labels = np.asarray(image.dataobj)
    kept = np.where(np.isin(labels, STRUCTURES), labels, 0)
    box = Box.around(kept, margin=4)
    reference = kept[box]
    found = nudged(reference, image.affine)
    assert check(found, reference, nib.affines.voxel_sizes(image.affine)) == 31


def test_real_labels_with_anisotropic_voxels(shared):
    """Every other slice along one axis: voxels of 2 x 1 x 1 mm."""
    labels = np.asarray(load_labels(shared / "data/reference/brain_a_aseg.nii.gz").dataobj)
    box = Box.around(np.isin(labels, STRUCTURES), margin=4)
    reference = labels[box][::2]
    found = np.roll(labels[box], 1, axis=0)[::2]
    some = [4, 10, 17, 24, 53, 77]
    assert check(found, reference, (2.0, 1.0, 1.0), some) == len(some)
