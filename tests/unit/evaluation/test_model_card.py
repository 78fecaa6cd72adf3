"""The model card: a segmenter that is always right scores 1 in every variant; a tiny network runs through it all."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.cli.evaluate import main
from medsegmamba_bids.errors import CaseError
from medsegmamba_bids.evaluation.card import calibration, curve, measure, model_card
from medsegmamba_bids.evaluation.card.cases import Case, mirrored, noisy, read_cases, rotated, thick
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.inference.single import ImageLabels
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.weights.files import InputSpec, WeightsInfo, save_weights
from medsegmamba_bids.weights.info import read_info

NETWORK = {"channels": [8, 8, 8, 8], "bottleneck": 16, "state": 4, "blocks": 1, "patch_size": 16}
AFFINE = np.array([[-1.0, 0, 0, 24], [0, 0, 1, -24], [0, -1, 0, 24], [0, 0, 0, 1]])
BRIGHTNESS = 20  # of a structure's number below, so that noise of 5 % of white matter (1) changes none
LEFT = (2, 4, 17)
CHANGED = ("flipped", "rotated", "noisy", "thick")
RIGHT = {2: 41, 4: 43, 17: 53}


def head():
    """Labels and image of a brain with unequal ventricles and hippocampi; borders agree with slices of 4 mm."""
    labels = np.zeros((48, 48, 48), np.uint16)
    labels[26:40, 8:40, 8:40], labels[8:22, 8:40, 8:40] = 2, 41
    labels[28:36, 12:20, 12:36], labels[12:20, 12:20, 14:30] = 4, 43
    labels[28:36, 28:36, 14:34], labels[13:19, 28:36, 14:34] = 17, 53
    kind = np.zeros(256, np.uint8)
    for number, label in enumerate(LEFT):
        kind[[label, RIGHT[label]]] = (number + 1) * BRIGHTNESS
    return labels, kind[labels]


@dataclass
class Known:
    """Labels that are on the image's grid already."""

    labels: ImageLabels

    def on_grid_of(self, image):
        several = image.shape[1] // self.labels.aseg.shape[1]  # voxels of the image in a slice of the labels
        return ImageLabels(np.repeat(self.labels.aseg, several, axis=1), self.labels.hippocampus, ())


def always_right(segmenter, image, weights=None, hippocampus=False, hippocampus_weights=None):
    """The structure from its intensity, the side from its place; two subfields halve a hippocampus."""
    data = np.asarray(image.dataobj, np.float32)
    left = np.arange(48)[:, None, None] >= 24  # the grid may be turned a little
    kind = np.rint(data / BRIGHTNESS).astype(int)
    sides = [np.array([0, *labels], np.uint16)[kind] for labels in (LEFT, RIGHT.values())]
    labels = np.where(left, *sides)
    if not hippocampus:
        return Known(ImageLabels(labels, None, ()))
    front = np.arange(48) < 24
    subfields = np.where(labels == 17, 1203, np.where(labels == 53, 2203, 0)) + np.where(front & (kind == 3), 2, 0)
    return Known(ImageLabels(labels, subfields.astype(np.uint16), ()))


def half_sure(case, networks):
    """Posteriors of 1 in 40 voxels of the left hippocampus and 10 others; of 0 elsewhere."""
    truth = np.repeat([True, False], [40, 60])
    counts = calibration.count_bins((np.arange(100) < 50).astype(float), truth)
    rows = counts.assign(case=case.name, structure="Left-Hippocampus", label=17, labelled_voxels=counts["voxels"])
    return rows[list(calibration.COLUMNS)]


@pytest.fixture
def known(monkeypatch):
    """Labels and posteriors that are known, in place of the network's."""
    monkeypatch.setattr(measure, "conform_and_segment", always_right)
    monkeypatch.setattr(model_card, "measure_calibration", half_sure)


@pytest.fixture
def data_dir(tmp_path):
    """A folder with an image, its reference and a table of cases."""
    labels, image = head()
    nib.save(nib.Nifti1Image(image, AFFINE), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "reference.nii.gz")
    table = "case\timage\treference\taim\ttwin\none\timage.nii.gz\treference.nii.gz\t1\tn/a\n"
    (tmp_path / "cases.tsv").write_text(table)
    return tmp_path


