"""Slurm jobs: which tasks, what the scripts say and run, and what is refused. Slurm itself is played by scripts."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsegmamba_bids.bids import collect_inputs
from medsegmamba_bids.cli.slurm import main
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.execution.dataset_files import write_dataset_files
from medsegmamba_bids.execution.resume import record_report
from medsegmamba_bids.interfaces.record import WriteRecord
from medsegmamba_bids.stats.intracranial import find_template
from medsegmamba_bids.workflows.ingredients import files_now, made_from
from medsegmamba_bids.workflows.networks import choose_networks

# Says its arguments; the array is job 11, the group level 12.
SBATCH = """\
#!/bin/bash
echo "$@" >> {log}
case "$*" in *group.sh*) echo 12 ;; *) echo "11;cluster" ;; esac
"""
REFUSING = """\
#!/bin/bash
echo "sbatch: error: invalid partition specified: nowhere" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to be in, with a space in its name and a dataset of three."""
    root = tmp_path / "a b"
    for subject in ("01", "02", "03"):
        folder = root / "bids" / f"sub-{subject}" / "anat"
        folder.mkdir(parents=True)
        nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_filename(folder / f"sub-{subject}_T1w.nii.gz")
    (root / "bids" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    monkeypatch.chdir(root)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "scancel", "scontrol", "sinfo"):  # whatever is installed here
        play(tmp_path, name, "#!/bin/bash\nexit 1\n")
    return root


def play(tmp_path, name, text):
    path = tmp_path / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def jobs(place, *options):
    """Run the command; return its code and the newest folder of scripts."""
    code = main(["bids", "out", *map(str, options)])
    return code, max((place / "out" / "logs" / "slurm").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def finish(subject):
    """Pretend that a participant is finished."""
    config = RunConfig(Path("bids"), Path("out"), participant_label=(subject,))
    (image,) = collect_inputs(config).images
    write_dataset_files(config)  # says whose results these are
    table = config.output_dir / output_name(image.prefix, "aseg_stats")
    table.parent.mkdir(parents=True)
    table.write_text("")
    WriteRecord(
        output_dir=str(config.output_dir),
        prefix=image.prefix,
        made_from=made_from(image, config, choose_networks(config), find_template()),
        in_files=files_now(image),
        aseg_files=[str(table)],
    ).run()
    (config.output_dir / f"sub-{subject}.html").write_text("")
    record_report(subject, config)


def directives(path):
    return [line.removeprefix("#SBATCH ") for line in path.read_text().splitlines() if line.startswith("#SBATCH")]


def test_a_task_per_participant(place, capsys):
    code, folder = jobs(place, "--no-fs-stats", "-w", "work", "--", "-p", "long", "--gres=gpu:1", "--comment=a b")
    assert code == 0
    assert (folder / "tasks.txt").read_text() == "01\n02\n03\n"
    found = directives(folder / "participants.sh")
    assert {"--array=1-3", "--cpus-per-task=2", "--mem=6000M", "--time=15", "--requeue"} <= set(found)
    assert f'--output="{folder}/task-%a.log"' in found
    assert found[-1] == "-p long --gres=gpu:1 '--comment=a b'"
    assert directives(folder / "group.sh")[-1] == "-p long"  # the rest is for the network
    assert json.loads((folder / "options.json").read_text()) == {"fs_stats": False, "work_dir": str(place / "work")}
    assert f"submit:  bash '{folder}/submit.sh'" in capsys.readouterr().out
    for path in folder.glob("*.sh"):
        subprocess.run(["bash", "-n", path], check=True)


def test_resources_follow_from_options(place):
    options = ["--per-task", "2", "--at-once", "1", "--nprocs", "4", "--mem", "9", "--participant-label", "01", "02"]
    _, folder = jobs(place, *options)
    assert (folder / "tasks.txt").read_text() == "01 02\n"
    assert {"--array=1-1%1", "--cpus-per-task=4", "--mem=10000M", "--time=25"} <= set(
        directives(folder / "participants.sh")
    )
    assert json.loads((folder / "options.json").read_text()).keys() == {"nprocs", "mem_gb", "work_dir"}


def test_what_is_finished_is_left_out(place, capsys):
    finish("02")
    _, folder = jobs(place)
    assert (folder / "tasks.txt").read_text() == "01\n03\n"
    assert "finished already: 1 of 3 participants" in capsys.readouterr().out
    assert (jobs(place, "--force")[1] / "tasks.txt").read_text() == "01\n02\n03\n"


def test_visits_and_their_template_need_time_too(place):
    (place / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz").unlink()
    for session in ("a", "b"):
        image = place / "bids" / "sub-01" / f"ses-{session}" / "anat" / f"sub-01_ses-{session}_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        image.write_bytes(b"an image that nobody reads")
    options = ["--participant-label", "01", "-w", "work"]
    assert "--time=25" in directives(jobs(place, *options)[1] / "participants.sh")
    assert "--time=55" in directives(jobs(place, *options, "--longitudinal")[1] / "participants.sh")


def test_an_array_of_nothing_is_not_made(place, capsys):
    finish("02")
    assert main(["bids", "out", "--participant-label", "02", "--submit"]) == 0
    assert "nothing is left to do, so there is no array job" in capsys.readouterr().out
    assert not (place / "out" / "logs" / "slurm").exists()
    for path in (place / "bids").rglob("*T1w*"):
        path.unlink()
    assert main(["bids", "out", "--submit"]) == 1
    assert "none of the participants has a T1w image to process: there is no task" in capsys.readouterr().err


def test_submission(place, tmp_path, capsys):
    log = tmp_path / "log"
    play(tmp_path, "sbatch", SBATCH.format(log=log))
    code, folder = jobs(place, "--submit")
    assert code == 0
    assert log.read_text().splitlines() == [
        f"--parsable {folder}/participants.sh",
        f"--parsable --dependency=afterany:11 {folder}/group.sh",
    ]
    assert "array job 11: 3 tasks\ngroup job 12, after the array\n" in capsys.readouterr().out


def test_an_unknown_partition(place, tmp_path, capsys):
    play(tmp_path, "sbatch", REFUSING)
    play(tmp_path, "sinfo", "#!/bin/bash\necho short; echo long\n")
    assert main(["bids", "out", "--submit", "--", "--partition=nowhere"]) == 1
    error = capsys.readouterr().err
    assert "Slurm refused the jobs: invalid partition specified: nowhere; " in error
    assert error.endswith("partitions are short, long\n")


def test_an_array_without_its_group_job_is_cancelled(place, tmp_path, capsys):
    log = tmp_path / "log"
    play(tmp_path, "sbatch", SBATCH.format(log=log).replace("echo 12", "echo 'sbatch: error: no' >&2; exit 1"))
    play(tmp_path, "scancel", f"#!/bin/bash\necho cancel $1 >> {log}\n")
    assert main(["bids", "out", "--submit"]) == 1
    assert log.read_text().splitlines()[-1] == "cancel 11"
    assert "Slurm refused the jobs: no\n" in capsys.readouterr().err


def test_no_slurm(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "bin" / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert main(["bids", "out", "--submit"]) == 1
    assert "sbatch is not there: the scripts are written, run `bash '" in capsys.readouterr().err


def test_longer_than_slurm_takes(place, tmp_path, capsys):
    play(tmp_path, "scontrol", "#!/bin/bash\necho 'MaxArraySize            = 3'\n")
    assert main(["bids", "out"]) == 1
    assert (
        "3 tasks are more than this cluster takes in an array (2); use --per-task 2 or more" in capsys.readouterr().err
    )
    assert jobs(place, "--per-task", "2")[0] == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--", "--array=1-3"], "--array is not for you to give"),
        (["--", "-a1-3"], "--array is not for you to give"),
        (["--", "long"], "'long' after -- is no option of sbatch"),
        (["--per-task", "0"], "--per-task is 0; it must be 1 or more"),
        (["--image", "no.sif"], "no.sif: no such file (--image)"),
        (["--use-plugin", "plugin.json"], "Nipype has no plugin 'Nonsense'; there are"),
        (["--quality-thresholds", "limits.json"], "limits.json: cannot be used as --quality-thresholds: unknown keys"),
        (["--output-spaces", "Nowhere"], "--output-spaces Nowhere: T1w and brain mask of this template are not in"),
        (["--ratings", "no.tsv"], "no.tsv: no such file (--ratings)"),
        (["--exclude-discarded"], "--exclude-discarded needs --ratings"),
        (["--reports-only"], "--reports-only is for medsegmamba itself"),
        (["--participant-label", "99"], "no participant 99"),
        (["-w", "bids/work"], "the work folder lies in the BIDS dataset"),
        (["--aseg-weights", "none-such"], "no such weights file"),
    ],
)
def test_what_is_refused(place, capsys, options, sentence):
    (place / "plugin.json").write_text('{"plugin": "Nonsense"}')
    (place / "limits.json").write_text('{"cheks": {}}')
    assert main(["bids", "out", *options]) == 1
    assert sentence in capsys.readouterr().err


def test_options_of_sbatch_belong_after_the_dashes(place, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bids", "out", "--partition", "long"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("medsegmamba-slurm: error: unknown option --partition\n")
    assert "[-- options of sbatch]" in told


def test_a_container_sees_all_that_is_named(place, tmp_path):
    image = place / "my image.sif"
    image.touch()
    (place / "prep").mkdir()
    weights = Path(choose_networks(RunConfig(Path("bids"), Path("out"))).aseg.path)
    for folder, name in (
        ("w 1", "w.safetensors"),
        ("masks", "01.nii.gz"),
        ("masks", "02.nii.gz"),
        ("masks", "03.nii.gz"),
    ):
        (place / folder).mkdir(exist_ok=True)
        (place / folder / name).touch()
    shutil.copy(weights, place / "w 1" / "w.safetensors")
    (place / "rated").mkdir()
    (place / "rated" / "ratings.tsv").touch()
    options = ["--image", "my image.sif", "-d", "prep", "--aseg-weights", "w 1/w.safetensors"]
    options += ["--ratings", "rated/ratings.tsv"]
    _, folder = jobs(place, *options, "--brain-mask", "masks/{subject}.nii.gz")
    play(tmp_path, "apptainer", "#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    said = run_task("bash", folder / "participants.sh", number=3).stdout.splitlines()[1:]
    binds = [f"{place}/{name}:{place}/{name}:ro" for name in ("bids", "prep", "rated", "masks", "w 1")]
    binds += [f"{place}/{name}:{place}/{name}" for name in ("out", "work")]
    assert said[:2] == ["run", "--nv"]
    assert said[2:16] == [part for bind in binds for part in ("-B", bind)]
    assert said[16:20] == [f"{place}/my image.sif", f"{place}/bids", f"{place}/out", "participant"]
    assert said[20:] == ["--config-file", f"{folder}/options.json", "--participant-label", "03"]
    stored = json.loads((folder / "options.json").read_text())
    assert stored["aseg_weights"] == f"{place}/w 1/w.safetensors"
    assert stored["brain_mask"] == f"{place}/masks/{{subject}}.nii.gz"


def test_a_container_sees_the_folder_of_weights_that_are_named(place, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEGMAMBA_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    shutil.copy(choose_networks(RunConfig("bids", "out")).aseg.path, tmp_path / "weights" / "own.safetensors")
    (place / "i.sif").touch()
    _, folder = jobs(place, "--image", "i.sif", "--aseg-weights", "own", "--hippocampus-weights", "none")
    assert f"-B {tmp_path}/weights:{tmp_path}/weights:ro" in (folder / "participants.sh").read_text()
    _, folder = jobs(place, "--image", "i.sif", "--aseg-weights", "embedded-aseg3")
    assert (folder / "participants.sh").read_text().count(" -B ") == 3  # the container has its own


@pytest.mark.parametrize(("options", "mode"), [((), ":ro"), (("--fetch-templates",), " ")])
def test_a_container_sees_the_templates(place, tmp_path, monkeypatch, options, mode):
    """Those of --output-spaces, in the folder that the environment names, which the jobs have of this machine."""
    folder = tmp_path / "templates"
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder))
    (place / "i.sif").touch()
    for there in (False, True):
        if there:
            folder.mkdir(exist_ok=True)
        _, written = jobs(place, "--image", "i.sif", "--output-spaces", "MNI152NLin2009cAsym", *options)
        bound = f"-B {folder}:{folder}{mode}" in (written / "participants.sh").read_text()
        assert bound == folder.is_dir() == (there or bool(options))  # what tasks fetch must have a place


def test_a_name_that_no_container_can_see(place, capsys):
    (place / "x.sif").touch()
    assert main(["bids", "out,1", "--image", "x.sif"]) == 1
    assert "out,1: a colon or a comma in its name keeps a container from seeing it" in capsys.readouterr().err


def run_task(*command, number=1):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_task_runs_its_participants(place):
    """They are finished, so that nothing is computed: by another task, say."""
    finish("01")
    _, folder = jobs(place, "--force", "-w", "work")
    (folder / "options.json").write_text(json.dumps({"work_dir": str(place / "work")}))  # without --force
    ended = run_task("bash", folder / "participants.sh")
    assert ended.returncode == 0, ended.stderr
    assert "sub-01_T1w  finished  skipped: finished already (--force redoes it)" in ended.stdout
    beyond = run_task("bash", folder / "participants.sh", number=4)
    assert beyond.returncode == 1
    assert beyond.stderr == f"error: {folder}/tasks.txt: no line 4\n"


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec bash "$2"'


def test_a_task_that_cannot_write(place):
    """Its machine has the output folder read-only."""
    _, folder = jobs(place, "-w", "work")
    script, out = folder / "participants.sh", place / "out"
    if os.geteuid():
        out.chmod(stat.S_IRUSR | stat.S_IXUSR)
        command = ["bash", script]
    else:  # root may write everywhere but there
        command = ["unshare", "--mount", "bash", "-c", READ_ONLY, "bash", out, script]
        if subprocess.run([*command[:-1], "/dev/null"], capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
    ended = run_task(*command)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {out}: the output folder cannot be written (")
    assert len(ended.stderr.splitlines()) == 1
