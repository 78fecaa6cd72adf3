"""MedSegMamba against the outputs of the authors' code, and what it promises besides."""

import os
import subprocess
import sys

import pytest
import torch

import golden
from medsegmamba_bids.networks.kernels.selective_scan import available_backends
from medsegmamba_bids.networks.medsegmamba import MedSegMamba, from_authors_state_dict
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.networks.scan_paths import snake

SMALL = {"channels": (8, 8, 16, 16), "bottleneck": 32, "state": 4, "blocks": 2, "classes": 5, "patch_size": 16}


def check_golden(folder, name, device):
    stored, state = golden.load_golden(folder, name)
    network = golden.build(stored)
    network.load_state_dict(from_authors_state_dict(state))
    with torch.inference_mode():
        ours = network.to(device).probabilities(golden.golden_input(stored).to(device))[0].cpu().numpy()
    golden.check_probabilities(ours, stored)
    assert ours.mean() == pytest.approx(1 / len(ours), abs=1e-6)


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_golden_of_the_small_network(shared, monkeypatch, backend):
    monkeypatch.setenv("MEDSEGMAMBA_SCAN", backend)
    check_golden(shared / "golden", "medsegmamba_tiny", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_golden_of_the_published_network(shared, monkeypatch, backend):
    monkeypatch.setenv("MEDSEGMAMBA_SCAN", backend)
    check_golden(shared / "golden", "medsegmamba_aseg", "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["medsegmamba_tiny", "medsegmamba_aseg"])
def test_golden_on_a_gpu(shared, monkeypatch, name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for backend in available_backends("cuda"):
        monkeypatch.setenv("MEDSEGMAMBA_SCAN", backend)
        check_golden(shared / "golden", name, "cuda")


def test_published_size():
    with torch.device("meta"):
        network = MedSegMamba()
    assert sum(p.numel() for p in network.parameters()) == 84_400_736


def test_every_authors_key_is_mapped(shared):
    stored, state = golden.load_golden(shared / "golden", "medsegmamba_tiny")
    ours = golden.build(stored).state_dict()
    mapped = from_authors_state_dict(state)
    assert mapped.keys() == ours.keys()
    assert all(mapped[k].shape == ours[k].shape for k in ours)


def test_stored_scan_indices_are_checked():
    path = torch.from_numpy(snake(12)).view(1, 1, -1)
    name = "bottleneck.blocks.0.self_attention.scans.index_flat"
    assert from_authors_state_dict({name: path, f"{name}_inv": torch.argsort(path)}) == {}
    with pytest.raises(ValueError, match="not those of the published scan"):
        from_authors_state_dict({name: path.flip(-1)})


HALF = """
import torch
from medsegmamba_bids.networks.medsegmamba import MedSegMamba
torch.manual_seed(0)
sizes = {"channels": (8, 32, 64, 64), "bottleneck": 64, "state": 4, "blocks": 1, "classes": 5, "patch_size": 48}
network, x = MedSegMamba(**sizes).eval(), torch.rand(1, 1, 48, 48, 48)
with torch.inference_mode():
    exact = network.probabilities(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.probabilities(x)
print(torch.ops.mkldnn._is_mkldnn_bf16_supported(), float((half - exact).abs().max()))
"""


def test_bfloat16_on_a_processor_that_does_not_know_it():
    """oneDNN's convolutions refuse it there, all of which were called directly once."""
    older = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", HALF], env=older, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known, error = done.stdout.split()
    if known == "True":
        pytest.skip("what this processor knows cannot be hidden")
    assert 0 < float(error) < 0.02


def test_patch_sizes_share_their_parameters():
    torch.manual_seed(0)
    network = build_network("medsegmamba", SMALL).eval()
    assert network(torch.rand(1, 1, 24, 24, 24)).shape == (1, 5, 24, 24, 24)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    network = build_network("medsegmamba", SMALL)
    x = torch.rand(1, 1, 16, 16, 16)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_drop_path_leaves_whole_branches_out():
    network = build_network("medsegmamba", {**SMALL, "drop_path": 0.999, "dropout": 0.0})
    bottleneck, x = network.bottleneck, torch.randn(1, 2, 2, 2, 32)
    torch.manual_seed(0)
    assert torch.equal(bottleneck(x), x)


def test_learns_to_tell_bright_from_dark():
    torch.manual_seed(0)
    network = build_network("medsegmamba", {**SMALL, "classes": 2})
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    x = torch.rand(2, 1, 16, 16, 16)
    target = (x[:, 0] > 0.5).long()
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(network(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"patch_size": 20}, "patch size 20: must be a positive multiple of 8"),
        ({"channels": (8, 12, 16, 16)}, "must be four multiples of 8"),
        ({"colour": 3}, "cannot be built"),
    ],
)
def test_impossible_configurations_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_network("medsegmamba", {**SMALL, **config})


def test_unknown_network_is_refused():
    with pytest.raises(ValueError, match="network 'unet' is unknown"):
        build_network("unet", {})
