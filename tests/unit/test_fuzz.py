"""Files that anyone may have written, drawn at random: refused with a sentence that names the file, or read rightly.

What is right is told by a reading that is simple and not ours: the csv module for tables, pybids for filter files,
safetensors for weights, the json module for options. A longer run: ``FUZZ=50 pytest tests/unit/test_fuzz.py``.
"""

import csv
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from bids import BIDSLayout
from bids.layout import Query
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from medsegmamba_bids.bids import collect_inputs
from medsegmamba_bids.cli.parser import make_config, stored_options
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.datasets.participants_table import read_participants
from medsegmamba_bids.errors import UserError
from medsegmamba_bids.records import read_mapping
from medsegmamba_bids.training.training_config import find_config, read_config
from medsegmamba_bids.weights.folders import find_weights
from medsegmamba_bids.weights.info import METADATA_KEY, read_info


def fuzz(examples):
    """So many examples, or as often as many as the environment asks for; files of one test lie in one folder."""
    return settings(
        max_examples=examples * int(os.environ.get("FUZZ", "1")),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def attempt(action, *arguments):
    """What it gives, and the sentence of its refusal; any other error is a fault."""
    try:
        return action(*arguments), ""
    except UserError as error:
        return None, str(error)


# participants.tsv

LABELS = st.sampled_from(["01", "02", "1", "A3"])
CELLS = st.text(st.sampled_from("abc07.,;\"'é -/"), max_size=5)
BLANKS = st.sampled_from(["", " ", "  "])


@st.composite
def tables(draw):
    """Bytes of a table, written by somebody who knows its cells, and these: participant -> age."""
    ages = {label: draw(CELLS).strip() for label in draw(st.lists(LABELS, unique=True, min_size=1))}
    lines = [["participant_id", "x", "age"]]
    for label, age in ages.items():
        form = draw(BLANKS) + draw(st.sampled_from(["", "sub-"])) + label + draw(BLANKS)
        lines.append([form, draw(CELLS), draw(BLANKS) + age])
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(
        "\t".join(line) + "\t" * draw(st.integers(0, 2)) + draw(st.sampled_from(["", end])) for line in lines
    )
    return (text + draw(st.sampled_from(["", end]))).encode(draw(st.sampled_from(["utf-8", "utf-8-sig"]))), ages


@fuzz(150)
@given(tables())
def test_cells_of_participants_are_read_as_they_were_written(tmp_path, drawn):
    content, ages = drawn
    path = tmp_path / "participants.tsv"
    path.write_bytes(content)
    found = read_participants(path).of_scans([(label, "") for label in ages], ["age"])["age"]
    assert found.tolist() == list(ages.values())


PIECES = st.sampled_from(
    ["participant_id", "session_id", "age", "sub-", "01", "02", "ses-", "\t", "\t", "\n", "\r\n", "\r", " ", '"', "'",
     "25", "n/a", "é", "\x0b", "\x85", "\u2028", ",", "\ufeff", "\x00"]
)  # fmt: skip


def simple_reading(content):
    """Cells of a table by the csv module, without blanks around and without empty ones at the ends of lines."""
    lines = [line for line in io.StringIO(content.decode("utf-8-sig"), newline=None) if line.strip()]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return [row[: max((i + 1 for i, cell in enumerate(row) if cell), default=0)] for row in rows]


@fuzz(300)
@given(st.lists(PIECES, max_size=30).map("".join), st.sampled_from(["utf-8", "utf-8", "latin-1", "utf-16"]))
def test_any_table_is_read_as_a_simple_reader_does_or_refused(tmp_path, text, encoding):
    path = tmp_path / "participants.tsv"
    content = f"participant_id\tage\n{text}".encode(encoding, "replace")
    path.write_bytes(content)
    people, refused = attempt(read_participants, path)
    if refused:
        assert refused.startswith(f"{path}: ")
        return
    rows = people.rows
    header, *expected = simple_reading(content)
    assert list(rows) == header
    found = [[cell.removeprefix("sub-") for cell in row] for row in rows.to_numpy().tolist()]
    padded = [row + [""] * (len(header) - len(row)) for row in expected]
    assert found == [[cell.removeprefix("sub-") for cell in row] for row in padded]


# Filter files

NAMES = [
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/anat/sub-01_run-1_T1w.nii.gz",
    "sub-01/anat/sub-01_run-02_T1w.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_acq-x_T1w.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_acq-xy_rec-n_T1w.nii.gz",
    "sub-02/ses-b/anat/sub-02_ses-b_ce-gd_run-2_echo-1_T1w.nii",
    "sub-02/ses-b/anat/sub-02_ses-b_acq-x_run-10_part-mag_T1w.nii.gz",
]
ENTITIES = ["subject", "session", "acquisition", "reconstruction", "ceagent", "run", "echo", "part", "inv", "chunk"]
VALUES = st.one_of(
    st.sampled_from(["01", "02", "a", "b", "x", "xy", "n", "gd", "1", "mag", "*", "Query.NONE", "Query.ANY"]), st.none()
)
RUNS = st.one_of(st.integers(0, 11), st.sampled_from(["1", "02", "10", "*"]), st.none())
ENTRIES = st.dictionaries(
    st.sampled_from(ENTITIES), st.one_of(VALUES, st.lists(VALUES, min_size=1, max_size=3, unique=True)), max_size=3
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset in a folder whose name says nothing, and pybids' view of it."""
    root = tmp_path_factory.mktemp("neutral") / "bids"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root, BIDSLayout(root)


def by_pybids(layout, entry):
    special = {"*": Query.ANY, "Query.ANY": Query.ANY, "Query.NONE": Query.NONE, None: Query.NONE}
    wanted = {
        key: list(dict.fromkeys(special.get(one, one) for one in (value if isinstance(value, list) else [value])))
        for key, value in entry.items()
    }
    return sorted(layout.get(suffix="T1w", return_type="filename", invalid_filters="allow", **wanted))


@fuzz(40)
@given(ENTRIES, st.one_of(st.none(), RUNS), st.sampled_from(["t1w", "T1w", "T1W"]))
def test_filters_select_what_pybids_selects(tmp_path, dataset, entry, run, key):
    root, layout = dataset
    entry = entry | ({"run": run} if run is not None else {})
    for number in {"echo", "inv", "chunk"} & set(entry):  # to us 01 is 1, to pybids for runs alone
        entry[number] = json.loads(json.dumps(entry[number]).replace('"0', '"'))
    if isinstance(entry.get("run"), (str, list)):  # pybids fails on runs that are no numbers
        entry.pop("run")
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({key: entry, "bold": {"task": "rest"}}))
    inputs = collect_inputs(RunConfig(root, tmp_path / "out", bids_filter_file=path))
    assert sorted(str(image.path) for image in inputs.images) == by_pybids(layout, entry)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 99), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)
