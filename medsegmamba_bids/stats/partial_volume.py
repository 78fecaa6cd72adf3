"""Volumes corrected for partial volume at borders, as FreeSurfer's ``mri_segstats --pv`` reports them.

Compiled with numba. A border voxel needs the mean intensities of its neighbours' labels in a window of 3375 voxels:
each label has a table of sums over all boxes that start in its corner, from which those of any box follow.
"""

from __future__ import annotations

import numba
import numpy as np

from medsegmamba_bids.image.grid import Box

_HALF = 7  # the window in which a label's mean intensity is taken has 15 voxels a side
#: Voxels further from all labels than this make no difference to their counts.
REACH = _HALF + 1
# A count of voxels and the sum of their intensities share 64 bits: 15^3 voxels below 2^38 stay below 2^51.
_LEVELS = 38
_ONE_VOXEL = 1 << 51


def corrected_counts(classes: np.ndarray, guide: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the number of voxels of each class, with border voxels shared between their class and a neighbour.

    A border voxel has a neighbour by a face in another class; all others count whole. At a border voxel with
    intensity I, each class has a mean intensity in the window of 15^3 voxels around. A candidate is another class
    within the 3^3 neighbourhood whose mean lies on the other side of I than that of the voxel's own. The candidate
    with the most voxels in the window (the lowest class, of equals) is the other. The voxel's own class gets
    (I - mean_other) / (mean_own - mean_other), between 0 and 1, or the whole voxel without a candidate. What is left
    goes to the other, **if it touches the voxel by a face**; else nobody gets it.

    Parameters
    ----------
    classes : int (X, Y, Z)
        Class of each voxel, below ``n_classes``; 0 is the background. In the order of FreeSurfer's labels, so that
        equals are decided as there.
    guide : (X, Y, Z)
        Intensities, finite, bias field corrected, 0 outside the skull.
    n_classes : int

    Returns
    -------
    float64 (n_classes,)
        Their sum is at most the number of voxels.

    Raises
    ------
    ValueError
        The shapes differ.

    Examples
    --------
    >>> classes = np.repeat([0, 1], 4).reshape(8, 1, 1)
    >>> guide = np.array([0.0, 0, 0, 25, 100, 100, 100, 100]).reshape(8, 1, 1)
    >>> corrected_counts(classes, guide, 2).round(2).tolist()  # the voxel of 25 is dark's by 0.80
    [3.8, 4.2]
    """
    if classes.shape != guide.shape:
        raise ValueError(f"classes of shape {classes.shape} and intensities of shape {guide.shape}")
    box = Box.around(classes, margin=REACH)
    if box is None:
        return np.bincount([0], [classes.size], minlength=n_classes)
    inside = np.ascontiguousarray(classes[box], np.int16)
    counts = _count(inside, _quantised(guide[box]), n_classes)
    counts[0] += classes.size - inside.size
    return counts


def _quantised(guide: np.ndarray) -> np.ndarray:
    """Return intensities above the lowest one, int64 below 2^38; whole numbers of up to 38 bits stay what they are.

    The shares do not depend on offset and scale, and sums of whole numbers are exact in any order.
    """
    guide = guide - guide.min().astype(np.float64)
    highest = guide.max()
    if highest > 0:
        guide *= 2.0 ** (_LEVELS - np.frexp(highest)[1])
    np.minimum(np.rint(guide, out=guide), 2.0**_LEVELS - 1, out=guide)
    return np.ascontiguousarray(guide, np.int64)


@numba.njit(cache=True, nogil=True)
def _count(classes, guide, n_classes):  # noqa: ANN001, ANN202
    counts = np.zeros(n_classes)
    places, starts, pairs = _find_borders(classes, counts)
    by_class, bounds = _sorted_by(pairs, n_classes)
    boxes = _class_boxes(classes, n_classes)
    sums = np.empty(pairs.size, np.int64)
    for kind in range(n_classes):
        members = by_class[bounds[kind] : bounds[kind + 1]]
        if members.size:
            _sum_windows(classes, guide, kind, boxes[kind], places, starts, members, sums)
    for border in range(places.size):
        _share(classes, guide, places[border], pairs, sums, starts[border], starts[border + 1], counts)
    return counts


@numba.njit(cache=True, nogil=True)
def _find_borders(classes, counts):  # noqa: ANN001, ANN202
    """Count inner voxels; list border voxels, and for each its own class and, sorted, those around it.

    Returns the flat places of border voxels, where the pairs of each start (one more than there are voxels), and
    the classes of the pairs.
    """
    size_x, size_y, size_z = classes.shape
    room = 1 << 16
    places, starts, pairs = np.empty(room, np.int64), np.zeros(room + 1, np.int64), np.empty(4 * room, np.int16)
    around = np.empty(27, np.int16)
    n = used = 0
    for x in range(size_x):
        for y in range(size_y):
            for z in range(size_z):
                if not _is_border(classes, x, y, z):
                    counts[classes[x, y, z]] += 1
                    continue
                if n == places.size or used + 27 > pairs.size:
                    places, starts, pairs = _doubled(places), _doubled(starts), _doubled(pairs)
                others = _classes_around(classes, x, y, z, around)
                pairs[used] = classes[x, y, z]
                pairs[used + 1 : used + 1 + others] = around[:others]
                used += 1 + others
                places[n] = (x * size_y + y) * size_z + z
                n += 1
                starts[n] = used
    return places[:n].copy(), starts[: n + 1].copy(), pairs[:used].copy()


@numba.njit(cache=True, nogil=True)
def _doubled(array):  # noqa: ANN001, ANN202
    longer = np.empty(2 * array.size, array.dtype)
    longer[: array.size] = array
    return longer


@numba.njit(cache=True, nogil=True)
def _is_border(classes, x, y, z):  # noqa: ANN001, ANN202
    own = classes[x, y, z]
    size_x, size_y, size_z = classes.shape
    return (
        (z > 0 and classes[x, y, z - 1] != own)
        or (z + 1 < size_z and classes[x, y, z + 1] != own)
        or (y > 0 and classes[x, y - 1, z] != own)
        or (y + 1 < size_y and classes[x, y + 1, z] != own)
        or (x > 0 and classes[x - 1, y, z] != own)
        or (x + 1 < size_x and classes[x + 1, y, z] != own)
    )


@numba.njit(cache=True, nogil=True)
def _classes_around(classes, x, y, z, around):  # noqa: ANN001, ANN202
    """Write the other classes in the 3^3 neighbourhood, in ascending order, and return how many there are."""
    own, n = classes[x, y, z], 0
    for i in range(max(0, x - 1), min(classes.shape[0], x + 2)):
        for j in range(max(0, y - 1), min(classes.shape[1], y + 2)):
            for k in range(max(0, z - 1), min(classes.shape[2], z + 2)):
                kind = classes[i, j, k]
                if kind == own:
                    continue
                place = n
                while place > 0 and around[place - 1] > kind:
                    place -= 1
                if place > 0 and around[place - 1] == kind:
                    continue
                for moved in range(n, place, -1):
                    around[moved] = around[moved - 1]
                around[place] = kind
                n += 1
    return n


@numba.njit(cache=True, nogil=True)
def _sorted_by(pairs, n_classes):  # noqa: ANN001, ANN202
    """Positions of the pairs of each class, and where those of a class start."""
    bounds = np.zeros(n_classes + 1, np.int64)
    for kind in pairs:
        bounds[kind + 1] += 1
    bounds = np.cumsum(bounds)
    place, positions = bounds.copy(), np.empty(pairs.size, np.int64)
    for position in range(pairs.size):
        kind = pairs[position]
        positions[place[kind]] = position
        place[kind] += 1
    return positions, bounds


@numba.njit(cache=True, nogil=True)
def _class_boxes(classes, n_classes):  # noqa: ANN001, ANN202
    """First and last place of each class along each axis, the last one excluded, (C, 3, 2)."""
    boxes = np.zeros((n_classes, 3, 2), np.int64)
    boxes[:, :, 0] = classes.size
    for x in range(classes.shape[0]):
        for y in range(classes.shape[1]):
            for z in range(classes.shape[2]):
                box = boxes[classes[x, y, z]]
                for axis, place in enumerate((x, y, z)):
                    box[axis, 0] = min(box[axis, 0], place)
                    box[axis, 1] = max(box[axis, 1], place + 1)
    return boxes


@numba.njit(cache=True, nogil=True)
def _sum_windows(classes, guide, kind, box, places, starts, members, sums):  # noqa: ANN001, ANN202
    """Number of voxels of a class, and sum of their intensities, in the window of each of its pairs."""
    (x0, x1), (y0, y1), (z0, z1) = box
    table = _cumulative(classes, guide, kind, box)
    size_y, size_z = classes.shape[1:]
    border = 0
    for member in members:  # they ascend, as the border voxels do
        while starts[border + 1] <= member:
            border += 1
        x, rest = divmod(places[border], size_y * size_z)
        y, z = divmod(rest, size_z)
        # Corners of the window within the class's box, counted from its corner.
        left, right = max(x - _HALF, x0) - x0, min(x + _HALF + 1, x1) - x0
        back, front = max(y - _HALF, y0) - y0, min(y + _HALF + 1, y1) - y0
        low, high = max(z - _HALF, z0) - z0, min(z + _HALF + 1, z1) - z0
        sums[member] = (
            (table[right, front, high] - table[right, front, low])
            - (table[right, back, high] - table[right, back, low])
            - (table[left, front, high] - table[left, front, low])
            + (table[left, back, high] - table[left, back, low])
        )


@numba.njit(cache=True, nogil=True)
def _cumulative(classes, guide, kind, box):  # noqa: ANN001, ANN202
    """Sums over boxes from the corner, of a class's counts and intensities; they may overflow, differences do not."""
    (x0, x1), (y0, y1), (z0, z1) = box
    table = np.zeros((x1 - x0 + 1, y1 - y0 + 1, z1 - z0 + 1), np.int64)
    for x in range(x0, x1):
        above, here = table[x - x0], table[x - x0 + 1]
        for y in range(y0, y1):
            row, j = np.int64(0), y - y0
            for z in range(z0, z1):
                if classes[x, y, z] == kind:
                    row += _ONE_VOXEL + guide[x, y, z]
                k = z - z0 + 1
                here[j + 1, k] = row + here[j, k] + above[j + 1, k] - above[j, k]
    return table


@numba.njit(cache=True, nogil=True)
def _share(classes, guide, place, pairs, sums, first, last, counts):  # noqa: ANN001, ANN202
    """Share a border voxel between its class and a neighbour."""
    size_y, size_z = classes.shape[1:]
    x, rest = divmod(place, size_y * size_z)
    y, z = divmod(rest, size_z)
    intensity, mean_own = guide[x, y, z], _mean(sums[first])
    best, most, mean = -1, 0, 0.0
    for pair in range(first + 1, last):
        voxels, mean_other = sums[pair] // _ONE_VOXEL, _mean(sums[pair])
        if voxels > most and (mean_other - intensity) * (mean_own - intensity) < 0:
            best, most, mean = pairs[pair], voxels, mean_other
    own = classes[x, y, z]
    if best < 0:
        counts[own] += 1
        return
    share = (intensity - mean) / (mean_own - mean)  # the intensity lies between the means
    counts[own] += share
    if _touches(classes, x, y, z, best):
        counts[best] += 1 - share


@numba.njit(cache=True, nogil=True)
def _mean(packed):  # noqa: ANN001, ANN202
    return (packed % _ONE_VOXEL) / (packed // _ONE_VOXEL)


@numba.njit(cache=True, nogil=True)
def _touches(classes, x, y, z, other):  # noqa: ANN001, ANN202
    """Whether a voxel has a class at one of its six faces."""
    size_x, size_y, size_z = classes.shape
    return (
        (x > 0 and classes[x - 1, y, z] == other)
        or (x + 1 < size_x and classes[x + 1, y, z] == other)
        or (y > 0 and classes[x, y - 1, z] == other)
        or (y + 1 < size_y and classes[x, y + 1, z] == other)
        or (z > 0 and classes[x, y, z - 1] == other)
        or (z + 1 < size_z and classes[x, y, z + 1] == other)
    )
