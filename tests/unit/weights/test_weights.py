"""Weights files: what is written comes back, and what is damaged or foreign is refused."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsegmamba_bids.cli.weights import main
from medsegmamba_bids.errors import WeightsError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.networks.registry import build_network
from medsegmamba_bids.weights.files import (
    InputSpec,
    WeightsInfo,
    default_weights,
    find_weights,
    load_weights,
    read_info,
    save_weights,
    verify_weights,
)
from medsegmamba_bids.weights.folders import resolve_weights

CONFIG = {"channels": [8, 8, 16, 16], "bottleneck": 16, "state": 2, "blocks": 1, "classes": 32, "patch_size": 16}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of the user's."""
    monkeypatch.setenv("MEDSEGMAMBA_WEIGHTS", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network("medsegmamba", CONFIG).eval()


@pytest.fixture
def info():
    return WeightsInfo(
        name="tiny",
        network="medsegmamba",
        config=CONFIG,
        task="aseg",
        labels=tuple(load_label_table("aseg").labels.tolist()),
        input=InputSpec(voxel_size=1.5, patch_size=16, step=8, mirror=True),
        origin="a test",
    )


@pytest.fixture
def file(network, info, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_weights(network, info, path)
    return path


def rewrite(path, change):
    """Apply ``change(header, data) -> data`` to the parts of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    data = change(header, bytearray(data))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def edit_info(path, **entries):
    def change(header, data):
        described = json.loads(header["__metadata__"]["medsegmamba"])
        header["__metadata__"]["medsegmamba"] = json.dumps({**described, **entries})
        return data

    rewrite(path, change)


def test_what_is_saved_is_loaded(file, network, info):
    loaded, described = load_weights(file)
    assert replace(described, checksum="") == info
    assert len(described.checksum) == 64
    assert not loaded.training
    expected = network.state_dict()
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded(image), network(image))


def test_half_precision_halves_the_file_and_loads_as_float32(file, network, info, tmp_path):
    half = tmp_path / "half.safetensors"
    save_weights(network, info, half, half=True)
    assert half.stat().st_size < 0.6 * file.stat().st_size
    loaded, _ = load_weights(half)
    for key, value in network.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[key], expected)


def test_half_precision_refuses_what_it_cannot_hold(network, info, tmp_path):
    next(network.parameters()).data[:] = 1e6
    with pytest.raises(WeightsError, match=r"half\.safetensors.*not finite"):
        save_weights(network, info, tmp_path / "half.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []


def test_saving_refuses_another_network_than_described(network, info, tmp_path):
    other = replace(info, config={**CONFIG, "blocks": 2})
    with pytest.raises(WeightsError, match="lacks"):
        save_weights(network, other, tmp_path / "x.safetensors")


def test_the_checksum_depends_on_the_tensors_alone(file, network, info, tmp_path):
    second = tmp_path / "second.safetensors"
    renamed = save_weights(network, replace(info, name="second", origin="elsewhere"), second)
    assert renamed.checksum == read_info(file).checksum
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    assert save_weights(network, info, second).checksum != renamed.checksum


@pytest.mark.parametrize(("task", "fingerprint"), [("aseg", "64fd7819"), ("hippocampus", "3a3839d9")])
def test_weights_that_were_released_keep_their_fingerprint(task, fingerprint):
    """Results that were made with them are finished still, whatever weights may ask for since."""
    assert resolve_weights(None, task).info.fingerprint.startswith(fingerprint)


def test_the_fingerprint_depends_on_all_that_decides_results(info):
    as_before = [
        replace(info, name="second", origin="elsewhere", licence="MIT", training_data="other heads"),
        replace(info, input=replace(info.input, deep_patch_size=80)),  # of a view that is not asked for
    ]
    others = [
        replace(info, checksum="0" * 64),
        replace(info, labels=info.labels[::-1]),
        *[
            replace(info, input=replace(info.input, **change))
            for change in (
                {"step": info.input.step - 1},
                {"gaussian": not info.input.gaussian},
                {"deep_voxel_size": 1.0},
                {"deep_voxel_size": 1.0, "deep_patch_size": 80},
                {"follow_aseg": 3.0},
                {"follow_intensities": 0.3},
            )
        ],
    ]
    assert {other.fingerprint for other in as_before} == {info.fingerprint}
    assert len({other.fingerprint for other in [info, *others]}) == 1 + len(others)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.5, 0.9999])
def test_a_truncated_file_is_refused(file, kept):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.*(truncated|not a safetensors)"):
        load_weights(file)


def test_a_damaged_value_is_refused(file):
    def flip(header, data):
        data[len(data) // 2] ^= 1
        return data

    rewrite(file, flip)
    assert read_info(file).name == "tiny"
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.*checksum"):
        load_weights(file)


def test_a_missing_tensor_is_named(file):
    removed = []

    def remove(header, data):
        # The tensor that lies last, so that the others keep their places.
        tensors = [key for key in header if key != "__metadata__"]
        removed.append(max(tensors, key=lambda key: header[key]["data_offsets"][1]))
        return data[: header.pop(removed[0])["data_offsets"][0]]

    rewrite(file, remove)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.*lacks") as caught:
        load_weights(file)
    assert removed[0] in str(caught.value)


def test_an_extra_tensor_is_named(file):
    def add(header, data):
        end = len(data)
        header["surplus"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
        return data + bytes(4)

    rewrite(file, add)
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.*unknown surplus"):
        load_weights(file)


def test_a_wrong_shape_is_named(file):
    edit_info(file, config={**CONFIG, "state": 4})
    with pytest.raises(WeightsError, match=r"tiny\.safetensors.*shape \[.*\] instead of \["):
        load_weights(file)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"network": "resnet"}, "network is 'resnet'; known are .*medsegmamba"),
        ({"task": "cortex"}, "task is 'cortex'; known are aseg, hippocampus"),
        ({"labels": [0, 4, 5]}, "32 classes but its class table 3"),
        ({"labels": [0] * 32}, "names a label twice"),
        ({"labels": ["a"] * 32}, "labels is .*; it must be a list of whole numbers"),
        ({"name": "../up"}, "name is '../up'"),
        ({"config": {**CONFIG, "depth": 3}}, "cannot be built.*depth"),
        ({"config": "small"}, "config is 'small'; it must be a table of keys"),
        ({"licens": "MIT"}, r"cannot be read: unknown keys licens \(licence is meant\?\)"),
        ({"input": None}, "cannot be read"),
        ({"input": {"patch_size": 20}}, "patch size is 20; it must be a multiple of 8"),
        ({"input": {"patch_size": 16, "step": 17}}, r"step is 17; it must lie in 1\.\.16"),
        ({"input": {"voxel_size": -1}}, "voxel size is -1 mm"),
        ({"input": {"intensity": "log"}}, "intensity convention is 'log'"),
        ({"input": {"mirror_voxel_size": 1.25}}, "size is 1.25 mm; it must be positive, and mirror be true"),
        ({"input": {"mirror": True, "mirror_voxel_size": 0.0}}, "mirror voxel size is 0.0 mm"),
        ({"input": {"deep_voxel_size": 0.0}}, "deep voxel size is 0.0 mm; it must be positive"),
        ({"task": "hippocampus", "input": {"deep_voxel_size": 1.0}}, "are for structures of the whole brain"),
        ({"task": "hippocampus", "input": {"follow_intensities": 0.3}}, "are for structures of the whole brain"),
        ({"input": {"deep_patch_size": 20}}, "deep patch size is 20; it must be a multiple of 8"),
        ({"input": {"follow_aseg": -1.0}}, "follow_aseg is -1.0; it must be a number from 0 up"),
        ({"input": {"follow_intensities": 1.5}}, r"follow_intensities is 1.5; it must lie in 0\.\.1"),
        ({"input": {"mirror": "yes"}}, "'?mirror'? is 'yes'; it must be true or false"),
    ],
)
def test_a_false_description_is_refused(file, entries, reason):
    edit_info(file, **entries)
    with pytest.raises(WeightsError, match=rf"tiny\.safetensors: .*{reason}"):
        load_weights(file)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"foreign\.safetensors.*not written by"):
        load_weights(path)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\0" * 64, bytes(8) + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        load_weights(path)


@pytest.mark.parametrize("archive", [True, False])
def test_a_checkpoint_is_told_to_be_imported(tmp_path, archive):
    path = tmp_path / "theirs.pt"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(WeightsError, match=r"theirs\.pt.*medsegmamba-weights import"):
        load_weights(tmp_path / "theirs.pt")


def test_verify_finds_values_that_are_not_finite(file, network, info, monkeypatch):
    from medsegmamba_bids.weights import files as weights

    assert verify_weights(file).name == "tiny"
    next(network.parameters()).data[0] = torch.nan
    with monkeypatch.context() as unchecked:
        unchecked.setattr(weights, "_check_finite", lambda arrays, path: None)
        save_weights(network, info, file)
    with pytest.raises(WeightsError, match="not finite"):
        verify_weights(file)


def test_weights_are_found_by_path_and_by_name(file, network, info, folder):
    assert find_weights(file) == file
    assert find_weights(str(file), "aseg") == file
    save_weights(network, info, folder / "mine.safetensors")
    assert find_weights("mine") == folder / "mine.safetensors"
    with pytest.raises(WeightsError, match="for the task aseg, not for hippocampus"):
        find_weights("mine", "hippocampus")
    with pytest.raises(WeightsError, match=r"absent: no such weights file.*mine"):
        find_weights("absent")


@pytest.mark.parametrize("task", ["aseg", "hippocampus"])
def test_without_a_name_the_default_of_the_task_is_meant(task, monkeypatch, tmp_path):
    default = default_weights(task)
    if default is not None:
        assert read_info(default).task == task
        assert find_weights(None, task) == default
    from medsegmamba_bids.weights import folders as weights_folders

    monkeypatch.setattr(weights_folders, "data_path", lambda name: tmp_path / name)
    assert default_weights(task) is None
    with pytest.raises(WeightsError, match=rf"--weights.*import FILE\.pt --task {task}"):
        find_weights(None, task)


def test_the_last_embedded_file_of_a_task_is_its_default(network, info, tmp_path, monkeypatch):
    from medsegmamba_bids.weights import folders as weights_folders

    monkeypatch.setattr(weights_folders, "data_path", lambda name: tmp_path / name)
    for name in ("aseg-v2", "aseg-v1"):
        save_weights(network, info, tmp_path / "weights" / f"{name}.safetensors")
    (tmp_path / "weights" / "._aseg-v3.safetensors").write_bytes(b"of macOS")
    assert default_weights("aseg").stem == "aseg-v2"
    assert default_weights("hippocampus") is None


def test_list_show_and_verify(network, info, folder, capsys):
    assert main(["list"]) == 0
    assert str(folder) in capsys.readouterr().out or default_weights("aseg")
    path = folder / "mine.safetensors"
    saved = save_weights(network, replace(info, name="mine"), path)
    (folder / "broken.safetensors").write_bytes(b"123")

    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("mine"))
    assert row == ["mine", "aseg", "medsegmamba", "32", str(path)]
    assert any(line.startswith("broken") and "unusable" in line for line in lines)

    assert main(["show", "mine"]) == 0
    shown = capsys.readouterr().out
    for part in (str(path), saved.checksum, "voxel_size: 1.5", "origin: a test", "state: 2"):
        assert part in shown

    assert main(["verify", "mine"]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: ok")
    assert main(["verify", "broken", "mine"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{path}: ok")
    assert "broken.safetensors: not a safetensors file" in captured.err
    assert main(["show", "absent"]) == 1


def test_a_checkpoint_is_named_as_one_with_what_to_do(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(WeightsError) as caught:
        read_info(path)
    assert str(caught.value) == (
        f"{path}: a PyTorch checkpoint, not a weights file; convert it first: "
        "medsegmamba-weights import FILE --task aseg|hippocampus"
    )


def test_a_relative_path_is_found_from_any_folder(file, tmp_path, monkeypatch):
    """Steps of a run work in folders of their own."""
    monkeypatch.chdir(file.parent)
    found = resolve_weights(file.name, "aseg")
    monkeypatch.chdir("/")
    assert found.path == file
    assert found.path.is_file()
