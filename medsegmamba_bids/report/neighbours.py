"""The links of a participant's page to those of the participants before and after: set anew when others appear."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from medsegmamba_bids.image.io import write_text

_PLACE = re.compile(r'(<span class="neighbours">)(.*?)(</span>)', re.DOTALL)
_HEAD = 1 << 17  # bytes of a page in which its links lie; the rest are pictures


def page_of(output_dir: Path, subject: str) -> Path:
    """Return where a participant's page lies."""
    return output_dir / f"sub-{subject}.html"


def subjects_with_pages(output_dir: Path) -> list[str]:
    """Return participants who have a page, without ``sub-``, in order."""
    return sorted(path.stem.removeprefix("sub-") for path in output_dir.glob("sub-*.html"))


def neighbour_links(subject: str, subjects: Iterable[str]) -> Markup:
    """Return links to the pages before and after a participant's.

    Parameters
    ----------
    subject : str
        Without ``sub-``.
    subjects : iterable of str
        Who else has a page.

    Examples
    --------
    >>> print(neighbour_links("02", ["01"]))
    <a rel="prev" href="sub-01.html" title="sub-01, the prev participant">← sub-01</a>
    """
    order = sorted({*subjects, subject})
    place = order.index(subject)
    links = [("prev", order[place - 1 : place], "←"), ("next", order[place + 1 : place + 2], "→")]
    form = Markup('<a rel="{0}" href="sub-{1}.html" title="sub-{1}, the {0} participant">{2} sub-{1}</a>')
    return Markup(" ").join(form.format(rel, name, arrow) for rel, names, arrow in links for name in names)


def beside(chosen: Iterable[str], subjects: list[str]) -> list[str]:
    """Return chosen participants and those next to them, of an ordered list.

    Examples
    --------
    >>> beside(["03"], ["01", "02", "03", "04"])
    ['02', '03', '04']
    """
    places = {subjects.index(subject) for subject in chosen if subject in subjects}
    wanted = {place + step for place in places for step in (-1, 0, 1)}
    return [subject for place, subject in enumerate(subjects) if place in wanted]


def has_links(output_dir: Path, subject: str, links: Markup) -> bool:
    """Return whether a page has these links already, or no place for links."""
    with page_of(output_dir, subject).open("rb") as file:
        head = file.read(_HEAD).decode("utf-8", "replace")
    place = _PLACE.search(head)
    return place is None or place[2] == links


def set_links(output_dir: Path, subject: str, links: Markup) -> None:
    """Put links into a page in place of those that it has."""
    path = page_of(output_dir, subject)
    text = path.read_text(encoding="utf-8")
    write_text(path, _PLACE.sub(lambda place: f"{place[1]}{links}{place[3]}", text, count=1))
