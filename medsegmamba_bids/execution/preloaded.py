"""What steps need and takes long to import, for the process that they are forked from; no threads are started.

torch is not among it: it takes as long as all this together, and only one process needs it.
"""

import numpy as np
import scipy.interpolate  # noqa: F401
import SimpleITK  # noqa: F401

import medsegmamba_bids.report.participant  # noqa: F401
import medsegmamba_bids.workflows.participants  # noqa: F401
from medsegmamba_bids.image.label_shares import largest_shares
from medsegmamba_bids.stats.partial_volume import corrected_counts


def load_compiled() -> None:
    """Have numba set itself up and load kernels from its cache, which takes it a third of a second in each process."""
    halves = np.arange(8, dtype=np.int16).reshape(2, 2, 2) % 2
    corrected_counts(halves, halves.astype(np.float32), 2)
    largest_shares(halves, np.eye(4), halves.shape)


load_compiled()
