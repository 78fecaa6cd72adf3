"""What a built image must be able to do, each test in every image that was named."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from medsegmamba_bids import __version__

NOBODY = "12345:12345"
HOMELESS = (("HOME", "/nonexistent"),)
COMMANDS = ("medsegmamba", "medsegmamba-evaluate", "medsegmamba-segment", "medsegmamba-train", "medsegmamba-weights")


@pytest.fixture
def strict(container):
    """Somebody whom the image does not know, without a home."""
    return container.having(user=NOBODY, variables=HOMELESS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers(strict, command):
    finished = strict.run(command, "--version")
    assert (finished.returncode, finished.stdout) == (0, f"{command} {__version__}\n"), finished.stderr


def test_the_root_is_read_only(strict):
    finished = strict.run("touch", "/opt/medsegmamba/new")
    assert finished.returncode == 1
    assert "Read-only file system" in finished.stderr or "Permission denied" in finished.stderr


def test_the_weights_of_the_package_are_in_it_and_sound(strict):
    finished = strict.run("medsegmamba-weights", "verify", "embedded-aseg3", "embedded-hippocampus4")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count(": ok (") == 2


def test_the_fast_kernel_compiles_and_agrees_with_the_reference(strict):
    code = (
        "from medsegmamba_bids.cli.common import provide_caches; provide_caches()\n"
        "import torch; from medsegmamba_bids.networks.kernels.scan_numba import numba_scan\n"
        "from medsegmamba_bids.networks.kernels.selective_scan import reference_scan\n"
        "torch.manual_seed(0)\n"
        "paths = torch.stack([torch.arange(27), torch.arange(27).flip(0)]).int()\n"
        "inputs = torch.rand(1, 27, 64), torch.rand(1, 2, 27, 64), torch.rand(1, 27, 2, 4), torch.rand(1, 27, 2, 4)\n"
        "inputs = *inputs, -torch.rand(2, 4, 64), paths\n"
        "expected = reference_scan(*inputs)\n"
        "print(float((numba_scan(*inputs) - expected).abs().max() / expected.abs().max()))"
    )
    assert float(strict.python(code)) < 1e-5


def test_versions_are_those_of_the_constraints(strict, pinned):
    code = (
        "import importlib.metadata, json;"
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in importlib.metadata.distributions()}))"
    )
    found = json.loads(strict.python(code))
    for own in ("pip", "medsegmamba-bids"):
        found.pop(own, None)
    assert {name: version.partition("+")[0] for name, version in found.items()} == {
        name: pinned.get(name, "no pin") for name in found
    }


def test_the_scheduler_s_choice_of_gpus_arrives(strict):
    chosen = strict.having(variables=(*HOMELESS, ("CUDA_VISIBLE_DEVICES", "3,5")))
    code = "from medsegmamba_bids.execution.plugin import visible_devices; print(visible_devices('auto'))"
    assert chosen.python(code) == "['3', '5']"


def test_a_gpu_that_is_not_there_is_refused_with_a_sentence(strict, small_image):
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    bound = strict.having(binds=((small_image, "/mnt"),))
    finished = bound.run("medsegmamba-segment", "/mnt/image.nii.gz", "/tmp/labels.nii.gz", "--device", "cuda")
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: device 'cuda' cannot be used: ")


def test_modules_in_the_user_s_home_are_not_taken(container, open_folder):
    version = container.python("import sys; print('%d.%d' % sys.version_info[:2])")
    site = open_folder / ".local" / "lib" / f"python{version}" / "site-packages"
    site.mkdir(parents=True)
    (site / "tqdm.py").write_text("raise SystemExit('the wrong tqdm')")
    at_home = container.having(binds=((open_folder, "/mnt"),), variables=(("HOME", "/mnt"),))
    assert at_home.python("import tqdm; print(tqdm.__file__)").startswith("/opt/medsegmamba/")


def test_no_folder_for_temporary_files_is_a_sentence(oci):
    bare = oci.having(user=NOBODY, variables=HOMELESS, options=("--tmpfs", "/tmp:ro", "--tmpfs", "/var/tmp:ro"))
    finished = bare.run("medsegmamba-weights", "list")
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: [Errno 2] No usable temporary directory found in ")


def test_the_entry_point_is_the_app(oci):
    line = [part for part in oci.line() if part not in ("--entrypoint", "")]
    finished = subprocess.run([*line, "--version"], capture_output=True, text=True, check=False, timeout=60)
    assert (finished.returncode, finished.stdout) == (0, f"medsegmamba {__version__}\n"), finished.stderr
    unasked = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert unasked.stdout.startswith("usage: medsegmamba ")
    assert oci.run("id", "-u").stdout == "10001\n"


def test_run_help_test_and_labels(sif):
    finished = subprocess.run([*sif.line("run"), "--version"], capture_output=True, text=True, check=False, timeout=60)
    assert (finished.returncode, finished.stdout) == (0, f"medsegmamba {__version__}\n"), finished.stderr
    program = sif.line("exec")[: sif.line("exec").index("exec")]
    said = {}
    for action in ("run-help", "inspect", "test"):
        finished = subprocess.run(
            [*program, action, sif.image], capture_output=True, text=True, check=False, timeout=120
        )
        assert finished.returncode == 0, finished.stderr
        said[action] = finished.stdout
    assert "--nv brings in the machine's GPU driver" in said["run-help"]
    assert f"Version: {__version__}\n" in said["inspect"]
    assert said["test"].startswith(f"medsegmamba {__version__}\n")


def test_nv_without_a_gpu_leaves_the_cpu(sif):
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    code = "from medsegmamba_bids.inference.device import choose_device; print(choose_device('auto'))"
    assert sif.having(options=("--nv",)).python(code) == "cpu"


@pytest.mark.slow
def test_the_demo_runs_for_somebody_without_home_or_network(strict, open_folder):
    """Weights and templates of the image, folders with spaces in their names: everything at once."""
    bound = strict.having(binds=((open_folder, "/mnt"),))
    folder = "/mnt/the demo"
    finished = bound.run("python3", "-m", "medsegmamba_bids.cli.demo", folder, "--", "--nprocs", "2", timeout=1800)
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = open_folder / "the demo" / "derivatives"
    table = (results / "sub-mni152" / "anat" / "sub-mni152_seg-aseg_desc-medsegmamba_stats.tsv").read_text()
    assert "Left-Hippocampus" in table
    assert (results / "group.html").is_file()
    made_by = json.loads((results / "dataset_description.json").read_text())["GeneratedBy"][0]
    assert made_by["Version"] == __version__
    assert made_by["Container"]["Tag"].startswith("medsegmamba")
    assert (results / "group.html").stat().st_uid in (12345, os.getuid())


def made_dataset(container, folder):
    """Two participants: the template that the image carries, and a file that is no image."""
    code = (
        "from pathlib import Path; from medsegmamba_bids.cli.demo import make_dataset; make_dataset(Path('/mnt/bids'))"
    )
    container.python(code)
    broken = folder / "bids" / "sub-broken" / "anat"
    broken.mkdir(parents=True)
    (broken / "sub-broken_T1w.nii.gz").write_bytes(b"no image")


@pytest.mark.slow
def test_the_app_runs_as_bids_apps_are_run(container, open_folder):
    """Both levels over a small dataset, with exit codes by what came of it, and results that are valid BIDS."""
    bound = container.having(user=f"{os.getuid()}:{os.getgid()}", variables=HOMELESS, binds=((open_folder, "/mnt"),))
    made_dataset(bound, open_folder)
    app = ("medsegmamba", "/mnt/bids", "/mnt/out")
    options = ("-w", "/mnt/work", "--nprocs", "2")
    every = bound.run(*app, "participant", *options, timeout=1800)
    assert every.returncode == 1, every.stderr[-3000:]
    assert "sub-broken_T1w" in every.stdout
    out = open_folder / "out"
    anat = out / "sub-mni152" / "anat"
    assert len(list(anat.glob("*seg-aseg_desc-medsegmamba_dseg.nii.gz"))) == 2
    rows = (anat / "sub-mni152_seg-aseg_desc-medsegmamba_stats.tsv").read_text().splitlines()
    name, column = (rows[0].split("\t").index(key) for key in ("StructName", "Volume_mm3"))
    volumes = {row.split("\t")[name]: row.split("\t")[column] for row in rows[1:]}
    assert 2500 < float(volumes["Left-Hippocampus"]) < 6500
    again = bound.run(*app, "participant", "--participant-label", "mni152", *options, timeout=600)
    assert again.returncode == 0, again.stderr[-3000:]
    unknown = bound.run(*app, "participant", "--participant-label", "nobody", *options)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: ")
    assert bound.run(*app, "both").returncode == 2
    without_one = bound.run(*app, "group", timeout=600)
    assert without_one.returncode == 1
    assert "sub-broken: it has no results" in without_one.stderr
    group = bound.run(*app, "group", "--participant-label", "mni152", timeout=600)
    assert group.returncode == 0, group.stderr[-3000:]
    assert "sub-mni152" in (out / "group_seg-aseg_stats.tsv").read_text()
    if validator := shutil.which("bids-validator-deno"):
        finished = subprocess.run([validator, str(out)], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout[-3000:]


@pytest.mark.slow
def test_stopping_the_container_ends_the_run_in_order(oci, open_folder):
    bound = oci.having(user=NOBODY, variables=HOMELESS, binds=((open_folder, "/tmp/data"),))
    line = [*bound.line(), "python3", "-m", "medsegmamba_bids.cli.demo", "/tmp/data"]
    line[line.index("run") + 1 : line.index("run") + 1] = [
        "--name",
        "medsegmamba-stop",
        "--cidfile",
        f"{open_folder}/id",
    ]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        started = time.monotonic()
        while not list(open_folder.glob("derivatives/logs/*")) and time.monotonic() - started < 60:
            time.sleep(0.5)
        time.sleep(3)
        subprocess.run([*oci.engine(), "kill", "--signal", "TERM", "medsegmamba-stop"], check=True, capture_output=True)
        output, _ = running.communicate(timeout=60)
    assert running.returncode in (130, 128 + signal.SIGTERM), output
    assert "interrupted" in output
    assert "Traceback" not in output