KEYS = st.one_of(st.sampled_from([*ENTITIES, "acq", "ses", "suffix", "extension", "regex_search"]), st.text(max_size=4))


@fuzz(100)
@given(
    st.one_of(
        st.dictionaries(st.sampled_from(["t1w", "T1w", "anat", "bold", ""]), st.dictionaries(KEYS, JSON_VALUES)),
        JSON_VALUES,
    )
)
def test_any_filter_file_is_refused_by_name_or_says_something_of_t1w(tmp_path, dataset, content):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps(content))
    inputs, refused = attempt(collect_inputs, RunConfig(dataset[0], tmp_path / "out", bids_filter_file=path))
    if refused:
        assert refused.startswith(f"{path}: ")
        return
    ours = [key for key in content if key.lower() == "t1w"]
    assert len(ours) <= 1
    assert set(content) - set(ours) <= {"bold"}
    assert content
    if not any(content[key] for key in ours):
        assert len(inputs.images) == len(NAMES)


# Weights


@pytest.fixture(scope="module")
def description():
    """What the embedded network says of itself."""
    with safe_open(find_weights("embedded-aseg3"), framework="numpy") as file:
        return json.loads(file.metadata()[METADATA_KEY])


OF_INFO = st.sampled_from(["name", "network", "config", "task", "labels", "input", "origin", "licence"])
OF_INPUT = st.sampled_from(["voxel_size", "patch_size", "step", "intensity", "mirror", "x"])
CHANGES = st.one_of(
    st.tuples(st.just("set"), st.one_of(OF_INFO, st.text(max_size=4)), JSON_VALUES),
    st.tuples(st.just("input"), OF_INPUT, JSON_VALUES),
    st.tuples(st.just("drop"), OF_INFO, st.none()),
)


