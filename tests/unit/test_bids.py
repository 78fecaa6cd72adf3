import json
import os
import shutil
import time
from pathlib import Path

import pytest

from medsegmamba_bids.bids import Inputs, T1wImage, collect_inputs, find_mask
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.bids_files import BIDSFolder
from medsegmamba_bids.errors import BIDSError, ImageError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def bids(tmp_path):
    """A dataset of empty files: two participants, one of them with sessions, runs and acquisitions."""
    root = tmp_path / "bids"
    touch(
        root,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/ses-pre/anat/sub-02_ses-pre_acq-mprage_run-1_T1w.nii.gz",
        "sub-02/ses-pre/anat/sub-02_ses-pre_acq-mprage_run-2_T1w.nii.gz",
        "sub-02/ses-pre/anat/sub-02_ses-pre_acq-space_T1w.nii",
        "sub-02/ses-post/anat/sub-02_ses-post_acq-mprage_run-1_T1w.nii.gz",
        "derivatives/other/sub-01/anat/sub-01_T1w.nii.gz",
        "sourcedata/sub-03/anat/sub-03_T1w.nii.gz",
    )
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


def collect(root, **options):
    return collect_inputs(RunConfig(root, root.parent / "out", **options))


def prefixes(inputs):
    return [image.prefix for image in inputs.images]


ALL = [
    "sub-01",
    "sub-02_ses-post_acq-mprage_run-1",
    "sub-02_ses-pre_acq-mprage_run-1",
    "sub-02_ses-pre_acq-mprage_run-2",
    "sub-02_ses-pre_acq-space",
]


# What is found


def test_every_t1w_is_an_image_of_its_own(bids):
    inputs = collect(bids)
    assert prefixes(inputs) == ALL
    assert inputs.skipped == {}
    last = inputs.images[-1]
    assert last == T1wImage(
        path=bids / "sub-02/ses-pre/anat/sub-02_ses-pre_acq-space_T1w.nii",
        prefix="sub-02_ses-pre_acq-space",
        subject="02",
        session="pre",
        relative="sub-02/ses-pre/anat/sub-02_ses-pre_acq-space_T1w.nii",
    )
    assert inputs.images[0].session is None
    assert {subject: len(images) for subject, images in inputs.subjects().items()} == {"01": 1, "02": 4}


def test_names_of_nodes_are_distinct_identifiers(bids):
    names = [image.node_name for image in collect(bids).images]
    assert len(set(names)) == 5
    assert names[0] == "T1w_sub_01_wf"
    assert all(name.isidentifier() for name in names)


def refuse_to_list(monkeypatch, *names):
    """Folders of these names cannot be listed, as another user's."""
    iterdir = Path.iterdir

    def listed(folder):
        if folder.name in names:
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", listed)


def test_a_folder_that_cannot_be_read_is_its_participants_failure(bids, monkeypatch):
    touch(bids, "sub-01_old/anat/sub-01_T1w.nii.gz")
    refuse_to_list(monkeypatch, "ses-post", "sub-01_old")
    inputs = collect(bids)
    assert prefixes(inputs) == ["sub-01"]
    assert inputs.skipped == {"sub-02": f"{bids / 'sub-02' / 'ses-post'}: cannot be read (Permission denied)"}
    assert set(inputs.left_out) == {"sub-01_old"}


def test_a_mask_that_cannot_be_looked_for_is_its_participants_failure(bids, tmp_path, monkeypatch):
    exists = Path.exists

    def refused(path):
        if "sub-02" in path.parts and tmp_path / "prep" in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refused)
    inputs = collect(bids, derivatives=(tmp_path / "prep",))
    assert prefixes(inputs) == ["sub-01"]
    assert "cannot be read (Permission denied)" in inputs.skipped["sub-02"]