def weights(path, table, task, seed=0):
    import torch

    torch.manual_seed(seed)
    labels = load_label_table(table).labels.tolist()
    config = {**NETWORK, "classes": len(labels)}
    info = WeightsInfo("tiny", "medsegmamba", config, task, tuple(labels), InputSpec(4.0, 16, 16), "made up", "CC0-1.0")
    network = build_network("medsegmamba", config)
    with torch.no_grad():
        network.head.bias[4:] -= 20  # few classes, to be quick
    save_weights(network, info, path)
    return path


@pytest.fixture
def command(data_dir):
    """Arguments of the command for the made-up case."""
    aseg = weights(data_dir / "aseg.safetensors", "aseg_brain", "aseg")
    subfields = weights(data_dir / "subfields.safetensors", "hippoFS60", "hippocampus")
    files = ["--weights", aseg, "--hippocampus-weights", subfields, "--case-table", data_dir / "cases.tsv"]
    options = ["--data-dir", data_dir, "--out", data_dir / "card.md", "--device", "cpu", "--machine", "a desk", *files]
    return ["model-card", *(str(option) for option in options)]


def numbers(data_dir):
    return pd.read_csv(data_dir / "card.tsv", sep="\t", comment="#", keep_default_na=False, na_values=["n/a"])


def test_a_perfect_segmenter_scores_one(data_dir, command, known):
    assert main(command) == 0
    rows = numbers(data_dir)
    there = rows[(rows["reference_mm3"] > 0) & (rows["against"] != "hippocampus")]
    found = {key: set(group["label"]) for key, group in there.groupby(["variant", "against"])}
    structures, subfields = {0, 2, 41, 4, 43, 17, 53}, {1203, 1205, 2203, 2205}
    assert all(found[variant, "reference"] == structures for variant in ("plain", *CHANGED))
    assert found["flipped", "original"] == structures - {0} | subfields
    assert there["dice"].eq(1).all()
    assert there["assd_mm"].eq(0).all()
    unions = rows[rows["against"] == "hippocampus"]
    assert unions["dice"].tolist() == [1] * 4
    text = (data_dir / "card.md").read_text()
    assert "| Left-Hippocampus | 1.000 | 1.000 |" in text
    assert "a desk" in text
    assert "| one | 1.000 | 1.000 | 2 | 2 | 1.000 | 1.000 |" in text  # unions, labels left and right, flips
    assert "$" not in text


def test_a_segmenter_that_ignores_sides_is_found_out(data_dir, command, known, monkeypatch):
    """Right as it is; in the mirror every structure keeps its side, as if that showed in the intensities."""
    labels, bright = head()

    def sideless(segmenter, image, *arguments, **options):
        data = np.asarray(image.dataobj, np.float32)
        if data.shape != bright.shape:
            return Known(ImageLabels(labels[:, ::4], None, ()))
        flipped = np.abs(data - bright).sum() > np.abs(data - bright[::-1]).sum()
        return Known(ImageLabels(labels[::-1].copy() if flipped else labels, None, ()))

    monkeypatch.setattr(measure, "conform_and_segment", sideless)
    assert main([*command, "--no-hippocampus"]) == 0
    rows = numbers(data_dir).query("reference_mm3 > 0 and label > 0")
    assert rows.query("variant == 'plain'")["dice"].eq(1).all()
    assert rows.query("variant == 'flipped'")["dice"].eq(0).all()
    assert "Not measured." in (data_dir / "card.md").read_text()


def test_the_card_says_how_far_posteriors_are_calibrated(data_dir, command, known):
    """A posterior of 1 where 80 % are right; a soft volume of 50 of 40 voxels, and 100 with the label."""
    assert main(command) == 0
    text = (data_dir / "card.md").read_text()
    assert "Cases: one. Posteriors" in text
    assert "| Left-Hippocampus | 0.200 | 150.0 | 25.0 |" in text
    assert "![Reliability diagram](card_reliability.svg)" in text
    assert (data_dir / "card_reliability.svg").read_text().count("<!-- Hippocampus -->") == 1


