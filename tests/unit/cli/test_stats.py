import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.cli.stats import main
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.stats.structures import structure_statistics

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def write(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(data, affine), path)
    return str(path)


@pytest.fixture
def head(tmp_path):
    """A caudate and a putamen side by side, with parcels of the cortex and a piece of the callosum."""
    labels = np.zeros((20, 20, 20), np.int16)
    labels[5:10, 5:10, 5:10], labels[10:14, 5:10, 5:10] = 11, 12
    labels[5:14, 12:15, 5:10], labels[5:14, 15:17, 5:10], labels[5:14, 3:5, 5:10] = 1003, 2035, 251
    norm = np.random.default_rng(0).integers(60, 110, labels.shape).astype(np.int16)
    return write(tmp_path / "labels.nii.gz", labels), write(tmp_path / "norm.nii.gz", norm), tmp_path


def table(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False).set_index("StructName")


def test_the_table_is_that_of_the_app(head):
    labels, norm, folder = head
    assert main([labels, str(folder / "out.tsv"), "--norm", norm]) == 0
    rows = table(folder / "out.tsv")
    data, guide = (np.asanyarray(nib.load(path).dataobj) for path in (labels, norm))
    as_aseg = np.where((data >= 1000) & (data < 2000), 3, np.where(data >= 2000, 42, data)).astype(np.int16)
    expected = structure_statistics(as_aseg, guide, load_label_table("aseg_brain")).set_index("StructName")
    for column in ("NVoxels", "Volume_mm3", "normMean"):
        np.testing.assert_allclose(rows[column], expected.loc[rows.index, column], atol=1e-3)
    assert rows.loc[["Left-Cerebral-Cortex", "Right-Cerebral-Cortex", "CC_Posterior"], "NVoxels"].tolist() == [
        135,
        90,
        90,
    ]
    described = json.loads((folder / "out.json").read_text())
    assert "partial volume" in described["Volume_mm3"]["Description"]


def test_without_intensities_voxels_are_counted_in_mm3(head):
    labels, _, folder = head
    data = np.asanyarray(nib.load(labels).dataobj)
    large = write(folder / "large.nii.gz", data, np.diag([2.0, 1.5, 1.0, 1]))
    assert main([large, str(folder / "out.tsv"), "--sum"]) == 0
    rows = table(folder / "out.tsv")
    assert rows.loc["Left-Caudate", ["NVoxels", "Volume_mm3"]].tolist() == [125, 375]
    assert rows.loc["All-structures", "Volume_mm3"] == 3 * np.count_nonzero(data)
    described = json.loads((folder / "out.json").read_text())
    assert described["Volume_mm3"]["Description"] == "Number of voxels times the voxel volume"
    assert described["NVoxels"]["Description"] == "Voxels of 3 mm3 with this label"  # it told of voxels of 1 mm


def test_whole_hippocampi_have_no_fissure(tmp_path):
    names = load_label_table("hippoFS60")
    fissure = next(
        label for label, name in zip(names.labels, names.names, strict=True) if name == "Left-hippocampal_fissure"
    )
    labels = np.zeros((12, 12, 12), np.int16)
    labels[2, 2, 2:6], labels[4, 4, 2:9], labels[6, 6, 3] = 1203, fissure, 2203
    path = write(tmp_path / "fields.nii.gz", labels)
    assert main([path, str(tmp_path / "out.tsv"), "--table", "hippoFS60", "--sum"]) == 0
    rows = table(tmp_path / "out.tsv")
    assert rows.loc["Left-Whole-hippocampus", "Volume_mm3"] == 4
    assert rows.loc["Right-Whole-hippocampus", "Volume_mm3"] == 1