@fuzz(150)
@given(st.lists(CHANGES, max_size=2))
def test_a_description_of_weights_is_read_as_it_stands_or_refused(tmp_path, description, changes):
    entries = json.loads(json.dumps(description))
    for what, key, value in changes:
        if what == "drop":
            entries.pop(key, None)
        elif what == "set":
            entries[key] = value
        elif isinstance(entries.get("input"), dict):
            entries["input"][key] = value
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"a": np.zeros(2, np.float32)}, metadata={METADATA_KEY: json.dumps(entries)}))
    info, refused = attempt(read_info, path)
    if refused:
        assert refused.startswith(f"{path}: ")
        return
    with safe_open(path, framework="numpy") as file:
        stored = json.loads(file.metadata()[METADATA_KEY])
    found = json.loads(json.dumps(dataclasses.asdict(info)))
    assert {key: found[key] for key in stored if key != "input"} == {k: v for k, v in stored.items() if k != "input"}
    assert {key: found["input"][key] for key in stored.get("input", {})} == stored.get("input", {})


@fuzz(300)
@given(st.data())
def test_a_damaged_header_of_weights_is_refused_or_read_as_safetensors_reads_it(tmp_path, description, data):
    good = save({"a": np.zeros(2, np.float32)}, metadata={METADATA_KEY: json.dumps(description)})
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "w.safetensors"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content))
    info, refused = attempt(read_info, path)
    if refused:
        assert refused.startswith(f"{path}: ")
        return
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    assert info.name == json.loads(json.loads(header)["__metadata__"][METADATA_KEY])["name"]


@fuzz(150)
@given(st.one_of(st.dictionaries(st.sampled_from(["__metadata__", "a", "b"]), JSON_VALUES), JSON_VALUES))
def test_any_header_of_weights_is_refused_by_name(tmp_path, header):
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UserError) as error:
        read_info(path)
    assert str(error.value).startswith(f"{path}: ")


# Options and trainings

OPTIONS = [entry.name for entry in dataclasses.fields(RunConfig)]
TYPICAL = st.one_of(
    JSON_VALUES, st.sampled_from(["participant", "cpu", "float32", "/a", ["01"], [], 1, 8, 4.5, True, None])
)


@fuzz(120)
@given(st.dictionaries(st.one_of(st.sampled_from(OPTIONS), st.text(max_size=4)), TYPICAL, max_size=3))
def test_options_of_a_file_are_taken_as_they_stand_or_refused(tmp_path, entries):
    path = tmp_path / "options.json"
    path.write_text(json.dumps(entries))
    options, refused = attempt(stored_options, path)
    if refused:
        assert refused.startswith(f"{path}: ")
        return
    config, refused = attempt(make_config, options, {"bids_dir": "/bids", "output_dir": "/out"})
    if refused:
        assert any(key in refused.replace("-", "_") or key in ("mem_gb", "run_label") for key in entries)
        return
    assert set(entries) <= {*OPTIONS, "version"}
    for key, value in json.loads(path.read_text()).items():
        if key in ("version", "run_id", "bids_dir", "output_dir", "omp_nthreads"):
            continue
        found = getattr(config, key)
        plain = json.loads(json.dumps(found, default=os.fspath))
        if isinstance(found, Path):
            assert plain == str(Path(value).expanduser().absolute())
        elif key == "derivatives":
            assert plain == [str(Path(one).expanduser().absolute()) for one in value]
        else:
            assert plain == value


@fuzz(60)
@given(st.sampled_from(["paper_aseg", "embedded_aseg"]), st.data())
def test_a_training_is_configured_as_its_file_says_or_refused(tmp_path, name, data):
    content = read_mapping(find_config(name), "a training configuration", "toml")
    key = data.draw(st.one_of(st.sampled_from(sorted(content)), st.text(max_size=4)))
    content[key] = data.draw(TYPICAL)
    path = tmp_path / "training.yaml"  # JSON is YAML
    path.write_text(json.dumps(content))
    config, refused = attempt(read_config, path)
    if refused:
        assert refused.startswith(str(path))
        return
    expected = json.loads(path.read_text())[key]
    found = json.loads(json.dumps(getattr(config, key), default=lambda one: dataclasses.asdict(one)))
    if key not in ("sources", "stages", "weights"):
        assert found == expected