def test_a_card_without_calibrated_cases_says_so(tmp_path):
    fields = model_card.calibration_fields(None, ["one"], tmp_path / "card_reliability.svg")
    assert set(fields.values()) == {"Not measured.", ""}
    assert not list(tmp_path.iterdir())


def test_what_is_measured_is_kept_for_the_same_weights(data_dir, command, known, monkeypatch):
    def tables():
        return [path.read_bytes() for path in (data_dir / "card.tsv", data_dir / "card_calibration.tsv")]

    assert main(command) == 0
    first = tables()

    def refuse(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(measure, "conform_and_segment", refuse)
    monkeypatch.setattr(model_card, "measure_calibration", refuse)
    assert main([*command, "--aseg-hours", "1.5"]) == 0
    assert tables() == first
    assert "1.5 hours" in (data_dir / "card.md").read_text()
    weights(data_dir / "aseg.safetensors", "aseg_brain", "aseg", seed=1)
    with pytest.raises(AssertionError):
        main(command)


@pytest.mark.slow
def test_a_tiny_network_runs_through(data_dir, command):
    """Nothing is replaced here. A twin that is the image itself has the same labels."""
    table = "case\timage\treference\taim\ttwin\none\timage.nii.gz\treference.nii.gz\t1\timage.nii.gz\n"
    (data_dir / "cases.tsv").write_text(table)
    assert main([*command, "--no-hippocampus"]) == 0
    rows = numbers(data_dir)
    assert set(rows["variant"]) == {"plain", *CHANGED}
    twin = rows.query("against == 'twin' and found_mm3 > 0")
    assert len(twin) > 0
    assert twin["dice"].eq(1).all()
    assert rows.query("against == 'reference'")["dice"].dropna().between(0, 1).all()
    counts = pd.read_csv(data_dir / "card_calibration.tsv", sep="\t", comment="#")
    voxels = counts.groupby("label")[["voxels", "reference_voxels"]].sum()
    assert voxels["voxels"].eq(256**3).all()
    reference = head()[0]
    assert voxels["reference_voxels"].to_dict() == {label: (reference == label).sum() for label in voxels.index}
    assert "| one | 1.000 | 0.00 % |" in (data_dir / "card.md").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one\tnone.nii.gz\tn/a\t1\timage.nii.gz", r"none\.nii\.gz: no such file, but the case one needs it"),
        ("one\timage.nii.gz\tn/a\t1\tn/a", "needs an image, and a reference or a twin"),
    ],
)
def test_cases_that_cannot_be_measured(data_dir, line, message):
    (data_dir / "cases.tsv").write_text(f"case\timage\treference\taim\ttwin\n{line}\n")
    with pytest.raises(CaseError, match=message):
        read_cases(data_dir / "cases.tsv", data_dir)


def test_tables_of_cases_are_checked(data_dir):
    with pytest.raises(CaseError, match="has no case two; there are one"):
        read_cases(data_dir / "cases.tsv", data_dir, ["two"])
    (data_dir / "cases.tsv").write_text("case\timage\none\timage.nii.gz\n")
    with pytest.raises(CaseError, match=r"the columns \['reference', 'aim', 'twin'\] are missing"):
        read_cases(data_dir / "cases.tsv", data_dir)
    with pytest.raises(CaseError, match=r"none\.tsv: no such table"):
        read_cases(data_dir / "none.tsv", data_dir)


def test_references_on_another_grid_are_refused(data_dir):
    labels, _ = head()
    nib.save(nib.Nifti1Image(labels, AFFINE + np.diag([0, 0, 0.1, 0])), data_dir / "reference.nii.gz")
    case = Case("one", data_dir / "image.nii.gz", data_dir / "reference.nii.gz")
    with pytest.raises(CaseError, match=r"reference\.nii\.gz: does not lie on the grid of its image"):
        measure.read_reference(case, nib.load(case.image))