def test_a_plus_in_a_label_is_told_apart_from_what_separates_labels():
    """BIDS 1.10 allows it, Nipype does not; labels of other datasets have more (--skip-bids-validation)."""
    prefixes = ["a+ce+b", "a_ce-b", "a+_ce-b", "+a_ce-b", "a_ce-+b", "a-ce-b", "a.ce-b", "a2bce_b-b", "a++b", "a+b"]
    names = {T1wImage(Path(), f"sub-01_acq-{one}", "01", None, "").node_name for one in prefixes}
    assert len(names) == len(prefixes)
    assert all(name.isidentifier() and name.isascii() for name in names)
    assert "T1w_sub_01_acq_a_ce_b_wf" in names


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"participant_label": ("01",)}, ALL[:1]),
        ({"participant_label": ("02", "01", "02")}, ALL),
        ({"participant_label": ("02",), "session_label": ("pre",)}, ALL[2:]),
        ({"participant_label": ("02",), "session_label": ("pre",), "run_label": ("2",)}, ALL[3:4]),
        ({"participant_label": ("02",), "run_label": ("01",)}, ALL[1:3]),
    ],
)
def test_options_select(bids, options, expected):
    assert prefixes(collect(bids, **options)) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"acquisition": "space"}, ALL[4:]),
        ({"acquisition": ["space", "mprage"], "run": 1}, ALL[1:3]),
        ({"acquisition": None}, ALL[:1]),
        ({"session": "*"}, ALL[1:]),
        ({"session": "Query.NONE"}, ALL[:1]),
        ({"datatype": "anat", "suffix": "T1w", "run": 2}, ALL[3:4]),
        ({"run": "02"}, ALL[3:4]),
        ({"subject": "01"}, ALL[:1]),
        ({"acquisition": [None, "space"]}, [ALL[0], ALL[4]]),
        ({"acquisition": "Query.OPTIONAL", "extension": "nii"}, ALL[4:]),
        ({"acquisition": "rage$", "session": "^p", "regex_search": True}, ALL[1:4]),
        ({"acq": "mprage", "ses": "post"}, ALL[1:2]),
    ],
)
def test_a_filter_file_selects_by_entities(bids, tmp_path, entry, expected):
    path = tmp_path / "filter.json"
    for key in ("t1w", "T1w", "T1W"):
        path.write_text(json.dumps({key: entry, "bold": {"task": "rest"}}))
        inputs = collect(bids, bids_filter_file=path)
        assert prefixes(inputs) == expected
    assert set(inputs.skipped) == {"sub-01", "sub-02"} - {f"sub-{image.subject}" for image in inputs.images}


def test_a_filter_file_cannot_widen_the_participants(bids, tmp_path):
    path = tmp_path / "filter.json"
    path.write_text('{"t1w": {"subject": "02"}}')
    assert prefixes(collect(bids, bids_filter_file=path, participant_label=("01",))) == ALL[:1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be used as --bids-filter-file: .*No such file"),
        ("{", "cannot be used as --bids-filter-file"),
        ("[]", "cannot be used as --bids-filter-file"),
        ('{"t1w": "mprage"}', 'its entry "t1w" must hold entities, such as'),
        (
            '{"anat": {"run": 1}}',
            "cannot be used as --bids-filter-file: it has the key anat; T1w images are sel",
        ),
        ('{"t1w": {"run": 1}, "anat": {}}', "cannot be used as --bids-filter-file: it has the key anat"),
        ("{}", "cannot be used as --bids-filter-file: it has no key; T1w images are selected by one key t1w"),
        ('{"t1w": {}, "T1w": {"run": 1}}', r"cannot be used as --bids-filter-file: it has \['t1w', 'T1w'\]"),
        (
            '{"t1w": {"run": 1, "run": 2}}',
            "cannot be used as --bids-filter-file: .*the key 'run' is there twice",
        ),
        ('{"t1w": {"aquisition": "x"}}', "'aquisition' is no entity of T1w images; did you mean acquisition"),
        ('{"t1w": {"RepetitionTime": 2}}', "'RepetitionTime' is no entity of T1w images; .*known are subject, session"),
        ('{"t1w": {"acq": "a", "acquisition": "b"}}', "names an entity in its long and in its short form"),
        ('{"t1w": {"suffix": "T2w"}}', r"suffix is 'T2w'; only T1w images \(suffix T1w\) are segmented"),
        ('{"t1w": {"datatype": ["func"]}}', "datatype is .'func'.; only T1w images"),
        ('{"t1w": {"run": true}}', "run is True; it must be a label, a list of labels, null"),
        ('{"t1w": {"run": []}}', "run is .*; it must be a label"),
        ('{"t1w": {"run": {"a": 1}}}', "run is .*; it must be a label"),
        ('{"t1w": {"acquisition": "(", "regex_search": true}}', "'.' is no regular expression"),
        ('{"t1w": {"regex_search": "yes"}}', "regex_search is 'yes'; it must be true or false"),
        ('{"t1w": {"extension": 1}}', "extension is 1; it must be a text"),
    ],
)
def test_a_filter_file_that_is_none(bids, tmp_path, content, sentence):
    path = tmp_path / "filter.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BIDSError, match=f"filter.json: {sentence}"):
        collect(bids, bids_filter_file=path)


