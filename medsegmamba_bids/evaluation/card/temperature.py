"""Would a temperature per structure calibrate posteriors? Found on all cases but one, judged on that one.

The odds of a posterior p become p' = sigmoid(logit(p) / temperature + bias); a temperature over 1 makes a network
less sure. Both are found from the counts of ``calibration``: a bin's voxels count with their mean posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit

from medsegmamba_bids.evaluation.card.calibration import (
    EDGES,
    bin_of,
    expected_calibration_error,
    labelled_volume_ratio,
    soft_volume_ratio,
)

_SURE = 1e-6  # no posterior counts as nearer to 0 or 1
_FASTEST, _SLOWEST = 0.1, 10.0  # bounds of 1 / temperature


@dataclass(frozen=True)
class Scaling:
    """What is done to the odds of a posterior.

    Attributes
    ----------
    temperature, bias : float
        1 and 0 leave a posterior as it is.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def __call__(self, posterior: np.ndarray) -> np.ndarray:
        """Return posteriors scaled."""
        return expit(logit(posterior) / self.temperature + self.bias)


def fit(counts: pd.DataFrame, with_bias: bool = False) -> Scaling:
    """Return the scaling with the least cross-entropy, over voxels with a posterior from 0.001.

    Parameters
    ----------
    counts : pandas.DataFrame
        Of one structure, of one case or several.
    with_bias : bool
        Find a bias as well as the temperature.
    """
    used = counts[_scalable(counts)]
    odds, voxels, right = logit(_mean_posterior(used)), used["voxels"].to_numpy(), used["reference_voxels"].to_numpy()
    if not right.sum():
        return Scaling()

    def loss(inverse_and_bias: np.ndarray) -> float:
        scaled = inverse_and_bias[0] * odds + (inverse_and_bias[1] if with_bias else 0)
        return float((voxels * np.logaddexp(0, scaled) - right * scaled).sum() / voxels.sum())

    bounds = [(_FASTEST, _SLOWEST), (-10, 10)] if with_bias else [(_FASTEST, _SLOWEST)]
    best = minimize(loss, [1.0, 0.0][: len(bounds)], method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12})
    return Scaling(float(1 / best.x[0]), float(best.x[1]) if with_bias else 0.0)


def _scalable(counts: pd.DataFrame) -> pd.Series:
    """Return which bins are scaled: with voxels, and above the lowest, which holds the empty outside."""
    return (counts["from"] > 0) & (counts["voxels"] > 0)


def _mean_posterior(counts: pd.DataFrame) -> np.ndarray:
    return (counts["posterior_sum"] / counts["voxels"]).to_numpy().clip(_SURE, 1 - _SURE)


def scale(counts: pd.DataFrame, scaling: Scaling) -> pd.DataFrame:
    """Return counts as they are after scaling: every bin's voxels under their new mean posterior."""
    chosen = _scalable(counts).to_numpy()
    posterior = scaling(_mean_posterior(counts[chosen]))
    bins = bin_of(posterior, EDGES)
    out = counts.astype({"posterior_sum": float})
    out.loc[chosen, "from"], out.loc[chosen, "to"] = EDGES[bins], EDGES[bins + 1]
    out.loc[chosen, "posterior_sum"] = posterior * counts.loc[chosen, "voxels"]
    return out


def measures(counts: pd.DataFrame) -> dict[str, float]:
    """Return what a structure of a case is judged by: ``ece``, and errors of its volumes in percent."""
    return {
        "ece": expected_calibration_error(counts),
        "soft_percent": 100 * (soft_volume_ratio(counts) - 1),
        "labelled_percent": 100 * (labelled_volume_ratio(counts) - 1),
    }


def unscaled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return ``measures`` of every structure of every case as the network gives them.

    Parameters
    ----------
    rows : pandas.DataFrame
        Counts of several cases; see ``calibration.COLUMNS``.
    """
    return _judged(rows, lambda own, others: own)


def leave_one_out(rows: pd.DataFrame, with_bias: bool = False) -> pd.DataFrame:
    """Return ``measures`` of every structure of every case, scaled by what the other cases say; see `unscaled`."""
    return _judged(rows, lambda own, others: scale(own, fit(others, with_bias)))


def _judged(rows: pd.DataFrame, change: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    lines = []
    for structure, of_structure in rows.groupby("structure", sort=False):
        for case, own in of_structure.groupby("case", sort=False):
            others = of_structure[of_structure["case"] != case]
            lines.append({"structure": structure, "case": case, **measures(change(own, others))})
    return pd.DataFrame(lines)
