"""Checkpoints and logs of a training, and the weights file that comes of it."""

import json
import math

import numpy as np
import pytest
import torch

from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.training.export import export_checkpoint, shift_log_odds
from medsegmamba_bids.training.run_folder import RunFolder, read_checkpoint
from medsegmamba_bids.training.start import new_network, take_initial
from medsegmamba_bids.training.training_config import Source, Stage, SynthesisConfig, WeightsTable
from medsegmamba_bids.weights.files import load_weights

NETWORK = {"channels": [8, 8, 8, 8], "bottleneck": 16, "state": 4, "blocks": 1}
STAGE = Stage(1, 16, (1.5, 1.5), (1e-3, 1e-3))


def config(**fields):
    options = {"name": "tiny", "tissues": "aseg_brain", "network": NETWORK, **fields}
    return SynthesisConfig(sources=(Source("a"),), stages=(STAGE,), **options)


def test_checkpoints_come_back(tmp_path):
    folder = RunFolder(tmp_path, "digest", "step")
    assert folder.restore() is None
    folder.save({"step": 7, "network": {"a": torch.arange(3)}})
    state = RunFolder(tmp_path, "digest", "step").restore()
    assert state["step"] == 7
    assert state["network"]["a"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoints_of_another_configuration_are_refused(tmp_path):
    RunFolder(tmp_path, "one", "step").save({"step": 7})
    with pytest.raises(ConfigError, match=r"checkpoint\.pt belongs to another configuration"):
        RunFolder(tmp_path, "other", "step").restore()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04broken"])
def test_damaged_checkpoints_are_refused(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: is no checkpoint, or a damaged one"):
        read_checkpoint(tmp_path / "checkpoint.pt", "digest")


def test_truncated_checkpoints_are_refused(tmp_path):
    folder = RunFolder(tmp_path, "digest", "step")
    folder.save({"step": 7, "network": {"a": torch.zeros(1000)}})
    folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:-500])
    with pytest.raises(ConfigError, match="damaged"):
        folder.restore()


def test_lines_beyond_the_checkpoint_are_written_again(tmp_path):
    folder = RunFolder(tmp_path, "digest", "step")
    for step in (5, 10, 15):
        folder.log(step=step, loss=1 / step)
        if step == 10:
            folder.save({"step": step})
    folder.close()
    again = RunFolder(tmp_path, "digest", "step")
    again.restore()
    again.log(step=15, loss=0.5)
    again.close()
    lines = [json.loads(line) for line in again.log_path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(5, 0.2), (10, 0.1), (15, 0.5)]


def test_processes_beyond_the_first_write_nothing(tmp_path):
    folder = RunFolder(tmp_path, "digest", "step", writes=False)
    folder.log(step=1)
    folder.save({"step": 1})
    assert list(tmp_path.iterdir()) == []


def checkpoint_of(folder, settings):
    network = new_network(settings, 36)
    RunFolder(folder, settings.digest, "step").save({"step": 1, "network": network.state_dict()})
    return network


def test_export_refuses_the_checkpoint_of_another_network(tmp_path):
    checkpoint_of(tmp_path, config())
    other = config(network={**NETWORK, "state": 8})
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        export_checkpoint(tmp_path, other, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="is no checkpoint"):
        export_checkpoint(tmp_path / "none.pt", config(), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_exported_weights_are_those_of_the_checkpoint(tmp_path):
    network = checkpoint_of(tmp_path, config())
    table = WeightsTable("tiny", patch_size=16, step=8, half=False, unweighted=0.5)
    plain, shifted = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    export_checkpoint(tmp_path, config(), plain)
    info = export_checkpoint(tmp_path, config(weights=table), shifted)
    assert (info.name, info.input.patch_size, info.training_data) == ("tiny", 16, "seed 0")
    patch = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.eval().probabilities(patch)
        found = load_weights(plain)[0].probabilities(patch)
        other = load_weights(shifted)[0].probabilities(patch)
    assert torch.allclose(found, expected, atol=2e-3)  # half precision
    from medsegmamba_bids.training.synthetic.tissues import load_tissue_table

    weights = torch.from_numpy(load_tissue_table("aseg_brain").class_weights).view(1, -1, 1, 1, 1)
    divided = expected / weights.sqrt()
    torch.testing.assert_close(other, divided / divided.sum(1, keepdim=True), rtol=1e-3, atol=1e-6)


def test_favoured_structures_gain_on_both_sides(tmp_path):
    """Caudate's odds against everything else are those of before times e^0.7, on both sides; nothing else gains."""
    table = WeightsTable("tiny", patch_size=16, step=8, half=False, favour={"Caudate": 0.7})
    network = checkpoint_of(tmp_path, config()).eval()
    export_checkpoint(tmp_path, config(weights=table), tmp_path / "a.safetensors")
    patch = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = network.probabilities(patch)
        after = load_weights(tmp_path / "a.safetensors")[0].probabilities(patch)
    names = load_label_table("aseg_brain").names
    caudates = [names.index("Left-Caudate"), names.index("Right-Caudate")]
    others = [index for index in range(len(names)) if index not in caudates]
    gained = (after / before) / (after[:, :1] / before[:, :1])  # against the background
    torch.testing.assert_close(gained[:, caudates], torch.full_like(gained[:, caudates], math.exp(0.7)))
    torch.testing.assert_close(gained[:, others], torch.ones_like(gained[:, others]))


def test_shifting_leaves_the_network_alone():
    network = new_network(config(), 36)
    before = network.head.bias.detach().clone()
    shifted = shift_log_odds(network, np.full(36, -2.0))
    assert torch.equal(network.head.bias, before)
    torch.testing.assert_close(shifted.head.bias, before - 2)


def test_initial_weights_are_taken_where_they_fit(tmp_path):
    source = checkpoint_of(tmp_path, config())
    export_checkpoint(tmp_path, config(), tmp_path / "a.safetensors")
    network = new_network(config(seed=5), 25)
    subfields = load_label_table("hippoFS60").labels.tolist()
    taken = take_initial(network, tmp_path / "a.safetensors", subfields)
    assert taken == len(network.state_dict()) - 2  # all but the head
    assert torch.allclose(network.encoder[0].first.weight, source.encoder[0].first.weight, atol=1e-3)


def test_a_network_for_more_classes_takes_the_head_by_label(tmp_path):
    """The rows of the classes that both have are equal; fluid outside the brain starts as the background does."""
    source = checkpoint_of(tmp_path, config())
    export_checkpoint(tmp_path, config(), tmp_path / "a.safetensors")
    labels = load_label_table("aseg_head").labels.tolist()
    network = new_network(config(seed=5), len(labels))
    assert take_initial(network, tmp_path / "a.safetensors", labels) == len(network.state_dict())
    for own, given in ((network.head.weight, source.head.weight), (network.head.bias, source.head.bias)):
        assert torch.allclose(own[:-1], given, atol=1e-3)
        assert torch.allclose(own[-1], given[0], atol=1e-3)
