"""Pages from templates. Style and scripts are put into the page, so that it needs no other file."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medsegmamba_bids.data import data_path


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader([data_path("report"), data_path("evaluation")]),
        autoescape=lambda name: bool(name) and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["inline"] = inline
    environment.filters["thousands"] = thousands
    return environment


def render(name: str, /, **values: Any) -> str:
    """Return the text of a template of ``data/report`` or ``data/evaluation``; values are escaped in HTML."""
    return _environment().get_template(name).render(**values)


@lru_cache
def inline(name: str) -> Markup:
    """Return the text of a file of ``data/report`` as it is, for style and scripts of our own."""
    return Markup(data_path(f"report/{name}").read_text(encoding="utf-8"))


def to_script(data: Any) -> Markup:
    r"""Return JSON that can stand in a page's script, whatever its texts hold.

    Examples
    --------
    >>> str(to_script(["</script>"]))
    '["\\u003c/script>"]'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Only "<" could end the script; the two separators of lines are not allowed in older scripts.
    for character in ("<", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def thousands(value: float | None, decimals: int = 0) -> str:
    r"""Return a number with thin spaces between thousands; a dash where it is missing.

    Examples
    --------
    >>> thousands(1234567.4).replace("\u202f", " "), thousands(None), thousands(float("nan"))
    ('1 234 567', '–', '–')
    """
    if value is None or value != value:
        return "–"
    return f"{value:,.{decimals}f}".replace(",", "\u202f")
