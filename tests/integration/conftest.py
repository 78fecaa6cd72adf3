"""A tiny BIDS dataset, tiny networks: the app itself is what runs."""

import json
import os
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.weights.files import InputSpec, WeightsInfo, save_weights

CONFIG = {"channels": [8, 8, 8, 8], "bottleneck": 16, "state": 2, "blocks": 1, "patch_size": 32}
LIKELY = {"aseg": (0, 2, 3, 17, 41, 42, 53), "hippocampus": (0, 1203, 2203)}
TABLES = {"aseg": "aseg_brain", "hippocampus": "hippoFS60"}


def make_weights(path, task, **spec):
    """A network with random weights that says little but a few labels."""
    table = load_label_table(TABLES[task])
    config = {**CONFIG, "classes": len(table.labels)}
    torch.manual_seed(0)
    network = build_network("medsegmamba", config).eval()
    with torch.no_grad():
        network.head.bias.fill_(-12.0)
        network.head.bias[np.isin(table.labels, LIKELY[task])] = 2.0
        network.head.weight *= 3
    spec = {"voxel_size": 3.0, "patch_size": 32, "step": 32, **spec}
    info = WeightsInfo(path.stem, "medsegmamba", config, task, tuple(table.labels.tolist()), InputSpec(**spec))
    return path, save_weights(network, replace(info, licence="none"), path)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights files by name: aseg, hippocampus, and authors (as the authors': stripped, normalised)."""
    folder = tmp_path_factory.mktemp("weights")
    return {
        "aseg": make_weights(folder / "tiny-aseg.safetensors", "aseg")[0],
        "hippocampus": make_weights(folder / "tiny-hippocampus.safetensors", "hippocampus")[0],
        "authors": make_weights(
            folder / "tiny-authors.safetensors", "aseg", skull_stripped=True, intensity="freesurfer"
        )[0],
    }


def make_brain(seed=0, side=28):
    """An ellipsoid with brighter insides, int16 (side, side, side); at 3 mm 0.2 litres."""
    axis = np.linspace(-1, 1, side)
    radius = np.sqrt(sum((g / s) ** 2 for g, s in zip(np.meshgrid(axis, axis, axis), (0.9, 0.8, 0.7), strict=True)))
    data = np.select([radius < 0.5, radius < 1], [900, 600], 0).astype(float)
    noise = np.random.default_rng(seed).normal(0, 20, data.shape)
    return np.where(data > 0, data + noise, 0).astype(np.int16)


AFFINE = nib.affines.from_matvec(np.diag([-3.0, 3.0, 3.1]), [40, -38, -35])


@pytest.fixture(scope="session", autouse=True)
def weights_home(tmp_path_factory):
    """Weights of the user's are looked for here."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEGMAMBA_WEIGHTS", str(home / "weights"))
        yield home


def make_dataset(root, names):
    """A BIDS dataset with an image under each name; a name is the prefix of a T1w."""
    root.mkdir(parents=True)
    description = {"Name": "made up", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    for seed, name in enumerate(names):
        entities = dict(part.split("-") for part in name.split("_"))
        folder = root / f"sub-{entities['sub']}" / (f"ses-{entities['ses']}" if "ses" in entities else "") / "anat"
        save_image(make_brain(seed), AFFINE, folder / f"{name}_T1w.nii.gz")
    return root


@pytest.fixture(scope="session")
def dataset():
    """Makes a BIDS dataset: folder and prefixes of T1w images."""
    return make_dataset


def is_gone(group, patience=15):
    """Whether nothing is left of a group of processes, soon."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