# What is refused or left out


def test_not_a_dataset(bids, tmp_path):
    (bids / "dataset_description.json").unlink()
    with pytest.raises(BIDSError, match=r"not a BIDS dataset, it has no dataset_description\.json"):
        collect(bids)
    assert prefixes(collect(bids, skip_bids_validation=True)) == ALL
    (tmp_path / "empty").mkdir()
    with pytest.raises(BIDSError, match=r"not a BIDS dataset, it has no folder sub-\*"):
        collect(tmp_path / "empty", skip_bids_validation=True)


def test_a_description_that_is_no_json(bids):
    (bids / "dataset_description.json").write_text("{")
    with pytest.raises(BIDSError, match=f"{bids}: cannot be read as a BIDS dataset"):
        collect(bids)


def test_unknown_participants(bids):
    with pytest.raises(BIDSError, match="no participant 03, 1; there are 01, 02"):
        collect(bids, participant_label=("03", "01", "1"))


def test_many_participants_are_not_all_listed(bids):
    touch(bids, *[f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in range(10, 40)])
    with pytest.raises(BIDSError, match=r"there are 01, 02, 10, .*, 17 …$"):
        collect(bids, participant_label=("nobody",))


def test_participants_without_t1w_are_left_out_and_others_kept(bids):
    touch(bids, "sub-03/anat/sub-03_T2w.nii.gz", "sub-04/func/sub-04_task-rest_bold.nii.gz")
    inputs = collect(bids)
    assert prefixes(inputs) == ALL
    assert inputs.skipped == {"sub-03": "it has no T1w image", "sub-04": "it has no T1w image"}
    assert collect(bids, participant_label=("03",)) == Inputs([], {"sub-03": "it has no T1w image"})


def test_why_nothing_was_selected(bids):
    inputs = collect(bids, session_label=("pre",))
    assert inputs.skipped == {
        "sub-01": "none of its files is a T1w that BIDS and the options allow; there is sub-01_T1w.nii.gz"
    }


@pytest.mark.parametrize("extension", [".mgz", ".img", ".nrrd", ".nii.bz2"])
@pytest.mark.parametrize("lax", [False, True])
def test_wrong_extension(bids, extension, lax):
    name = f"sub-03_T1w{extension}"
    touch(bids, f"sub-03/anat/{name}")
    inputs = collect(bids, skip_bids_validation=lax)
    assert prefixes(inputs) == ALL
    (key, reason), *others = inputs.skipped.items()
    assert not others
    assert key in (name, "sub-03")
    assert extension in f"{key} {reason}"
    assert "BIDS" in reason


def test_a_name_that_is_not_bids(bids):
    touch(bids, "sub-03/anat/sub-03_T1w_brain.nii.gz", "sub-03/anat/T1w.nii.gz")
    reason = "none of its files is a T1w that BIDS and the options allow; there is T1w.nii.gz, sub-03_T1w_brain.nii.gz"
    assert collect(bids).skipped == {"sub-03": reason}
    assert collect(bids, skip_bids_validation=True).skipped == {"sub-03": reason}


def test_a_broken_link_is_found_and_left_to_the_reader(bids):
    """The sentence with ``datalad get`` is the reader's; the index must neither fail nor drop the image."""
    from medsegmamba_bids.image.io import load_image

    (bids / "sub-03/anat").mkdir(parents=True)
    link = bids / "sub-03/anat/sub-03_T1w.nii.gz"
    link.symlink_to("../../.git/annex/objects/gone.nii.gz")
    inputs = collect(bids)
    assert prefixes(inputs) == [*ALL, "sub-03"]
    with pytest.raises(ImageError, match=f"a link whose target is not there; .*`datalad get {link}`"):
        load_image(inputs.images[-1].path)


def test_an_invalid_json_beside_it_is_noted(bids):
    (bids / "sub-01/anat/sub-01_T1w.json").write_text('{"EchoTime": }')
    (bids / "sub-02/ses-pre/anat/sub-02_ses-pre_acq-space_T1w.json").write_text('{"EchoTime": 0.003}')
    (bids / "T1w.json").write_bytes(b"\xff")
    inputs = collect(bids)
    assert prefixes(inputs) == ALL
    (note,) = inputs.images[0].notes
    assert note.startswith("sub-01_T1w.json is not valid JSON (")
    assert note.endswith("; it is not needed here")
    assert not any(image.notes for image in inputs.images[1:])