def test_mirrored_twice_is_the_image():
    for affine in (AFFINE, np.eye(4), AFFINE[:, [2, 0, 1, 3]]):
        image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (4, 5, 6), np.uint8), affine)
        once = np.asarray(mirrored(image).dataobj)
        axis = nib.aff2axcodes(affine).index("L" if "L" in nib.aff2axcodes(affine) else "R")
        assert np.array_equal(once, np.flip(np.asarray(image.dataobj), axis))
        assert np.array_equal(np.asarray(mirrored(mirrored(image)).dataobj), np.asarray(image.dataobj))


def test_rotation_keeps_the_centre_and_turns_by_fifteen_degrees():
    image = nib.Nifti1Image(np.zeros((10, 12, 14), np.uint8), AFFINE)
    turned = rotated(image).affine
    centre = np.array([5, 6, 7, 1])
    assert np.allclose(turned @ centre, AFFINE @ centre)
    matrix = turned[:3, :3] @ np.linalg.inv(AFFINE[:3, :3])
    assert np.degrees(np.arccos((np.trace(matrix) - 1) / 2)) == pytest.approx(15)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_thick_slices_are_means_that_stay_where_they_are(axes):
    """A ramp upwards keeps its height at every slice's own position, whatever axis runs upwards and which way."""
    affine = np.diag([2, 1, -1.3, 1])[:, [*axes, 3]].astype(float)
    affine[2, 3] = 40
    grid = np.moveaxis(np.indices((8, 9, 14)), 0, -1)
    heights = grid @ affine[2, :3] + affine[2, 3]
    slices = thick(nib.Nifti1Image(heights, affine))
    upwards = axes.index(2)
    assert slices.shape == tuple(size // 3 if axis == upwards else size for axis, size in enumerate(heights.shape))
    assert slices.header.get_zooms()[upwards] == pytest.approx(3.9)
    moved = np.moveaxis(np.indices(slices.shape), 0, -1) @ slices.affine[2, :3] + slices.affine[2, 3]
    np.testing.assert_allclose(np.asarray(slices.dataobj), moved, atol=1e-4)


def test_cases_are_judged_by_their_fold_and_compared_with_earlier_weights(data_dir, command, known, monkeypatch):
    """The released weights see no case of a fold; earlier ones lose a hippocampus, which the card shows."""
    fold, old = (
        weights(data_dir / f"{name}.safetensors", "aseg_brain", "aseg", seed)
        for name, seed in (("fold", 1), ("old", 2))
    )
    (data_dir / "cases.tsv").write_text(
        "case\timage\treference\taim\ttwin\n"
        + "".join(f"{case}\timage.nii.gz\treference.nii.gz\t1\tn/a\n" for case in ("one", "two"))
    )
    used = []

    def right_or_older(segmenter, image, weights=None, *arguments):
        used.append(Path(weights).stem)
        found = always_right(segmenter, image)
        if Path(weights).stem == "old":
            found.labels.aseg[found.labels.aseg == 17] = 2
        return found

    monkeypatch.setattr(measure, "conform_and_segment", right_or_older)
    folds = ["--fold", str(fold), "two", "--earlier", str(old), "--no-hippocampus"]
    assert main([*command, *folds]) == 0
    assert used == ["aseg"] * 5 + ["fold"] * 5 + ["old"] * 10
    text = (data_dir / "card.md").read_text()
    assert f"two by those with the checksum `{read_info(fold).checksum}`." in text
    assert "| Left-Hippocampus | 0.000 | 1.000 | n/a | 0.000 | -100 % | +0 % |" in text
    assert "| two | " in text.partition("## The weights before")[2].partition("Structures")[0]
    assert main([*command, *folds]) == 0  # nothing is measured again
    assert len(used) == 20
    fold.unlink()
    weights(fold, "aseg_brain", "aseg", 3)
    main([*command, *folds])
    assert used[20:] == ["aseg"] * 5 + ["fold"] * 5


def test_subfields_are_the_released_networks_where_a_fold_judges_the_structures(data_dir, command, known, monkeypatch):
    """The fold loses a hippocampus; subfields lie in the hippocampi of the released weights, as users have them."""
    fold = weights(data_dir / "fold.safetensors", "aseg_brain", "aseg", 1)
    used = []

    def right_or_fold(segmenter, image, weights=None, hippocampus=False, *arguments):
        used.append((Path(weights).stem, hippocampus))
        found = always_right(segmenter, image, hippocampus=hippocampus)
        if Path(weights).stem == "fold":
            found.labels.aseg[found.labels.aseg == 17] = 2
        return found

    monkeypatch.setattr(measure, "conform_and_segment", right_or_fold)
    assert main([*command, "--fold", str(fold), "one"]) == 0
    with_subfields = [("fold", False), ("aseg", True)]
    assert used == [*with_subfields, *with_subfields, *[("fold", False)] * 3]
    rows = numbers(data_dir).set_index(["variant", "against", "label"])["dice"]
    assert rows["plain", "reference", 17] == 0
    assert rows["plain", "hippocampus", 17] == 1
    assert rows["flipped", "original", 1203] == 1


def test_folds_are_checked(command, capsys):
    for options, message in (
        (["--fold", "a.safetensors"], "name the cases that these weights judge"),
        (["--fold", "a", "one", "--fold", "b", "one"], "--fold b: one is judged by another fold already"),
        (["--fold", "a", "three"], "has no case three; there are one"),
    ):
        assert main([*command, *options]) == 1
        assert message in capsys.readouterr().err


def test_the_training_is_drawn_with_the_mean_of_what_was_measured_on_every_case(data_dir, command, known):
    path = data_dir / "curve.tsv"
    path.write_text("weights\tsteps\tcase\tdice\nb\t2\tx\t.8\na\t1\tx\t.6\na\t1\ty\t.7\n")
    rows = curve.read_curve(path)
    assert rows[["steps", "case"]].to_numpy().tolist() == [[2, "x"], [1, "x"], [1, "y"]]
    assert main([*command, "--curve", str(path)]) == 0
    picture = (data_dir / "card_curve.svg").read_text()
    assert all(f"<!-- {text} -->" in picture for text in ("x", "y", "mean", "1 steps", "2 steps"))
    assert picture.index("<!-- 2 steps -->") < picture.index("<!-- 1 steps -->")  # as in the table
    assert "![Dice over the steps of training](card_curve.svg)" in (data_dir / "card.md").read_text()
    path.write_text("weights\tsteps\n")
    with pytest.raises(CaseError, match=r"the columns \['case', 'dice'\] are missing"):
        curve.read_curve(path)


def test_the_order_of_cases_in_the_table_does_not_bend_their_lines():
    rows = [("abc"[step], step, case, 0.8 + 0.01 * step) for case in "xy" for step in range(3)]
    table = pd.DataFrame(rows, columns=["weights", "steps", "case", "dice"])
    mixed = table.iloc[[0, 1, 2, 4, 5, 3]].reset_index(drop=True)
    assert curve.training_curve(mixed) == curve.training_curve(table)


def test_noise_is_that_share_of_white_matter():
    data = np.zeros((40, 40, 40), np.float32)
    data[5:35] = 200
    white = data > 0
    changed = np.asarray(noisy(nib.Nifti1Image(data, AFFINE), white).dataobj)
    assert (changed[:5] == 0).all()
    assert changed[white].std() == pytest.approx(10, rel=0.03)
    assert changed[white].mean() == pytest.approx(200, rel=0.01)
    whole = noisy(nib.Nifti1Image(data.astype(np.uint8), AFFINE), white)
    assert np.asarray(whole.dataobj).dtype == np.uint8
    assert np.array_equal(np.asarray(whole.dataobj), np.rint(changed).clip(0, 255).astype(np.uint8))


def test_fluid_outside_the_brain_is_not_compared():
    """A network may have it as a class, but FreeSurfer draws none."""
    labels, _ = head()
    with_fluid, without = (
        measure.compare(labels, labels, np.ones(3), load_label_table(name)) for name in ("aseg_head", "aseg_brain")
    )
    pd.testing.assert_frame_equal(with_fluid, without)
    assert 257 not in set(with_fluid["label"])
