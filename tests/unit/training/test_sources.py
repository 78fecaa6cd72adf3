"""Which files a configuration's sources stand for, and that prepared maps are kept."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.training.synthetic.sources import load_sources
from medsegmamba_bids.training.training_config import Source, Stage, SynthesisConfig


def config(*sources):
    stage = Stage(1, 16, (1.0, 1.0), (1e-3, 1e-3))
    return SynthesisConfig("tiny", "aseg_brain", {}, sources, (stage,))


@pytest.fixture
def pairs(tmp_path, head, lia):
    """Two heads whose images have 400 and 600 in the hippocampus where white matter has 800."""
    labels = head()
    labels[labels == 502] = 0
    for name, value in (("a", 400), ("b", 600)):
        picture = np.where(np.isin(labels, (17, 53)), value, np.where(labels > 0, 800, 0)).astype(np.float32)
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(labels, lia), tmp_path / f"brain_{name}_aseg.nii.gz")
        nib.save(nib.Nifti1Image(picture, lia), tmp_path / name / "T1w.nii.gz")
    return tmp_path


def test_every_map_gets_its_own_image(pairs, tissues):
    source = Source("brain_*_aseg.nii.gz", weight=3.0, image="*/T1w.nii.gz", stripped=True)
    maps = load_sources(config(source), pairs, pairs / "maps", tissues)
    hippocampus = tissues.rows["label"].tolist().index(17)
    assert [m.name for m in maps] == ["brain_a_aseg", "brain_b_aseg"]
    assert [float(np.median(m.image[m.tissue == hippocampus])) for m in maps] == [0.5, 0.75]
    assert [(m.weight, m.stripped) for m in maps] == [(3.0, True)] * 2


def test_hidden_files_are_no_maps(pairs, tissues):
    (pairs / "._brain_a_aseg.nii.gz").write_bytes(b"of macOS")
    maps = load_sources(config(Source("*_aseg.nii.gz", stripped=True)), pairs, pairs / "maps", tissues)
    assert [m.name for m in maps] == ["brain_a_aseg", "brain_b_aseg"]


def test_prepared_maps_are_read_again_and_made_anew_when_the_image_changes(pairs, tissues):
    source = Source("brain_*_aseg.nii.gz", image="*/T1w.nii.gz", stripped=True)
    load_sources(config(source), pairs, pairs / "maps", tissues)
    kept = sorted((pairs / "maps").iterdir())
    load_sources(config(source), pairs, pairs / "maps", tissues)
    assert sorted((pairs / "maps").iterdir()) == kept
    image = nib.load(pairs / "a" / "T1w.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, ::-1], image.affine), pairs / "a" / "T1w.nii.gz")
    load_sources(config(source), pairs, pairs / "maps", tissues)
    assert len(list((pairs / "maps").iterdir())) == len(kept) + 1


@pytest.mark.parametrize("labels", ["brain_a_aseg.nii.gz", "*_*_aseg.nii.gz", "brain_[ab]*_aseg.nii.gz"])
def test_images_by_pattern_need_one_star_in_the_labels(pairs, tissues, labels):
    with pytest.raises(ConfigError, match=r"has a \*; labels .* must have one \* and no"):
        load_sources(config(Source(labels, image="*/T1w.nii.gz")), pairs, pairs / "maps", tissues)


def test_a_source_without_files_is_refused(tissues, tmp_path):
    with pytest.raises(ConfigError, match="no label map matches"):
        load_sources(config(Source("nothing_*.nii.gz")), tmp_path, Path(tmp_path / "maps"), tissues)
