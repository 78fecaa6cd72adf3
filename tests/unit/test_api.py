"""What Python programs call, on made-up images with networks whose answer is known; the page's examples are run."""

import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.affines import from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

import medsegmamba_bids as msm
from medsegmamba_bids.errors import ImageError
from medsegmamba_bids.image.intensity import normalize
from medsegmamba_bids.image.io import check_image
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.stats.structures import structure_statistics
from medsegmamba_bids.weights import folders

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
ASEG = {0: 0.0, 16: 0.3, 17: 0.55, 53: 0.8, 10: 1.0}  # label: intensity of its class
SUBFIELDS = {0: 0.0, 1203: 0.55, 2203: 0.8}
AFFINE = from_matvec(np.diag([4.0, 4.0, 4.0]), [-64, -64, -64])


ENV = {"PYTHONPATH": ":".join(filter(None, sys.path))}


def brain():
    """Labels of a brain of blocks, left of the middle 17, right 53, within a brain stem."""
    labels = np.zeros((32, 32, 32), np.uint16)
    labels[4:28, 4:28, 4:28] = 16
    labels[6:14, 8:20, 8:20] = 17
    labels[18:26, 8:20, 8:20] = 53
    return labels


def head():
    """Intensities of the brain: each label has that of its class."""
    lookup = np.zeros(64, np.uint8)
    for label, level in ASEG.items():
        lookup[label] = round(255 * level)
    return lookup[brain()]


def head_in_fluid(level):
    """The same with 8 mm of something of another intensity around it."""
    data = head()
    around = np.zeros(data.shape, bool)
    around[2:30, 2:30, 2:30] = True
    data[around & (brain() == 0)] = round(255 * level)
    return data


