"""The node of the intracranial volume, on the template itself; the tiny heads of other tests have no skull."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from scipy import ndimage

from medsegmamba_bids.data import data_path
from medsegmamba_bids.image.geometry import resample
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.interfaces.etiv import EstimateIntracranial
from medsegmamba_bids.stats.intracranial import find_template

# From the head to the template: smaller than that, as heads are, tilted and moved.
MOVE = np.array([[1.1, 0.07, -0.03, 3.0], [-0.08, 1.06, 0.05, -12.0], [0.02, -0.05, 1.12, 8.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def template_head():
    """The template at 1 mm, structures as cubes where they lie in it, and the middle of it as the brain."""
    image = nib.load(find_template().path)
    coarse = Grid.of(image)
    sides = [round(side * zoom) for side, zoom in zip(coarse.shape, coarse.zooms, strict=True)]
    fine = Grid(coarse.affine @ nib.affines.from_matvec(np.diag(1 / coarse.zooms)), sides)
    data = resample(image.get_fdata(dtype=np.float32), coarse, fine)
    labels = np.zeros(fine.shape, np.uint16)
    places = pd.read_csv(data_path("template/centroids.tsv"), sep="\t")
    for label, *place in places.itertuples(index=False):
        voxel = np.rint(apply_affine(np.linalg.inv(fine.affine), place)).astype(int)
        labels[tuple(slice(v - 3, v + 4) for v in voxel)] = label
    brain = ndimage.distance_transform_edt(data > 0) > 14
    return data, labels, brain, fine


def inputs_of(folder, data, labels, brain, grid):
    affine = np.linalg.inv(MOVE) @ grid.affine
    arrays = {"in_file": data, "labels_file": labels, "mask_file": brain.astype(np.uint8)}
    return {name: str(save_image(array, affine, folder / f"{name}.nii")) for name, array in arrays.items()}


def test_volume_and_transform_of_a_head_that_is_known(template_head, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    template = find_template()
    outputs = EstimateIntracranial(template=template, **inputs_of(tmp_path, *template_head)).run().outputs
    assert outputs.record["Notes"] == []
    transform = np.loadtxt(outputs.out_file)
    assert outputs.etiv == pytest.approx(template.volume / np.linalg.det(transform[:3, :3]), rel=1e-6)
    assert outputs.etiv == pytest.approx(template.volume / np.linalg.det(MOVE[:3, :3]), rel=0.03)
    _, labels, _, grid = template_head
    points = apply_affine(np.linalg.inv(MOVE) @ grid.affine, np.argwhere(labels > 0)[::50])
    apart = np.linalg.norm(apply_affine(transform, points) - apply_affine(MOVE, points), axis=1)
    assert np.median(apart) < 1.5
    itk, flip = sitk.ReadTransform(outputs.itk_file), np.array([-1, -1, 1])
    back = [itk.TransformPoint((point * flip).tolist()) for point in apply_affine(transform, points)]
    np.testing.assert_allclose(np.array(back) * flip, points, atol=1e-4)
    np.testing.assert_allclose(np.loadtxt(outputs.lta_file, skiprows=5, max_rows=4), transform, atol=1e-7)


def test_a_head_without_a_skull_has_a_note_in_place_of_a_volume(template_head, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, labels, brain, grid = template_head
    stripped = np.where(brain, data, np.float32(0))
    outputs = (
        EstimateIntracranial(template=find_template(), **inputs_of(tmp_path, stripped, labels, brain, grid))
        .run()
        .outputs
    )
    assert outputs.record["Notes"] == [
        "there is no eTIV: the image shows no skull, and the size of a brain is not that of its head"
    ]
    assert not isinstance(outputs.etiv, float)
    assert not list(tmp_path.rglob("affine.txt"))
