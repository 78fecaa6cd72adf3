"""The 48 ways to unravel a cube: index tables from steps along a path to voxels.

Source: paper, section 2.2.1 and figure 2d. Six orientations (which axis runs slowest) times eight directions
(four rotations of the volume, each forwards and backwards).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

ORIENTATIONS = 6
DIRECTIONS = 8

#: Rotations of the volume before it is unravelled: quarter turns in planes of the axes, in this order.
_ROTATIONS = (
    (),
    ((1, (1, 2)), (1, (0, 2))),
    ((2, (0, 2)),),
    ((-1, (0, 2)), (1, (0, 1))),
)
#: Order of the axes in each orientation.
_AXES = ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0), (2, 0, 1))


def snake(size: int) -> np.ndarray:
    """Return flat indices of a cube along a path that turns round at every wall, int64 (size ** 3,)."""
    cube = np.arange(size**3).reshape(size, size, size)
    cube[:, 1::2] = cube[:, 1::2, ::-1]
    cube[1::2] = cube[1::2, ::-1, ::-1]
    return cube.reshape(-1)


@lru_cache(maxsize=32)
def scan_paths(size: int, orientation: int) -> np.ndarray:
    """Return the voxel visited at every step of the eight directions of one orientation.

    Parameters
    ----------
    size : int
        Side of the cube in voxels.
    orientation : int
        0 to 5.

    Returns
    -------
    int32 (8, size ** 3), read-only; rows 4 to 7 are rows 0 to 3 backwards

    Examples
    --------
    >>> scan_paths(2, 0)[0].tolist()
    [0, 1, 3, 2, 6, 7, 5, 4]
    """
    if not 0 <= orientation < ORIENTATIONS:
        raise ValueError(f"orientation {orientation}: must be 0 to {ORIENTATIONS - 1}")
    cube, path = np.arange(size**3).reshape(size, size, size), snake(size)
    forwards = []
    for turns in _ROTATIONS:
        turned = cube
        for quarter_turns, plane in turns:
            turned = np.rot90(turned, quarter_turns, plane)
        forwards.append(turned.transpose(_AXES[orientation]).reshape(-1)[path])
    paths = np.stack(forwards + [row[::-1] for row in forwards]).astype(np.int32)
    paths.setflags(write=False)
    return paths
