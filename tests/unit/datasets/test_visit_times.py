"""When visits were, from whatever says it."""

import json

import pytest

from medsegmamba_bids.datasets.visit_times import visit_times

SCANS = [(name, f"sub-1/ses-{name}/anat/sub-1_ses-{name}_T1w.nii.gz") for name in "ab"]


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("\t".join(line) for line in lines) + "\n")


def test_nothing_is_known(tmp_path):
    found = visit_times(tmp_path, "1", SCANS)
    assert (found.years, found.source) == ((None, None), "")


def test_scans_come_before_sessions_and_participants(tmp_path):
    write(
        tmp_path / "participants.tsv",
        ("participant_id", "session_id", "age"),
        *(("sub-1", f"ses-{s}", "40") for s in "ab"),
    )
    assert visit_times(tmp_path, "1", SCANS).source == "age of participants.tsv"
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", ("session_id", "age"), ("ses-a", "40.5"), ("ses-b", "42"))
    found = visit_times(tmp_path, "1", SCANS)
    assert (found.years, found.source) == ((0.0, 1.5), "age of sessions.tsv")
    for session, date in (("a", "1900-01-01T10:00:00"), ("b", "1901-01-01T10:00:00.5Z")):
        path = tmp_path / "sub-1" / f"ses-{session}" / f"sub-1_ses-{session}_scans.tsv"
        write(path, ("filename", "acq_time"), (f"anat/sub-1_ses-{session}_T1w.nii.gz", date))
    found = visit_times(tmp_path, "1", SCANS)
    assert found.source == "acq_time of scans.tsv"
    assert found.years == pytest.approx((0, 365 / 365.25), abs=1e-6)


def test_one_date_of_three_is_left_open(tmp_path):
    write(
        tmp_path / "sub-1" / "sub-1_sessions.tsv",
        *(("session_id", "acq_time"), ("ses-a", "2001-01-01"), ("ses-b", "n/a"), ("ses-c", "2000-01-01")),
    )
    years = visit_times(tmp_path, "1", [*SCANS, ("c", "x")]).years
    assert years == pytest.approx((366 / 365.25, None, 0.0))


AGES = (("session_id", "age"), ("ses-a", "48"), ("ses-b", "60"))


def told_units(tmp_path, place, units, lines=AGES):
    """Years of visits whose ages are in some unit, as a JSON says."""
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", *lines)
    (tmp_path / place).write_text(json.dumps({"age": {"Units": units}}))
    return visit_times(tmp_path, "1", SCANS)


@pytest.mark.parametrize(
    ("units", "a_year"),
    [
        *((name, 1) for name in ("year", "Years", "yr", "y", "a")),
        *((name, 12) for name in ("month", "months", "mo")),
        *((name, 365.25 / 7) for name in ("week", "weeks", "wk")),
        *((name, 365.25) for name in ("day", "days", "d")),
    ],
)
@pytest.mark.parametrize("place", ["sub-1/sub-1_sessions.json", "sessions.json"])
def test_ages_have_units(tmp_path, units, a_year, place):
    found = told_units(tmp_path, place, units)
    assert (found.years, found.source) == (pytest.approx((0, 12 / a_year)), "age of sessions.tsv")


def test_the_participants_own_json_goes_first(tmp_path):
    (tmp_path / "sessions.json").write_text('{"age": {"Units": "day"}}')
    assert told_units(tmp_path, "sub-1/sub-1_sessions.json", "month").years == (0, 1)

    (tmp_path / "sub-1" / "sub-1_sessions.json").write_text('{"age": {"Description": "at the scan"}}')
    assert visit_times(tmp_path, "1", SCANS).years == pytest.approx((0, 12 / 365.25))


@pytest.mark.parametrize("text", ['{"age": {"Units": "fortnight"}}', '{"age": {"Units": 12}}', "{"])
def test_ages_in_units_that_nobody_knows_are_not_used(tmp_path, text, caplog):
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", *AGES)
    (tmp_path / "sessions.json").write_text(text)
    assert visit_times(tmp_path, "1", SCANS).years == (None, None)
    assert "sessions.json" in caplog.text
    assert "not used for times of visits" in caplog.text


@pytest.mark.parametrize("ages", [("-9", "72"), ("999", "72"), ("25567", "26297"), ("inf", "72")])
def test_ages_that_no_person_has_are_not_used(tmp_path, ages, caplog):
    """Codes of missing ages, and days without Units, which made a change a year 365 times too small."""
    rows = zip(("ses-a", "ses-b"), ages, strict=True)
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", ("session_id", "age"), *rows)
    assert visit_times(tmp_path, "1", SCANS).years == (None, None)
    assert f"sub-1_sessions.tsv: an age of {float(ages[0]):g} years is no person's" in caplog.text


def test_rows_of_one_visit_that_contradict_each_other_are_not_used(tmp_path, caplog):
    folder = tmp_path / "sub-1"
    scan = "anat/sub-1_ses-b_T1w.nii.gz"
    dates(tmp_path, a="2000-01-01")
    times = ((scan, "2001-01-01"), (scan, "2004-01-01"))
    write(folder / "ses-b" / "sub-1_ses-b_scans.tsv", ("filename", "acq_time"), *times)
    write(folder / "sub-1_sessions.tsv", ("session_id", "age"), ("ses-a", "70"), ("ses-b", "72"), ("ses-b", "75"))
    people = (("sub-1", "ses-a", "70"), ("sub-1", "ses-b", "72"), ("1", "b", "75"))
    write(tmp_path / "participants.tsv", ("participant_id", "session_id", "age"), *people)
    assert visit_times(tmp_path, "1", SCANS).years == (None, None)
    assert f"scans.tsv: has 2 rows of sub-1/ses-b/{scan} with another acq_time; none is used" in caplog.text
    for about in ("sessions.tsv: has 2 rows of b", "of sub-1, ses-b"):
        assert f"{about} with another age; none is used" in caplog.text


