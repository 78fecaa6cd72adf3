"""A participant's report: what it shows, what it says of files that are damaged, and that it needs no other file."""

import base64
import gzip
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

import fake
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.errors import ReportError
from medsegmamba_bids.report.derivatives import Scan, scans_of, viewer_commands
from medsegmamba_bids.report.methods import citation_text, references
from medsegmamba_bids.report.participant import read_results, write_report
from medsegmamba_bids.report.quality import flags_path, read_flags
from medsegmamba_bids.report.viewer import viewer_path
from medsegmamba_bids.viz.templates import render

PREFIX = "sub-01_ses-a_run-2"
NOTE = "its voxels are <3> mm"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Output folder of a participant with a report, and the page's text."""
    root = tmp_path_factory.mktemp("out")
    fake.write_blob_scan(root, PREFIX, side=96, scale=0.7, notes=(NOTE,))
    path = write_report(root, "01")
    return root, path, path.read_text(encoding="utf-8")


def test_page(written):
    root, path, page = written
    assert path == root / "sub-01.html"
    assert path.stat().st_size < 8e6
    assert f"{PREFIX}_T1w</h2>" in page
    assert "its voxels are &lt;3&gt; mm" in page  # escaped
    assert fake.facts("aseg")["Steps"][1]["Weights"]["Checksum"] in page
    assert "Subfields are atlas-propagated." in page
    assert all(reference["text"].split("(")[0] in page.replace("&amp;", "&") for reference in references())
    # Three planes and four close-ups hold a picture and the entropy; the rest is three-dimensional.
    assert page.count("--base:url(data:image/webp") == page.count("--entropy:url(data:image/webp") == 7
    assert page.count('<svg class="outlines"') == page.count('<i class="base">') >= 3 * 8 + 4 * 6
    assert len(re.findall(r'<img src="data:image/webp', page)) == 3 + 2


def test_each_table_says_what_its_volumes_are(written):
    """The JSON beside it does: here that volumes of subfields are sums of posteriors, which soft volumes are too."""
    root, _, page = written
    tables = page.split("<h2>")[1:]
    for name, title, start in (
        ("aseg", "Subcortical structures", "Volume corrected for partial volume at borders, as FreeSurfer"),
        ("hippoFS60", "Hippocampal subfields", "Sum of the posterior probabilities times the voxel volume, as Free"),
    ):
        told = scans_of(root, "01")[0].sidecar(name)["Volume_mm3"]["Description"]
        assert told.startswith(start)
        below = next(part for part in tables if part.startswith(f"{title}: volumes"))
        assert f"Left and right mm³: {told}. Soft volumes are" in html.unescape(below)
    assert "Volumes are corrected" not in page


def test_a_table_without_a_json_says_nothing_of_its_volumes(tmp_path):
    fake.write_blob_scan(tmp_path, "sub-01", side=64, scale=0.4)
    for task, text in (("aseg", '{"Volume_mm3": "damaged"}'), ("hippocampus", "{}")):
        (tmp_path / output_name("sub-01", f"{task}_stats", ".json")).write_text(text)
    page = write_report(tmp_path, "01").read_text(encoding="utf-8")
    assert "Left and right mm³" not in page
    assert page.count("Soft volumes are sums of posterior probabilities.") == 2


def test_commands_to_look_at_an_image_are_left_out_where_its_folder_cannot_be_read(tmp_path, monkeypatch):
    scan = Scan(tmp_path, "sub-01")
    for name in ("conformed", "conformed_aseg"):
        scan.path(name).parent.mkdir(parents=True, exist_ok=True)
        scan.path(name).touch()
    folder = Path("my out")
    labels = folder / output_name("sub-01", "conformed_aseg")
    assert viewer_commands(scan, folder)["ITK-SNAP"].endswith(f" -s '{labels}'")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert viewer_commands(scan, folder) == {}


def test_viewer(written):
    root, _, page = written
    path = viewer_path(scans_of(root, "01")[0])
    assert f'href="{path.relative_to(root).as_posix()}"' in page
    text = path.read_text(encoding="utf-8")
    assert len(text) < 8e6
    data = json.loads(re.search(r"const DATA = (.*);", text)[1])
    packed = dict(re.findall(r'id="volume-(\w+)">([^<]*)<', text))
    volumes = {
        name: np.cumsum(np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8), dtype=np.uint8)
        .reshape(data["shape"], order="F")
        for name, text in packed.items()
    }  # fmt: skip
    assert volumes.keys() == {"t1w", "aseg", "hippoFS60", "entropy"}
    labels = scans_of(root, "01")[0].image("conformed_aseg")
    left = next(one for one in data["layers"][0]["structures"] if one["name"] == "Left-Putamen")
    own = np.asarray(labels.dataobj) == 12
    assert (volumes["aseg"] == left["index"]).sum() == own.sum()
    # Its middle, in mm, is a voxel of the putamen.
    mm = np.array(data["origin"]) + np.array(left["middle"]) * data["zooms"]
    voxel = np.rint(np.linalg.inv(labels.affine) @ [*mm, 1])[:3].astype(int)
    assert own[tuple(voxel)]


