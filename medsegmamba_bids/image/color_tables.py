"""Colour tables of labels, as FreeSurfer, ITK-SNAP and 3D Slicer read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from medsegmamba_bids.image.labels import LabelTable

_SNAP_COLUMNS = "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"


def to_freesurfer(table: LabelTable) -> str:
    """Return a table in the form of ``FreeSurferColorLUT.txt``: number, name, R G B (0..255) and transparency.

    Examples
    --------
    >>> from medsegmamba_bids.image.labels import load_label_table
    >>> to_freesurfer(load_label_table("aseg")).splitlines()[2].split()
    ['4', 'Left-Lateral-Ventricle', '120', '18', '134', '0']
    """
    head = "#No.  Label-Name                          R   G   B   A\n"
    return head + "".join(
        f"{label:<5d} {name:<34s} {r:3d} {g:3d} {b:3d}   0\n" for label, name, (r, g, b) in _rows(table)
    )


def to_itksnap(table: LabelTable) -> str:
    """Return a table as ITK-SNAP's label descriptions: number, R G B, opacity (0..1), shown, shown in 3D, name.

    Number 0 is ITK-SNAP's own, its "Clear Label", which is not drawn.
    """
    head = f"# ITK-SnAP Label Description File\n{_SNAP_COLUMNS}\n"
    lines = []
    for label, name, (r, g, b) in _rows(table):
        seen, title = (1, name) if label else (0, "Clear Label")
        lines.append(f'{label:5d} {r:5d} {g:4d} {b:4d} {seen:8d} {seen:2d} {seen:2d}    "{title}"\n')
    return head + "".join(lines)


def to_slicer(table: LabelTable) -> str:
    """Return a table as 3D Slicer's: number, name without spaces, R G B and opacity (0..255); 0 is transparent."""
    rows = list(_rows(table))
    head = f"# Color table file\n# {len(rows)} values\n"
    return head + "".join(
        f"{label} {name.replace(' ', '_')} {r} {g} {b} {255 if label else 0}\n" for label, name, (r, g, b) in rows
    )


#: Ending of a table's file at the root of the results -> its form.
COLOR_TABLES: dict[str, Callable[[LabelTable], str]] = {
    "_LUT.txt": to_freesurfer,
    ".label": to_itksnap,
    ".ctbl": to_slicer,
}


def _rows(table: LabelTable) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Yield number, name and colour (0..255) of all labels, by number."""
    ordered = table.table.sort_values("label")
    for label, name, color in zip(ordered["label"], ordered["name"], ordered["color"], strict=True):
        yield int(label), name, tuple(bytes.fromhex(color.removeprefix("#")))
