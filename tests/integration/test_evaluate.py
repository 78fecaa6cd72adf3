"""``medsegmamba-evaluate compare`` as a user runs it: places of all kinds, outputs, and bad input."""

import base64
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medsegmamba_bids.cli.evaluate import build_parser, main
from medsegmamba_bids.image.io import save_image

SIDE = 24
LIA = np.array([[-1.0, 0, 0, 12], [0, 0, 1, -12], [0, -1, 0, 12], [0, 0, 0, 1]])
DOCUMENT = Path(__file__).parents[2] / "docs/evaluation.md"
SCANS = ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-03_ses-1", "sub-04_ses-1"]


def truth(seed):
    """Thalami, hippocampi and a ventricle as boxes of slightly different size."""
    data = np.zeros((SIDE,) * 3, np.int32)
    more = seed % 3
    data[14:20, 4:10, 4 : 10 + more], data[3:9, 4:10, 4 : 10 + more] = 10, 49
    data[14:20, 12:16, 4 : 12 + more], data[3:9, 12:16, 4 : 11 + more] = 17, 53
    data[10:13, 4:8, 6:12], data[:2], data[22:] = 14, 1024, 2
    return data


def erring(data, steps):
    """The same, moved by whole voxels."""
    return np.roll(data, steps, axis=2)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """FreeSurfer's subjects as reference; BIDS derivatives, SynthSeg's output and plain files as methods."""
    root = tmp_path_factory.mktemp("study")
    for seed, scan in enumerate(SCANS):
        data, (participant, session) = truth(seed), scan.split("_")
        save_image(data, LIA, root / "fs" / scan / "mri" / "aseg.mgz")
        folder = root / "ours" / participant / session / "anat"
        save_image(data, LIA, folder / f"{scan}_space-conform_seg-aseg_desc-medsegmamba_dseg.nii.gz")
        turned = np.flip(erring(data, 1).transpose(0, 2, 1), (0, 2))
        ras = np.array([[1.0, 0, 0, 12 - SIDE + 1], [0, 1, 0, -12], [0, 0, 1, 12 - SIDE + 1], [0, 0, 0, 1]])
        save_image(turned, ras, root / "synthseg" / f"{scan}_T1w_synthseg.nii.gz")
        moved = erring(data, 2)
        save_image(np.where(moved == 14, 0, moved), LIA, root / "plain" / f"x_{scan}.nii.gz")
    return root


def arguments(study, out, *options):
    methods = [f"Ours={study}/ours", f"SynthSeg={study}/synthseg", f"Plain={study}/plain/x_{{participant}}.nii.gz"]
    listed = [text for method in methods for text in ("--method", method)]
    return ["compare", "--reference", f"{study}/fs", *listed, "--out", str(out), *options]


def read(path):
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"])


def test_compare_writes_what_the_paper_has(study, tmp_path, capsys, caplog):
    assert main(arguments(study, tmp_path / "out", "--correction", "holm", "--no-figures")) == 0
    printed = capsys.readouterr()
    rows = read(tmp_path / "out/metrics.tsv")
    assert len(rows) == 5 * 3 * 31
    assert rows.query("method == 'Ours' and reference_mm3 > 0")["dice"].eq(1).all()
    assert rows.query("method == 'SynthSeg'")["resampled"].eq("yes").all()
    assert rows.query("method == 'SynthSeg' and label == 14 and scan == 'sub-02_ses-1'")["dice"].round(4).tolist() == [
        round(5 / 6, 4)
    ]
    assert rows.query("method == 'Plain' and label == 14")["dice"].eq(0).all()
    summary = read(tmp_path / "out/summary.tsv").set_index("method")
    assert summary["scans"].tolist() == [5, 5, 5]
    assert summary["undefined"].tolist() == [0, 0, 5]
    assert summary.loc["Ours", ["dice_mean", "dice_sd", "assd_mm_mean"]].tolist() == [1, 0, 0]
    assert "| dataset | Ours | 5 | 1.00000±0.000 | 1.00000±0.000 | 0.00000±0.000 |" in printed.out
    assert printed.out == (tmp_path / "out/summary.md").read_text()
    tests = read(tmp_path / "out/tests.tsv").query("structure == 'all' and measure == 'dice'")
    assert tests["participants"].tolist() == [4, 4, 4]
    assert tests["p"].tolist() == [0.125] * 3
    assert tests["p_corrected"].tolist() == [0.375] * 3
    again = read(tmp_path / "out/repeatability.tsv").query("structure == 'Left-Hippocampus'")
    assert again["method"].tolist() == ["reference", "Ours", "SynthSeg", "Plain"]
    assert again["within_sd_mm3"].round(4).tolist() == [round(24 / 2**0.5, 4)] * 4
    volumes = read(tmp_path / "out/volumes.tsv").query("structure == '3rd-Ventricle'").set_index("method")
    assert volumes["bias_mm3"].tolist() == [0, 0, -72]
    notes = json.loads((tmp_path / "out/metrics.json").read_text())["Notes"]
    assert notes == [
        "dataset: SynthSeg lies on another grid than the reference in 5 of 5 scans and was resampled to it"
    ]
    assert notes[0] in caplog.messages


