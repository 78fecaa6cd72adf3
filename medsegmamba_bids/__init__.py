"""MedSegMamba as a BIDS App: subcortical and hippocampal-subfield segmentation of T1w images.

The names below are imported when they are first used, so that ``import medsegmamba_bids`` itself costs nothing:

>>> import medsegmamba_bids as msm
>>> found = msm.segment("T1w.nii.gz", hippocampus=True)  # doctest: +SKIP
>>> found.volumes.set_index("StructName")["Volume_mm3"]  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsegmamba_bids.api import (
        InferenceSettings,
        SegmentedImage,
        Segmenter,
        compare,
        load_image,
        segment,
        statistics,
    )

__version__ = "0.1.0"
__all__ = [
    "InferenceSettings",
    "SegmentedImage",
    "Segmenter",
    "__version__",
    "compare",
    "load_image",
    "segment",
    "statistics",
]


def __getattr__(name: str) -> Any:
    """Import what a program calls when it is first named (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("medsegmamba_bids.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Also list what is not imported yet."""
    return sorted({*globals(), *__all__})
