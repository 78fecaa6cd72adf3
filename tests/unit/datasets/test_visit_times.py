"""When visits were, from whatever says it."""

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


def test_a_damaged_table_is_said(tmp_path, caplog):
    write(tmp_path / "sub-1" / "sub-1_sessions.tsv", ("session_id", "acq_time"), ("ses-a",))
    assert visit_times(tmp_path, "1", SCANS).years == (None, None)
    assert "line 2 has 1 cells" in caplog.text
