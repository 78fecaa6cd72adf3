"""Heads with necks: cord and muscles go, what belongs to the brain stays, to the voxel."""

import nibabel as nib
import numpy as np
import pytest
import torch

from medsegmamba_bids.inference.neck import leave_out_neck
from medsegmamba_bids.inference.segmenter import InferenceSettings, segment_conformed
from medsegmamba_bids.weights.files import load_weights

LABELS = (0, 8, 10, 16, 47, 257)
LEVELS = {0: 0.0, 8: 0.2, 257: 0.4, 16: 0.6, 47: 0.8, 10: 1.0}  # what blurs at a border looks like no thalamus
SIDE = 192
AFFINE = np.array([[-1.0, 0, 0, 96], [0, 0, 1, -96], [0, -1, 0, 96], [0, 0, 0, 1]])
END = 126  # first plane that is too deep: 90 mm below the middle of the thalami, 35.5
MUSCLE = (slice(100, 116), slice(120, 140), slice(72, 88))


def head(scale=1):
    """Thalami, both halves of a cerebellum apart, a cord to the end with muscle at its side, fluid.

    All of it fills voxels of 4 mm, so that none lie between two structures.
    """
    labels = np.zeros((SIDE,) * 3, np.uint16)
    labels[56:132, 148:180, 60:120] = 257
    labels[80:112, 28:44, 80:112] = 10
    labels[88:100, 44:180, 80:92] = 16
    labels[100:132, 64:96, 68:100] = 8
    labels[56:84, 76:104, 68:100] = 47
    labels[MUSCLE] = 8
    return labels[::scale, ::scale, ::scale]


def without_neck():
    labels = head()
    labels[MUSCLE] = 0
    labels[88:100, END:180, 80:92] = 0
    return labels


def as_probabilities(labels, sure=0.8):
    rest = (1 - sure) / (len(LABELS) - 1)
    return torch.from_numpy(np.stack([np.where(labels == label, sure, rest) for label in LABELS]).astype(np.float32))


def found_in(probabilities):
    return np.array(LABELS)[probabilities.argmax(0).numpy()]


def test_cord_and_muscle_go_and_nothing_else():
    probabilities = as_probabilities(head())
    volume = leave_out_neck(probabilities, LABELS, 1.0)
    np.testing.assert_array_equal(found_in(probabilities), without_neck())
    torch.testing.assert_close(probabilities.sum(0), torch.ones(probabilities.shape[1:]))
    assert (probabilities[[1, 2, 3, 4], :, END:] == 0).all()
    assert volume == 16 * 20 * 16


def test_depths_are_in_mm_whatever_the_voxels():
    probabilities = as_probabilities(head(2))
    leave_out_neck(probabilities, LABELS, 2.0)
    found = found_in(probabilities)
    assert not (found[:, END // 2 :] == 16).any()
    assert (found[44:50, END // 2 - 1, 40:46] == 16).all()
    assert not (found[50:58, 60:70] == 8).any()
    assert (found == 47).sum() == (head(2) == 47).sum()
    fine = as_probabilities(head(2))
    assert leave_out_neck(fine, LABELS, 0.5) == 0  # the same voxels in a head of a quarter of the size
    torch.testing.assert_close(fine, as_probabilities(head(2)))


@pytest.mark.parametrize("half", [False, True])
def test_halves_of_a_cerebellum_that_do_not_touch_are_no_neck(half):
    labels = without_neck()
    probabilities = as_probabilities(labels)
    if half:
        probabilities = probabilities.half()
    leave_out_neck(probabilities, LABELS, 1.0)
    np.testing.assert_array_equal(found_in(probabilities.float()), labels)


def test_without_thalami_nothing_is_known_of_the_neck():
    labels = np.where(head() == 10, 0, head())
    probabilities = as_probabilities(labels)
    assert leave_out_neck(probabilities, LABELS, 1.0) == 0
    torch.testing.assert_close(probabilities, as_probabilities(labels))
    assert leave_out_neck(probabilities[[0, 1, 3]], (0, 8, 16), 1.0) == 0


def test_an_image_with_a_neck_gets_a_note_unless_all_is_to_be_kept(intensity_weights):
    lookup = np.zeros(258, np.uint8)
    for label, level in LEVELS.items():
        lookup[label] = round(255 * level)
    lookup[257] = 0  # its border would look like others
    image = nib.Nifti1Image(lookup[head()], AFFINE)
    network = load_weights(intensity_weights("aseg", LEVELS, voxel_size=4.0))
    found = segment_conformed(*network, image)
    (note,) = found.notes
    assert "muscles of the neck looked like brain" in note
    assert not (found.labels[:, END + 4 :] == 16).any()
    assert (found.labels[92:96, END - 6, 84:88] == 16).all()
    assert not (found.labels[MUSCLE] == 8).any()
    assert (found.labels[104:128, 68:92, 72:96] == 8).all()
    kept = segment_conformed(*network, image, InferenceSettings(largest_component=False))
    assert kept.notes == ()
    assert kept.soft_volumes[8] - found.soft_volumes[8] > 0.8 * 16 * 20 * 16
    assert (kept.labels[104:112, 124:136, 74:86] == 8).all()
    shorter = nib.Nifti1Image(lookup[without_neck()], AFFINE)
    assert segment_conformed(*network, shorter).notes == ()