@pytest.fixture
def files(tmp_path, intensity_weights, monkeypatch):
    """A folder with images and a reference; networks that know intensities are those of the package."""
    known = [
        intensity_weights("aseg", ASEG, voxel_size=4.0),
        intensity_weights("hippocampus", SUBFIELDS, voxel_size=2.0, patch_size=48, step=48),
    ]
    monkeypatch.setattr(folders, "embedded_weights", lambda: known)
    monkeypatch.setenv("MEDSEGMAMBA_WEIGHTS", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    for name in ("T1w.nii.gz", "second.nii.gz"):
        nib.Nifti1Image(head(), AFFINE).to_filename(name)
    nib.Nifti1Image(brain(), AFFINE).to_filename("reference.nii.gz")
    return tmp_path


def test_the_examples_of_the_page(files):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    labels = np.asarray(names["found"].aseg.dataobj)
    assert (labels == brain()).mean() > 0.9
    np.testing.assert_array_equal(labels[8:12, 10:18, 10:18], 17)
    subfields = np.asarray(names["found"].subfields.dataobj)
    np.testing.assert_array_equal(subfields[9:13, 12:18, 12:18], 1203)
    saved = nib.load(files / "aseg.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), labels)
    np.testing.assert_allclose(saved.affine, AFFINE)
    rows = names["found"].volumes.set_index("SegId")
    assert rows.loc[17, "NVoxels"] == pytest.approx((labels == 17).sum() * 64, rel=0.02)
    assert names["left"] == rows.loc[17, "Volume_mm3"] > 0
    assert -1 < names["asymmetry"] < 1
    counts = ((labels == 17).sum(), (labels == 53).sum())
    assert names["hippocampi"] == dict.fromkeys(["T1w.nii.gz", "second.nii.gz"], counts)
    assert names["largest"]["StructName"].tolist()[0] == "Brain-Stem"
    assert names["largest"]["NVoxels"].tolist()[0] == (labels == 16).sum()
    dice = 2 * ((labels == 17) & (brain() == 17)).sum() / ((labels == 17).sum() + (brain() == 17).sum())
    assert names["agreement"].set_index("label").loc[17, "dice"] == pytest.approx(dice)
    assert names["poor"]["structure"].tolist() == ["Left-Hippocampus"]  # the border of other blocks is as bright


def test_volumes_are_counted_on_the_conformed_grid(files):
    found = msm.segment("T1w.nii.gz", hippocampus=True)
    rows = found.volumes.set_index("SegId")
    assert rows.index.is_unique
    assert len(rows) == 35 + 24  # aseg with cortex and white matter, FS60
    for label, segmentation in ((17, found.conformed.aseg), (2203, found.conformed.hippocampus)):
        assert rows.loc[label, "NVoxels"] == (segmentation.labels == label).sum() > 1000
        assert rows.loc[label, "SoftVolume_mm3"] == pytest.approx(segmentation.soft_volumes[label])
    assert rows.loc[10, "Flag"] == "not found"
    assert rows.loc[4, "Flag"] == "unknown to the weights"
    assert np.isnan(rows.loc[4, "NVoxels"])
    found.save(volumes="rows.tsv", fs_stats="aseg.stats")
    lines = Path("aseg.stats").read_text().splitlines()
    counted = {line.split()[4]: float(line.split()[3]) for line in lines if not line.startswith("#")}
    assert counted["Left-Hippocampus"] == pytest.approx(rows.loc[17, "Volume_mm3"], abs=0.06)
    assert len(counted) == 45
    read = pd.read_csv("rows.tsv", sep="\t", na_values="n/a").set_index("SegId")
    pd.testing.assert_series_equal(read["Volume_mm3"], rows["Volume_mm3"], atol=1e-3, check_index_type=False)


def test_tables_are_those_of_the_app(tmp_path, intensity_weights):
    from medsegmamba_bids.interfaces.normalize import Normalize
    from medsegmamba_bids.interfaces.segmentation import SegmentAseg
    from medsegmamba_bids.interfaces.statistics import Statistics
    from medsegmamba_bids.weights.folders import resolve_weights

    # The cerebrum is among them: there is a brain mask.
    levels = {0: 0.0, 257: 0.15, 2: 0.3, 3: 0.5, 41: 0.65, 42: 0.8, 17: 1.0}
    weights = intensity_weights("aseg", levels, voxel_size=4.0)
    image = nib.Nifti1Image(head_in_fluid(levels[257]), AFFINE)
    found = msm.segment(image, weights=weights)
    conformed = tmp_path / "conformed.nii.gz"
    nib.save(found.conformed.image, conformed)
    segmented = run(
        SegmentAseg(in_file=str(conformed), weights=resolve_weights(weights, "aseg"), fingerprint="x"),
        tmp_path / "aseg",
    )
    files = {"labels_file": segmented.labels_file, "mask_file": segmented.mask_file}
    normalized = run(Normalize(in_file=str(conformed), **files), tmp_path / "normalize")
    numbers = {"numbers_file": segmented.numbers_file, "norm_file": normalized.out_file}
    made = run(Statistics(table="aseg_brain", subject="sub-01", **files, **numbers), tmp_path / "stats")
    assert (found.volumes["NVoxels"] > 1000).sum() == 4
    found.save(volumes=tmp_path / "volumes.tsv", fs_stats=tmp_path / "aseg.stats")
    assert (tmp_path / "volumes.tsv").read_text() == Path(made.table_file).read_text()
    own, apps = (measures_in(path) for path in (tmp_path / "aseg.stats", made.fs_file))
    assert own == apps
    # The fluid fills a cube of 112 mm to its border.
    assert own["SegmentedTotalIntraCranialVol"][0] == pytest.approx(112**3, rel=0.03)
    assert "all classes inside the skull" in own["SegmentedTotalIntraCranialVol"][1]


def measures_in(path):
    """Return values of an ``aseg.stats`` that are known, each with its description."""
    lines = [line.split(", ") for line in Path(path).read_text().splitlines() if line.startswith("# Measure ")]
    return {key.split()[-1]: (float(value), text) for key, _, text, value, _ in lines if value != "nan"}


def run(node, folder):
    folder.mkdir()
    return node.run(cwd=str(folder)).outputs


def test_what_cannot_be_saved_is_said_before_anything_is_written(files):
    found = msm.segment("T1w.nii.gz")
    assert found.subfields is None
    with pytest.raises(ImageError, match=r"labels.png: cannot be written"):
        found.save("aseg.nii.gz", subfields="labels.png")
    assert not Path("aseg.nii.gz").exists()
    assert found.save(subfields="subfields.nii.gz") == []


def test_statistics_on_the_grid_of_the_labels():
    labels = np.zeros((12, 12, 12), np.uint16)
    labels[2:6, 2:6, 2:6] = 17
    image = np.where(labels == 17, 100.0, 20.0).astype(np.float32)
    affine = np.diag([2.0, 2.0, 1.5, 1])
    rows = msm.statistics(nib.Nifti1Image(labels, affine), nib.Nifti1Image(image, affine)).set_index("SegId")
    assert rows.loc[17, ["NVoxels", "normMean", "normStdDev"]].tolist() == [64, 100, 0]
    assert rows.loc[17, "Volume_mm3"] == pytest.approx(64 * 6)
    assert rows.loc[53, "Flag"] == "not found"
    # The same intensities on a grid of half the voxels, shifted by a fourth of one.
    fine = image.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    shifted = from_matvec(np.diag([1.0, 1.0, 0.75]), [-0.5, -0.5, -0.375])
    same = msm.statistics(nib.Nifti1Image(labels, affine), nib.Nifti1Image(fine, shifted)).set_index("SegId")
    assert same.loc[17, "normMean"] == pytest.approx(100)
    assert same.loc[17, "Volume_mm3"] == pytest.approx(rows.loc[17, "Volume_mm3"])


def test_statistics_within_a_brain_bring_white_matter_to_110():
    grid = np.diag([2.0, 2, 2, 1])  # 0.11 litres: less could be no brain
    rng = np.random.default_rng(0)
    labels = np.full((24, 24, 24), 2, np.uint16)
    labels[8:12, 8:12, 8:12] = 17
    image = np.where(labels == 2, 200, 150) + rng.normal(0, 1, labels.shape)
    mask = nib.Nifti1Image(np.ones(labels.shape, np.uint8), grid)
    head = nib.Nifti1Image(image.astype(np.float32), grid)
    rows = msm.statistics(nib.Nifti1Image(labels, grid), head, table="aseg_brain", brain=mask).set_index("SegId")
    assert rows.loc[2, "normMean"] == pytest.approx(110, abs=1)
    assert rows.loc[17, "normMean"] == pytest.approx(110 * 150 / 200, rel=0.1)  # N4 takes some for shading
    with pytest.raises(ImageError, match=r"the brain mask: this brain mask holds 0\.01 litres"):
        msm.statistics(nib.Nifti1Image(labels, grid), head, brain=nib.Nifti1Image(np.ones((24, 24, 24)), np.eye(4)))


def whole_head():
    """Labels of a brain of cubes, and intensities of the same with fluid and then a bright scalp around it, on 2 mm."""
    labels = np.zeros((48, 48, 48), np.uint16)
    for first, cortex, white in ((12, 42, 41), (24, 3, 2)):
        labels[first : first + 12, 12:36, 12:36] = cortex
        labels[first + 2 : first + 10, 15:33, 15:33] = white
    brain = labels > 0
    image = np.full(labels.shape, 180.0, np.float32)
    image[8:40, 8:40, 8:40] = 10
    image[brain] = np.where(np.isin(labels, (2, 41)), 200, 150)[brain]
    image[brain & ~ndimage.binary_erosion(brain)] = 80  # half fluid
    return labels, image, np.diag([2.0, 2, 2, 1])


def volumes_of(rows):
    return rows.set_index("SegId")["Volume_mm3"].loc[[2, 3, 41, 42]].to_numpy()


def test_statistics_look_at_nothing_outside_the_skull():
    labels, image, affine = whole_head()
    stripped = np.where(labels > 0, image, np.float32(0))  # a cube has no furrows that a closing would fill
    images = [nib.Nifti1Image(data, affine) for data in (labels, image, stripped)]
    expected = volumes_of(structure_statistics(labels, stripped, load_label_table("aseg_brain"), 8.0))
    whole, alone = (volumes_of(msm.statistics(images[0], one)) for one in images[1:])
    np.testing.assert_allclose(alone, expected)
    np.testing.assert_allclose(whole, expected)
    parcels = np.where(labels == 3, 1005, labels).astype(np.uint16)
    np.testing.assert_allclose(volumes_of(msm.statistics(nib.Nifti1Image(parcels, affine), images[1])), expected)


def test_statistics_within_a_brain_look_at_nothing_outside_the_skull():
    labels, image, affine = whole_head()
    brain = labels > 0
    guide = np.where(brain, normalize(image, brain, np.isin(labels, (2, 41))), np.float32(0))
    expected = volumes_of(structure_statistics(labels, guide, load_label_table("aseg_brain"), 8.0))
    images = [nib.Nifti1Image(data, affine) for data in (labels, image, brain.astype(np.uint8))]
    np.testing.assert_allclose(volumes_of(msm.statistics(*images[:2], brain=images[2])), expected, rtol=1e-5)


def test_agreement_of_a_shifted_block():
    reference = np.zeros((16, 16, 16), np.uint16)
    reference[4:8, 4:8, 4:8] = 17
    moved = from_matvec(np.eye(3), [1, 0, 0])  # the same array, 1 mm to the side
    rows = msm.compare(nib.Nifti1Image(reference, moved), nib.Nifti1Image(reference, np.eye(4)))
    row = rows.set_index("structure").loc["Left-Hippocampus"]
    assert row["dice"] == pytest.approx(2 * 48 / 128)
    assert (row["found_mm3"], row["reference_mm3"], row["error_mm3"]) == (64, 64, 0)
    parcels = np.where(reference == 17, 1005, 0).astype(np.uint16)
    cortex = np.where(reference == 17, 3, 0).astype(np.uint16)
    pair = [nib.Nifti1Image(array, np.eye(4)) for array in (parcels, cortex)]
    rows = msm.compare(*pair, table="aseg_brain").set_index("label")
    assert rows.loc[3, "dice"] == 1


def test_parcels_are_joined_before_they_are_resampled():
    """A voxel that is mostly cortex is cortex, however many parcels share it."""
    labels = np.zeros((32, 32, 32), np.uint16)
    labels[4:28, 4:28, 4:16] = 2
    labels[4:28, 4:28, 16:19] = 3
    columns = 1001 + np.add.outer(np.arange(32) // 3 * 7, np.arange(32) // 3 * 3) % 30
    parcels = np.where(labels == 3, columns[..., None], labels).astype(np.uint16)
    turned = from_matvec(Rotation.from_rotvec([0.2, 0.3, 0.1]).as_matrix(), [2, 2, -4])
    reference = nib.Nifti1Image(labels, turned)
    joined, apart = (
        msm.compare(nib.Nifti1Image(array, np.eye(4)), reference, table="aseg_brain") for array in (labels, parcels)
    )
    pd.testing.assert_frame_equal(joined, apart)
    assert joined.set_index("label").loc[3, "found_mm3"] > 1000


def test_parcels_of_any_atlas_are_cortex_and_white_matter():
    """Parcels of Destrieux's atlas (11101 and 12101 on) and of wmparc were background: a Dice of 0."""
    plain = np.zeros((16, 16, 16), np.uint16)
    plain[2:8, 2:14, 2:14], plain[8:14, 2:14, 2:14] = 3, 42
    plain[4:7, 4:12, 4:12], plain[9:12, 4:12, 4:12] = 2, 41
    parcels = plain.copy()
    for label, parcel in ((3, 11150), (42, 12150), (2, 3005), (41, 4034)):
        parcels[plain == label] = parcel
    pair = [nib.Nifti1Image(array, np.eye(4)) for array in (parcels, plain)]
    rows = msm.compare(*pair, table="aseg_brain").set_index("label")
    assert rows.loc[[2, 3, 41, 42], "dice"].tolist() == [1, 1, 1, 1]


def test_volumes_of_a_sheared_grid_are_the_same_everywhere():
    labels = np.zeros((12, 12, 12), np.uint16)
    labels[2:6, 2:6, 2:6] = 17
    sheared = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image = nib.Nifti1Image(labels, sheared)
    intensities = nib.Nifti1Image(np.where(labels, 100, 20).astype(np.float32), sheared)
    assert msm.statistics(image, intensities).set_index("SegId").loc[17, "Volume_mm3"] == pytest.approx(64)
    assert msm.compare(image, image).set_index("label").loc[17, "found_mm3"] == pytest.approx(64)


def test_labels_and_images_of_different_spaces_are_refused():
    labels = np.zeros((12, 12, 12), np.uint16)
    labels[2:6, 2:6, 2:6] = 17
    here, far = np.eye(4), from_matvec(np.eye(3), [500, 0, 0])
    reference = nib.Nifti1Image(labels, here)
    with pytest.raises(ImageError, match="none of the labels lies within the field of view of the reference"):
        msm.compare(nib.Nifti1Image(labels, far), reference)
    image = np.random.default_rng(0).uniform(50, 100, labels.shape).astype(np.float32)
    with pytest.raises(ImageError, match="the intensities are 0 wherever there are labels"):
        msm.statistics(reference, nib.Nifti1Image(image, far))
    nothing = nib.Nifti1Image(np.zeros_like(labels), far)
    assert msm.compare(nothing, reference).set_index("label").loc[17, "found_mm3"] == 0


def test_labels_of_another_table_are_refused():
    """FreeSurfer's files of subfields have the same numbers on both sides: all volumes would be 0."""
    labels = np.zeros((12, 12, 12), np.uint16)
    labels[2:6, 2:6, 2:6] = 206
    image = nib.Nifti1Image(np.random.default_rng(0).uniform(50, 100, labels.shape).astype(np.float32), np.eye(4))
    with pytest.raises(
        ImageError, match=r"the labels \(206\) are none of the table hippoFS60: .* plus 1000 on the left"
    ):
        msm.statistics(nib.Nifti1Image(labels, np.eye(4)), image, table="hippoFS60")
    shifted = nib.Nifti1Image(np.where(labels, labels + 1000, 0).astype(np.uint16), np.eye(4))
    assert msm.statistics(shifted, image, table="hippoFS60").set_index("SegId").loc[1206, "NVoxels"] == 64
    freesurfers = nib.Nifti1Image(labels, np.eye(4))
    with pytest.raises(ImageError, match=r"the labels of the reference \(206\) are none of the table hippoFS60"):
        msm.compare(shifted, freesurfers, table="hippoFS60")
    with pytest.raises(ImageError, match=r"the labels \(206\) are none of the table hippoFS60"):
        msm.compare(freesurfers, shifted, table="hippoFS60")
    empty = msm.statistics(nib.Nifti1Image(np.zeros_like(labels), np.eye(4)), image)
    assert (empty["Flag"] == "not found").all()


@pytest.mark.parametrize("values", [[0.5, 1.0], [-1, 1], [0, 70000], [np.nan, 1]])
def test_what_is_no_label_image_is_refused(values):
    odd = nib.Nifti1Image(np.resize(np.array(values, np.float32), (4, 4, 4)), np.eye(4))
    plain = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
    with pytest.raises(ImageError, match="whole numbers from 0 to 65535"):
        msm.compare(odd, plain)
    with pytest.raises(ValueError, match="label table 'aparc' is unknown"):
        msm.compare(plain, plain, table="aparc")


def test_an_image_in_memory_is_checked_like_a_file(caplog):
    data = head().astype(np.float32)
    data[0, 0, :3] = np.nan, np.inf, -1
    checked = check_image(nib.Nifti1Image(data[..., None], AFFINE))
    assert checked.shape == (32, 32, 32)
    np.testing.assert_array_equal(np.asarray(checked.dataobj), head())
    assert "the image: 2 voxels are NaN or infinite; they are read as 0" in caplog.text
    assert "the image: 1 voxels are negative; they are read as 0" in caplog.text
    for odd, reason in ((np.ones((4, 4, 4)), "every voxel is 1"), (np.zeros((4, 4, 4, 2)), "three axes are needed")):
        with pytest.raises(ImageError, match=f"the image: .*{reason}"):
            msm.segment(nib.Nifti1Image(odd, np.eye(4)))


def test_the_import_loads_nothing():
    code = (
        "import sys, medsegmamba_bids as msm\n"
        "assert {'segment', 'compare', 'Segmenter'} <= set(dir(msm))\n"
        "print([name for name in ('torch', 'numpy', 'nibabel', 'pandas') if name in sys.modules])\n"
        "msm.load_image\n"
        "print('torch' in sys.modules, msm.segment is msm.api.segment)"
    )
    finished = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, env=ENV)
    assert finished.stdout.splitlines() == ["[]", "True True"], finished.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'segmnet'"):
        msm.segmnet  # noqa: B018


@pytest.mark.parametrize("call", [msm.statistics, msm.compare])
def test_subfields_are_no_parcels_of_the_cortex(call):
    """Their numbers are, and without a table all of them would be cortex."""
    labels = np.zeros((20, 20, 20), np.uint16)
    labels[5:10, 5:10, 5:10], labels[10:14, 5:10, 5:10] = 1206, 2203
    image = nib.Nifti1Image(labels, np.eye(4))
    with pytest.raises(ImageError, match="hippocampal subfields, of the table hippoFS60"):
        call(image, image)
    assert len(call(image, image, table="hippoFS60"))