def test_an_index_is_not_blamed_for_an_extension(bids, tmp_path):
    """pybids lists no such files, so that an index that is made anew would be called older again."""
    touch(bids, "sub-03/anat/sub-03_T1w.NII.GZ")
    inputs = collect(bids, bids_database_dir=tmp_path / "index")
    assert inputs.skipped["sub-03_T1w.NII.GZ"].startswith("its extension is .NII.GZ; BIDS allows")


def test_visits_that_nobody_has_are_told(bids, caplog):
    told = "--longitudinal: none of the participants has T1w images of two sessions"
    collect(bids, longitudinal=True)
    collect(bids, participant_label=("01",))
    assert told not in caplog.text
    collect(bids, longitudinal=True, participant_label=("01",))
    assert told in caplog.text
    caplog.clear()
    collect(bids, longitudinal=True, session_label=("pre",))  # of which sub-02 has three images
    assert told in caplog.text


def test_a_json_that_windows_has_written_is_no_trouble(bids):
    """It begins with a byte order mark, as everywhere else where JSON is read."""
    path = bids / "sub-01/anat/sub-01_T1w.json"
    path.write_bytes(b'\xef\xbb\xbf{"ImageType": ["ORIGINAL", "PRIMARY"]}\r\n')
    assert collect(bids).images[0].notes == ()
    path.write_bytes(b'\xef\xbb\xbf{"ImageType": ["DERIVED", "SECONDARY"]}\r\n')
    (note,) = collect(bids).images[0].notes
    assert "the scanner made it of other images" in note


def test_two_files_that_differ_in_extension(bids):
    touch(bids, "sub-01/anat/sub-01_T1w.nii")
    inputs = collect(bids)
    assert prefixes(inputs) == ALL
    kept = inputs.images[0].path.name
    (other,) = {"sub-01_T1w.nii", "sub-01_T1w.nii.gz"} - {kept}
    assert inputs.skipped == {other: f"the same image as {kept} by its name, which is processed"}


# What does not belong


@pytest.mark.parametrize("folder", ["sub-99", "run-1", "acq-x_ses-y", "ses-pre", "sub-02/ses-pre/anat", "T1w"])
@pytest.mark.parametrize("indexed", [False, True])
def test_folders_above_the_dataset_say_nothing(bids, tmp_path, folder, indexed):
    """pybids reads entities from the absolute path: options selected everything or nothing."""
    root = tmp_path / folder / "bids"
    root.parent.mkdir(parents=True)
    bids.rename(root)
    more = {"bids_database_dir": tmp_path / "db"} if indexed else {}
    assert prefixes(collect(root, **more)) == ALL
    assert prefixes(collect(root, participant_label=("01",), **more)) == ALL[:1]
    assert prefixes(collect(root, participant_label=("02",), session_label=("pre",), **more)) == ALL[2:]
    assert prefixes(collect(root, run_label=("2",), **more)) == ALL[3:4]
    path = tmp_path / "filter.json"
    path.write_text('{"t1w": {"acquisition": null}}')
    assert prefixes(collect(root, bids_filter_file=path, **more)) == ALL[:1]


PARTS = {
    "sub-01_part-phase_T1w.nii.gz": "part-phase is no magnitude image",
    "sub-01_part-real_T1w.nii.gz": "part-real is no magnitude image",
    "sub-01_part-imag_T1w.nii.gz": "part-imag is no magnitude image",
    "sub-01_chunk-1_T1w.nii.gz": "chunk-1 is a part of a volume",
    "sub-01_inv-1_T1w.nii.gz": "inv-1 is an inversion image, not the T1w that is made of several",
    "sub-01_space-MNI152_T1w.nii.gz": "space-MNI152 names a derivative",
    "sub-01_desc-defaced_T1w.nii.gz": "desc-defaced names a derivative",
}


