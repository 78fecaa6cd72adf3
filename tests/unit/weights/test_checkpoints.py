"""The authors' checkpoints: imported when they fit, refused with a reason when not, never run."""

import json
import pickle
import zlib

import numpy as np
import pytest
import torch

from medsegmamba_bids.cli.weights import main
from medsegmamba_bids.errors import WeightsError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.networks.scan_paths import scan_paths
from medsegmamba_bids.weights.checkpoints import import_checkpoint, infer_config
from medsegmamba_bids.weights.files import load_weights, read_info

SMALL = {"channels": [8, 8, 16, 16], "bottleneck": 16, "state": 2, "blocks": 2, "classes": 32, "patch_size": 16}
PUBLISHED = {
    "channels": [32, 64, 128, 256],
    "bottleneck": 1024,
    "state": 64,
    "blocks": 9,
    "classes": 32,
    "patch_size": 96,
}


def double_convolution(name, inputs, outputs, shortcut="identity"):
    """Shapes of a residual block of the authors."""
    shapes = {}
    for index, before in ((0, inputs), (3, outputs)):
        shapes[f"{name}.conv.{index}.weight"] = (outputs, before, 3, 3, 3)
        for layer, part in ((index, "bias"), (index + 1, "weight"), (index + 1, "bias")):
            shapes[f"{name}.conv.{layer}.{part}"] = (outputs,)
    if shortcut:
        shapes[f"{name}.{shortcut}.weight"] = (outputs, inputs, 1, 1, 1)
        shapes[f"{name}.{shortcut}.bias"] = (outputs,)
    return shapes


