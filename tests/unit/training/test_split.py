"""Dividing participants: complete, balanced, seeded, and refusals."""

import json

import numpy as np
import pandas as pd
import pytest

from medsegmamba_bids.errors import ConfigError, SplitError, TableError
from medsegmamba_bids.training.pairs.finder import Pair
from medsegmamba_bids.training.pairs.pair_trainer import check_groups
from medsegmamba_bids.training.pairs.split import (
    describe,
    read_participants,
    read_split,
    split_participants,
    write_split,
)


def people(count, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"sub-{i:03d}" for i in range(count)]
    return pd.DataFrame(
        {"participant_id": names, "age": rng.uniform(18, 90, count), "sex": rng.choice(["F", "M"], count)}
    )


@pytest.mark.parametrize("count", [5, 6, 7, 8, 9, 10, 23, 101])
def test_every_participant_is_in_one_set(count):
    divided = split_participants(people(count), seed=1)
    assert sorted(divided["participant_id"]) == sorted(people(count)["participant_id"])
    sizes = divided["set"].value_counts()
    assert set(sizes.index) == {"train", "validation", "test"}
    assert abs(sizes["train"] - 0.6 * count) < 1.5
    assert abs(sizes["validation"] - sizes["test"]) <= 1


def test_sets_are_alike_in_age_and_sex():
    divided = split_participants(people(200), seed=0)
    groups = divided.groupby("set")
    assert np.ptp(groups["age"].mean()) < 2.0  # chance alone: about 5 years
    assert np.ptp(groups["sex"].apply(lambda sexes: (sexes == "F").mean())) < 0.05


def test_the_seed_decides():
    first, again, other = (split_participants(people(40), seed) for seed in (3, 3, 4))
    assert first.equals(again)
    assert first["set"].tolist() != other["set"].tolist()


def test_the_order_of_rows_does_not_matter():
    shuffled = people(30).sample(frac=1, random_state=1)
    assert split_participants(shuffled, 0).equals(split_participants(people(30), 0))


def test_too_few_participants_are_refused():
    with pytest.raises(SplitError, match="4 participants; at least 5 are needed to fill all three sets"):
        split_participants(people(4), 0)


@pytest.mark.parametrize("name", ["split.tsv", "split.json"])
def test_written_and_read(tmp_path, name):
    divided = split_participants(people(12), 5)
    write_split(divided, tmp_path / name, 5)
    assert read_split(tmp_path / name) == dict(zip(divided["participant_id"], divided["set"], strict=True))
    if name.endswith("json"):
        assert json.loads((tmp_path / name).read_text())["seed"] == 5


def test_other_extensions_are_refused(tmp_path):
    with pytest.raises(SplitError, match=r"split\.csv: the name must end with \.tsv or \.json"):
        write_split(split_participants(people(5), 0), tmp_path / "split.csv", 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\ttrain\nb\ttrain\nc\ttest\n", "nobody is in validation; every set needs participants"),
        ("a\ttrain\nb\tvalidation\nc\ttest\na\ttest\n", "sub-a is in train and in test"),
        ("a\ttrain\nb\tvalid\nc\ttest\n", "the set 'valid' of sub-b is unknown"),
    ],
)
def test_divisions_that_cannot_be_used(tmp_path, lines, message):
    path = tmp_path / "split.tsv"
    path.write_text("participant_id\tset\n" + lines)
    with pytest.raises(SplitError, match=message) as error:
        read_split(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[1, 2"),
        ("a.tsv", "who\twhere\na\tb\n"),
        ("b.json", "[1]"),
        ("c.json", '{"train": "sub-01", "validation": ["sub-02"], "test": ["sub-03"]}'),
        ("d.json", '{"train": ["a"], "train": ["b"], "validation": ["c"], "test": ["d"]}'),
    ],
)
def test_files_that_are_no_division(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SplitError, match=f"{name}: cannot be read as a division"):
        read_split(tmp_path / name)


def test_participants_of_a_dataset(tmp_path, caplog):
    rows = (
        "participant_id\tage\tsex\nsub-01\t20\tfemale\n02\t89+\tM\nsub-01\t21\tfemale\nsub-03\tn/a\tn/a\nsub-04\t5\tM\n"
    )
    (tmp_path / "participants.tsv").write_text(rows)
    for name in ("sub-01", "sub-02", "sub-03"):
        (tmp_path / name).mkdir()
    found = read_participants(tmp_path)
    assert found["participant_id"].tolist() == ["sub-01", "sub-02", "sub-03"]
    assert found["sex"].tolist() == ["F", "M", ""]
    assert found["age"].tolist()[:2] == [20, 89]
    assert np.isnan(found["age"][2])
    assert "1 participants have no folder" in caplog.text
    assert "nan" in describe(found.assign(set=["train", "validation", "test"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("participant_id\tsex\n01\tF\n", "the columns \\['age'\\] are missing"),
        ("participant_id\tage\tsex\n01\told\tF\n", "the age 'old' is not a number"),
        ("participant_id\tage\tsex\n01\t20\tF\nsub-01\t21\tM\n", "sub-01 has several rows .* that differ in sex"),
        ("participant_id\tage\tsex\n01\t20\tF\tx\n", "line 2 has 4 cells"),
    ],
)
def test_participants_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "participants.tsv").write_text(text)
    with pytest.raises((SplitError, TableError), match=message):
        read_participants(tmp_path / "participants.tsv")
    with pytest.raises(SplitError, match="no such file"):
        read_participants(tmp_path / "none.tsv")


def pair(name, participant, folder):
    return Pair(name, participant, folder / f"{name}.mgz", ())


def test_all_scans_of_a_participant_go_to_its_set(tmp_path, caplog):
    split = {"sub-a": "train", "sub-b": "validation", "sub-c": "test", "sub-d": "train"}
    scans = [("a_ses-1", "sub-a"), ("a_ses-2", "sub-a"), ("b", "sub-b"), ("c", "sub-c")]
    groups = check_groups([pair(*scan, tmp_path) for scan in scans], split)
    names = {group: [one.name for one in pairs] for group, pairs in groups.items()}
    assert names == {"train": ["a_ses-1", "a_ses-2"], "validation": ["b"], "test": ["c"]}
    assert "1 participants of the split have no scan here: sub-d" in caplog.text


def test_sets_without_scans_are_refused(tmp_path):
    split = {"sub-a": "train", "sub-b": "validation", "sub-c": "test"}
    with pytest.raises(ConfigError, match="leaves the validation set empty"):
        check_groups([pair("a", "sub-a", tmp_path)], split)
    with pytest.raises(ConfigError, match=r"the scans \['a'\] are there more than once"):
        check_groups([pair("a", "sub-a", tmp_path), pair("a", "sub-b", tmp_path)], split)