@pytest.mark.parametrize("lax", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_what_is_no_magnitude_image_of_a_head_is_named_and_left_out(bids, tmp_path, lax, indexed, caplog):
    touch(bids, *[f"sub-01/anat/{name}" for name in PARTS], "sub-01/anat/sub-01_part-mag_T1w.nii.gz")
    touch(bids, "sub-01/anat/sub-01_rec-norm_T1w.nii.gz", "sub-03/anat/sub-03_part-phase_T1w.nii.gz")
    touch(bids, "sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz")
    inputs = collect(bids, skip_bids_validation=lax, bids_database_dir=tmp_path / "db" if indexed else None)
    assert prefixes(inputs) == ["sub-01", "sub-01_part-mag", "sub-01_rec-norm", *ALL[1:]]
    expected = {f"sub-01/anat/{name}": reason for name, reason in PARTS.items()}
    if indexed and not lax:  # the index has no names that BIDS does not allow
        expected = {name: reason for name, reason in expected.items() if "part-" in name or "chunk-" in name}
    phase = "sub-03/anat/sub-03_part-phase_T1w.nii.gz"
    assert inputs.left_out == expected | {phase: PARTS["sub-01_part-phase_T1w.nii.gz"]}
    (reason,) = (reason for name, reason in inputs.skipped.items() if name == "sub-03")
    assert reason.endswith("there is sub-03_part-phase_T1w.nii.gz (part-phase is no magnitude image)")
    assert f"{bids}: left out: sub-01/anat/sub-01_part-real_T1w.nii.gz (part-real is no magnitude image)" in caplog.text


def test_a_chunk_may_be_chosen_but_a_phase_image_may_not(bids, tmp_path):
    touch(bids, "sub-01/anat/sub-01_chunk-1_T1w.nii.gz", "sub-01/anat/sub-01_part-phase_T1w.nii.gz")
    path = tmp_path / "filter.json"
    path.write_text('{"t1w": {"chunk": 1}}')
    assert prefixes(collect(bids, bids_filter_file=path)) == ["sub-01_chunk-1"]
    path.write_text('{"t1w": {"part": "phase"}}')
    assert prefixes(collect(bids, bids_filter_file=path)) == []


@pytest.mark.parametrize(
    ("kind", "left_out", "notes"),
    [
        (["ORIGINAL", "PRIMARY", "P", "ND"], True, 0),
        (["ORIGINAL", "PRIMARY", "PHASE MAP"], True, 0),
        ("ORIGINAL\\\\PRIMARY\\\\P", True, 0),
        (["ORIGINAL", "PRIMARY", "M", "ND"], False, 0),
        (["DERIVED", "PRIMARY", "M", "UNI"], False, 0),
        (["DERIVED", "SECONDARY", "MPR"], False, 1),
        (7, False, 0),
    ],
)
def test_what_the_scanner_says_of_an_image(bids, kind, left_out, notes):
    text = json.dumps({"ImageType": kind}).replace("\\\\\\\\", "\\\\")
    (bids / "sub-01/anat/sub-01_T1w.json").write_text(text)
    inputs = collect(bids, participant_label=("01",))
    assert prefixes(inputs) == ([] if left_out else ["sub-01"])
    assert [len(image.notes) for image in inputs.images] == ([] if left_out else [notes])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("sub-02\n", ALL[:1]),
        ("sub-02/\n# sub-01\n", ALL[:1]),
        ("*_acq-space_*\n", ALL[:4]),
        ("/sub-02/ses-p*/anat/*_run-1_T1w.nii.gz\n", [ALL[0], *ALL[3:]]),
        ("**/ses-pre/**\n!sub-02_ses-pre_acq-space_T1w.nii\n", [*ALL[:2], ALL[4]]),
        ("ses-pre\n", ALL[:2]),
        ("anat/sub-01_T1w.nii.gz\n", ALL),
    ],
)
@pytest.mark.parametrize("lax", [False, True])
def test_files_that_bidsignore_lists_are_left_out(bids, lines, expected, lax):
    (bids / ".bidsignore").write_text(lines)
    inputs = collect(bids, skip_bids_validation=lax)
    assert prefixes(inputs) == expected
    assert inputs.skipped == {}  # on purpose, and no failure
    assert len(inputs.left_out) == len(ALL) - len(expected)
    assert set(inputs.left_out.values()) <= {"listed in .bidsignore"}


@pytest.mark.parametrize("lax", [False, True])
def test_copies_are_named_and_do_not_win(bids, lax):
    copies = ("sub-01_old/anat/sub-01_T1w.nii.gz", "sub-01 copy/anat/sub-01_T1w.nii.gz")
    strangers = ("sub-02/anat/sub-01_T1w.nii.gz", "sub-02/ses-pre/anat/sub-02_ses-post_acq-mprage_run-1_T1w.nii.gz")
    touch(bids, *copies, *strangers, "sub-01/anat/sub-01_T1w copy.nii.gz")
    inputs = collect(bids, skip_bids_validation=lax)
    assert prefixes(inputs) == ALL
    assert [image.relative for image in inputs.images][:2] == [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-post/anat/sub-02_ses-post_acq-mprage_run-1_T1w.nii.gz",
    ]
    assert inputs.skipped == {}
    odd = "no participant's folder: labels are letters and digits"
    assert inputs.left_out == {
        "sub-01_old": odd,
        "sub-01 copy": odd,
        strangers[0]: "it lies in the folder sub-02, but is named after sub-01",
        strangers[1]: "it lies in the folder ses-pre, but is named after ses-post",
        "sub-01/anat/sub-01_T1w copy.nii.gz": "its name is not that of a T1w image in BIDS",
    }


