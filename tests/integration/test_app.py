"""The app from the command line to the validated output, on tiny images and networks."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.cli.main import main
from medsegmamba_bids.data.names import _table, output_name
from medsegmamba_bids.image import io as image_io
from medsegmamba_bids.image.grid import Box
from medsegmamba_bids.stats.intracranial import find_template
from medsegmamba_bids.stats.tables import read_tsv
from medsegmamba_bids.weights.files import read_info

from .conftest import is_gone

PREFIXES = ["sub-01", "sub-02_ses-b_run-1"]
#: Products of --longitudinal alone.
SEVERAL_VISITS = ("template", "visit", "aseg_changes", "hippocampus_changes")
# What a participant with one T1w may cost; of the nodes it is the number itself.
MOST = {"nodes": 15, "processes": 0, "images read": 27, "searches for a box": 93, "images between steps": 10, "MB": 90}


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Nodes run in this process, one after the other: the networks are loaded once for all tests."""
    path = tmp_path_factory.mktemp("plugin") / "linear.json"
    path.write_text('{"plugin": "Linear"}')
    return ["--use-plugin", str(path), "--nprocs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, weights, dataset, linear):
    """A run over good, damaged and missing images: folder, exit code and table."""
    root = tmp_path_factory.mktemp("app")
    bids = dataset(root / "bids", [*PREFIXES, "sub-03"])
    damaged = bids / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    (bids / "sub-04" / "anat").mkdir(parents=True)
    options = ["-w", str(root / "work"), "--aseg-weights", str(weights["aseg"])]
    options += ["--hippocampus-weights", str(weights["hippocampus"]), "--fs-stats"]
    code, table = run(bids, root / "out", *options, *linear)
    return root, options, code, table


def run(bids, out, *options):
    """Exit code and what was printed."""
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as printed:
        code = main([str(bids), str(out), "participant", *map(str, options)])
    return code, printed.getvalue()


def path_of(root, prefix, name, extension=None):
    return root / "out" / output_name(prefix, name, extension, template=find_template().name)


def digests(folder, pattern="*"):
    """Time of change and content of files."""
    files = (path for path in folder.rglob(pattern) if path.is_file() and "log" not in path.parts[-3])
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


@pytest.fixture(scope="module")
def work_counted(finished, tmp_path_factory, linear):
    """What one T1w costs, without a clock: a run over one participant, all of whose nodes run in this process."""
    root, options, _, _ = finished
    counted = Counter()
    folder = tmp_path_factory.mktemp("counted")

    def counting(name, function):
        def call(*arguments, **named):
            counted[name] += 1
            return function(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nibabel.load", counting("images read", nib.load))
        patch.setattr(image_io, "unpacked", counting("images read", image_io.unpacked))
        patch.setattr(subprocess, "Popen", counting("processes", subprocess.Popen))
        patch.setattr(os, "fork", counting("processes", os.fork))
        patch.setattr(Box, "around", counting("searches for a box", Box.around))
        rest = [*options[2:], "--participant-label", "01", "-w", folder / "work"]
        run(root / "bids", folder / "out", *rest, *linear)
    counted["nodes"] = len(list((folder / "work").rglob("_node.pklz")))
    counted["images between steps"] = len(list((folder / "work").rglob("*.nii*")))
    files = [path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts]
    counted["MB"] = sum(path.stat().st_size for path in files) / 1e6
    return counted


def test_each_image_has_its_line(finished):
    _, _, code, table = finished
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in table.splitlines() if line.startswith("sub-")}
    assert code == 1
    assert lines["sub-03_T1w"].startswith("failed   conform: ")
    assert "the compressed file is truncated; copy it again" in " ".join(table.split())
    assert lines["sub-04"] == "skipped  it has no T1w image"
    for prefix in PREFIXES:
        assert lines[f"{prefix}_T1w"].startswith("flagged  ")
    assert "0 done, 2 flagged, 1 failed, 1 skipped" in table


def test_every_product_is_there(finished):
    root = finished[0]
    for prefix in PREFIXES:
        products = [name for name in _table()["products"] if not name.startswith(SEVERAL_VISITS)]
        missing = [name for name in products if not path_of(root, prefix, name).is_file()]
        # On request; and the balls of these images have no skull (a head that has one: tests/workflows/test_etiv.py).
        assert missing == [
            *("aseg_posteriors", "hippocampus_posteriors"),
            *("transform", "transform_itk", "transform_lta"),
        ]
    assert not list((root / "out").rglob("sub-03*.nii.gz"))
    assert not list((root / "out").rglob("*.part*"))
    assert {path.name for path in (root / "out").glob("*.html")} == {"sub-01.html", "sub-02.html"}


def test_the_validator_finds_no_error(finished):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    answer = subprocess.run([validator, finished[0] / "out", "--json"], capture_output=True, text=True, check=False)
    issues = json.loads(answer.stdout)["issues"]["issues"]
    assert [(issue["code"], issue.get("location")) for issue in issues if issue["severity"] == "error"] == []


def test_labels_return_to_the_grid_of_the_t1w(finished):
    root = finished[0]
    raw = nib.load(root / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    native, conformed = (nib.load(path_of(root, "sub-01", name)) for name in ("aseg", "conformed_aseg"))
    assert native.shape == raw.shape
    np.testing.assert_allclose(native.affine, raw.affine, atol=1e-5)
    assert (native.header["sform_code"], native.header["qform_code"]) == (1, 1)
    assert conformed.shape == (256, 256, 256)
    voxels = {name: np.asanyarray(image.dataobj) for name, image in (("n", native), ("c", conformed))}
    assert set(np.unique(voxels["n"])) <= set(np.unique(voxels["c"])) <= {0, 2, 3, 17, 41, 42, 53}
    # The middle of each voxel of the T1w shows what the conformed labels have there.
    grid = np.moveaxis(np.indices(raw.shape), 0, -1)
    places = nib.affines.apply_affine(np.linalg.inv(conformed.affine) @ raw.affine, grid)
    there = voxels["c"][tuple(np.moveaxis(np.rint(places).astype(int), -1, 0))]
    assert np.mean((there > 0) == (voxels["n"] > 0)) > 0.95


def test_the_table_counts_what_the_images_show(finished):
    root = finished[0]
    rows = read_tsv(path_of(root, "sub-01", "aseg_stats")).set_index("SegId")
    labels = np.asanyarray(nib.load(path_of(root, "sub-01", "conformed_aseg")).dataobj)
    assert len(rows) == 35
    assert rows["NVoxels"].to_dict() == {label: np.count_nonzero(labels == label) for label in rows.index}
    assert rows.loc[10, ["NVoxels", "Volume_mm3", "Flag"]].tolist() == [0, 0, "not found"]


def test_the_json_says_how_it_was_made(finished, weights):
    root = finished[0]
    sidecar = json.loads(path_of(root, "sub-01", "aseg_stats", ".json").read_text())
    steps = {step["Name"]: step for step in sidecar["Steps"]}
    assert {"conform", "aseg", "normalize", "intracranial", "native_aseg"} <= steps.keys()
    assert steps["aseg"]["Weights"]["Checksum"] == read_info(weights["aseg"]).checksum
    assert (steps["aseg"]["Device"], steps["aseg"]["StepSize"]) == ("cpu", 32)
    assert steps["aseg"]["Seconds"] > 0
    template = find_template()
    assert sidecar["Template"] == {"Name": template.name, "Volume_mm3": template.volume, "Source": template.source}
    assert any(note.startswith("not found: ") for note in sidecar["Notes"])
    assert "Left-Thalamus" in sidecar["Missing"]
    # The ball that is segmented here has no skull.
    assert (
        "there is no eTIV: the image shows no skull, and the size of a brain is not that of its head"
        in sidecar["Notes"]
    )
    assert "eTIV" not in sidecar["Measures"]
    assert not path_of(root, "sub-01", "transform").exists()


def _says(path, key):
    return json.loads(path.read_text()).get(key, [])


def test_sources_are_there(finished):
    root = finished[0]
    links = json.loads((root / "out" / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"raw": "../bids"}
    sidecars = [path for path in (root / "out" / "sub-01").rglob("*.json") if "log" not in path.parts]
    assert {path.name.split("_")[-1] for path in sidecars if not _says(path, "Sources")} <= {"stats.json", "flags.json"}
    sources = {source for path in sidecars for source in _says(path, "Sources")}
    assert len(sources) >= 4
    for source in sources:
        dataset, path = source.removeprefix("bids:").split(":", 1)
        assert (root / ("bids" if dataset == "raw" else "out") / path).is_file()


def test_freesurfers_table_has_a_row_per_structure(finished):
    text = path_of(finished[0], "sub-01", "freesurfer_stats").read_text()
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert [len(row) for row in rows] == [10] * 45
    assert "# Measure EstimatedTotalIntraCranialVol, eTIV, not measured, nan, mm^3" in text


def test_the_run_is_on_record(finished):
    root = finished[0]
    (log,) = [path for path in (root / "out" / "logs").iterdir() if path.is_dir()]
    options = json.loads((log / "config.json").read_text())
    assert options["fs_stats"] is True
    text = (log / "medsegmamba.log").read_text()
    assert "sub_01: aseg done" in text
    assert "0 done, 2 flagged, 1 failed, 1 skipped" in text
    assert list((root / "out" / "sub-03" / "log").rglob("crash-*.txt"))


def test_a_second_run_recomputes_nothing(finished, linear):
    root, options, _, _ = finished
    before = digests(root / "work", "result_*.pklz")
    outputs = digests(root / "out" / "sub-01" / "anat")
    (root / "out" / "sub-01" / "log" / "sub-01_T1w.json").unlink()  # else it is not even looked at
    labels = ["--participant-label", "01", "--omp-nthreads", "1", "--batch-size", "2", "--mem", "3"]
    code, _ = run(root / "bids", root / "out", *options, *linear, *labels)
    assert code == 0
    changed = {
        path.parent.name for path, state in digests(root / "work", "result_*.pklz").items() if before.get(path) != state
    }
    assert changed == {"write_aseg", "write_hippocampus", "finish", "report"}
    assert digests(root / "out" / "sub-01" / "anat") == outputs


def test_reports_alone(finished, linear):
    root = finished[0]
    page = root / "out" / "sub-01.html"
    page.unlink()
    options = ["-w", root / "work", "--reports-only", "--participant-label", "01"]
    code, table = run(root / "bids", root / "out", *options, *linear)
    assert code == 0
    assert page.is_file()
    assert table.startswith("sub-01.html  done")


def test_weights_that_want_a_normalised_brain(tmp_path, dataset, weights, linear):
    bids = dataset(tmp_path / "bids", ["sub-01"])
    raw = nib.load(bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    half = (np.asanyarray(raw.dataobj) > 0) & (np.arange(raw.shape[0]) < 14)[:, None, None]
    nib.Nifti1Image(half.astype(np.uint8), raw.affine).to_filename(tmp_path / "sub-01_mask.nii.gz")
    options = ["-w", tmp_path / "work", "--aseg-weights", weights["authors"], "--hippocampus-weights", "none"]
    options += ["--brain-mask", tmp_path / "sub-{subject}_mask.nii.gz", "--save-posteriors", "--clean-workdir"]
    code, _ = run(bids, tmp_path / "out", *options, *linear)
    assert code == 0
    mask, labels = (np.asanyarray(nib.load(path_of(tmp_path, "sub-01", name)).dataobj) for name in ("mask", "aseg"))
    assert np.mean((mask > 0) == half) > 0.99  # it went to 1 mm and back
    # Where the network looked: a patch around what the mask left, not around the whole head.
    looked, left = (
        np.argwhere(np.asanyarray(nib.load(path_of(tmp_path, "sub-01", name)).dataobj).any((1, 2)))
        for name in ("conformed_aseg", "conformed_mask")
    )
    assert abs(looked.mean() - left.mean()) <= 2
    assert labels[:12].any()
    assert not list((tmp_path / "work" / "medsegmamba_wf").glob("sub_*"))
    # The posteriors on request: as many as classes, and they add up to the soft volumes.
    posteriors = nib.load(path_of(tmp_path, "sub-01", "aseg_posteriors"))
    assert posteriors.shape == (256, 256, 256, 36)
    names = json.loads(path_of(tmp_path, "sub-01", "aseg_posteriors", ".json").read_text())["LabelMap"]
    soft = np.asanyarray(posteriors.dataobj[..., names.index("lWM")]).sum()
    rows = read_tsv(path_of(tmp_path, "sub-01", "aseg_stats")).set_index("SegId")
    assert soft == pytest.approx(rows.loc[2, "SoftVolume_mm3"], rel=0.02)


def test_masks_of_other_derivatives(tmp_path, dataset, weights, linear):
    """fMRIPrep's mask takes the place of the network's, and is named as the source."""
    bids, derivatives = dataset(tmp_path / "bids", ["sub-01"]), tmp_path / "fmriprep"
    image = nib.load(bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    mask = np.zeros(image.shape, np.uint8)
    mask[6:20, 7:21, 8:22] = 1
    (derivatives / "sub-01" / "anat").mkdir(parents=True)
    nib.save(nib.Nifti1Image(mask, image.affine), derivatives / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz")
    description = {"Name": "fMRIPrep", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    description["GeneratedBy"] = [{"Name": "fMRIPrep"}]
    (derivatives / "dataset_description.json").write_text(json.dumps(description))
    options = ["--aseg-weights", weights["aseg"], "--hippocampus-weights", "none", "-d", derivatives]
    code, table = run(bids, tmp_path / "out", "-w", tmp_path / "work", *options, *linear)
    assert code == 0, table
    written = np.asanyarray(nib.load(path_of(tmp_path, "sub-01", "mask")).dataobj)
    assert np.array_equal(written, mask)
    sidecar = json.loads(path_of(tmp_path, "sub-01", "conformed_mask", ".json").read_text())
    assert sidecar["Sources"] == ["bids:derivatives1:sub-01/anat/sub-01_desc-brain_mask.nii.gz"]
    conformed = np.asanyarray(nib.load(path_of(tmp_path, "sub-01", "conformed_mask")).dataobj)
    assert conformed.sum() == pytest.approx(mask.sum() * 27.9, rel=0.02)  # mm3


def test_a_full_disk_fails_one_image(tmp_path, dataset, weights, linear, monkeypatch):
    copy = shutil.copyfile

    def full(source, target):
        copy(source, target)
        if "sub-02" in str(target):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("medsegmamba_bids.interfaces.sink.shutil.copyfile", full)
    bids = dataset(tmp_path / "bids", ["sub-02"])
    options = ["-w", tmp_path / "work", "--aseg-weights", weights["aseg"], "--hippocampus-weights", "none"]
    code, table = run(bids, tmp_path / "out", *options, "--clean-workdir", *linear)
    assert code == 1
    assert "No space left on device" in table
    assert "0 done, 0 flagged, 1 failed, 0 skipped" in table
    assert not list((tmp_path / "out").rglob("*.part*"))
    assert not list((tmp_path / "out" / "sub-02").rglob("*.nii.gz"))
    assert (tmp_path / "work" / "medsegmamba_wf" / "sub_02_wf").is_dir()  # kept, so that it can go on


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: [root / "nowhere", root / "out"], "no such folder"),
        (lambda root: [root / "bids" / "sub-01", root / "out"], "not a BIDS dataset"),
        (lambda root: [root / "bids", root / "bids"], "the output folder is the input folder"),
        (lambda root: [root / "bids", root / "out", "--participant-label", "99"], "no participant 99"),
        (lambda root: [root / "bids", root / "out", "--aseg-weights", "none-such"], "no such weights file"),
    ],
)
def test_what_cannot_be_done_is_said_first(make, sentence, tmp_path, dataset, capsys):
    dataset(tmp_path / "bids", ["sub-01"])
    bids, out, *options = make(tmp_path)
    assert run(bids, out, "-w", tmp_path / "work", *options)[0] == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path, dataset, weights):
    bids = dataset(tmp_path / "bids", ["sub-01", "sub-02"])
    command = [sys.executable, "-m", "medsegmamba_bids", bids, tmp_path / "out", "participant", "-w", tmp_path / "work"]
    command += ["--aseg-weights", weights["aseg"], "--hippocampus-weights", "none", "--device", "cpu", "--nprocs", "2"]
    command += ["-v"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        for line in process.stderr:
            if "aseg done" in line:
                break
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # twice, as impatient people and schedulers do
            os.killpg(process.pid, number)
        start = time.monotonic()
        assert process.wait(60) == 130
        assert time.monotonic() - start < 30
    assert is_gone(process.pid)
    assert not list((tmp_path / "out").rglob("*.part*"))
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "aseg done, as before" in again.stderr
    assert "0 done, 2 flagged, 0 failed, 0 skipped" in again.stdout


def test_a_participant_costs_no_more_than_it_did(work_counted):
    """Counts, so that no other load on the machine matters. A number may be raised on purpose, and lowered gladly."""
    assert {name: work_counted[name] for name in MOST if work_counted[name] > MOST[name]} == {}
    assert work_counted["nodes"] == MOST["nodes"]
    assert work_counted["images read"] > MOST["images read"] / 2  # they are counted at all
