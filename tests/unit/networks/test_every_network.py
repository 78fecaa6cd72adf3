"""What holds for each network of the registry."""

import pytest
import torch

from medsegmamba_bids.networks.registry import NETWORKS, build_network

SCANNING = {"channels": [8, 8, 16, 16], "bottleneck": 32, "state": 4, "blocks": 2, "classes": 5, "patch_size": 16}
ATTENDING = {"channels": [8, 8, 16, 16], "embedding": 128, "heads": 2, "layers": 2, "hidden": 24, "classes": 32}
#: Network -> its configuration and the side of the patches, for some another than it was built for.
CASES = {
    "medsegmamba": (SCANNING, 16),
    "segmambabot": (SCANNING, 24),
    "tabsurfer": ({**ATTENDING, "patch_size": 16}, 16),
}


def test_all_are_here():
    assert CASES.keys() == NETWORKS.keys()


@pytest.fixture(params=list(CASES))
def network(request):
    torch.manual_seed(0)
    return build_network(request.param, CASES[request.param][0]).eval()


@pytest.fixture
def side(request, network):
    return CASES[request.node.callspec.params["network"]][1]


def test_samples_of_a_batch_do_not_mix(network, side):
    x = torch.rand(3, 1, side, side, side)
    with torch.inference_mode():
        together = network.probabilities(x)
        alone = torch.cat([network.probabilities(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.sum(1), torch.ones(3, side, side, side))


def test_inference_and_training_agree(network):
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        fast = network(x)
    torch.testing.assert_close(fast, network(x).detach(), rtol=1e-3, atol=1e-4)