def test_a_label_that_bids_does_not_allow_is_no_silent_loss(bids):
    touch(bids, "sub-A-1/anat/sub-A-1_T1w.nii.gz")
    assert collect(bids).skipped == {"sub-A-1": "no participant's folder: labels are letters and digits"}


def test_without_validation_the_own_folder_wins(bids):
    touch(bids, "sub-01/anat/a/sub-01_T1w.nii.gz", "sub-01/sub-01_run-2_T1w.nii.gz")
    inputs = collect(bids, skip_bids_validation=True, participant_label=("01",))
    assert [image.relative for image in inputs.images] == [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/sub-01_run-2_T1w.nii.gz",
    ]
    assert list(inputs.skipped) == ["sub-01/anat/a/sub-01_T1w.nii.gz"]


@pytest.mark.parametrize("lax", [False, True])
def test_an_entity_that_is_there_twice(bids, lax):
    name = "sub-01/anat/sub-01_run-1_run-2_T1w.nii.gz"
    touch(bids, name)
    inputs = collect(bids, skip_bids_validation=lax)
    assert prefixes(inputs) == ALL
    assert inputs.left_out == {name: "its name is not that of a T1w image in BIDS"}


def test_hidden_files_and_links_to_folders(bids, tmp_path):
    touch(bids, "sub-01/anat/._sub-01_T1w.nii.gz", "sub-01/.Trash/sub-01_run-2_T1w.nii.gz", "._sub-05/x")
    (bids / "sub-03").mkdir()
    touch(tmp_path / "elsewhere", "sub-03_T1w.nii.gz")
    (bids / "sub-03/anat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "elsewhere")
    inputs = collect(bids)
    assert prefixes(inputs) == [*ALL, "sub-03"]
    assert inputs.skipped == inputs.left_out == {}
    assert inputs.images[-1].path == bids / "sub-03/anat/sub-03_T1w.nii.gz"


# Index


def test_an_index_is_kept_and_used_again(bids, tmp_path):
    first = collect(bids, bids_database_dir=tmp_path / "db", participant_label=("01",))
    assert prefixes(first) == ALL[:1]
    assert any((tmp_path / "db").iterdir())
    # It holds all participants, whoever was asked for first.
    assert prefixes(collect(bids, bids_database_dir=tmp_path / "db")) == ALL


def test_what_changed_after_the_index_is_said(bids, tmp_path):
    db = tmp_path / "db"
    collect(bids, bids_database_dir=db)
    touch(bids, "sub-03/anat/sub-03_T1w.nii.gz", "sub-02/ses-pre/anat/sub-02_ses-pre_run-7_T1w.nii.gz")
    (bids / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    inputs = collect(bids, bids_database_dir=db)
    assert prefixes(inputs) == ALL[1:]
    older = f"it is not in the index {db}, which is older; remove the index, and it is made anew"
    assert inputs.skipped == {
        "sub-01_T1w.nii.gz": f"it is in the index {db}, but no longer there; remove the index, and it is made anew",
        "sub-02_ses-pre_run-7_T1w.nii.gz": older,
        "sub-03_T1w.nii.gz": older,
    }
    shutil.rmtree(db)
    again = collect(bids, bids_database_dir=db)
    assert prefixes(again) == [*ALL[1:4], "sub-02_ses-pre_acq-space", "sub-02_ses-pre_run-7", "sub-03"]


def test_an_index_of_another_dataset_is_refused(bids, tmp_path):
    collect(bids, bids_database_dir=tmp_path / "db")
    other = tmp_path / "other"
    shutil.copytree(bids, other)
    with pytest.raises(BIDSError, match=f"db: the index is of {bids}, not of {other}"):
        collect(other, bids_database_dir=tmp_path / "db")


def test_a_damaged_index_is_named(bids, tmp_path):
    touch(tmp_path, "db/layout_index.sqlite")
    (tmp_path / "db/layout_index.sqlite").write_text("no database")
    with pytest.raises(BIDSError, match=f"cannot be indexed in {tmp_path / 'db'} "):
        collect(bids, bids_database_dir=tmp_path / "db")


def test_start_up_is_quick_on_many_participants(bids):
    """500 participants, of links, are to take less than 10 s; here 100, with other files around."""
    for n in range(100, 200):
        anat, func = bids / f"sub-{n}/anat", bids / f"sub-{n}/func"
        anat.mkdir(parents=True)
        func.mkdir()
        (anat / f"sub-{n}_T1w.nii.gz").symlink_to(bids / "sub-01/anat/sub-01_T1w.nii.gz")
        for run in range(8):
            (func / f"sub-{n}_task-rest_run-{run}_bold.nii.gz").symlink_to(bids / "sub-01/anat/sub-01_T1w.nii.gz")
    start = time.process_time()
    inputs = collect(bids)
    assert len(inputs.images) == 105
    assert time.process_time() - start < 4


def test_participants_are_folders(bids):
    touch(bids, "sub-99")
    assert BIDSFolder(bids).participants == ["01", "02"]


# Masks


def test_a_name_that_is_no_text_is_refused_and_a_link_to_it_is_not(bids, tmp_path):
    odd = bids.rename(tmp_path / os.fsdecode(b"d\xff"))
    with pytest.raises(BIDSError, match="its name holds bytes that are no UTF-8; rename it, or give a link"):
        collect(odd)
    bids.symlink_to(odd)
    assert collect(bids).images
    with pytest.raises(BIDSError, match="no UTF-8"):
        collect(bids, derivatives=(odd,))


def mask_of(bids, prefix="sub-01", subject="01", session=None, **options):
    return find_mask(RunConfig(bids, bids.parent / "out", **options), prefix, subject, session)


def test_without_derivatives_there_is_no_mask(bids):
    assert mask_of(bids) is None


def test_fmriprep_masks(bids, tmp_path):
    prep = tmp_path / "fmriprep"
    touch(
        prep,
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz",
        "sub-02/ses-pre/anat/sub-02_ses-pre_acq-space_desc-brain_mask.nii.gz",
        "sub-02/anat/sub-02_desc-brain_mask.nii.gz",
    )
    images = {image.prefix: image for image in collect(bids, derivatives=(prep,)).images}
    assert images["sub-01"].mask == prep / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    own = prep / "sub-02/ses-pre/anat/sub-02_ses-pre_acq-space_desc-brain_mask.nii.gz"
    assert images["sub-02_ses-pre_acq-space"].mask == own
    assert not images["sub-01"].notes + images["sub-02_ses-pre_acq-space"].notes
    # The others have the mask of fMRIPrep's average, which need not fit each of them.
    merged = images["sub-02_ses-pre_acq-mprage_run-1"]
    assert merged.mask == prep / "sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    assert merged.notes == (f"the brain mask {merged.mask} serves 3 images; see that it fits this one",)


def test_a_mask_of_merged_images_is_told_of_where_one_of_them_is_selected(bids, tmp_path):
    prep = tmp_path / "fmriprep"
    touch(prep, "sub-02/anat/sub-02_desc-brain_mask.nii.gz", "sub-01/mri/brainmask.mgz")
    one = {"session_label": ("pre",), "run_label": ("1",)}
    (image,) = collect(bids, derivatives=(prep,), participant_label=("02",), **one).images
    assert image.notes == (
        f"the brain mask {image.mask} is not named after ses-pre, acq-mprage and run-1 and may be that of several "
        "images merged; see that it fits this one",
    )
    (image,) = collect(bids, derivatives=(prep,), participant_label=("01",)).images
    assert image.mask
    assert image.notes == ()


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("sub-02_ses-pre/mri/brainmask.mgz", "acq-space"),
        ("sub-02/mri/brainmask.mgz", "ses-pre and acq-space"),
    ],
)
def test_so_it_is_with_freesurfer(bids, tmp_path, name, lacks):
    touch(tmp_path / "ses-pre_acq-space", name)  # what folders above are called does not matter
    only = {"participant_label": ("02",), "bids_filter_file": tmp_path / "filter.json"}
    only["bids_filter_file"].write_text('{"t1w": {"acquisition": "space"}}')
    (image,) = collect(bids, derivatives=(tmp_path / "ses-pre_acq-space",), **only).images
    assert f" is not named after {lacks} and may be " in image.notes[0]


