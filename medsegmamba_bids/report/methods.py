"""Text for the methods section, with its references: ready to be pasted."""

from __future__ import annotations

import json
from functools import lru_cache

from medsegmamba_bids import __version__
from medsegmamba_bids.data import data_path
from medsegmamba_bids.report.provenance import Weights
from medsegmamba_bids.viz.templates import render


@lru_cache
def references() -> tuple[dict[str, str], ...]:
    """Return what to cite: ``key``, ``for`` (what it stands for) and ``text``."""
    return tuple(json.loads(data_path("report/references.json").read_text(encoding="utf-8")))


def methods_text(
    aseg: Weights | None = None,
    hippocampus: Weights | None = None,
    template: str = "",
    cerebrum: bool = False,
    version: str = __version__,
) -> str:
    """Return a paragraph that says what was done.

    Parameters
    ----------
    aseg, hippocampus : Weights, optional
        Without subfields ``hippocampus`` is None.
    template : str
        What was registered to.
    cerebrum : bool
        Whether cortex and cerebral white matter were segmented.
    version : str
        Of this package.
    """
    return render(
        "methods.md.jinja",
        aseg=aseg,
        hippocampus=hippocampus,
        template=template,
        cerebrum=cerebrum,
        version=version,
    ).strip()


def citation_text() -> str:
    """Return the content of ``logs/CITATION.md``: the methods of a run with any weights, and what to cite.

    Examples
    --------
    >>> citation_text().splitlines()[0]
    '# How this was made'
    """
    lines = ["# How this was made", "", methods_text(hippocampus=Weights()), ""]
    lines += [
        "Hippocampal subfields are there only where weights for them were used. The weights, with their checksums,"
    ]
    lines += ["are named in the JSON file beside each result.", "", "# What to cite", ""]
    lines += [f"- {entry['text']} ({entry['for']})" for entry in references()]
    return "\n".join(lines) + "\n"
