"""Whether an image looks T1-weighted, from its own white and gray matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from medsegmamba_bids.anatomy import TISSUES

#: White matter's intensity divided by gray matter's: 1.22 and more in T1-weighted heads of 0.7 to 3 mm; below 1 in
#: simulated T2, FLAIR and proton density images, about 1 in CT and in what a network makes of inverted heads.
LEAST_RATIO = 1.1


def tissue_ratio(mean: Callable[[tuple[int, int]], float]) -> float:
    """Return white matter's intensity divided by gray matter's, cerebral where both are known, else cerebellar.

    Parameters
    ----------
    mean : callable
        Intensity of a pair of labels, the left and the right one; NaN where they are absent.

    Returns
    -------
    float
        NaN where white or gray matter is absent or dark.

    Examples
    --------
    >>> tissue_ratio({(2, 41): 110.0, (3, 42): 80.0}.get)
    1.375
    """
    for white, gray in TISSUES:
        pair = mean(white), mean(gray)
        if np.isfinite(pair).all() and pair[1] > 0:
            return pair[0] / pair[1]
    return float("nan")


def describe_contrast(data: np.ndarray, labels: np.ndarray, then: str = "the labels will not be reliable") -> str:
    """Return a sentence where an image does not look T1-weighted; empty where it does or its tissues are not known.

    Parameters
    ----------
    data : (X, Y, Z)
        Intensities, on any scale that starts at 0.
    labels : int (X, Y, Z)
        FreeSurfer labels, as a network found them.
    then : str
        What follows from it.

    Examples
    --------
    >>> labels = np.array([2, 3, 41, 42])
    >>> describe_contrast(np.array([70, 110, 70, 110]), labels)[:58]
    'the image does not look T1-weighted: white matter has 0.64'
    >>> describe_contrast(np.array([110, 70, 110, 70]), labels)
    ''
    """

    def median(pair: Iterable[int]) -> float:
        inside = data[np.isin(labels, list(pair))]
        return float(np.median(inside)) if inside.size else float("nan")

    ratio = tissue_ratio(median)
    if not ratio < LEAST_RATIO:
        return ""
    return (
        f"the image does not look T1-weighted: white matter has {ratio:.2f} times the intensity of gray matter "
        f"(at least {LEAST_RATIO:g} is expected); {then}"
    )
