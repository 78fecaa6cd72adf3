"""Colours of labels, and pictures as text that a page can hold."""

from __future__ import annotations

import base64
import io
from functools import lru_cache

import numpy as np
from PIL import Image

from medsegmamba_bids.image.labels import load_label_table, side_of

#: Dashes of outlines, in units of the line's width: what tells structures apart whose colours look alike.
DASHES = ("", "5 2.5", "1.2 1.8", "7 2 1.2 2", "3 1.5")
#: How red, green and blue (linear) look without one kind of cones: Machado, Oliveira and Fernandes 2009 (IEEE
#: Transactions on Visualization and Computer Graphics 15:1291), severity 1.
COLOUR_BLINDNESS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue (sRGB, IEC 61966-2-1)
_LEAST_LUMINANCE = 0.12  # of outlines, white being 1: more than three times as bright as black by WCAG's contrast
_ALIKE = 12.0  # difference of colours in CIE L*a*b*, below which thin lines look alike


def colors_of(table: str, without: tuple[int, ...] = ()) -> dict[int, str]:
    """Return the colour of each label of a label table but the background, as #rrggbb."""
    rows = load_label_table(table).table.iloc[1:]
    return {
        int(label): color for label, color in zip(rows["label"], rows["color"], strict=True) if label not in without
    }


@lru_cache
def line_colors_of(table: str) -> dict[int, str]:
    """Return the colour of each label's outline: that of its table, lighter where it would be lost on a dark image."""
    return {label: not_too_dark(color) for label, color in colors_of(table).items()}


def not_too_dark(color: str) -> str:
    """Return a colour mixed with as much white as it needs to be seen as a thin line on black.

    Examples
    --------
    >>> not_too_dark("#3c3c3c"), not_too_dark("#ffff00")
    ('#616161', '#ffff00')
    """
    linear = _linear(np.array([[int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]]))[0]
    luminance = float(linear @ _LUMINANCE)
    white = max(0.0, (_LEAST_LUMINANCE - luminance) / (1 - luminance)) if luminance < 1 else 0.0
    mixed = np.rint(255 * _encoded(linear + white * (1 - linear))).astype(int)
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _linear(encoded: np.ndarray) -> np.ndarray:
    """Return linear light of sRGB values, 0 to 1."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def _encoded(linear: np.ndarray) -> np.ndarray:
    """Return sRGB values of linear light, 0 to 1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def svg_uri(text: str) -> str:
    """Return a data URI of a drawing in SVG."""
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def to_uri(picture: np.ndarray, quality: int = 82) -> str:
    """Return a data URI of a picture uint8 (H, W) or (H, W, 3 or 4), WebP."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


@lru_cache
def dashes_of(table: str) -> dict[int, str]:
    """Return the dashes (SVG) of each label of a label table: those whose colours look alike, to the colour-blind too,
    have different ones, as far as there are enough. Both sides of a structure have the same.
    """
    names = dict(zip(load_label_table(table).labels.tolist(), load_label_table(table).names, strict=True))
    labels: dict[str, list[int]] = {}
    for label in line_colors_of(table):
        labels.setdefault(side_of(names[label])[1], []).append(label)
    colors = [line_colors_of(table)[same[0]] for same in labels.values()]
    alike = color_differences(colors) < _ALIKE
    chosen: list[int] = []
    for number in range(len(colors)):
        taken = [chosen[other] for other in range(number) if alike[number, other]]
        chosen.append(min(range(len(DASHES)), key=lambda one, taken=taken: (taken.count(one), one)))
    return {label: DASHES[one] for one, same in zip(chosen, labels.values(), strict=True) for label in same}


def color_differences(colors: list[str]) -> np.ndarray:
    """Return how far colours are apart for whoever sees them worst, in CIE L*a*b*; (N, N).

    Examples
    --------
    >>> color_differences(["#ff0000", "#4d7b00"])[0, 1] < 40 < color_differences(["#0000ff", "#ffff00"])[0, 1]
    np.True_
    """
    from matplotlib.colors import to_rgb
    from skimage.color import rgb2lab

    encoded = np.array([to_rgb(color) for color in colors])
    linear = _linear(encoded)
    apart = []
    for matrix in (np.eye(3), *map(np.array, COLOUR_BLINDNESS.values())):
        seen = _encoded(np.clip(linear @ matrix.T, 0, 1))
        lab = rgb2lab(seen[None])[0]
        apart.append(np.linalg.norm(lab[:, None] - lab[None], axis=-1))
    return np.min(apart, axis=0)