def test_a_mask_that_the_user_names_may_be_called_as_the_user_likes(bids, tmp_path):
    touch(tmp_path, "mine.nii.gz")
    one = {"participant_label": ("02",), "session_label": ("pre",), "run_label": ("1",)}
    (image,) = collect(bids, brain_mask=str(tmp_path / "mine.nii.gz"), **one).images
    assert image.notes == ()


@pytest.mark.parametrize(
    "name",
    [
        "sub-02_ses-pre/mri/brainmask.mgz",
        "sub-02/mri/brainmask.mgz",
        "sourcedata/freesurfer/sub-02_ses-pre/mri/brainmask.mgz",
        "sourcedata/freesurfer/sub-02/mri/brainmask.mgz",
    ],
)
def test_freesurfer_masks(bids, tmp_path, name):
    touch(tmp_path / "fs", name)
    found = mask_of(bids, "sub-02_ses-pre_acq-space", "02", "pre", derivatives=(tmp_path / "fs",))
    assert found == tmp_path / "fs" / name


def test_the_first_derivatives_win(bids, tmp_path):
    for name in ("a", "b"):
        touch(tmp_path / name, "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    touch(tmp_path / "a", "sub-01/mri/brainmask.mgz")
    found = mask_of(bids, derivatives=(tmp_path / "b", tmp_path / "a"))
    assert found == tmp_path / "b/sub-01/anat/sub-01_desc-brain_mask.nii.gz"


def test_a_named_mask(bids, tmp_path):
    touch(tmp_path, "masks/02_pre_sub-02_ses-pre_run-1.nii.gz")
    name = str(tmp_path / "masks/{subject}_{session}_{prefix}.nii.gz")
    found = mask_of(bids, "sub-02_ses-pre_run-1", "02", "pre", brain_mask=name, derivatives=(tmp_path,))
    assert found == tmp_path / "masks/02_pre_sub-02_ses-pre_run-1.nii.gz"


def test_a_named_mask_is_an_absolute_path(bids, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mask.nii").touch()
    assert mask_of(bids, brain_mask="mask.nii") == tmp_path / "mask.nii"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/nowhere/{subject}.nii.gz", r"/nowhere/01.nii.gz: no such file \(--brain-mask, for sub-01\)"),
        ("{run}.nii.gz", r"--brain-mask \{run\}.nii.gz: only \{subject\}, \{session\} and \{prefix\} can be replaced"),
        ("{.nii.gz", "can be replaced"),
        ("{0}.nii.gz", "can be replaced"),
        ("~nobody-{subject}/mask.nii.gz", "can be replaced|no such file"),
        ("{subject.none}.nii.gz", "can be replaced"),
    ],
)
def test_a_named_mask_that_is_not_there(bids, name, sentence):
    with pytest.raises(BIDSError, match=sentence):
        mask_of(bids, brain_mask=name)


