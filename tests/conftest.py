"""Fixtures of all tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder of real images and golden outputs beside the checkout; skips where absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared data are not beside this checkout")
    return SHARED.resolve()


@pytest.fixture
def intensity_weights(tmp_path):
    """Makes weights files of networks with known answers: each voxel gets the class whose intensity is nearest.

    Everything but the path of the intensities themselves is zero, so that the network is a real MedSegMamba, but
    what it says about a voxel follows from that voxel alone.
    """

    def make(task, intensities, **input_spec):
        """``intensities``: of each class, 0 to 1, by FreeSurfer's label; the background's first."""
        import torch

        from medsegmamba_bids.networks.registry import build_network
        from medsegmamba_bids.weights.files import InputSpec, WeightsInfo, save_weights

        config = {"channels": [8] * 4, "bottleneck": 8, "state": 2, "blocks": 1, "patch_size": 16}
        config["classes"] = len(intensities)
        network = build_network("medsegmamba", config)
        levels = torch.tensor(list(intensities.values()), dtype=torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            network.encoder[0].identity.weight[0] = 1
            network.decoder[-1].identity.weight[0, 0] = 1
            network.head.weight[:, 0, 0, 0, 0] = 2000 * levels
            network.head.bias[:] = -1000 * levels**2
        spec = InputSpec(**{"patch_size": 16, "step": 16, **input_spec})
        info = WeightsInfo(f"known-{task}", "medsegmamba", config, task, tuple(intensities), spec)
        path = tmp_path / f"known-{task}.safetensors"
        save_weights(network, info, path)
        return path

    return make
