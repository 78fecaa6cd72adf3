"""What a run would do."""

from dataclasses import replace
from pathlib import Path

from medsegmamba_bids.bids import Inputs, T1wImage
from medsegmamba_bids.cli.main import main
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.execution.dry_run import Plan, images_together, plan_text, seconds_of_run
from medsegmamba_bids.inference.speed import patch_count
from medsegmamba_bids.weights.info import InputSpec, WeightsInfo
from medsegmamba_bids.workflows.networks import Networks


def info(**spec):
    return WeightsInfo("w", "medsegmamba", {"classes": 2}, "aseg", (0, 10), InputSpec(**spec))


def test_patches_are_those_of_a_brain_and_of_the_pass_that_finds_it():
    stripped = info(voxel_size=1.0, patch_size=96, step=32, skull_stripped=True)
    # 160 x 190 x 150 voxels: starts 0 32 64 | 0 32 64 94 | 0 32 54
    assert patch_count(stripped, None, "aseg") == 3 * 4 * 3
    assert patch_count(stripped, 96, "aseg") == 2 * 2 * 2
    whole = info(voxel_size=1.0, patch_size=96, step=96, skull_stripped=False)
    assert patch_count(whole, None, "aseg") == 2 * 2 * 2 + 2 * 3 * 3  # and a head of 170 x 220 x 230
    assert patch_count(replace(whole, input=replace(whole.input, mirror=True)), None, "aseg") == 16 + 18
    finer = replace(whole.input, mirror=True, mirror_voxel_size=0.5)  # 320 x 380 x 300 voxels beside 160 x 190 x 150
    assert patch_count(replace(whole, input=finer), None, "aseg") == 8 + 4 * 4 * 4 + 18
    assert patch_count(stripped, None, "hippocampus") == 1


def test_each_image_has_its_line():
    first, second = (T1wImage(Path("a"), f"sub-0{n}", f"0{n}", None, "a") for n in (1, 2))
    plan = Plan([(second, "it was not finished before")], [first], {"sub-03": "it has no T1w"}, {}, Networks(None))
    assert plan_text(plan).splitlines() == [
        "sub-01_T1w  finished   its results are there (--force redoes them)",
        "sub-02_T1w  processed  it was not finished before",
        "sub-03      skipped    it has no T1w",
        "would be: 1 processed, 1 finished already, 1 skipped",
    ]


def test_visits_of_participants_with_something_new_are_segmented_once_more():
    def image(subject, session):
        return T1wImage(Path("a"), f"sub-{subject}_ses-{session}", subject, session, "a")

    new = [(image("01", "c"), "new"), (image("02", "a"), "new")]
    finished = [image(*one) for one in (("01", "a"), ("01", "b"), ("03", "a"), ("03", "b"))]
    plan, inputs = Plan(new, finished, {}, {}, Networks(None)), Inputs([*(one for one, _ in new), *finished])
    assert images_together(inputs, plan) == 3 + 1  # all of 01 with the template; 02 has one session, 03 nothing new
    config = RunConfig(Path("in"), Path("out"), nprocs=2, omp_nthreads=2)
    alone = 2 * (45 + 2 * 60) / 2
    assert seconds_of_run(2, 60.0, config, on_cpu=True, together=4) == alone + 4 * (45 + 25 + 2 * 60) / 2


def test_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("medsegmamba_bids.execution.dry_run.seconds_of_networks", lambda plan, config: (60.0, "cpu"))
    folder = tmp_path / "bids" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_T1w.nii.gz").write_bytes(b"an image that nobody reads")
    (tmp_path / "bids" / "sub-02").mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    arguments = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]
    assert main([*arguments, "--dry-run", "--nprocs", "1"]) == 1  # sub-02 would be skipped
    text = capsys.readouterr().out
    assert "sub-01_T1w  processed  it was not finished before" in text
    assert "would be: 1 processed, 0 finished already, 1 skipped" in text
    assert "for about 1.8 min here: the networks take 60 s a T1w of an adult (cpu)" in text  # and 45 s of other steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bids"]


def test_the_group_level_has_no_dry_run(tmp_path, capsys):
    (tmp_path / "bids").mkdir()
    assert main([str(tmp_path / "bids"), str(tmp_path / "out"), "group", "--dry-run"]) == 1
    assert "--dry-run is for the participant level" in capsys.readouterr().err
