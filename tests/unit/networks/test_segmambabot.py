"""SegMambaBot and its tri-oriented Mamba against the description of both, written down with numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medsegmamba_bids.networks import mamba
from medsegmamba_bids.networks.kernels.selective_scan import available_backends
from medsegmamba_bids.networks.mamba import TriOrientedMamba, causal_convolution, tri_oriented_paths
from medsegmamba_bids.networks.medsegmamba import MedSegMamba
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.networks.segmambabot import SegMambaBot
from medsegmamba_bids.weights.files import InputSpec, WeightsInfo, load_weights, save_weights

SMALL = {"channels": [8, 8, 16, 16], "bottleneck": 32, "state": 4, "blocks": 2, "classes": 5, "patch_size": 16}


def size(network):
    return sum(p.numel() for p in network.parameters())


def test_medsegmamba_has_a_fifth_fewer_parameters():
    with torch.device("meta"):
        ours, theirs = size(MedSegMamba()), size(SegMambaBot())
    assert (ours, theirs) == (84_400_736, 108_251_744)
    assert 1 - ours / theirs == pytest.approx(0.2203, abs=1e-4)


def test_size_of_the_published_module():
    with torch.device("meta"):
        module = TriOrientedMamba(1024)
    projections = 1024 * 4096 + 2048 * 1024
    reading = (2048 * 4 + 2048) + 2048 * (64 + 16 + 16) + (64 * 2048 + 2048) + 2048 * 16 + 2048
    assert size(module) == projections + 3 * reading


def test_only_the_first_module_of_a_block_differs():
    first = {name: p.shape for name, p in build_network("medsegmamba", SMALL).named_parameters()}
    other = {name: p.shape for name, p in build_network("segmambabot", SMALL).named_parameters()}
    differing = set(first.items()) ^ set(other.items())
    assert all(name.split(".")[0] == "bottleneck" and name.split(".")[2] == "scan" for name, _ in differing)


def test_paths_at_the_published_size():
    forwards, backwards, across = tri_oriented_paths(12)
    tokens = torch.arange(1728)
    # SegMamba cuts the tokens into 12 slices and interleaves them.
    assert across.tolist() == torch.stack(tokens.chunk(12), -1).flatten().tolist()
    assert forwards.tolist() == tokens.tolist()
    assert backwards.tolist() == tokens.flip(0).tolist()


def softplus(x):
    return np.log1p(np.exp(x))


def silu(x):
    return x / (1 + np.exp(-x))


def mamba_in_numpy(x, reading):
    """Convolution and scan of tokens (L, D) in the order in which they are read."""
    p = {name: value.detach().double().numpy() for name, value in reading.named_parameters()}
    width, state, rank = p["conv_weight"].shape[1], reading.state, reading.rank
    padded = np.concatenate([np.zeros((width - 1, x.shape[1])), x])
    taps = [padded[t : t + len(x)] * p["conv_weight"][:, t] for t in range(width)]
    u = silu(sum(taps) + p["conv_bias"])
    mixed = u @ p["x_proj.weight"].T
    delta = softplus(mixed[:, :rank] @ p["dt_proj"].T + p["dt_bias"])
    write, read = mixed[:, rank : rank + state], mixed[:, rank + state :]
    h, rows = np.zeros((x.shape[1], state)), []
    for step in range(len(u)):
        decay = np.exp(-np.exp(p["log_rates"]) * delta[step][:, None])
        h = decay * h + (delta[step] * u[step])[:, None] * write[step]
        rows.append(h @ read[step])
    return np.stack(rows) + u * p["skip"]


@pytest.fixture
def module():
    """A tri-oriented Mamba none of whose parameters is what it is at the start."""
    torch.manual_seed(0)
    module = TriOrientedMamba(32, state=4)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return module


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_the_module_in_numpy(module, monkeypatch, backend):
    monkeypatch.setenv("MEDSEGMAMBA_SCAN", backend)
    x = torch.randn(2, 3, 3, 3, 32)
    for sample, got in zip(x, module(x).detach().numpy(), strict=True):
        tokens = sample.reshape(27, 32).double().numpy()
        inside, gate = np.split(tokens @ module.in_proj.weight.detach().double().numpy().T, 2, axis=1)
        slices = np.stack(np.split(inside, 3), 1).reshape(27, -1)  # the slices' tokens in turn
        forwards = mamba_in_numpy(inside, module.readings[0])
        backwards = mamba_in_numpy(inside[::-1], module.readings[1])[::-1]
        across = mamba_in_numpy(slices, module.readings[2])
        across = across.reshape(9, 3, -1).transpose(1, 0, 2).reshape(27, -1)
        y = (forwards + backwards + across) * silu(gate)
        want = y @ module.out_proj.weight.detach().double().numpy().T
        np.testing.assert_allclose(got.reshape(27, 32), want, rtol=1e-4, atol=1e-5)


def convolution_by_torch(x, weight, bias, activation):
    """What causal-conv1d documents: (B, D, L) and (D, W) -> (B, D, L)."""
    assert activation == "silu"
    padded = F.pad(x, (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))


@pytest.mark.parametrize("installed", [False, True])
def test_causal_convolution(monkeypatch, installed):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 7, 5), torch.randn(5, 4), torch.randn(5)
    want = convolution_by_torch(x.transpose(1, 2), weight, bias, "silu").transpose(1, 2)
    if installed:
        monkeypatch.setattr(mamba, "_causal_conv1d", lambda device: convolution_by_torch)
    torch.testing.assert_close(causal_convolution(x, weight, bias), want)


def test_causal_conv1d_is_for_gpus():
    assert mamba._causal_conv1d(torch.device("cpu")) is None


@pytest.mark.gpu
def test_causal_conv1d_on_a_gpu():
    if not torch.cuda.is_available() or mamba._causal_conv1d(torch.device("cuda")) is None:
        pytest.skip("no CUDA device or no causal-conv1d")
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 64, 16), torch.randn(16, 4), torch.randn(16)
    got = causal_convolution(x.cuda(), weight.cuda(), bias.cuda()).cpu()
    torch.testing.assert_close(got, causal_convolution(x, weight, bias), rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(module):
    module(torch.randn(1, 3, 3, 3, 32)).square().mean().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradients_of_the_backends_agree(module, monkeypatch):
    x, gradients = torch.randn(1, 3, 3, 3, 32), []
    for backend in ("reference", "numba"):
        monkeypatch.setenv("MEDSEGMAMBA_SCAN", backend)
        module.zero_grad()
        module(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def test_weights_files_bring_it_back(tmp_path):
    torch.manual_seed(0)
    network = build_network("segmambabot", SMALL).eval()
    info = WeightsInfo("bot", "segmambabot", SMALL, "aseg", (0, 4, 10, 43, 49), InputSpec(patch_size=16, step=16))
    save_weights(network, info, tmp_path / "bot.safetensors")
    loaded, found = load_weights(tmp_path / "bot.safetensors")
    assert found.network == "segmambabot"
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded(x), network(x))
