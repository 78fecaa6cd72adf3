"""Configurations: what is read, and what is refused with the file and the key."""

import csv
from dataclasses import replace
from fnmatch import fnmatch

import pytest

from medsegmamba_bids.data import data_path
from medsegmamba_bids.errors import ConfigError
from medsegmamba_bids.training.export import weights_info
from medsegmamba_bids.training.synthetic.synthetic_trainer import check_synthesis
from medsegmamba_bids.training.training_config import (
    PairsConfig,
    SynthesisConfig,
    find_config,
    read_config,
    read_pairs_config,
    read_synthesis_config,
)

SYNTHESIS = """
name = "tiny"
tissues = "aseg_brain"
network = { channels = [8, 8, 8, 8], bottleneck = 16, state = 4, blocks = 1 }
[[sources]]
labels = "maps/*.nii.gz"
[[stages]]
steps = 10
patch_size = 16
voxel_size = [2.0, 2.0]
rate = [1e-3, 1e-4]
"""
PAIRS = """
name = "pairs"
table = "aseg"
network = { state = 4 }
"""
PAIRS_YAML = """
name: pairs
table: aseg
network: {state: 4}
"""


def write(folder, text, name="config.toml"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SYNTHESIS.replace("name =", "nome ="), "unknown keys nome \\(name is meant\\?\\); known are"),
        (SYNTHESIS.replace('tissues = "aseg_brain"\n', ""), "the keys tissues are missing"),
        (SYNTHESIS.replace("steps = 10", 'steps = "ten"'), "number 1: steps is 'ten'; it must be a whole number"),
        (SYNTHESIS.replace("steps = 10", "steps = true"), "steps is True; it must be a whole number"),
        (SYNTHESIS.replace("steps = 10", "steps = 0"), "steps is 0; it must be 1 or more"),
        (SYNTHESIS.replace("[2.0, 2.0]", "[2.0]"), "voxel_size is \\[2.0\\]; it must be a list of 2 numbers"),
        (
            SYNTHESIS.replace("rate = ", "rat = "),
            "\\[\\[stages\\]\\] number 1: unknown keys rat \\(rate is meant\\?\\)",
        ),
        (SYNTHESIS.split("[[stages]]")[0], "needs at least one \\[\\[stages\\]\\] table"),
        (
            SYNTHESIS + '[weights]\nname = "a"\nlicense = "MIT"',
            "\\[weights\\]: unknown keys license \\(licence is meant\\?\\)",
        ),
        ('precision = "float16"\n' + SYNTHESIS, "precision 'float16' is unknown; allowed are float32, bfloat16"),
        ("name = ", "config.toml: "),
    ],
)
def test_synthesis_refusals(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as error:
        read_synthesis_config(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAIRS_YAML + "epoch: 3\n", "unknown keys epoch \\(epochs is meant\\?\\)"),
        (PAIRS_YAML + "epochs: many\n", "epochs is 'many'; it must be a whole number"),
        (PAIRS_YAML + "network: [4]\n", "network is \\[4\\]; it must be a table of keys"),
        ("- name\n- table\n", "it must hold keys with values"),
        ("name: [\n", "config.yaml: "),
    ],
)
def test_pairs_refusals_in_yaml(tmp_path, text, message):
    path = write(tmp_path, text, "config.yaml")
    with pytest.raises(ConfigError, match=message) as error:
        read_pairs_config(path)
    assert str(path) in str(error.value)


def test_yaml_and_toml_mean_the_same(tmp_path):
    toml = read_config(write(tmp_path, PAIRS))
    yaml = read_config(write(tmp_path, PAIRS_YAML, "config.yml"))
    assert isinstance(toml, PairsConfig)
    assert toml == yaml
    assert toml.digest == yaml.digest


def test_sources_make_it_synthesis(tmp_path):
    config = read_config(write(tmp_path, SYNTHESIS))
    assert isinstance(config, SynthesisConfig)
    assert (config.table, config.patch_size, config.stages[0].rate) == ("aseg_brain", 16, (1e-3, 1e-4))


