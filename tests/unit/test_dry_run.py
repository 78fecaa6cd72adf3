"""What a run would do."""

from dataclasses import replace
from pathlib import Path

from medsegmamba_bids.bids import T1wImage, collect_inputs
from medsegmamba_bids.cli.main import main
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.visit_times import VisitTimes
from medsegmamba_bids.execution.dry_run import Plan, images_together, plan_text, seconds_of_run
from medsegmamba_bids.execution.resume import unfinished, visits_of
from medsegmamba_bids.inference.speed import patch_count
from medsegmamba_bids.interfaces.record import WriteRecord
from medsegmamba_bids.report.run_records import record_path, size_and_time
from medsegmamba_bids.stats.intracranial import find_template
from medsegmamba_bids.weights.info import InputSpec, WeightsInfo
from medsegmamba_bids.workflows.ingredients import files_now, made_from
from medsegmamba_bids.workflows.longitudinal import RECORD, Visits, visits_made_from, visits_read
from medsegmamba_bids.workflows.networks import Networks, choose_networks


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


def test_visits_take_the_time_of_an_image_each_and_so_does_their_template():
    images = tuple(T1wImage(Path("a"), f"sub-01_ses-{session}", "01", session, "a") for session in "abc")
    visits = Visits("01", images, VisitTimes((None,) * 3))
    assert images_together(Plan([], [], {}, {}, Networks(None), [(visits, "new")])) == 3 + 1
    config = RunConfig(Path("in"), Path("out"), nprocs=2, omp_nthreads=2)
    alone = 2 * (45 + 2 * 60) / 2
    assert seconds_of_run(2, 60.0, config, on_cpu=True, together=4) == alone + 4 * (45 + 25 + 2 * 60) / 2


def dataset(root, *sessions):
    for session in sessions:
        folder = root / "sub-01" / f"ses-{session}" / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"sub-01_ses-{session}_T1w.nii.gz").write_bytes(b"an image that nobody reads")
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


def finish(config, images=(), visits=None):
    """Pretend that images, or visits, are finished."""
    networks, template = choose_networks(config), find_template()
    for image in images:
        record(config, image.prefix, made_from(image, config, networks, template), files_now(image))
    if visits:
        made = visits_made_from(visits, config, networks, template)
        read = visits_read(visits, config)
        for path in read.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        read = {name: {"Path": str(path), **size_and_time(path)} for name, path in read.items()}
        record(config, visits.prefix, made, read, suffix=RECORD)


def record(config, prefix, made, read, **suffix):
    WriteRecord(
        output_dir=str(config.output_dir), prefix=prefix, made_from=made, in_files=read, aseg_files=[], **suffix
    ).run()


def test_visits_that_are_left_are_told(tmp_path, monkeypatch, capsys):
    bids = dataset(tmp_path / "bids", "a", "b")
    config = RunConfig(bids, tmp_path / "out", work_dir=tmp_path / "work", longitudinal=True)
    images = collect_inputs(config).images
    options = [str(bids), str(config.output_dir), "participant", "-w", str(config.work_dir), "--dry-run"]
    monkeypatch.setattr("medsegmamba_bids.execution.dry_run.seconds_of_networks", lambda plan, config: (60.0, "cpu"))

    def told(*more):
        assert main([*options, *more]) == 0
        return capsys.readouterr().out

    text = told("--longitudinal")
    assert "sub-01_longitudinal  processed  its visits together: it was not finished before" in text
    assert "would be: 3 processed, 0 finished already, 0 skipped" in text
    finish(config, images)
    assert "would be: 1 processed, 2 finished already, 0 skipped\nfor about " in told("--longitudinal")
    assert unfinished({"01": images}, config) == {"01": 2 + 1}
    finish(config, visits=visits_of("01", images, config))
    assert told("--longitudinal").endswith("would be: 0 processed, 2 finished already, 0 skipped\n")
    record_path(config.output_dir, images[0].prefix).unlink()
    assert "its visits together: they are processed one by one before" in told("--longitudinal")
    assert unfinished({"01": images}, config) == {"01": 1 + 2 + 1}
    assert "together" not in told()


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


def test_reports_alone_have_no_dry_run(tmp_path, capsys):
    """It would tell of images that are segmented, and none is."""
    (tmp_path / "bids").mkdir()
    assert main([str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "--dry-run", "--reports-only"]) == 1
    assert "--dry-run tells what would be segmented, and --reports-only segments nothing" in capsys.readouterr().err


def test_the_group_level_has_no_dry_run(tmp_path, capsys):
    (tmp_path / "bids").mkdir()
    assert main([str(tmp_path / "bids"), str(tmp_path / "out"), "group", "--dry-run"]) == 1
    assert "--dry-run is for the participant level" in capsys.readouterr().err
