"""The 48 ways to unravel a cube."""

from itertools import permutations

import numpy as np
import pytest

from medsegmamba_bids.networks.scan_paths import DIRECTIONS, ORIENTATIONS, scan_paths


@pytest.mark.parametrize("size", [3, 4, 12])
def test_48_different_permutations(size):
    rows = np.concatenate([scan_paths(size, o) for o in range(ORIENTATIONS)])
    assert len(rows) == ORIENTATIONS * DIRECTIONS == 48
    assert len({row.tobytes() for row in rows}) == 48
    assert (np.sort(rows, axis=1) == np.arange(size**3)).all()


@pytest.mark.parametrize("size", [3, 4, 10])
def test_every_path_goes_from_neighbour_to_neighbour(size):
    place = np.stack(np.unravel_index(np.arange(size**3), (size,) * 3), axis=1)
    for orientation in range(ORIENTATIONS):
        for row in scan_paths(size, orientation):
            steps = np.abs(np.diff(place[row], axis=0)).sum(axis=1)
            assert (steps == 1).all()


def test_the_second_half_runs_backwards():
    paths = scan_paths(5, 4)
    assert (paths[4:] == paths[:4, ::-1]).all()


def test_each_orientation_has_its_own_order_of_axes():
    """Moves along the fastest, the middle and the slowest axis of a cube of side 4: 48, 12 and 3."""
    place = np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), axis=1)
    moves = [np.abs(np.diff(place[scan_paths(4, o)[0]], axis=0)).sum(axis=0) for o in range(ORIENTATIONS)]
    assert sorted(map(tuple, moves)) == sorted(permutations((3, 12, 48)))


def test_tables_are_shared_and_read_only():
    assert scan_paths(6, 2) is scan_paths(6, 2)
    with pytest.raises(ValueError, match="read-only"):
        scan_paths(6, 2)[0, 0] = 1


def test_unknown_orientation_is_refused():
    with pytest.raises(ValueError, match="orientation 6: must be 0 to 5"):
        scan_paths(4, 6)
