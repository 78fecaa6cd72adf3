"""Charts of volumes over visits: where lines and dots lie, and what pages say of them."""

import json
import re

import pandas as pd
import pytest

import fake
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.image.io import write_text
from medsegmamba_bids.longitudinal.change import VisitTable, change_table, to_tsv
from medsegmamba_bids.report.group import write_group
from medsegmamba_bids.report.participant import write_report
from medsegmamba_bids.report.trajectories import FRAME, changes_between_visits, charts_of
from medsegmamba_bids.segmentations import ASEG

NAMES = {17: "Left-Hippocampus", 53: "Right-Hippocampus", 16: "Brain-Stem", 31: "Left-choroid-plexus"}
LEFT, RIGHT, TOP, BOTTOM = FRAME


def visit(session, years, *volumes):
    table = pd.DataFrame({"SegId": NAMES.keys(), "StructName": NAMES.values(), "Volume_mm3": volumes})
    table["MeanPosterior"] = 0.9
    return VisitTable(session, f"sub-01_ses-{session}_T1w", years, table, table)


VISITS = [
    visit("a", 0.0, 4000.0, 4000.0, 20000.0, 0.0),
    visit("b", 1.0, 3900.0, 4000.0, 20000.0, 0.0),
    visit("c", 4.0, 3600.0, 4400.0, 20000.0, 0.0),
]


def write_changes(root, visits, notes=(), subject="01"):
    path = root / output_name(f"sub-{subject}", ASEG.changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_tsv(change_table(visits)))
    write_text(path.with_suffix(".json"), json.dumps(fake.facts("aseg", notes=notes)))
    return path


def line(chart, side, way="together"):
    return next(entry for entry in chart["lines"] if (entry["side"], entry["way"]) == (side, way))


def test_dots_lie_in_time_and_percent():
    hippocampus, stem = charts_of(change_table(VISITS), ASEG)
    left, right = (line(hippocampus, side)["dots"] for side in ("left", "right"))
    assert [x for x, _ in left] == pytest.approx([LEFT, LEFT + (RIGHT - LEFT) / 4, RIGHT])
    # -10 and +10 % are the widest, and a fourth of that is a fourth of the height.
    down, up = left[2][1] - left[0][1], right[2][1] - right[0][1]
    assert down == pytest.approx(-up)
    assert left[1][1] - left[0][1] == pytest.approx(down / 4)
    assert all(TOP <= y <= BOTTOM for _, y in (*left, *right))
    assert {y for _, y in line(stem, "middle")["dots"]} == {(TOP + BOTTOM) / 2}
    assert [text for _, text in hippocampus["ticks"]] == ["-10", "0", "+10"]
    assert hippocampus["rows"][0] | {"annual": 0} == {
        "side": "left", "first": 4000, "last": 3600, "change": -400, "percent": -10, "annual": 0, "confidence": 0.9
    }  # fmt: skip


def test_without_all_times_visits_stand_one_by_one():
    visits = [VisitTable(v.session, v.scan, None if v.session == "b" else v.years, v.together, v.alone) for v in VISITS]
    dots = line(charts_of(change_table(visits), ASEG)[0], "left")["dots"]
    assert [x for x, _ in dots] == pytest.approx([LEFT, (LEFT + RIGHT) / 2, RIGHT])


def test_what_no_visit_has_is_left_out():
    assert [chart["name"] for chart in charts_of(change_table(VISITS), ASEG)] == ["Hippocampus", "Brain-Stem"]


def test_a_table_that_cannot_be_read_is_told(tmp_path):
    path = write_changes(tmp_path, VISITS)
    path.write_text("nothing\n")
    (shown,) = changes_between_visits(tmp_path, "01")
    assert not shown["charts"]
    assert shown["problems"][0].startswith(f"{path.name}: not a table of visits, it lacks the columns session_id")
    assert changes_between_visits(tmp_path, "02") == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Texts of the pages of a participant with visits, and of the group with one beside who has one only."""
    root = tmp_path_factory.mktemp("visits") / "out"
    labels, _ = fake.blob_labels(48, 0.35)
    for prefix in ("sub-01_ses-a", "sub-01_ses-b", "sub-01_ses-c", "sub-02"):
        fake.write_table(root, prefix, "aseg", labels, fake.blob_t1w(labels))
    write_changes(root, VISITS, ["ses-b was <scanned> in another way"])
    write_text(root / "participants.tsv", "participant_id\tgroup\nsub-01\tpatient\nsub-02\tcontrol\n")
    page = write_report(root, "01").read_text(encoding="utf-8")
    write_group(RunConfig(root.parent / "bids", root, "group"))
    return page, (root / "group.html").read_text(encoding="utf-8")


def test_a_participants_page_shows_the_visits(pages):
    page, _ = pages
    assert page.count('<figure class="trajectory">') == 2
    assert "ses-b was &lt;scanned&gt; in another way" in page
    assert "from ses-a to ses-c, 4.00 years" in page
    assert page.count("<circle") == 3 * 3  # both hippocampi and the stem, three visits
    # Symmetrised, a year: -400 mm3 of 3800 in 4 years.
    assert "−2.63" in page.replace("-2.63", "−2.63")


def test_the_groups_page_has_lines_of_participants(pages):
    _, page = pages
    data = json.loads(re.search(r"const DATA = (.*);", page)[1])
    (person,) = data["segmentations"][0]["visits"]["people"]
    assert [data["scans"][number]["name"] for number in person["scans"]] == [f"sub-01_ses-{s}" for s in "abc"]
    assert person["years"] == [0, 1, 4]
    assert person["volumes"]["Left-Hippocampus"] == [4000, 3900, 3600]
    group = next(column for column in data["columns"] if column["name"] == "group")
    assert group["levels"][group["values"][person["scans"][0]]] == "patient"
    assert 'id="chart-visits"' in page