def test_posteriors_are_summed(tmp_path):
    classes = load_label_table("hippoFS60").labels
    labels = np.zeros((6, 6, 6), np.int16)
    labels[2:4] = 1203
    posteriors = np.zeros((6, 6, 6, len(classes)), np.float32)
    posteriors[..., classes.tolist().index(1203)] = 0.25
    path = write(tmp_path / "labels.nii.gz", labels)
    soft = write(tmp_path / "soft.nii.gz", posteriors)
    options = [path, str(tmp_path / "out.tsv"), "--table", "hippoFS60", "--posteriors", soft]
    assert main(options) == 0
    assert table(tmp_path / "out.tsv").loc["Left-parasubiculum", "Volume_mm3"] == 54
    described = json.loads((tmp_path / "out.json").read_text())
    assert described["Volume_mm3"]["Description"].startswith("Sum of the posterior probabilities")
    wrong = write(tmp_path / "wrong.nii.gz", posteriors[..., :7])
    assert main([*options[:-1], wrong]) == 1


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda values: values * 255, "values from 0 to 63.75; 0 to 1 is allowed"),
        (lambda values: values - 3, "values from -3 to -3; 0 to 1 is allowed"),
        (lambda values: np.where(values > 0, np.nan, values), "not finite; probabilities are needed"),
        (lambda values: np.ones_like(values), "add up to 25 in a voxel"),
    ],
)
def test_values_that_are_no_probabilities_are_refused(tmp_path, capsys, spoil, sentence):
    labels = np.ones((6, 6, 6), np.int16) * 1203
    posteriors = np.zeros((6, 6, 6, len(load_label_table("hippoFS60").labels)), np.float32)
    posteriors[:3, ..., 1] = 0.25
    soft = write(tmp_path / "soft.nii.gz", spoil(posteriors).astype(np.float32))
    command = [write(tmp_path / "labels.nii.gz", labels), str(tmp_path / "out.tsv"), "--table", "hippoFS60"]
    assert main([*command, "--posteriors", soft]) == 1
    error = capsys.readouterr().err
    assert soft in error
    assert sentence in error
    assert not (tmp_path / "out.tsv").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda whole: whole[: len(whole) // 2], "truncated"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
    ],
)
def test_posteriors_are_checked_as_other_images_are(tmp_path, capsys, content, sentence):
    labels = np.ones((6, 6, 6), np.int16) * 1203
    posteriors = np.full((6, 6, 6, len(load_label_table("hippoFS60").labels)), 0.01, np.float32)
    soft = write(tmp_path / "soft.nii.gz", posteriors)
    path = tmp_path / "soft.nii.gz"
    path.write_bytes(content(path.read_bytes()))
    command = [write(tmp_path / "labels.nii.gz", labels), str(tmp_path / "out.tsv"), "--table", "hippoFS60"]
    assert main([*command, "--posteriors", soft]) == 1
    error = capsys.readouterr().err.lower()
    assert sentence in error.replace("git lfs", "git-lfs")
    assert error.count(str(path).lower()) == 1


def test_freesurfers_form(head):
    labels, norm, folder = head
    assert main([labels, str(folder / "out.tsv"), "--norm", norm, "--fs-stats", str(folder / "aseg.stats")]) == 0
    text = (folder / "aseg.stats").read_text()
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert len(rows) == 45
    assert {row[4]: float(row[2]) for row in rows}["CC_Posterior"] == 90
    assert "# SegVolFile labels.nii.gz\n# InVolFile norm.nii.gz\n" in text


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


def test_another_grid(head, capsys):
    labels, norm, folder = head
    data = np.asanyarray(nib.load(norm).dataobj)
    other = write(folder / "other.nii.gz", data, nib.affines.from_matvec(np.eye(3), [3, 0, 0]))
    said = refused(capsys, labels, folder / "out.tsv", "--norm", other)
    assert (
        "other.nii.gz: its grid (20 x 20 x 20 voxels of 1 x 1 x 1 mm, the first at 3.0, 0.0, 0.0) is not that of"
        in said
    )
    assert "labels.nii.gz" in said
    assert not (folder / "out.tsv").exists()


def test_labels_that_are_no_whole_numbers(head, capsys):
    folder = head[2]
    soft = write(folder / "soft.nii.gz", np.full((9, 9, 9), 0.5, np.float32))
    assert "soft.nii.gz: its values are not whole numbers" in refused(capsys, soft, folder / "out.tsv")


def test_labels_that_the_table_does_not_know(head, capsys):
    labels, _, folder = head
    said = refused(capsys, labels, folder / "out.tsv", "--table", "hippoFS60")
    assert "labels.nii.gz: labels 11, 12, 251, 1003, 2035 are not in the table hippoFS60" in said
    assert "Is --table right?" in said
    strange = np.asanyarray(nib.load(labels).dataobj).copy()
    strange[0, 0, :3] = 700, 701, 9999
    said = refused(capsys, write(folder / "strange.nii.gz", strange), folder / "out.tsv")
    assert "labels 700, 701, 9999 are not in the table aseg" in said


def test_subfields_are_no_parcels_of_the_cortex(tmp_path, capsys):
    """Without ``--table`` their numbers, 1203 and so on, would be those of parcels, and all of them cortex."""
    labels = np.zeros((20, 20, 20), np.int16)
    labels[5:10, 5:10, 5:10], labels[10:14, 5:10, 5:10] = 1206, 2203
    labels[0, 0, :9] = 17  # that another label is there does not help
    path = write(tmp_path / "labels.nii.gz", labels)
    assert main([path, str(tmp_path / "out.tsv")]) == 1
    labels[0, 0, :9] = 0
    path = write(tmp_path / "labels.nii.gz", labels)
    assert "labels.nii.gz: its labels are hippocampal subfields, of the table hippoFS60" in capsys.readouterr().err
    assert not (tmp_path / "out.tsv").exists()
    assert main([path, str(tmp_path / "out.tsv"), "--table", "hippoFS60"]) == 0


