import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from medsegmamba_bids import __version__
from medsegmamba_bids.cli import parser
from medsegmamba_bids.cli.parser import build_parser, parse_config
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.errors import ConfigError

ARGV = ["in", "out", "participant"]


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine of 6 processors and 12 GB, and a folder to be in."""
    monkeypatch.setattr(parser, "processors", lambda: 6)
    monkeypatch.setattr(parser, "_memory_gb", lambda: 12.0)
    monkeypatch.chdir(tmp_path)


def test_defaults():
    config = parse_config(ARGV)
    here = Path.cwd()
    expected = RunConfig(here / "in", here / "out", work_dir=here / "work", nprocs=6, omp_nthreads=6, mem_gb=12.0)
    assert config == replace(expected, run_id=config.run_id)


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("--participant-label 01 sub-02", "participant_label", ("01", "02")),
        ("--participant_label sub-01", "participant_label", ("01",)),
        ("--participant-label 01 --participant-label 02 03", "participant_label", ("01", "02", "03")),
        ("--exclude-participant-label sub-03 04", "exclude_participant_label", ("03", "04")),
        ("--session-label ses-pre post", "session_label", ("pre", "post")),
        ("--session_label pre", "session_label", ("pre",)),
        ("--run-id 1 run-02", "run_label", ("1", "02")),
        ("--run_id 1", "run_label", ("1",)),
        ("--bids-filter-file f.json", "bids_filter_file", "f.json"),
        ("--skip-bids-validation", "skip_bids_validation", True),
        ("--skip_bids_validation", "skip_bids_validation", True),
        ("--bids-database-dir db", "bids_database_dir", "db"),
        ("-d one two", "derivatives", ("one", "two")),
        ("--derivatives one", "derivatives", ("one",)),
        ("-d fmriprep=one smriprep=two", "derivatives", ("one", "two")),
        ("-w scratch", "work_dir", "scratch"),
        ("--work-dir scratch", "work_dir", "scratch"),
        ("--work_dir scratch", "work_dir", "scratch"),
        ("--clean-workdir", "clean_workdir", True),
        ("--nprocs 3", "nprocs", 3),
        ("--nthreads 3", "nprocs", 3),
        ("--n_cpus 3", "nprocs", 3),
        ("--omp-nthreads 2", "omp_nthreads", 2),
        ("--omp_nthreads 2", "omp_nthreads", 2),
        ("--mem 7.5", "mem_gb", 7.5),
        ("--mem-gb 7.5", "mem_gb", 7.5),
        ("--mem 8G", "mem_gb", 8.0),
        ("--mem 8000MB", "mem_gb", 8.0),
        ("--mem 500MiB", "mem_gb", 0.5),
        ("--mem 1.5tb", "mem_gb", 1500.0),
        ("--mem-mb 16000", "mem_gb", 16.0),
        ("--mem_mb 16000", "mem_gb", 16.0),
        ("--device cuda:1", "device", "cuda:1"),
        ("--batch-size 2", "batch_size", 2),
        ("--low-memory", "low_memory", True),
        ("--use-plugin p.yml", "use_plugin", "p.yml"),
        ("--aseg-weights authors", "aseg_weights", "authors"),
        ("--hippocampus-weights none", "hippocampus_weights", "none"),
        ("--brain-mask {subject}.nii.gz", "brain_mask", "{subject}.nii.gz"),
        ("--step-size 16", "step_size", 16),
        ("--step_size 16", "step_size", 16),
        ("--precision bfloat16", "precision", "bfloat16"),
        ("--save-posteriors", "save_posteriors", True),
        ("--fs-stats", "fs_stats", True),
        ("--no-fs-stats", "fs_stats", False),
        ("--no_fs_stats", "fs_stats", False),
        ("--reports-only", "reports_only", True),
        ("--write-graph", "write_graph", True),
        ("--dry-run", "dry_run", True),
        ("--stop-on-first-crash", "stop_on_first_crash", True),
        ("--resource-monitor", "resource_monitor", True),
        ("--notrack", "verbose", 0),
        ("--fs-license-file license.txt", "verbose", 0),
        ("-vv", "verbose", 2),
        ("--verbose", "verbose", 1),
    ],
)
def test_options(option, field, value):
    here = Path.cwd()
    if field.endswith(("_dir", "_file")) or field == "use_plugin":
        value = here / value
    elif field == "derivatives":
        value = tuple(here / name for name in value)
    assert getattr(parse_config([*ARGV, *option.split()]), field) == value
    # Options may also stand before the positional ones, those that take several values too.
    assert getattr(parse_config([*option.split(), *ARGV]), field) == value


def test_every_option_may_be_spelt_with_underscores():
    names = {"--" + o[2:].replace("-", "_"): a for a in build_parser()._actions for o in a.option_strings if "--" in o}
    assert len(names) > 28
    for name, action in names.items():
        value = {"precision": "bfloat16", "config_file": stored()[1], "device": "cpu"}.get(action.dest, "1")
        if action.dest not in ("help", "version", "print_completion"):
            parse_config([*ARGV, name, *([] if action.nargs == 0 or action.dest == "verbose" else [value])])


def test_underscores_in_values_stay():
    config = parse_config([*ARGV, "--work_dir=a_b", "--brain_mask", "m_{subject}.nii", "-d", "x_y"])
    assert config.work_dir == Path.cwd() / "a_b"
    assert config.brain_mask == "m_{subject}.nii"
    assert config.derivatives == (Path.cwd() / "x_y",)


def test_threads_follow_the_processors():
    assert parse_config([*ARGV, "--nprocs", "2"]).omp_nthreads == 2
    assert parse_config([*ARGV, "--nprocs", "40"]).omp_nthreads == 8


# Config file


def test_threads_of_a_file_do_not_exceed_the_processors_now():
    options = stored(nprocs=8, omp_nthreads=4)
    assert parse_config([*ARGV, *options]).omp_nthreads == 4
    assert parse_config([*ARGV, *options, "--nprocs", "2"]).omp_nthreads == 2
    with pytest.raises(ConfigError, match="--omp-nthreads 3 is more than --nprocs 2"):
        parse_config([*ARGV, *options, "--nprocs", "2", "--omp-nthreads", "3"])


def stored(**options):
    Path("config.json").write_text(json.dumps(options))
    return ["--config-file", "config.json"]


def test_options_of_a_file():
    config = parse_config([*ARGV, *stored(precision="bfloat16", nprocs=3, derivatives=["d"], participant_label=["01"])])
    assert config.precision == "bfloat16"
    assert (config.nprocs, config.omp_nthreads) == (3, 3)
    assert config.derivatives == (Path.cwd() / "d",)
    assert config.participant_label == ("01",)


def test_the_command_line_wins_over_the_file_and_both_over_defaults():
    options = stored(precision="bfloat16", nprocs=3, mem_gb=2.0, fs_stats=False)
    config = parse_config([*ARGV, *options, "--precision", "float32", "--mem", "5"])
    assert (config.precision, config.mem_gb, config.nprocs, config.fs_stats) == ("float32", 5.0, 3, False)


def test_the_options_of_an_earlier_run_make_the_same_run():
    first = parse_config([*ARGV, "--nprocs", "2", "-d", "d", "--step-size", "8", "--participant-label", "01"])
    Path("config.json").write_text(first.to_json())
    again = parse_config([*ARGV, "--config-file", "config.json"])
    assert again.run_id != first.run_id
    assert replace(again, run_id=first.run_id) == first


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"{", "not JSON"), (b"\xff", "utf-8"), (b'{"speed": 1}', "unknown options speed; known")],
)
def test_a_file_that_is_no_config(content, reason):
    if content is not None:
        Path("config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"config.json: cannot be used as --config-file: .*{reason}"):
        parse_config([*ARGV, "--config-file", "config.json"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"nprocs": "many"}, "--nprocs is 'many'; it must be a whole number"),
        ({"nprocs": True}, "--nprocs is True; it must be a whole number"),
        ({"mem_gb": "8"}, "--mem is '8'; it must be a number"),
        ({"precision": 32}, "--precision is 32; it must be a text"),
        ({"precision": "int8"}, "--precision is 'int8'; allowed are float32, bfloat16, float16"),
        ({"participant_label": "01"}, "--participant-label is '01'; it must be a list of texts"),
        ({"derivatives": "fmriprep"}, "--derivatives is 'fmriprep'; it must be a list of paths"),
        ({"work_dir": 3}, "--work-dir is 3; it must be a path"),
        ({"fs_stats": "no"}, "--fs-stats is 'no'; it must be true or false"),
    ],
)
def test_wrong_types_in_a_file(options, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_config([*ARGV, *stored(**options)])


# What is refused


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["in", "out"], "the following arguments are required: {participant,group}"),
        (["in", "out", "session"], "'session' is none of participant, group"),
        ([*ARGV, "--precision", "int8"], "'int8' is none of float32, bfloat16, float16"),
        ([*ARGV, "--step-size", "wide"], "invalid int value: 'wide'"),
        ([*ARGV, "--part", "01"], "unknown option --part; did you mean --participant-label?"),
    ],
)
def test_a_command_line_that_cannot_be_read(argv, sentence, capsys):
    with pytest.raises(SystemExit) as error:
        parse_config(argv)
    assert error.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--nprocs", "0"], "--nprocs is 0; it must be 1 or more"),
        (["--omp-nthreads", "9"], "--omp-nthreads 9 is more than --nprocs 6"),
        (["--mem", "-1"], "--mem is -1.0 GB; it must be positive"),
        (["--mem", "nan"], "--mem is nan GB; it must be positive"),
    ],
)
def test_values_that_cannot_be_carried_out(argv, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_config([*ARGV, *argv])


# Help


def test_version(capsys):
    with pytest.raises(SystemExit) as error:
        parse_config(["--version"])
    assert error.value.code == 0
    assert capsys.readouterr().out == f"medsegmamba {__version__}\n"


def test_help_is_grouped_and_explains_each_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    text = capsys.readouterr().out
    groups = ["which images:", "how they are segmented:", "what is written:", "what it may use:", "the run:"]
    places = [text.index(f"\n{group}") for group in groups]
    assert places == sorted(places)
    assert text.index("exit code:") > places[-1]
    assert "90 % of the machine's" in text
    # The other spelling of each option is not shown: it would double the help.
    assert "--participant-label" in text
    assert "--participant_label" not in text
    assert max(map(len, text.splitlines())) <= 120
    for action in build_parser()._actions:
        assert action.help


def test_help_needs_no_heavy_library():
    code = (
        "import sys\nfrom medsegmamba_bids.cli.parser import build_parser\nbuild_parser().format_help()\n"
        "print([name for name in ('torch', 'nipype', 'bids', 'nibabel', 'numpy', 'pandas') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert ran.stdout.strip() == "[]"


def test_a_job_of_slurm_plans_with_what_it_was_given(monkeypatch):
    monkeypatch.undo()  # the machine as it is
    whole = parser.processors(), parser._memory_gb()
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "500")
    assert (parser.processors(), parser._memory_gb()) == (1, 0.47)  # 0.9 x 500 MiB
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "200")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert (parser.processors(), parser._memory_gb()) == (1, 0.38)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1000")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "0")  # all there is
    assert (parser.processors(), parser._memory_gb()) == whole
