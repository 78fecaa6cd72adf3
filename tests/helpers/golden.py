"""The authors' parameters and outputs as ../shared/golden/README.md defines them."""

import json
import zlib

import numpy as np
import torch

from medsegmamba_bids.networks.medsegmamba import MedSegMamba


def parameter(name, shape, states):
    """One parameter of the golden network, from its name alone."""
    z = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
    last = name.rsplit(".", 1)[-1]
    if last == "A_logs":
        z = np.log(np.arange(1, states + 1, dtype=np.float32)) + np.float32(0.1) * z
    elif last == "Ds":
        z = 1 + np.float32(0.1) * z
    elif last == "dt_projs_bias":
        z = -4 + np.float32(0.5) * z
    elif len(shape) == 1:
        z = np.float32(0.1) * z + (1 if last == "weight" else 0)
    else:
        fan_in = shape[-1] if last in ("x_proj_weight", "dt_projs_weight") else np.prod(shape[1:])
        z = z / np.float32(np.sqrt(fan_in))
    return torch.from_numpy(z.astype(np.float32))


def load_golden(folder, name):
    """The stored outputs, and a state dictionary under the authors' names, without scan indices."""
    stored = np.load(folder / f"{name}.npz")
    keys = json.loads((folder / f"{name}.keys.json").read_text())
    state = {k: parameter(k, s, int(stored["d_state"])) for k, s in keys.items() if ".scans." not in k}
    return stored, state


def build(stored):
    """The network whose outputs are stored."""
    sizes = stored["channel_sizes"].tolist()
    return MedSegMamba(
        channels=sizes[1:5],
        bottleneck=sizes[5],
        state=int(stored["d_state"]),
        blocks=int(stored["num_layers"]),
        classes=int(stored["out_channels"]),
    ).eval()


def golden_input(stored):
    rng = np.random.default_rng(int(stored["input_seed"]))
    return torch.from_numpy(rng.random((1, 1, 96, 96, 96), dtype=np.float32))


def check_probabilities(ours, stored):
    """Compare probabilities (C, X, Y, Z) with what the authors' code gave."""
    stride = int(stored["stride"])
    assert np.abs(ours[:, ::stride, ::stride, ::stride] - stored["probabilities"]).max() < 1e-4
    assert (ours.argmax(0)[:, :, 48] == stored["labels_slice_48"]).mean() > 0.999
    counts = np.bincount(ours.argmax(0).ravel(), minlength=len(ours))
    assert np.abs(counts - stored["label_counts"]).sum() < 0.001 * counts.sum()
