"""``participants.tsv`` as people and programs write it: the right cell for every participant, or a sentence."""

import pytest

from medsegmamba_bids.datasets.participants_table import read_participants
from medsegmamba_bids.errors import TableError


def table(folder, content):
    path = folder / "participants.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def ages(folder, content, scans=(("01", ""), ("02", ""))):
    return read_participants(table(folder, content)).of_scans(scans, ["age"])["age"].tolist()


@pytest.mark.parametrize(
    "content",
    [
        "participant_id\tage\nsub-01\t25\nsub-02\t31\n",
        "participant_id\tage\n01\t25\n02\t31\n",
        "participant_id\tage\n 01 \t25\nsub-02 \t 31\n",
        "participant_id\tage\r\nsub-01\t25\r\n02\t31",
        "participant_id\tage\rsub-01\t25\rsub-02\t31\r",
        b"\xef\xbb\xbfparticipant_id\tage\nsub-01\t25\nsub-02\t31\n",
        "participant_id\tage\nsub-01\t25\t\nsub-02\t31\t\t\n",
        "participant_id\tage\t\nsub-01\t25\t\nsub-02\t31\n",
        "\nparticipant_id\tage\n\t\nsub-01\t25\n\nsub-02\t31\n",
        'participant_id\tnote\tage\nsub-01\t"said\t25\nsub-02\tno"\t31\n',
        "age\tparticipant_id\n25\tsub-01\n31\tsub-02\n",
        "participant_id\tage\nsub-01\t25\nsub-02\t31\nsub-01\t25\n",
    ],
)
def test_every_participant_gets_the_own_age(tmp_path, content):
    assert ages(tmp_path, content) == ["25", "31"]


def test_who_is_not_there_has_no_value(tmp_path):
    found = ages(tmp_path, "participant_id\tage\nsub-01\t25\n", [("1", ""), ("01", "")])
    assert found[1] == "25"
    assert found[0] != found[0]  # missing


SESSIONS = "participant_id\tsession_id\tage\tsex\nsub-01\tses-a\t25\tF\n01\tb\t27\tF\nsub-02\tn/a\t31\tM\n"


def test_rows_of_sessions(tmp_path):
    assert ages(tmp_path, SESSIONS, [("01", "b"), ("01", "a"), ("02", "x"), ("02", "")]) == ["27", "25", "31", "31"]
    people = read_participants(tmp_path / "participants.tsv")
    assert people.labels == ["01", "02"]
    assert people.columns == ["age", "sex"]
    assert people.of_scans([("01", "")], ["sex"])["sex"].tolist() == ["F"]
    assert people.of_scans([("01", "c")])["age"].isna().all()
    with pytest.raises(TableError, match=r"sub-01 has several rows \(lines 2, 3\) that differ in age; a column sess"):
        people.of_scans([("01", "")], ["age"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("participant_id,age\nsub-01,25\n", "has no column participant_id; there are participant_id,age. Tabs sep"),
        ('"participant_id"\t"age"\n"sub-01"\t"25"\n', "has no column participant_id; .*quotes are part of a name"),
        ('participant_id\tage\n"sub-01"\t25\n', "line 2 has the participant_id '\"sub-01\"'; it must be a label"),
        ("participant_id\tage\n\t25\n", "line 2 has the participant_id ''"),
        ("participant_id\tage\nsub-01 copy\t25\n", "line 2 has the participant_id 'sub-01 copy'"),
        (
            "participant_id\tage\n\nsub-01\t25\tF\n",
            r"line 3 has 3 cells, but there are 2 columns \(particip",
        ),
        ("participant_id\tsex\tage\nsub-01\t25\n", "line 2 has 2 cells, but there are 3 columns"),
        ("participant_id\tage\tage\nsub-01\t25\t26\n", "its first line must name every column once"),
        ("participant_id\t\tage\nsub-01\t25\t26\n", "its first line must name every column once"),
        (
            "participant_id\tage\nsub-01\té\n".encode("latin-1"),
            "line 2 is not UTF-8; if it is latin-1, convert it",
        ),
        ("participant_id\tage\nsub-01\t25\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("participant_id\tsex\nsub-01\tF\n", "has no column age; there are participant_id, sex"),
        ("participant_id\tage\nsub-01\t25\n01\t26\n", "sub-01 has several rows .* that differ in age"),
    ],
)
def test_what_is_ambiguous_or_damaged_is_refused(tmp_path, content, sentence):
    with pytest.raises(TableError, match=f"{tmp_path}/participants.tsv: {sentence}"):
        ages(tmp_path, content)


def test_no_file(tmp_path):
    with pytest.raises(TableError, match=r"none\.tsv: no such file"):
        read_participants(tmp_path / "none.tsv")