def test_an_image_without_labels(head, capsys):
    folder = head[2]
    empty = write(folder / "empty.nii.gz", np.zeros((9, 9, 9), np.int16))
    assert "empty.nii.gz: there are no labels" in refused(capsys, empty, folder / "out.tsv")


def test_intensities_that_are_0(head, capsys):
    labels, norm, folder = head
    data = np.asanyarray(nib.load(norm).dataobj).copy()
    data[np.asanyarray(nib.load(labels).dataobj) > 0] = 0
    black = write(folder / "black.nii.gz", data)
    said = refused(capsys, labels, folder / "out.tsv", "--norm", black)
    assert "the intensities are 0 wherever there are labels" in said


def test_freesurfers_form_is_that_of_the_aseg(head, capsys):
    with pytest.raises(SystemExit):
        main([head[0], "out.tsv", "--table", "hippoFS60", "--fs-stats", "x.stats"])
    assert "it needs --table aseg" in capsys.readouterr().err


def test_no_image_is_replaced_by_a_table(head, capsys):
    labels, norm, folder = head
    held = {path: Path(path).read_bytes() for path in (labels, norm)}
    other = folder / "other.mgz"
    for options, told in (
        ([labels, labels], "another file of this command has this name too"),
        ([labels, norm, "--norm", norm], "another file of this command has this name too"),
        ([labels, norm], "is the name of an image, and tables are text"),
        ([labels, str(other)], f"{other}: is the name of an image, and tables are text; such as other.tsv"),
        ([labels, str(folder / "a.tsv"), "--fs-stats", str(folder / "a.tsv")], "has this name too"),
        ([labels, str(folder / "a.json")], "has this name too"),
        ([labels, str(folder / "absent" / "a.tsv")], "its folder .* does not exist; make it first"),
    ):
        assert main(options) == 1
        assert re.search(f"^error: .*{told}", capsys.readouterr().err), options
    assert {path: Path(path).read_bytes() for path in held} == held
    assert sorted(path.name for path in folder.iterdir()) == ["labels.nii.gz", "norm.nii.gz"]


def tissues(folder):
    """Cerebral white matter and cortex of both sides, and their labels."""
    labels = np.zeros((20, 20, 20), np.int16)
    labels[2:9, 2:18, 2:18], labels[4:7, 5:15, 5:15] = 3, 2
    labels[11:18, 2:18, 2:18], labels[13:16, 5:15, 5:15] = 42, 41
    noise = np.random.default_rng(0).normal(0, 2, labels.shape)
    norm = np.select([np.isin(labels, (2, 41)), labels > 0], [110, 70], 0) + noise * (labels > 0)
    return write(folder / "labels.nii.gz", labels), labels, norm.astype(np.float32)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda norm, labels: norm, ""),
        (
            lambda norm, labels: np.where(norm > 0, 180 - norm, 0),
            "white matter has 0.64 times the intensity",
        ),
        (lambda norm, labels: labels, "has a single value in 4 of 4 structures, as a label image has"),
        (
            lambda norm, labels: np.where(labels == 3, 1003 + (norm > 70), labels),
            "a single value in 3 of 4",
        ),
    ],
    ids=["T1w", "inverted", "labels", "parcels"],
)
def test_odd_intensities_are_noted(tmp_path, capsys, make, said):
    labels, data, norm = tissues(tmp_path)
    guide = write(tmp_path / "norm.nii.gz", make(norm, data).astype(np.float32))
    assert main([labels, str(tmp_path / "out.tsv"), "--norm", guide]) == 0
    told = capsys.readouterr().err
    assert told.startswith(f"WARNING: {guide}: ") if said else told == ""
    assert said in told
    assert "labels will not be reliable" not in told


@pytest.mark.parametrize("other", ['{"GeneratedBy": "another tool"}', "no JSON", "[1]", "3", ""])
def test_the_sidecar_of_another_tool_is_not_replaced(head, capsys, other):
    labels, _, folder = head
    (folder / "out.json").write_text(other)
    assert main([labels, str(folder / "out.tsv")]) == 1
    assert "out.json: is there and not of this command" in capsys.readouterr().err
    assert (folder / "out.json").read_text() == other
    assert not (folder / "out.tsv").exists()


def test_its_own_sidecar_is_replaced(head):
    labels, norm, folder = head
    assert main([labels, str(folder / "out.tsv")]) == 0
    assert main([labels, str(folder / "out.tsv"), "--norm", norm]) == 0
    assert json.loads((folder / "out.json").read_text())["MadeFrom"] == {"labels": labels, "norm": norm}
