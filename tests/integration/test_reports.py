"""Both pages in a real browser: nothing is asked of the network, no error is logged, and pictures are drawn."""

import json
import re
import shutil
import subprocess

import pytest

import fake
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.report.group import write_group
from medsegmamba_bids.report.participant import write_report
from medsegmamba_bids.stats.tables import read_tsv

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--window-size=1300,2400", "--virtual-time-budget=5000", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
)  # fmt: skip
# Runs after the page's own scripts and leaves what it saw in an attribute of the document.
PROBE = """
<script>
window.addEventListener("load", () => setTimeout(async () => {
  const decoded = Promise.allSettled([...document.images].map((image) => image.decode()));
  await Promise.race([decoded, new Promise((resolve) => setTimeout(resolve, 2000))]);
  const painted = (canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let i = 0; i < pixels.length; i += 4)
      if (pixels[i + 3] > 100) colours.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
    return colours.size;
  };
  const seen = {
    images: [...document.images].map((image) => [image.alt, image.naturalWidth, image.naturalHeight]),
    canvases: [...document.querySelectorAll("canvas")].map(painted),
    width: document.documentElement.scrollWidth - innerWidth,
    requests: performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
  };
  ACTIONS
  document.documentElement.dataset.seen = JSON.stringify(seen);
}, 1500));
</script>
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Results of ten participants; one has reports, and one has a volume that is far off."""
    root = tmp_path_factory.mktemp("pages") / "out"
    fake.write_description(root)
    fake.write_blob_scan(root, "sub-01", side=112)
    rows = read_tsv(root / output_name("sub-01", "aseg_stats"))
    thalamus = rows["SegId"] == 10
    for number in range(2, 11):
        rows.loc[thalamus, "Volume_mm3"] = 700 if number == 10 else 2100 + 20 * number
        fake.write_rows(root, f"sub-{number:02d}", "aseg", rows, [])
    rows = ["participant_id\tage\tsex", *(f"sub-{n:02d}\t{20 + 5 * n}\t{'FM'[n % 2]}" for n in range(1, 13))]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    (root / "sub-02.html").touch()
    write_report(root, "01")
    (root / "sub-02.html").unlink()
    assert write_group(RunConfig(root / "nowhere", root, "group")) == 0
    return root