def test_datasets_by_a_column_and_by_a_study_agree(study, tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsite\n" + "".join(f"sub-0{n}\t{'AB'[n > 2]}\n" for n in range(1, 5)))
    options = [
        "--participants",
        str(table),
        "--dataset-column",
        "site",
        "--table",
        "aseg",
        "--without",
        "77",
        "--no-figures",
    ]
    assert main(arguments(study, tmp_path / "column", *options)) == 0
    summary = read(tmp_path / "column/summary.tsv")
    assert summary["dataset"].tolist() == ["A"] * 3 + ["B"] * 3 + ["Overall"] * 3
    assert summary["scans"].tolist() == [3] * 3 + [2] * 3 + [5] * 3
    text = "".join(
        f'[[dataset]]\nname = "{name}"\nreference = "{study}/fs/{{participant}}/mri/aseg.mgz"\n'
        f'methods = {{Ours = "{study}/ours"}}\n'
        for name in ("first", "second")
    )
    (tmp_path / "study.toml").write_text(text)
    assert (
        main(["compare", "--study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "study"), "--no-figures"])
        == 0
    )
    assert read(tmp_path / "study/summary.tsv")["dataset"].tolist() == ["first", "second", "Overall"]
    assert not (tmp_path / "study/tests.tsv").exists()  # one method has no other to be tested against


def refused(capsys, *options):
    assert main([str(option) for option in options]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "A=x"], "--reference and at least one --method are needed, or --study"),
        (["--reference", "{study}/fs"], "--reference and at least one --method are needed"),
        (["--reference", "{study}/none", "--method", "A={study}/ours"], "none: no such file or folder"),
        (["--reference", "{study}/fs", "--method", "{study}/ours"], "must be NAME=PLACE"),
        (["--reference", "{study}/fs", "--method", "A={study}/ours", "--without", "1"], "--without 1: not structures"),
        (["--reference", "{study}/fs", "--method", "A={study}/ours", "--nprocs", "0"], "--nprocs 0: must be 1"),
        (["--reference", "{study}/fs", "--method", "A={study}/ours", "--dataset-column", "x"], "needs --participants"),
        (["--reference", "{study}/fs", "--method", "A={study}/ours", "--participants", "x"], "needs --dataset-column"),
        (
            ["--reference", "{study}/fs", "--method", "A={study}/ours", "--show", "x"],
            "--show x: no such scan; there are sub-",
        ),
        (["--study", "{study}/none.toml"], "none.toml: cannot be used as --study: No such file"),
        (["--study", "{study}/s.toml", "--reference", "x"], "--study names references and methods itself"),
        (["--study", "{study}/s.toml", "--dataset-column", "x"], "--study names datasets itself"),
        (["--reference", "{study}/fs", "--method", "A={study}/ours", "--table", "hippoFS60"], "no subject has labels"),
    ],
)
def test_options_that_cannot_be_used(study, tmp_path, capsys, options, message):
    options = [option.format(study=study) for option in options]
    error = refused(capsys, "compare", *options, "--out", tmp_path / "out")
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused_first(study, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert "is a file; --out names a folder" in refused(capsys, *arguments(study, tmp_path / "out"))


def test_no_common_participants(study, tmp_path, capsys):
    save_image(truth(0), LIA, tmp_path / "other/sub-99_aseg.nii.gz")
    options = ["--reference", study / "fs", "--method", f"A={tmp_path}/other", "--out", tmp_path / "out"]
    error = refused(capsys, "compare", *options)
    assert "the method A has no scan in common with the reference" in error
    assert "it has sub-99 (label images), the reference sub-01_ses-1, sub-01_ses-2" in error


def test_a_bad_scan_is_named_the_others_are_compared_and_the_exit_code_tells(tmp_path, capsys, caplog):
    for seed, name in enumerate(("a", "b", "c")):
        save_image(truth(seed), LIA, tmp_path / f"mine/{name}.nii.gz")
        save_image(truth(seed), LIA, tmp_path / f"truth/{name}.nii.gz")
    save_image(np.zeros_like(truth(0)), LIA, tmp_path / "truth/a.nii.gz")
    save_image(np.full_like(truth(0), 5000), LIA, tmp_path / "mine/b.nii.gz")
    options = ["--reference", tmp_path / "truth", "--method", f"A={tmp_path}/mine", "--out", tmp_path / "out"]
    options.append("--no-figures")
    assert "error" not in refused(capsys, "compare", *options)
    error = "\n".join(caplog.messages)
    assert "truth/a.nii.gz: this reference has none of the structures of the table aseg, every voxel is 0" in error
    assert "mine/b.nii.gz: the labels 5000 are neither structures" in error
    assert set(read(tmp_path / "out/metrics.tsv")["scan"]) == {"c"}
    assert len(json.loads((tmp_path / "out/metrics.json").read_text())["Problems"]) == 2
    (tmp_path / "mine/c.nii.gz").write_bytes(b"no image")
    error = refused(capsys, "compare", *options)
    assert error.startswith("error: no scan could be compared:\ndataset, a: ")
    assert "mine/c.nii.gz: the compressed file is corrupt" in error


def test_methods_that_lack_scans_are_named_and_no_failure(study, tmp_path, caplog):
    save_image(truth(0), LIA, tmp_path / "few/sub-02_ses-1.nii.gz")
    assert main([*arguments(study, tmp_path / "out"), "--method", f"Few={tmp_path}/few", "--no-figures"]) == 0
    assert caplog.messages[0].startswith(
        "dataset: Few has 1 of the reference's 5 scans; without it and therefore left out for all methods: sub-01_ses-1"
    )
    assert set(read(tmp_path / "out/metrics.tsv")["scan"]) == {"sub-02_ses-1"}


def image_sources(page):
    return re.findall(r'<img[^>]* src="([^"]+)"', page)


def test_the_page_holds_everything(study, tmp_path):
    head = truth(0).astype(np.float32) * 3 + 20
    save_image(head, LIA, study / "fs/sub-02_ses-1/mri/T1.mgz")
    assert main(arguments(study, tmp_path / "out", "--show", "sub-02", "--without", "77")) == 0
    page = (tmp_path / "out/evaluation.html").read_text()
    assert "One scan: sub-02_ses-1 of dataset" in page
    assert "WM-hypointensities left out" in page
    assert '<td class="n">1.00000±0.000</td>' in page
    assert "With fewer than 6 participants no p can fall below 0.05" in page
    assert "SynthSeg lies on another grid than the reference in 5 of 5 scans" in page
    assert "<small>Ours better</small>" in page
    assert "Volumes of the same participant from scan to scan (1 participants, 2 scans)" in page
    sources = image_sources(page)
    assert len(sources) == 10
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert not re.search(r"url\(|@import|<script", page)
    charts = sorted(file.name for file in (tmp_path / "out/figures").glob("*.svg"))
    assert charts == [
        "bland_altman.svg",
        "scans.svg",
        *(
            f"structures_{name}.svg"
            for name in ("abs_error_percent", "assd_mm", "dice", "hd95_mm", "volume_similarity")
        ),
    ]
    assert (tmp_path / "out/figures/scans.svg").read_text() == base64.b64decode(sources[0].split(",")[1]).decode()
    columns = {
        name: Image.open(tmp_path / f"out/figures/{name}.png").width for name in ("slices", "differences", "views")
    }
    assert columns["slices"] > columns["differences"] > 0  # four columns, three columns


def test_the_documents_examples_run(study, tmp_path, monkeypatch):
    """Every command of docs/evaluation.md, with folders in place of its words; no option is made up."""
    text = DOCUMENT.read_text()
    words = {"FREESURFER": study / "fs", "DERIVATIVES": study / "ours", "FASTSURFER": tmp_path / "fastsurfer"}
    words |= {"OUT": tmp_path / "out", "BIDS": tmp_path / "bids", "DATA": tmp_path}
    script = tmp_path / "bin/run_fastsurfer.sh"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nmkdir -p "$6/$4/mri" && cp "$2" "$6/$4/mri/aparc.DKTatlas+aseg.deep.mgz"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    for seed, scan in enumerate(SCANS):  # what the script copies is an MGZ file of labels, whatever its name
        save_image(truth(seed), LIA, tmp_path / f"bids/{scan}_T1w.mgz")
    commands = re.findall(r"^medsegmamba-evaluate (.+)$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["compare", "fastsurfer", "model-card"]
    filled = [re.sub(r"\b[A-Z]+\b", lambda word: str(words.get(word[0], word[0])), command) for command in commands]
    compare, fastsurfer, card = map(shlex.split, filled)
    assert main(fastsurfer) == 0
    assert main([*compare, "--no-figures"]) == 0
    assert read(tmp_path / "out/summary.tsv")["dice_mean"].tolist() == [1, 1]
    assert build_parser().parse_args(card).data_dir == tmp_path
    known = {option for parser in parsers(build_parser()) for option in parser._option_string_actions}
    others = {"--device", "--threads", "--seg_only"}  # FastSurfer's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) <= known | others


def parsers(parser):
    """A parser and its subcommands'."""
    yield parser
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for sub in action.choices.values():
                yield from parsers(sub)
