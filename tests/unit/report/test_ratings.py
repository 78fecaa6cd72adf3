"""Ratings by people: which T1w a row means, which of several counts, and what is refused."""

import re
from pathlib import Path

import pytest

from medsegmamba_bids.errors import TableError
from medsegmamba_bids.report.derivatives import Scan
from medsegmamba_bids.report.ratings import read_ratings

SCANS = [Scan(Path("out"), prefix) for prefix in ("sub-01_ses-a_run-1", "sub-01_ses-a_run-2", "sub-02", "sub-03_acq-x",
                                                  "sub-03_acq-y")]  # fmt: skip
HEADER = "participant\tsession\trun\trating\tnote\tdate\trater\tscan\n"


def read(tmp_path, text):
    path = tmp_path / "ratings.tsv"
    path.write_text(text, encoding="utf-8")
    return read_ratings(path, SCANS)


def test_rows_name_scans_and_the_latest_counts(tmp_path):
    found = read(
        tmp_path,
        HEADER + "sub-01\tses-a\t2\tkeep\tn/a\t2026-02-01T10:00:00\tab\tn/a\n"
        'sub-01\tses-a\t2\tdiscard\t"it moved\t2026-01-01T10:00:00\tcd\tn/a\n'
        "02\tn/a\tn/a\tmaybe\tdark\tn/a\tn/a\tn/a\n"
        "sub-03\t\t\tdiscard\t\t\t\tsub-03_acq-y_T1w\n",
    )
    assert {name: (one.rating, one.note, one.rater, one.others) for name, one in found.items()} == {
        "sub-01_ses-a_run-2": ("keep", "", "ab", ("discard",)),
        "sub-02": ("maybe", "dark", "", ()),
        "sub-03_acq-y": ("discard", "", "", ()),
    }


def test_two_columns_are_enough(tmp_path):
    assert read(tmp_path, "rating\tparticipant\nkeep\tsub-02\n")["sub-02"].rating == "keep"


@pytest.mark.filterwarnings("ignore:Length of header")
def test_an_empty_cell_too_many_in_every_row_moves_no_column(tmp_path):
    assert read(tmp_path, "participant\trating\nsub-02\tkeep\t\n")["sub-02"].rating == "keep"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("participant\tnote\nsub-02\tx\n", "lacks the column rating"),
        ("", "cannot be read as a table of ratings"),
        (HEADER + "sub-02\t\t\tgood\t\t\t\t\n", "line 2: the rating is 'good'; it must be keep, maybe, discard"),
        (HEADER + "sub-03\t\t\tkeep\t\t\t\t\n", "line 2: sub-03 may be any of sub-03_acq-x, sub-03_acq-y"),
    ],
)
def test_refused(tmp_path, text, match):
    with pytest.raises(TableError, match=re.escape(match)):
        read(tmp_path, text)


def test_rows_about_other_images_are_told_and_passed_over(tmp_path, caplog):
    rows = [f"sub-{number:02}\t\t\tkeep\t\t\t\t\n" for number in (2, *range(10, 17))]
    rows.append("sub-01\t\t\tdiscard\t\t\t\tsub-01_ses-z_T1w\n")
    assert list(read(tmp_path, HEADER + "".join(rows))) == ["sub-02"]
    assert re.search(
        r"ratings\.tsv: 8 rows rate what is not among the T1w images with results that are gathered, and are passed "
        r"over: sub-10 \(line 3\), .*sub-14 \(line 7\) …$",
        caplog.text.strip(),
    )


def test_a_wrong_rating_is_refused_wherever_it_stands(tmp_path):
    with pytest.raises(TableError, match="line 2: the rating is 'good'"):
        read(tmp_path, HEADER + "sub-09\t\t\tgood\t\t\t\t\n")


def test_lines_are_counted_from_the_top_of_the_file(tmp_path):
    with pytest.raises(TableError, match="line 4: the rating is 'good'"):
        read(tmp_path, "\n\n" + HEADER + "sub-09\t\t\tgood\t\t\t\t\n")


def test_empty_rows_of_spreadsheets_mean_nothing_and_count_as_lines(tmp_path):
    text = "\ufeff" + HEADER + "sub-02\t\t\tkeep\t\t\t\t\n\t\t\t\t\t\t\t\n\n"
    assert list(read(tmp_path, text)) == ["sub-02"]
    with pytest.raises(TableError, match="line 5: the rating is 'good'"):
        read(tmp_path, text + "sub-01\ta\t1\tgood\t\t\t\t\n")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TableError, match=r"none\.tsv: cannot be read as a table of ratings"):
        read_ratings(tmp_path / "none.tsv", SCANS)