def open_page(path, folder, actions=""):
    """What the probe saw in a page, and what the browser logged of it."""
    copy = path.with_name(f"probed-{path.name}")
    probe = PROBE.replace("ACTIONS", actions)
    # The last one: the page's own text could hold the tag as well.
    copy.write_text(probe.join(path.read_text(encoding="utf-8").rsplit("</body>", 1)) + "</body>", encoding="utf-8")
    log = folder / "net.json"
    command = [BROWSER, *OPTIONS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", copy.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    copy.unlink()
    match = re.search(r'data-seen="([^"]*)"', finished.stdout)
    assert match, finished.stderr[-2000:]
    # The browser asks for updates of its own; what a page asks for belongs to its origin, file://.
    lines = [line for line in log.read_text(errors="replace").splitlines() if '"network_isolation_key":"file:' in line]
    asked = set(re.findall(r'"url":"(https?:[^"]+)"', "\n".join(lines)))
    console = [line for line in finished.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(match[1].replace("&quot;", '"').replace("&amp;", "&")), console, asked


def test_a_request_and_an_error_would_be_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<body><img src="http://example.invalid/x.png"><script>missing()</script></body>')
    seen, console, asked = open_page(page, tmp_path)
    assert asked == {"http://example.invalid/x.png"}
    assert "missing is not defined" in "".join(console)
    assert seen["images"] == [["", 0, 0]]


def test_participant(out, tmp_path):
    actions = """
      const style = (selector, what) => getComputedStyle(document.querySelector(selector))[what];
      const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      press("u");
      seen.entropy = style("i.entropy", "visibility");
      press("o");
      seen.outlines = style("svg.outlines", "visibility");
      press("o");
      [...document.querySelectorAll(".legend button")].find((one) => one.textContent.trim() === "Putamen").click();
      seen.isolated = [".tile .s12", ".tile .s11"].map((one) => style(one, "opacity"));
      press("2");
      seen.rating = RATINGS.all()["sub-01_T1w"].rating;
      const first = document.querySelector("button.tile");
      const wide = () => document.querySelector(".stage .tile").getBoundingClientRect().width;
      first.click();
      seen.enlarged = document.querySelector("dialog").open;
      const before = wide();
      press("+");
      seen.zoomed = wide() / before;
      const label = () => document.querySelector("dialog p").textContent, one = label();
      press("0");
      press("ArrowRight");
      seen.turned = label() !== one;
      seen.pictures = document.querySelectorAll("button.tile:not(.solid)").length;
      seen.next = document.querySelector("a[rel=next]").getAttribute("href");
    """
    seen, console, asked = open_page(out / "sub-01.html", tmp_path, actions)
    assert console == []
    assert asked == set()
    assert seen["requests"] == []
    assert len(seen["images"]) == 5  # three views and two of the subfields
    assert all(width > 100 and height > 50 for _, width, height in seen["images"])
    assert (seen["entropy"], seen["outlines"], seen["enlarged"]) == ("visible", "hidden", True)
    assert seen["isolated"] == ["1", "0.06"]
    assert seen["zoomed"] == pytest.approx(1.5, abs=0.01)
    assert seen["turned"]
    assert seen["pictures"] >= 3 * 8 + 4 * 6
    assert (seen["rating"], seen["next"]) == ("maybe", "sub-02.html")
    assert seen["width"] <= 0


def test_viewer(out, tmp_path):
    actions = """
      const where = () => document.getElementById("where").textContent, canvas = document.querySelector("canvas");
      seen.start = where();
      canvas.focus();
      for (const key of ["PageUp", "e"]) canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      const only = document.getElementById("only");
      only.value = [...only.options].find((one) => one.text === "Right-Putamen").value;
      only.dispatchEvent(new Event("change"));
      seen.scale = document.getElementById("scale").textContent;
    """
    seen, console, asked = open_page(next(out.glob("sub-01/figures/*viewer*.html")), tmp_path, actions)
    assert console == []
    assert asked == set()
    assert seen["start"].startswith("Left-Hippocampus")
    assert min(seen["canvases"]) > 20
    assert seen["scale"] == "1 bit2 bit and more"
    assert seen["width"] <= 0


def test_group(out, tmp_path):
    actions = """
      const chart = document.querySelector("#chart-all canvas"), box = chart.getBoundingClientRect();
      const outlier = DATA.segmentations[0].structures.find((one) => one.outliers.length);
      const row = DATA.segmentations[0].structures.indexOf(outlier);
      const y = box.top + 24 + 19 * (row + .5);
      seen.outlier = [outlier.name, outlier.outliers.map((i) => DATA.scans[i].name)];
      for (let x = 220; x < box.width && getComputedStyle(document.getElementById("tip")).display === "none"; x += 4)
        chart.dispatchEvent(new MouseEvent("mousemove", { clientX: box.left + x, clientY: y }));
      seen.tip = document.getElementById("tip").textContent;
      seen.links = [...document.querySelectorAll("#tiles a[href]")].map((link) => link.getAttribute("href"));
      seen.tiles = document.querySelectorAll("#tiles a").length;
      const colour = document.getElementById("colour");
      seen.colours = [...colour.options].map((option) => option.text);
      colour.value = 1;
      colour.dispatchEvent(new Event("change"));
      seen.key = document.querySelector("[data-key]").textContent;
      seen.looks = document.querySelector("#looks").textContent;
    """
    seen, console, asked = open_page(out / "group.html", tmp_path, actions)
    assert console == []
    assert asked == set()
    assert seen["requests"] == []
    assert seen["images"] == [["", *seen["images"][0][1:]]]
    assert seen["images"][0][1] > 150
    # The lower canvases hold dots and text; those above are empty until a dot is pointed at.
    assert min(seen["canvases"][0], seen["canvases"][2]) > 20
    assert seen["outlier"] == ["Left-Thalamus", ["sub-10"]]
    assert re.match(r"sub-\d\dLeft-Thalamus: .* mm³, z = .*age: \d+", seen["tip"])
    assert seen["tiles"] == 10
    assert seen["links"] == ["sub-01.html#sub-01"]
    assert seen["colours"] == ["nothing", "age", "sex"]
    assert seen["key"] == "FMoutlier"
    assert "sub-10" in seen["looks"]
    assert seen["width"] <= 0