def test_rows_of_one_visit_that_say_the_same_or_less_are_used(tmp_path, caplog):
    rows = (("ses-a", "2000-01-01", "70"), ("ses-b", "2001-01-01", "71"))
    more = (("ses-b", "n/a", "71.0"), ("ses-a", "2000-01-01T00:00:00", "n/a"))
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", ("session_id", "acq_time", "age"), *rows, *more)
    times = visit_times(tmp_path, "1", SCANS)
    assert times.years == pytest.approx((0, 366 / 365.25))
    assert times.source == "acq_time of sessions.tsv"
    assert not caplog.text


def test_a_date_counts_where_rows_differ_in_the_age_alone(tmp_path, caplog):
    rows = (("ses-a", "2000-01-01", "70"), ("ses-b", "2001-01-01", "71"), ("ses-b", "2001-01-01", "75"))
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", ("session_id", "acq_time", "age"), *rows)
    assert visit_times(tmp_path, "1", SCANS).years == pytest.approx((0, 366 / 365.25))
    assert "has 2 rows of b with another age" in caplog.text


def test_a_row_that_stands_twice_is_used(tmp_path):
    folder = tmp_path / "sub-1"
    write(folder / "sub-1_sessions.tsv", ("session_id", "age"), ("ses-a", "70"), ("ses-b", "72"), ("ses-b", "72"))
    assert visit_times(tmp_path, "1", SCANS).years == (0, 2)


def test_ages_of_participants_have_units_too(tmp_path):
    lines = (("sub-1", "ses-a", "480"), ("sub-1", "ses-b", "492"))
    write(tmp_path / "participants.tsv", ("participant_id", "session_id", "age"), *lines)
    (tmp_path / "participants.json").write_text('{"age": {"Units": "months"}}')
    assert visit_times(tmp_path, "1", SCANS).years == (0, 1)


def dates(root, **by_session):
    """Write when images were made into scans.tsv; sessions that are not named have none."""
    for session, date in by_session.items():
        path = root / "sub-1" / f"ses-{session}" / f"sub-1_ses-{session}_scans.tsv"
        write(path, ("filename", "acq_time"), (f"anat/sub-1_ses-{session}_T1w.nii.gz", date))


def test_the_source_that_knows_most_visits_counts(tmp_path):
    scans = [(name, f"sub-1/ses-{name}/anat/sub-1_ses-{name}_T1w.nii.gz") for name in "abc"]
    dates(tmp_path, a="2000-01-01", b="2001-01-01")
    rows = [(f"ses-{name}", str(age)) for name, age in zip("abc", (40, 41, 42), strict=True)]
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", ("session_id", "age"), *rows)
    found = visit_times(tmp_path, "1", scans)
    assert (found.years, found.source) == ((0, 1, 2), "age of sessions.tsv")
    dates(tmp_path, c="2003-01-01")
    assert visit_times(tmp_path, "1", scans).source == "acq_time of scans.tsv"


def test_dates_that_were_made_alike_give_way_to_times_that_differ(tmp_path):
    dates(tmp_path, a="1800-01-01T09:00:00", b="1800-01-01T15:00:00")
    assert visit_times(tmp_path, "1", SCANS).source == "acq_time of scans.tsv"
    sessions = tmp_path / "sub-1" / "sub-1_sessions.tsv"
    write(sessions, ("session_id", "age"), ("ses-a", "40"), ("ses-b", "40"))
    assert visit_times(tmp_path, "1", SCANS).source == "acq_time of scans.tsv"  # two scans of a day, it seems
    write(sessions, ("session_id", "age"), ("ses-a", "40"), ("ses-b", "42"))
    found = visit_times(tmp_path, "1", SCANS)
    assert (found.years, found.source) == ((0, 2), "age of sessions.tsv")


def test_runs_of_one_session_do_not_tell_sessions_apart(tmp_path):
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", ("session_id", "acq_time"), ("ses-a", "2000-01-01"))
    people = (("sub-1", "ses-a", "40"), ("sub-1", "ses-b", "43"))
    write(tmp_path / "participants.tsv", ("participant_id", "session_id", "age"), *people)
    scans = [("a", "run-1"), ("a", "run-2"), ("b", "x")]
    assert visit_times(tmp_path, "1", scans).source == "age of participants.tsv"


def test_a_damaged_table_is_said(tmp_path, caplog):
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", ("session_id", "acq_time"), ("ses-a",))
    assert visit_times(tmp_path, "1", SCANS).years == (None, None)
    assert "line 2 has 1 cells" in caplog.text


@pytest.mark.parametrize("name", ["participants.tsv", "sub-1/sub-1_sessions.tsv", "sub-1/ses-a/sub-1_ses-a_scans.tsv"])
def test_a_table_whose_content_was_not_fetched_is_told_of(tmp_path, caplog, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("gone")
    assert visit_times(tmp_path, "1", SCANS).source == ""
    assert f"{path}: a link whose target is not there (datalad get fetches it); it is not used" in caplog.text
