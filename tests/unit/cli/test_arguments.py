"""The form of all command lines."""

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from medsegmamba_bids.cli import evaluate, main, parser, segment, slurm, stats, train, weights
from medsegmamba_bids.cli.parser import build_parser, parse_config

COMMANDS = {
    "medsegmamba": parser.build_parser,
    "medsegmamba-evaluate": evaluate.build_parser,
    "medsegmamba-segment": segment.build_parser,
    "medsegmamba-slurm": slurm.build_parser,
    "medsegmamba-stats": stats.build_parser,
    "medsegmamba-train": train.build_parser,
    "medsegmamba-weights": weights.build_parser,
}


def with_subcommands(command):
    """Yield a parser and those of its subcommands."""
    yield command
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from with_subcommands(sub)


ALL_PARSERS = [part for build in COMMANDS.values() for part in with_subcommands(build())]


def refusal(build, argv, capsys):
    with pytest.raises(SystemExit) as error:
        build().parse_args(argv)
    assert error.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # what is wrong, a usage of one line, where more is said
    assert lines[1].startswith("usage: ")
    return lines[0]


# Options of several values before the positional arguments


@pytest.mark.parametrize(
    ("argv", "labels", "derivatives"),
    [
        ("--participant-label 01 02 in out participant", "01 02", ""),
        ("--participant-label sub-01 in out participant -w w", "01", ""),
        ("--participant_label 01 02 -d a b in out participant", "01 02", "a b"),
        ("-d a in out participant --participant-label 01 02", "01 02", "a"),
        ("-d x=a in out participant", "", "a"),
        ("in --participant-label 01 02 out participant", "01 02", ""),
        ("in out --participant-label 01 02 participant", "01 02", ""),
        ("--participant-label 01 in out -w w participant", "01", ""),
        ("--participant-label 01 02 -w w in out participant", "01 02", ""),
        ("--participant-label 01 02 -- in out participant", "01 02", ""),
        ("--participant-label in in out participant", "in", ""),
    ],
)
def test_options_leave_positional_arguments_what_they_need(argv, labels, derivatives, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse_config(argv.split())
    assert (config.bids_dir, config.output_dir, config.level) == (tmp_path / "in", tmp_path / "out", "participant")
    assert config.participant_label == tuple(labels.split())
    assert config.derivatives == tuple(tmp_path / name for name in derivatives.split())


def test_what_is_no_level_stays_a_label(capsys):
    line = refusal(build_parser, ["in", "out", "--participant-label", "01", "02"], capsys)
    assert line == "medsegmamba: error: the following arguments are required: {participant,group}"
    line = refusal(build_parser, ["--participant-label", "in", "out", "participant"], capsys)
    assert "required: BIDS_DIR, OUT_DIR, {participant,group}" in line


def test_a_command_without_a_level_takes_a_folder_that_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--participant-label", "01", "in", "out"]
    assert "required: BIDS_DIR, OUT_DIR" in refusal(slurm.build_parser, argv, capsys)
    Path("in").mkdir()
    options = slurm.build_parser().parse_args(argv)
    assert (options.participant_label, options.bids_dir, options.output_dir) == (["01"], Path("in"), Path("out"))


def test_options_of_subcommands_leave_them_too(tmp_path):
    argv = ["synthetic", "--out", "o", "--data-dir", "d", "--leave-out", "a", "b", "base-aseg"]
    options = train.build_parser().parse_args(argv)
    assert (options.leave_out, options.config) == (["a", "b"], "base-aseg")


def test_values_with_blanks_keep_their_underscores():
    options = evaluate.build_parser().parse_args(
        ["fastsurfer", "--images", "i", "--out", "o", "--options", "--device cpu --no_cereb"]
    )
    assert options.options == "--device cpu --no_cereb"


def test_lists_are_not_shared_between_calls():
    argv = ["synthetic", "c", "--out", "o", "--data-dir", "d"]
    command = train.build_parser()
    assert command.parse_args([*argv, "--leave-out", "a"]).leave_out == ["a"]
    assert command.parse_args(argv).leave_out == []


# Slips of the pen


@pytest.mark.parametrize(
    ("command", "argv", "sentence"),
    [
        ("medsegmamba", "--particpant-label 01 in out participant", "--particpant-label; did you mean --participant-l"),
        ("medsegmamba", "in out partcipant", "'partcipant' is none of participant, group; did you mean participant?"),
        ("medsegmamba", "in out participant --low-mem", "unknown option --low-mem; did you mean --low-memory?"),
        ("medsegmamba", "in out participant --precision bfloat", "did you mean bfloat16?"),
        ("medsegmamba", "in out participant -q", "unknown option -q"),
        ("medsegmamba-evaluate", "comapre", "'comapre' is none of compare, fastsurfer, model-card; did you mean comp"),
        (
            "medsegmamba-evaluate",
            "compare --out o --refrence r",
            "unknown option --refrence; did you mean --reference?",
        ),
        ("medsegmamba-segment", "a b --scan-backend trition", "did you mean triton?"),
        ("medsegmamba-slurm", "in out --sumbit", "unknown option --sumbit; did you mean --submit?"),
        ("medsegmamba-stats", "a b --posterior c", "unknown option --posterior; did you mean --posteriors?"),
        ("medsegmamba-train", "", "one of synthetic, pairs, experiment, split, export is needed"),
        (
            "medsegmamba-train",
            "--out o pairs",
            "--out is an option of synthetic, pairs, experiment, split, export, and",
        ),
        ("medsegmamba-weights", "shw a", "'shw' is none of import, list, show, verify; did you mean show?"),
        ("medsegmamba-weights", "import --taks aseg", "unknown option --taks; did you mean --task?"),
    ],
)
def test_a_slip_gets_the_nearest_name(command, argv, sentence, capsys):
    line = refusal(COMMANDS[command], argv.split(), capsys)
    assert line.startswith(f"{command}")
    assert sentence in line


def test_every_option_is_found_with_two_letters_exchanged(capsys):
    for command in ALL_PARSERS:
        for name in (name for name in command._option_string_actions if len(name) > 8):
            typed = name[:4] + name[5] + name[4] + name[6:]
            if typed not in command._option_string_actions:
                assert name in refusal(lambda command=command: command, [typed], capsys)


# Help


@pytest.mark.parametrize("command", ALL_PARSERS, ids=lambda command: command.prog)
def test_defaults_are_shown_alike(command):
    text = " ".join(command.format_help().split())
    assert "(default: None)" not in text
    assert "by default" not in text
    assert text.startswith(f"usage: {command.prog} ")
    for action in command._actions:
        told = " ".join(command._get_formatter()._expand_help(action).split()) if action.help else ""
        takes_a_value = action.option_strings and action.nargs != 0 and not action.required
        if takes_a_value and not isinstance(action, argparse._VersionAction | argparse._CountAction):
            assert told.count("(default: ") == 1, action.option_strings
        assert told.count("(default: ") <= 1, action.option_strings


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts(shell, capsys):
    with pytest.raises(SystemExit) as error:
        build_parser().parse_args(["--print-completion", shell])
    assert error.value.code == 0
    script = capsys.readouterr().out
    assert "participant-label" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes_options_choices_and_commands(capsys):
    assert complete("medsegmamba", build_parser, "--parti", capsys) == ["--participant-label"]
    assert complete("medsegmamba", build_parser, "--precision b", capsys) == ["bfloat16"]
    assert complete("medsegmamba-train", train.build_parser, "exp", capsys) == ["experiment", "export"]


def complete(prog, build, typed, capsys):
    """Return what bash proposes for a line."""
    with pytest.raises(SystemExit):
        build().parse_args(["--print-completion", "bash"])
    words = [prog, *typed.split()]
    listed = " ".join(f"'{word}'" for word in words)
    ask = (
        f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; "
        f"$(complete -p {prog} | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    script = capsys.readouterr().out + ask
    ran = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    return sorted(ran.stdout.split())


def test_the_module_of_each_command_is_its_own():
    assert main.parse_config is parse_config