def test_digest_is_of_what_decides_the_result(tmp_path):
    digest = read_config(write(tmp_path, SYNTHESIS)).digest
    for free in ("workers = 3\n", "log_every = 7\n", "save_every = 9\n", "save_minutes = 1.5\n"):
        assert read_config(write(tmp_path, free + SYNTHESIS)).digest == digest
    with_weights = SYNTHESIS + '[weights]\nname = "a"\nunweighted = 0.5\n'
    assert read_config(write(tmp_path, with_weights)).digest == digest
    for text in ("seed = 2\n" + SYNTHESIS, SYNTHESIS.replace("steps = 10", "steps = 11")):
        assert read_config(write(tmp_path, text)).digest != digest


PAPER = [f"paper_{task}{network}" for task in ("aseg", "hippocampus") for network in ("", "_segmambabot", "_tabsurfer")]


EMBEDDED = [
    "embedded_aseg",
    "embedded_aseg2_first",
    "embedded_aseg2_base",
    "embedded_aseg2_heads",
    "embedded_aseg2",
    "embedded_aseg3_fold",
    "embedded_aseg3",
    "embedded_hippocampus",
    "embedded_hippocampus2_first",
    "embedded_hippocampus2",
    "embedded_hippocampus3",
    "embedded_hippocampus4",
]


@pytest.mark.parametrize("name", [*EMBEDDED, *PAPER])
def test_configurations_of_the_package_can_be_run(name):
    config = read_config(find_config(name))
    if isinstance(config, SynthesisConfig):
        check_synthesis(config)
    info = weights_info(config)
    assert info.task == ("hippocampus" if "hippocampus" in name else "aseg")
    assert info.input.patch_size == config.patch_size


def test_the_papers_recipe():
    """Section 2.4: epochs, patches, dropout and drop path."""
    aseg, hippocampus = (read_config(find_config(f"paper_{name}")) for name in ("aseg", "hippocampus"))
    assert (aseg.epochs, aseg.patches_per_axis**3, aseg.entropy_epochs) == (15, 27, 1)
    assert (hippocampus.epochs, hippocampus.patches_per_axis) == (63, 1)
    for config in (aseg, hippocampus):
        assert (config.network["dropout"], config.network["drop_path"]) == (0.1, 0.3)


@pytest.mark.parametrize("name", PAPER)
def test_the_networks_of_the_paper_train_under_equal_conditions(name):
    config, reference = read_config(find_config(name)), read_config(find_config("_".join(name.split("_")[:2])))
    assert config.network_name == (name.split("_")[2] if name.count("_") == 2 else "medsegmamba")
    assert {key: value for key, value in config.network.items() if value != 0.1} in ({}, {"drop_path": 0.3})
    weights = replace(config.weights, name=reference.weights.name)
    same = {"name": reference.name, "network_name": reference.network_name, "network": reference.network}
    assert replace(config, weights=weights, **same) == reference


def test_a_network_of_one_patch_size_needs_it_in_all_stages(tmp_path):
    text = SYNTHESIS.replace("network = { channels = [8, 8, 8, 8], bottleneck = 16, state = 4, blocks = 1 }", "")
    text = 'network_name = "tabsurfer"\nnetwork = { embedding = 64, heads = 1, layers = 1 }\n' + text
    stage = text[text.index("[[stages]]") :]
    check_synthesis(read_config(write(tmp_path, text + stage)))
    config = read_config(write(tmp_path, text + stage.replace("patch_size = 16", "patch_size = 24")))
    with pytest.raises(ConfigError, match=r"a tabsurfer has parameters .* need the same, not \[16, 24\]"):
        check_synthesis(config)


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(ConfigError, match=r"no such file, and no configuration of the package \(embedded_aseg, "):
        find_config("embeded_aseg")


def test_stages_with_unknown_choices_are_refused_before_training(tmp_path):
    config = read_config(write(tmp_path, SYNTHESIS + "synthesis = { noise = 0.1 }\n"))
    with pytest.raises(ConfigError, match=r"unknown keys noise.*; known are .*noise_max"):
        check_synthesis(config)


def test_networks_that_cannot_be_built_are_refused(tmp_path):
    config = read_config(write(tmp_path, SYNTHESIS.replace("state = 4", "states = 4")))
    with pytest.raises(ValueError, match="states"):
        check_synthesis(config)


def test_unweighing_is_for_synthesis_alone(tmp_path):
    config = read_config(write(tmp_path, PAIRS + '[weights]\nname = "a"\nunweighted = 0.5\n'))
    with pytest.raises(ConfigError, match="configuration pairs: unweighted is only for synthesised images"):
        weights_info(config)


