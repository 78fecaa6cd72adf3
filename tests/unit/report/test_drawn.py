"""Pictures that are drawn ahead of a report: the page is the same, and they are what it shows."""

import json
import re

import pytest

import fake
from medsegmamba_bids.execution.run import Result
from medsegmamba_bids.report.derivatives import Scan
from medsegmamba_bids.report.drawn import draw_from_files, load_pictures
from medsegmamba_bids.report.participant import write_report
from medsegmamba_bids.report.viewer import viewer_path
from medsegmamba_bids.segmentations import SEGMENTATIONS


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """An output folder, and the file of pictures of its one T1w."""
    root = tmp_path_factory.mktemp("out")
    fake.write_blob_scan(root, "sub-01", side=72, scale=0.6)
    scan = Scan(root, "sub-01")
    labels, entropies = (
        {kind.name: scan.path(getattr(kind, product)) for kind in SEGMENTATIONS} for product in ("conformed", "entropy")
    )
    files = (scan.path("conformed"), labels, entropies, scan.path("conformed_mask"))
    folder = tmp_path_factory.mktemp("drawn")
    return root, draw_from_files("sub-01", *files, 1, folder)[0]


def page(root, *files, viewers=()):
    """The page without the time at which it was written."""
    return without_times(write_report(root, "01", drawn=files, viewers=viewers))


def without_times(path):
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", path.read_text(encoding="utf-8"))


def test_a_viewer_made_ahead_is_the_same(drawn, monkeypatch):
    """And nothing is read for drawing where all is drawn."""
    root, pictures = drawn
    path = viewer_path(Scan(root, "sub-01"))
    alone = page(root)
    made_by_report = without_times(path)
    path.unlink()
    ahead = pictures.with_name(path.name)
    read = []
    image = Scan.image
    monkeypatch.setattr(Scan, "image", lambda scan, name: read.append(name) or image(scan, name))
    assert page(root, pictures, viewers=[ahead]) == alone
    assert without_times(path) == made_by_report == without_times(ahead)
    assert read == ["conformed_aseg", "conformed_hippocampus", "mask"]


def test_the_page_is_the_same_and_shows_them(drawn, tmp_path):
    root, file = drawn
    assert page(root) == page(root, file)
    entries = json.loads(file.read_text())
    entries["pictures"]["planes"][0]["base"] = "data:image/webp;base64,REPLACED"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(entries))
    assert "base64,REPLACED" in page(root, changed)
    changed.write_text(json.dumps({**entries, "scans": 5}))  # for a page of smaller pictures
    assert "base64,REPLACED" not in page(root, changed)


def test_what_is_kept_is_what_was_drawn(drawn):
    _, file = drawn
    pictures = load_pictures([file], 1)["sub-01"]
    assert pictures.thumbnail.startswith(b"\xff\xd8\xff")  # a JPEG file
    assert len(pictures.planes) == 3
    assert load_pictures([file], 2) == {}


def test_a_drawing_that_fails_is_the_reports_failure():
    crash = {"medsegmamba_wf.sub_01_wf.T1w_sub_01_wf.draw": "MemoryError"}
    assert Result(crash).of_report("01") == "MemoryError"
    assert Result(crash).of_report("02") == ""
    image = type("Image", (), {"subject": "01", "node_name": "T1w_sub_01_wf"})
    assert Result(crash).of_image(image) == {}
