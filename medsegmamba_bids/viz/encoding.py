"""Colours of labels, and pictures as text that a page can hold."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from medsegmamba_bids.image.labels import load_label_table


def colors_of(table: str, without: tuple[int, ...] = ()) -> dict[int, str]:
    """Return the colour of each label of a label table but the background, as #rrggbb."""
    rows = load_label_table(table).table.iloc[1:]
    return {
        int(label): color for label, color in zip(rows["label"], rows["color"], strict=True) if label not in without
    }


def svg_uri(text: str) -> str:
    """Return a data URI of a drawing in SVG."""
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def to_uri(picture: np.ndarray, quality: int = 82) -> str:
    """Return a data URI of a picture uint8 (H, W, 3 or 4), WebP."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