@pytest.mark.parametrize(
    ("favour", "sentence"),
    [
        ("{ caudat = 0.1 }", r"favour: unknown structures caudat \(Caudate is meant\?\)"),
        ("{ Left-Caudate = 0.1 }", "unknown structures Left-Caudate"),
        ('{ Caudate = "much" }', "favour: Caudate is 'much', not a number"),
        ("{ Caudate = true }", "favour: Caudate is True, not a number"),
        ("{ Caudate = nan }", "favour: Caudate is nan, not a number"),
        ("0.3", "favour is 0.3; it must be a table of keys"),
    ],
)
def test_favoured_structures_are_checked(tmp_path, favour, sentence):
    with pytest.raises(ConfigError, match=sentence):
        weights_info(read_config(write(tmp_path, SYNTHESIS + f'[weights]\nname = "a"\nfavour = {favour}\n')))


def test_weights_table_is_checked(tmp_path):
    config = read_config(write(tmp_path, SYNTHESIS + '[weights]\nname = "a"\npatch_size = 20\n'))
    with pytest.raises(ConfigError, match="its patch size is 20; it must be a multiple of 8"):
        weights_info(config)


def test_folds_leave_out_what_they_are_judged_on():
    config = read_config(find_config("embedded_aseg3_fold"))
    fold = config.varied("base.safetensors", ["reference/brain_b_aseg.nii.gz", "reference/brain_c_aseg.nii.gz"])
    left = [source.labels for source in config.sources if source not in fold.sources]
    assert left == ["reference/brain_b_aseg.nii.gz", "reference/brain_c_aseg.nii.gz"]
    assert len(fold.sources) == len(config.sources) - 2
    assert (config.initial, fold.initial) == ("", "base.safetensors")
    assert fold.digest != config.digest
    assert config.varied() == config
    with pytest.raises(ConfigError, match=r"no source has the labels \['brain_b'\]; there are \['synthesis_labels"):
        config.varied(leave_out=["brain_b"])
    with pytest.raises(ConfigError, match="nothing to train on is left"):
        config.varied(leave_out=[source.labels for source in config.sources])


def test_the_base_sees_none_of_the_cases_and_the_end_all_that_may_be_trained_on():
    """The cross-validation rests on the first; sub-03 to sub-05 are for evaluation or tests only."""
    names = ("embedded_aseg2_first", "embedded_aseg2_base", "embedded_aseg2_heads", "embedded_aseg2")
    *bases, heads, last = (read_config(find_config(name)) for name in names)
    cases = [case for case in read_cases_table() if case["aim"] == "1"]
    assert len(cases) == 5
    files = {(case["reference"], case["image"]) for case in cases}
    seen = [source for base in bases for source in base.sources]
    assert not [s for s in seen if any(fnmatch(name, s.labels) for pair in files for name in pair)]
    for stage in (heads, last):
        assert {(s.labels, s.image) for s in stage.sources if s.labels.startswith("reference/")} == files
    whole = [s.labels for s in last.sources if not s.stripped and s.image]
    further = ["mries/aparc+aseg.mgz", *(f"{folder}/aseg.mgz" for folder in ("pynetstim", "aomic1", "aomic2"))]
    assert whole == ["reference/head_sub-02_aseg.nii.gz", *(f"more/{labels}" for labels in further)]
    assert last.sources[: len(heads.sources)] == heads.sources
    assert {s.labels.split("/")[0] for s in last.sources[len(heads.sources) :]} == {"more"}
    for name in ("embedded_aseg3_fold", "embedded_aseg3"):
        assert read_config(find_config(name)).sources == last.sources


def test_the_folds_see_what_the_released_network_sees_in_the_same_way():
    """They begin elsewhere and take other steps, since version 2 has seen all that they are judged on."""
    fold, released = (read_config(find_config(name)) for name in ("embedded_aseg3_fold", "embedded_aseg3"))
    steps = [replace(stage, steps=1, rate=(1.0, 1.0)) for config in (fold, released) for stage in config.stages]
    assert steps[0] == steps[1]
    names = {"name": "x", "origin": "x", "training_data": "x"}
    assert replace(fold.weights, **names) == replace(released.weights, **names)
    ours = {"name": "x", "seed": 0, "stages": (), "weights": None}
    assert replace(fold, **ours) == replace(released, **ours)


def read_cases_table():
    lines = data_path("evaluation/cases.tsv").read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(lines[1:], delimiter="\t"))
