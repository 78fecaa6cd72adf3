"""A made-up head for synthesis; its two sides mirror each other about the middle of the first axis."""

import numpy as np
import pytest

from medsegmamba_bids.training.synthetic.label_maps import build_map
from medsegmamba_bids.training.synthetic.tissues import load_tissue_table


def _head(plexus=False):
    labels = np.zeros((48, 48, 48), np.uint16)
    labels[4:44, 4:44, 4:44] = 502
    # In LIA the first axis runs from right to left.
    for first, inner, white, ventricle, hippocampus, choroid in (
        (slice(8, 24), slice(14, 22), 41, 43, 53, 63),
        (slice(24, 40), slice(26, 34), 2, 4, 17, 31),
    ):
        labels[first, 8:40, 8:40] = white
        labels[inner, 12:18, 12:36] = ventricle
        labels[inner, 28:36, 14:34] = hippocampus
        if plexus:
            labels[inner, 14:16, 20:30] = choroid
    return labels


@pytest.fixture
def lia():
    """Affine of a LIA grid of 1 mm."""
    return np.array([[-1.0, 0, 0, 24], [0, 0, 1, -24], [0, -1, 0, 24], [0, 0, 0, 1]])


@pytest.fixture
def head():
    """``head(plexus=False)``: labels uint16 (48, 48, 48), LIA, with skull, white matter and structures."""
    return _head


@pytest.fixture
def tissues():
    return load_tissue_table("aseg_brain")


@pytest.fixture
def label_map(tissues):
    """``label_map(plexus=False)``: the head made ready for synthesis."""
    return lambda **options: build_map("head", _head(**options), tissues)