def test_one_image_without_its_named_mask_does_not_stop_the_others(bids, tmp_path):
    touch(tmp_path, "masks/01.nii.gz")
    inputs = collect(bids, brain_mask=str(tmp_path / "masks" / "{subject}.nii.gz"))
    assert prefixes(inputs) == ALL[:1]
    absent = f"{tmp_path}/masks/02.nii.gz: no such file (--brain-mask)"
    assert inputs.skipped == {path.name: absent for path in bids.glob("sub-02/ses-*/anat/*_T1w.nii*")}
    with pytest.raises(BIDSError, match="no such file"):  # one for all is not there for anybody
        collect(bids, brain_mask=str(tmp_path / "masks" / "all.nii.gz"))
    with pytest.raises(BIDSError, match="can be replaced"):
        collect(bids, brain_mask=str(tmp_path / "{run}.nii.gz"))


def test_an_image_without_a_mask_in_the_derivatives_is_told_so(bids, tmp_path, caplog):
    """Per participant: in the log, and in the notes that the JSON, the report and the end table repeat."""
    prep = tmp_path / "prep"
    touch(prep, "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    lost = prep / "sub-02/ses-pre/anat/sub-02_ses-pre_acq-space_desc-brain_mask.nii.gz"
    lost.parent.mkdir(parents=True)
    lost.symlink_to("../annex/absent")
    notes = {image.prefix: image.notes for image in collect(bids, derivatives=(prep,)).images}
    assert notes.pop("sub-01") == ()
    (link,) = notes.pop("sub-02_ses-pre_acq-space")
    assert f"{lost} is a link to a file that is not there (datalad get fetches it)" in link
    said = "no brain mask is taken from --derivatives: prep holds none for it; one is made instead"
    assert notes
    assert set(notes.values()) == {(said,)}
    for prefix in notes:
        assert f"{prefix}_T1w: {said}" in caplog.text
    assert all(image.notes == () for image in collect(bids).images)
