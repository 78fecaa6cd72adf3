"""Class probabilities of a visit in a folder, a file per class: float16, each in the box where the class is likely."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medsegmamba_bids.image.grid import Box

_INDEX = "posteriors.json"


class PosteriorFolder:
    """Writes classes as `inference.merge.OnPosterior` gives them, and reads them back.

    Outside a class's box its probability is 0, and that of the background 1.

    Parameters
    ----------
    folder : Path
        Made if need be. The index is written last.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as name, PosteriorFolder(Path(name)) as folder:
    ...     folder(0, Box.whole((1, 1, 2)), np.array([[[0.25, 1.0]]], np.float32))
    ...     box, probabilities = folder.read(0)
    >>> probabilities.tolist()
    [[[0.25, 1.0]]]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / _INDEX
        self.boxes: list[Box] = []

    def __enter__(self) -> PosteriorFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __call__(self, index: int, box: Box, posterior: np.ndarray) -> None:
        """Add a class; classes come in order."""
        if index != len(self.boxes):
            raise ValueError(f"class {index} came where class {len(self.boxes)} was expected")
        np.save(self.folder / f"{index}.npy", posterior.astype(np.float16))
        self.boxes.append(box)

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            corners = [[[side.start, side.stop] for side in box] for box in self.boxes]
            self.path.write_text(json.dumps(corners), encoding="utf-8")

    @classmethod
    def of(cls, index: str | Path) -> PosteriorFolder:
        """Open what was written, by its index."""
        out = cls(Path(index).parent)
        corners = json.loads(Path(index).read_text(encoding="utf-8"))
        out.boxes = [Box(slice(*side) for side in box) for box in corners]
        return out

    def read(self, index: int) -> tuple[Box, np.ndarray]:
        """Return box and probabilities float32 of a class."""
        return self.boxes[index], np.load(self.folder / f"{index}.npy").astype(np.float32)

    def within(self, index: int, box: Box) -> np.ndarray:
        """Return the probabilities float32 of a class in any box."""
        own, values = self.read(index)
        out = np.full(box.shape, float(index == 0), np.float32)
        low = np.maximum(own.start, box.start)
        high = np.minimum([s.stop for s in own], [s.stop for s in box])
        if (low < high).all():
            both = Box(map(slice, low.tolist(), high.tolist()))
            out[both.within(box)] = values[both.within(own)]
        return out
