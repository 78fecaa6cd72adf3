"""Where the head and the brain are: thresholds, components, boxes. Masks in, masks out."""

from __future__ import annotations

import numpy as np

from medsegmamba_bids.image.components import largest_component

# More than any brain (the largest are below 2 litres), less than the head of a child.
_LARGEST_BRAIN_MM3 = 2.3e6


def looks_whole(data: np.ndarray, voxel_mm3: float = 1.0) -> bool:
    """Return whether an image shows more than a brain: are more voxels above zero than a brain can have?

    Parameters
    ----------
    data : (X, Y, Z)
    voxel_mm3 : float
        Volume of a voxel, mm3.
    """
    return np.count_nonzero(data) * voxel_mm3 > _LARGEST_BRAIN_MM3


def head_mask(data: np.ndarray) -> np.ndarray:
    """Return the head without the noise around it: bool (X, Y, Z).

    The largest component above half of Otsu's threshold (IEEE Trans. SMC 9:62, 1979) of the
    non-zero voxels. Holes stay; an image without contrast is all or nothing.
    """
    values = data[data > 0]
    if not values.size:
        return np.zeros(data.shape, bool)
    return largest_component(data > otsu_threshold(values) / 2)


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """Return the threshold that separates values into two classes of least variance within (Otsu 1979).

    Own code, since SimpleITK takes 3.5 times as long and has an edge of a histogram's bin, not the middle between two
    clusters.

    Examples
    --------
    >>> 1 < otsu_threshold(np.array([0.0, 1, 1, 9, 10, 10])) < 9
    True
    """
    counts, edges = np.histogram(values, bins)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
        between = np.nan_to_num(below * above * apart**2)
    # Between two clusters the variance is flat: the middle of the plateau is taken.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1:-1][best].mean())