def scan_block(name, channels, state, steps):
    """Shapes of a VSS3D block of the authors."""
    rank = -(-channels // 16)
    attention = f"{name}.self_attention"
    shapes = {
        f"{attention}.x_proj_weight": (8, rank + 2 * state, channels),
        f"{attention}.dt_projs_weight": (8, channels, rank),
        f"{attention}.dt_projs_bias": (8, channels),
        f"{attention}.A_logs": (8 * channels, state),
        f"{attention}.Ds": (8 * channels,),
        f"{attention}.conv3d.weight": (channels, 1, 3, 3, 3),
        f"{attention}.conv3d.bias": (channels,),
        f"{attention}.scans.index_flat": (1, 1, steps),
        f"{attention}.scans.index_flat_inv": (1, 1, steps),
    }
    for layer in ("in_proj", "out_proj"):
        shapes[f"{attention}.{layer}.weight"] = (channels, channels)
    for layer in ("net.0", "net.3"):
        shapes[f"{name}.mlp.{layer}.weight"] = (channels, channels)
        shapes[f"{name}.mlp.{layer}.bias"] = (channels,)
    for layer in ("ln_1", "ln_2", "self_attention.out_norm"):
        shapes[f"{name}.{layer}.weight"] = shapes[f"{name}.{layer}.bias"] = (channels,)
    return shapes


def authors_shapes(channels, bottleneck, state, blocks, classes, patch_size):
    """Names and shapes of the authors' state_dict of a MedSegMamba."""
    a, b, c, d = channels
    shapes = double_convolution("Conv1", 1, a)
    for index, (before, after) in enumerate(((a, b), (b, c), (c, d)), start=1):
        shapes |= double_convolution(f"downconv{index}.down.1", before, after)
    shapes |= {"gn.weight": (d,), "gn.bias": (d,)}
    shapes |= {"expand.weight": (bottleneck, d, 3, 3, 3), "expand.bias": (bottleneck,)}
    for block in range(blocks):
        steps = (patch_size // 8) ** 3
        shapes |= scan_block(f"bottleneck.blocks.{block}", bottleneck, state, steps)
    shapes |= {"pre_head_ln.weight": (bottleneck,), "pre_head_ln.bias": (bottleneck,)}
    shapes |= double_convolution("compress", bottleneck, d, shortcut=None)
    for level, before, after in ((4, d, c), (3, c, b), (2, b, a)):
        shapes[f"Up{level}.up.0.1.weight"] = (after, before, 3, 3, 3)
        for part in ("0.1.bias", "1.0.weight", "1.0.bias"):
            shapes[f"Up{level}.up.{part}"] = (after,)
    shapes |= double_convolution("Up_conv4", 2 * c, c)
    shapes |= double_convolution("Up_conv3", 2 * b, b)
    shapes |= double_convolution("Up_conv2", 2 * a, 2 * a)
    return shapes | {"Conv_1x1.weight": (classes, 2 * a, 1, 1, 1), "Conv_1x1.bias": (classes,)}


def authors_state(**config):
    """A state_dict as the authors save it: random values, true scan indices."""
    state = {}
    path = scan_paths(config["patch_size"] // 8, 0)[0].astype(np.int64)
    for name, shape in authors_shapes(**config).items():
        if name.endswith("index_flat"):
            state[name] = torch.from_numpy(path.reshape(shape).copy())
        elif name.endswith("index_flat_inv"):
            state[name] = torch.from_numpy(np.argsort(path).reshape(shape))
        else:
            generator = np.random.default_rng(zlib.crc32(name.encode()))
            state[name] = torch.from_numpy(0.1 * generator.standard_normal(shape, np.float32))
    return state


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEGMAMBA_WEIGHTS", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def state():
    return authors_state(**SMALL)


@pytest.fixture
def save(tmp_path):
    def save(content, name="theirs.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def test_these_names_are_the_authors(shared):
    keys = json.loads((shared / "golden" / "medsegmamba_aseg.keys.json").read_text())
    assert authors_shapes(**PUBLISHED) == {name: tuple(shape) for name, shape in keys.items()}


@pytest.mark.parametrize("config", [SMALL, PUBLISHED], ids=["small", "published"])
def test_the_configuration_follows_from_the_shapes(config):
    shapes = authors_shapes(**config)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert infer_config(tensors) == config


def test_an_import_describes_the_authors_pipeline(state, save, folder):
    path = import_checkpoint(save(state, "MedSegMamba aseg (1).pt"), "aseg")
    assert path == folder / "MedSegMamba-aseg-1.safetensors"
    network, info = load_weights("MedSegMamba-aseg-1")
    assert (info.network, info.task, info.config) == ("medsegmamba", "aseg", SMALL)
    assert info.labels == tuple(load_label_table("aseg").labels.tolist())
    assert info.input.skull_stripped
    assert info.input.intensity == "freesurfer"
    assert (info.input.voxel_size, info.input.patch_size, info.input.step) == (1.0, 16, 5)
    assert not info.input.gaussian
    assert not info.input.mirror
    assert "aaroncao06/MedSegMamba" in info.origin
    assert "unknown" in info.licence
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 16, 16, 16)).shape == (1, 32, 16, 16, 16)


def test_every_weight_arrives(state, save):
    network, _ = load_weights(import_checkpoint(save(state), "aseg"))
    arrived = sorted(value.double().sum().item() for value in network.parameters())
    sent = sorted(v.double().sum().item() for v in state.values() if v.is_floating_point())
    np.testing.assert_allclose(arrived, sent, rtol=0, atol=1e-9)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_wrappers_and_parallel_prefixes_are_taken_off(state, save, wrapper):
    plain = read_info(import_checkpoint(save(state), "aseg", name="plain"))
    parallel = {f"module.{key}": value for key, value in state.items()}
    wrapped = save({wrapper: parallel, "epoch": 3})
    assert read_info(import_checkpoint(wrapped, "aseg", name="wrapped")).checksum == plain.checksum


def test_a_hippocampus_checkpoint_has_25_classes(save):
    checkpoint = save(authors_state(**{**SMALL, "classes": 25}))
    info = read_info(import_checkpoint(checkpoint, "hippocampus"))
    assert info.labels == tuple(load_label_table("hippoFS60").labels.tolist())
    with pytest.raises(WeightsError, match=r"theirs\.pt: has 25 classes, .* aseg has 32; .* --task hippocampus"):
        import_checkpoint(checkpoint, "aseg", name="other")


def test_an_existing_name_is_kept_unless_told(state, save):
    checkpoint = save(state)
    first = import_checkpoint(checkpoint, "aseg")
    with pytest.raises(WeightsError, match="exists already"):
        import_checkpoint(checkpoint, "aseg")
    assert import_checkpoint(checkpoint, "aseg", overwrite=True) == first


class WritesAFile:
    """A pickle of this would write a file while it is being loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["archive", "pickle"])
def test_code_in_a_checkpoint_is_not_run(state, tmp_path, folder, how):
    written, checkpoint = tmp_path / "written", tmp_path / "evil.pt"
    content = {**state, "extra": WritesAFile(written)}
    if how == "archive":
        torch.save(content, checkpoint)
    else:
        checkpoint.write_bytes(pickle.dumps({"extra": WritesAFile(written)}, protocol=2))
    with pytest.raises(WeightsError, match=r"evil\.pt: holds more than tensors \(\w+\.open\)"):
        import_checkpoint(checkpoint, "aseg")
    assert not written.exists()
    assert not folder.exists()
    pickle.loads(pickle.dumps(WritesAFile(written))).close()
    assert written.exists(), "the pickle of this test would not have done anything"


def test_a_pickled_network_is_refused(save):
    with pytest.raises(WeightsError, match=r"theirs\.pt: holds more than tensors .*Linear"):
        import_checkpoint(save(torch.nn.Linear(2, 2)), "aseg")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("archive", [True, False])
def test_a_truncated_checkpoint_is_refused(state, tmp_path, folder, kept, archive):
    path = tmp_path / "cut.pt"
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(WeightsError, match=r"cut\.pt: .*damaged"):
        import_checkpoint(path, "aseg")
    assert not folder.exists()


def without_expand(state):
    del state["expand.bias"]


def with_surplus(state):
    state["surplus.weight"] = torch.zeros(2)


def with_wrong_shape(state):
    state["gn.weight"] = torch.zeros(3)


def with_wrong_scan(state):
    state["bottleneck.blocks.1.self_attention.scans.index_flat"][0, 0, :2] = 7


def with_nan(state):
    state["gn.bias"][1] = torch.nan


def of_another_network(state):
    state.clear()
    state["transformer.net.0.fn.norm.weight"] = torch.zeros(4)


def with_a_number(state):
    state["epoch"] = 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_expand, r"expand\.bias"),
        (with_surplus, r"surplus\.weight"),
        (with_wrong_shape, r"expand_norm\.weight has shape \[3\] instead of \[16\]"),
        (with_wrong_scan, "scan|index_flat"),
        (with_nan, r"gn\.bias has values that are not finite"),
        (of_another_network, "not a MedSegMamba"),
        (with_a_number, "'epoch' is no tensor"),
        (dict.clear, "not a dictionary of tensors"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(state, save, folder, change, reason):
    change(state)
    with pytest.raises(WeightsError, match=rf"theirs\.pt: .*({reason})"):
        import_checkpoint(save(state), "aseg")
    assert not folder.exists()


def test_the_command_imports_and_says_how_to_use_it(state, save, folder, capsys):
    assert main(["import", str(save(state)), "--task", "aseg", "--name", "authors-aseg"]) == 0
    shown = capsys.readouterr().out
    assert str(folder / "authors-aseg.safetensors") in shown
    assert "--weights authors-aseg" in shown


def test_the_command_refuses_in_a_sentence(tmp_path, capsys):
    path = tmp_path / "absent.pt"
    assert main(["import", str(path), "--task", "aseg"]) == 1
    assert capsys.readouterr().err == f"error: {path}: no such file\n"
