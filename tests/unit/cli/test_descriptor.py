"""The Boutiques descriptor says what the parser says."""

import json
from pathlib import Path

import pytest

import boutiques
from medsegmamba_bids.cli.descriptor import descriptor, descriptor_text, main
from medsegmamba_bids.cli.parser import build_parser

FILE = Path(__file__).parents[3] / "boutiques" / "medsegmamba.json"


def test_the_file_is_what_the_parser_gives(capsys):
    assert main([]) == 0
    assert FILE.read_text() == capsys.readouterr().out == descriptor_text()


def test_boutiques_accepts_it():
    boutiques.validate(str(FILE))


def inputs():
    return {entry["id"]: entry for entry in descriptor()["inputs"]}


def test_inputs_take_what_the_options_take():
    found = inputs()
    assert found["level"]["value-choices"] == ["participant", "group"]
    assert (found["bids_dir"]["type"], found["output_dir"]["type"]) == ("File", "String")
    assert found["nprocs"] == {
        "id": "nprocs",
        "name": "Nprocs",
        "value-key": "[NPROCS]",
        "description": "processors in all (default: all there are)",
        "optional": True,
        "command-line-flag": "--nprocs",
        "type": "Number",
        "integer": True,
    }
    assert found["mem"]["description"].endswith(
        "(default: 90 % of the machine's, or of what its control group or Slurm job allows)"
    )
    assert {name for name, entry in found.items() if entry.get("list")} == {
        "participant_label",
        "session_label",
        "run_id",
        "exclude_participant_label",
        "derivatives",
        "output_spaces",
    }
    assert [group["members"] for group in descriptor()["groups"]] == [["mem", "mem_mb"], ["fs_stats", "no_fs_stats"]]


def test_every_option_of_the_parser_is_an_input():
    flags = {entry.get("command-line-flag") for entry in descriptor()["inputs"]}
    for action in build_parser()._actions:
        if action.option_strings and action.dest not in ("help", "version", "print_completion"):
            assert flags & set(action.option_strings), action.option_strings


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"level": "group"}, {"level": "group"}),
        (
            {"level": "participant", "participant_label": ["01", "02"], "nprocs": 3, "no_fs_stats": True, "mem": "8G"},
            {"level": "participant", "participant_label": ["01", "02"], "nprocs": 3, "fs_stats": False, "mem_gb": 8.0},
        ),
        (
            {"level": "participant", "work_dir": "w", "verbose": True, "derivatives": ["/a b"], "precision": "float16"},
            {
                "level": "participant",
                "work_dir": Path("w"),
                "verbose": 1,
                "derivatives": [Path("/a b")],
                "precision": "float16",
            },
        ),
    ],
)
def test_the_command_line_that_boutiques_makes_is_read_back(chosen, expected, tmp_path):
    """Boutiques fills the template in; the parser must find the same values."""
    folders = {"bids_dir": str(tmp_path), "output_dir": "out"}
    line = boutiques.execute("simulate", str(FILE), "-i", write(tmp_path, {**folders, **chosen})).stdout
    import shlex

    program, *arguments = shlex.split(line)
    read = vars(build_parser().parse_args(arguments))
    assert program == "medsegmamba"
    assert read == {"bids_dir": tmp_path, "output_dir": Path("out"), **expected}


def write(folder, values):
    path = folder / "invocation.json"
    path.write_text(json.dumps(values))
    return str(path)
