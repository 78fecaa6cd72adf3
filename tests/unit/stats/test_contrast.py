"""Whether images look T1-weighted: real heads and brains, inverted ones, and contrasts made from label maps."""

import math

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.stats.contrast import describe_contrast, tissue_ratio

WHITE = (2, 41, 7, 46, 16, 28, 60, 77)
CORTEX = (3, 42, 8, 47)
FLUID = (24, 4, 5, 14, 15, 43, 44, 31, 63)
#: Intensities of white matter, cortex, deep gray matter and fluid, as these contrasts have them.
CONTRASTS = {
    "T1w": (110, 75, 85, 25),
    "T2w": (70, 100, 85, 220),
    "FLAIR": (90, 115, 105, 25),
    "PD": (105, 130, 122, 140),
    "CT": (1028, 1037, 1036, 1008),
    "inverted": (145, 180, 170, 230),
}
REAL = ["head_sub-02", "head_sub-05", "brain_a", "brain_b", "brain_c", "brain_d"]


@pytest.fixture(params=REAL)
def real(request, shared):
    """Intensities and FreeSurfer's labels of a T1w."""
    name = request.param
    image = shared / "data/reference" / f"{name}_T1w.nii.gz"
    if name.startswith("head"):
        subject = name.removeprefix("head_")
        image = shared / "data/bids" / subject / "anat" / f"{subject}_T1w.nii.gz"
    labels = nib.load(shared / "data/reference" / f"{name}_aseg.nii.gz")
    return np.asarray(nib.load(image).dataobj), np.asarray(labels.dataobj).astype(int)


def test_real_images_are_t1_weighted_and_inverted_ones_are_not(real):
    data, labels = real
    assert describe_contrast(data, labels) == ""
    assert describe_contrast(data, np.where(np.isin(labels, (2, 3, 41, 42)), 0, labels)) == ""  # the cerebellum tells
    inverted = data.max() - data
    assert "does not look T1-weighted" in describe_contrast(inverted, labels)
    assert "does not look T1-weighted" in describe_contrast(inverted, np.where(np.isin(labels, (2, 41)), 0, labels))


@pytest.mark.parametrize("name", CONTRASTS)
def test_contrasts_of_a_label_map(shared, name):
    image = nib.load(shared / "data/synthesis_labels/head_01.nii.gz")
    labels = np.asarray(image.dataobj).astype(int)[::2, ::2, ::2]
    white, cortex, deep, fluid = CONTRASTS[name]
    head = np.select([labels == 0, np.isin(labels, WHITE), np.isin(labels, CORTEX), np.isin(labels, FLUID)],
                     [0, white, cortex, fluid], deep).astype(float)  # fmt: skip
    head[labels >= 500] = 0.8 * white
    noise = np.random.default_rng(0).normal(0, 0.03 * white, head.shape)
    data = np.maximum(head + noise, 0).astype(np.float32)
    said = describe_contrast(data, labels)
    if name == "T1w":
        assert said == ""
    else:
        value = float(said.split("white matter has ")[1].split(" ")[0])
        assert value == pytest.approx(white / cortex, abs=0.02)


def test_without_tissues_nothing_is_said():
    assert describe_contrast(np.ones(4), np.array([0, 10, 17, 53])) == ""
    assert math.isnan(tissue_ratio({(2, 41): math.nan, (7, 46): 100.0, (8, 47): math.nan, (3, 42): 1.0}.get))
    assert tissue_ratio({(2, 41): math.nan, (3, 42): 1.0, (7, 46): 100.0, (8, 47): 80.0}.get) == 1.25