def test_files_are_linked_and_opened_by_commands(written):
    root, _, page = written
    for href in re.findall(r'<li><a href="([^"]+)"', page):
        assert (root / href).is_file(), href
    assert f"freeview -v sub-01/ses-a/anat/{PREFIX}_space-conform_desc-preproc_T1w.nii.gz" in page
    assert f"itksnap -g sub-01/ses-a/anat/{PREFIX}_space-conform_desc-preproc_T1w.nii.gz -s " in page


def test_page_needs_nothing_else(written):
    _, _, page = written
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', page)
    assert sources
    assert all(one.startswith(("data:", "#", "sub-01/")) for one in sources)  # links, not loaded
    assert "@import" not in page
    assert all(target.startswith(("data:image/", "var(")) for target in re.findall(r"url\(([^)]{0,20})", page))
    assert "://" not in re.sub(r"<p[ >].*?</p>|<div class=.note.*?</div>", "", page)


def test_flags_are_written_and_shown(written):
    root, _, page = written
    flags = read_flags(root, "01")
    assert set(flags["scan"]) == {PREFIX}
    small = flags[(flags["check"] == "volume") & (flags["structure"] == "Left-Caudate")]
    table = scans_of(root, "01")[0].table("aseg").set_index("StructName")
    assert small["value"].tolist() == pytest.approx([table.loc["Left-Caudate", "Volume_mm3"]], rel=1e-4)
    assert f"{len(flags)} quality flags</span>" in page
    assert page.count('<tr class="flagged"><td><code>') == len(flags)
    sidecar = json.loads(flags_path(root, "01").with_suffix(".json").read_text())
    assert sidecar["Thresholds"]["checks"]["volume"]["unit"] == "mm3"


def test_pictures_for_the_group(written):
    root, _, _ = written
    picture = root / "sub-01" / "figures" / f"{PREFIX}_desc-thumbnail_T1w.jpg"
    assert picture.read_bytes()[:3] == b"\xff\xd8\xff"


def test_a_scan_is_found_once(written):
    root, _, _ = written
    assert [scan.prefix for scan in scans_of(root, "01")] == [PREFIX]


def test_damaged_and_absent_files_are_named(tmp_path):
    fake.write_description(tmp_path)
    folder = tmp_path / Path(output_name("sub-02", "aseg_stats")).parent
    folder.mkdir(parents=True)
    (tmp_path / output_name("sub-02", "aseg_stats")).write_text("nothing\n1\n")
    (tmp_path / output_name("sub-02", "conformed")).write_bytes(b"no image")
    problems = read_results(scans_of(tmp_path, "02")[0]).problems
    assert len(problems) == 3
    assert problems[0].startswith(f"{output_name('sub-02', 'conformed')}: the compressed file is corrupt")
    assert "not a volume table" in problems[1]
    assert problems[2].startswith("there is no table of volumes")
    page = write_report(tmp_path, "02").read_text(encoding="utf-8")
    assert page.count('class="note bad"') == 3
    assert "The conformed T1w is not there" in page
    assert read_flags(tmp_path, "02").empty


def test_refuses_a_participant_without_results(tmp_path):
    with pytest.raises(ReportError, match="sub-09: there are no results to report"):
        write_report(tmp_path, "09")


def test_methods_name_the_template():
    text = render("methods.md.jinja", aseg=None, hippocampus=None, template="MNI305", cerebrum=True, version="9")
    assert "medsegmamba_bids 9" in text
    assert "to MNI305." in text
    assert "and cerebral tissue" in text
    assert "ippocampal" not in text
    assert all(reference["text"] in citation_text() for reference in references())


def test_what_is_pressed_is_not_printed(written):
    """The page's own rules come after the common ones, and would show the controls again at the same weight."""
    style = re.search(r"<style>(.*?)</style>", written[2], re.DOTALL)[1]
    shown, hidden = style.index(".controls { display: flex"), style.index("body .controls, ")
    assert hidden < shown
    assert "display: none" in style[hidden : style.index("}", hidden)]
    assert "break-inside: avoid-page" not in style  # a panel is longer than a sheet
