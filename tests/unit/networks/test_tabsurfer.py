"""TABSurfer against the outputs of its authors' code, and what it promises besides."""

import json

import numpy as np
import pytest
import torch

import golden
from medsegmamba_bids.errors import WeightsError
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.networks.tabsurfer import TABSurfer, from_authors_state_dict, infer_config
from medsegmamba_bids.weights.checkpoints import import_checkpoint
from medsegmamba_bids.weights.files import InputSpec, WeightsInfo, load_weights

SMALL = {
    "channels": [8, 8, 16, 16],
    "embedding": 128,
    "heads": 2,
    "layers": 2,
    "hidden": 24,
    "classes": 32,
    "patch_size": 16,
}


def authors_shapes(channels, embedding, heads, layers, hidden, classes, patch_size):
    """Names and shapes of the authors' state_dict of a TABSurfer."""
    a, b, c, d = channels
    shapes = {}

    def convolution(name, inputs, outputs, side=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, side, side, side), (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def residual(name, inputs, outputs):
        convolution(f"{name}.conv.0", inputs, outputs)
        norm(f"{name}.conv.1", outputs)
        convolution(f"{name}.Conv_1x1", inputs, outputs, 1)

    for level, (inputs, outputs) in enumerate(((1, a), (a, b), (b, c), (c, d)), start=1):
        residual(f"Conv{level}", inputs, outputs)
    for level, (inputs, outputs) in ((4, (d, c)), (3, (c, b)), (2, (b, a))):
        convolution(f"Up{level}.up.1", inputs, outputs)
        norm(f"Up{level}.up.2", outputs)
        residual(f"Up_conv{level}", 2 * outputs, outputs)
    convolution("Conv_1x1", a, classes, 1)
    norm("gn", d)
    convolution("conv_x", d, embedding)
    shapes["position_encoding.position_embeddings"] = (1, (patch_size // 8) ** 3, embedding)
    for layer in range(layers):
        attention, mlp = (f"transformer.net.{2 * layer + kind}.fn" for kind in (0, 1))
        norm(f"{attention}.norm", embedding)
        shapes[f"{attention}.fn.qkv.weight"] = (3 * embedding, embedding)
        shapes[f"{attention}.fn.proj.weight"] = (embedding, embedding)
        shapes[f"{attention}.fn.proj.bias"] = (embedding,)
        norm(f"{mlp}.norm", embedding)
        for number, (inputs, outputs) in ((0, (embedding, hidden)), (3, (hidden, embedding))):
            shapes[f"{mlp}.fn.net.{number}.weight"] = (outputs, inputs)
            shapes[f"{mlp}.fn.net.{number}.bias"] = (outputs,)
    norm("pre_head_ln", embedding)
    convolution("reshaped_conv.conv.0", embedding, d)
    convolution("reshaped_conv.conv.3", d, d)
    norm("reshaped_conv.conv.1", d)
    norm("reshaped_conv.conv.4", d)
    return shapes


@pytest.fixture
def state():
    """The authors' state_dict of a small network, each parameter from its name."""
    return {name: golden.parameter(name, shape, 0) for name, shape in authors_shapes(**SMALL).items()}


@pytest.fixture
def checkpoint(state, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEGMAMBA_WEIGHTS", str(tmp_path / "user"))
    torch.save(state, tmp_path / "TABSurfer.pt")
    return tmp_path / "TABSurfer.pt"


def check_golden(folder, device):
    keys = json.loads((folder / "tabsurfer_aseg.keys.json").read_text())
    stored = np.load(folder / "tabsurfer_aseg.npz")
    state = {name: golden.parameter(name, shape, 0) for name, shape in keys.items()}
    network = TABSurfer(**infer_config(state)).eval()
    network.load_state_dict(from_authors_state_dict(state))
    with torch.inference_mode():
        ours = network.to(device).probabilities(golden.golden_input(stored).to(device))[0].cpu().numpy()
    golden.check_probabilities(ours, stored)


def test_golden_of_the_published_network(shared):
    check_golden(shared / "golden", "cpu")


@pytest.mark.gpu
def test_golden_on_a_gpu(shared):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    check_golden(shared / "golden", "cuda")


def test_these_names_are_the_authors(shared):
    keys = json.loads((shared / "golden" / "tabsurfer_aseg.keys.json").read_text())
    published = {**SMALL, "channels": [32, 64, 128, 256], "embedding": 1024, "heads": 16, "layers": 8}
    published |= {"hidden": 1728, "patch_size": 96}
    assert authors_shapes(**published) == {name: tuple(shape) for name, shape in keys.items()}
    assert infer_config({name: torch.empty(shape, device="meta") for name, shape in keys.items()}) == published


def test_published_size():
    with torch.device("meta"):
        network = TABSurfer()
    # 83,203,904 in the authors' checkpoints, with the normalisation that nothing uses.
    assert sum(p.numel() for p in network.parameters()) == 83_203_904 - 2 * 1024


def test_a_small_network_in_numpy(state):
    """Its transformer, written down with numpy, for positions, order of the modules, heads and scale."""
    network = TABSurfer(**SMALL).eval()
    network.load_state_dict(from_authors_state_dict(state))
    x = np.random.default_rng(0).standard_normal((8, 128))
    want = x + state["position_encoding.position_embeddings"][0].double().numpy()
    for layer in range(2):
        want = want + attention(layer_norm(want, state, 2 * layer), state, 2 * layer)
        want = want + perceptron(layer_norm(want, state, 2 * layer + 1), state, 2 * layer + 1)
    with torch.inference_mode():
        got = network.double().bottleneck(torch.from_numpy(x)[None] + network.positions)[0].numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def array(state, name):
    return state[name].double().numpy()


def layer_norm(x, state, number):
    name = f"transformer.net.{number}.fn.norm"
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return normal * array(state, f"{name}.weight") + array(state, f"{name}.bias")


def attention(x, state, number):
    name = f"transformer.net.{number}.fn.fn"
    query, key, value = np.split(x @ array(state, f"{name}.qkv.weight").T, 3, axis=1)
    heads = []
    for head in np.split(np.arange(128), 2):
        scores = np.exp(query[:, head] @ key[:, head].T / np.sqrt(64))
        heads.append(scores / scores.sum(1, keepdims=True) @ value[:, head])
    return np.concatenate(heads, 1) @ array(state, f"{name}.proj.weight").T + array(state, f"{name}.proj.bias")


def perceptron(x, state, number):
    from scipy.stats import norm

    name = f"transformer.net.{number}.fn.fn.net"
    inside = x @ array(state, f"{name}.0.weight").T + array(state, f"{name}.0.bias")
    return inside * norm.cdf(inside) @ array(state, f"{name}.3.weight").T + array(state, f"{name}.3.bias")


def test_a_checkpoint_is_imported(checkpoint, state):
    network, info = load_weights(import_checkpoint(checkpoint, "aseg"))
    assert (info.network, info.task, info.config) == ("tabsurfer", "aseg", SMALL)
    assert "aaroncao06/TABSurfer" in info.origin
    assert (info.input.skull_stripped, info.input.intensity) == (True, "freesurfer")
    arrived = sorted(value.double().sum().item() for value in network.parameters())
    sent = sorted(v.double().sum().item() for k, v in state.items() if not k.startswith("pre_head_ln"))
    np.testing.assert_allclose(arrived, sent, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("conv_x.bias"), r"not this TABSurfer, it lacks expand\.bias"),
        (lambda s: s.pop("Conv_1x1.weight"), r"not a TABSurfer, it lacks 'Conv_1x1\.weight'"),
        (lambda s: s.update({"Conv1.conv.3.weight": torch.zeros(2)}), r"it has unknown encoder\.0\.conv\.3"),
    ],
)
def test_what_does_not_fit_is_refused(state, checkpoint, change, reason):
    change(state)
    torch.save(state, checkpoint)
    with pytest.raises(WeightsError, match=rf"TABSurfer\.pt: .*({reason})"):
        import_checkpoint(checkpoint, "aseg")


def test_every_parameter_learns():
    network = build_network("tabsurfer", SMALL)
    network(torch.rand(1, 1, 16, 16, 16)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(rate):
    torch.manual_seed(0)
    network = build_network("tabsurfer", {**SMALL, "dropout": 0.0, "attention_dropout": 0.0, rate: 0.5})
    x = torch.rand(1, 1, 16, 16, 16)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_other_patches_are_refused():
    network = build_network("tabsurfer", SMALL)
    with pytest.raises(ValueError, match=r"patches of \(24, 24, 24\): this TABSurfer was built for 16\^3"):
        network(torch.zeros(1, 1, 24, 24, 24))


def test_weights_for_other_patches_are_refused():
    labels = tuple(range(32))
    assert WeightsInfo("tab", "tabsurfer", SMALL, "aseg", labels, InputSpec(patch_size=16, step=8)).labels == labels
    with pytest.raises(WeightsError, match="its patch size is 24, but its tabsurfer takes patches of 16 alone"):
        WeightsInfo("tab", "tabsurfer", SMALL, "aseg", labels, InputSpec(patch_size=24, step=8))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"patch_size": 20}, "patch size 20: must be a positive multiple of 8"),
        ({"heads": 3}, "embedding 128: must be a multiple of the 3 heads"),
        ({"state": 3}, "cannot be built"),
    ],
)
def test_impossible_configurations_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_network("tabsurfer", {**SMALL, **config})
