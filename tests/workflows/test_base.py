"""Graphs, built and expanded without running anything."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from nipype.pipeline.engine.utils import generate_expanded_graph

from medsegmamba_bids.bids import T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.weights.info import InputSpec, WeightsFile, WeightsInfo
from medsegmamba_bids.workflows.networks import Networks
from medsegmamba_bids.workflows.outputs import product_metadata
from medsegmamba_bids.workflows.participants import init_medsegmamba_wf, participant_work_dir

TEMPLATE = Template("head", Path("template.nii.gz"), 2_000_000.0, "")
NETWORK_STEPS = {"aseg", "brain", "hippocampus"}


def network(table="aseg_brain", task="aseg", **spec):
    labels = tuple(load_label_table(table).labels.tolist())
    config = {"classes": len(labels)}
    info = WeightsInfo(f"w-{table}", "medsegmamba", config, task, labels, InputSpec(**spec), checksum="abc")
    return WeightsFile(Path(f"{table}.safetensors"), info)


AUTHORS = {"table": "aseg", "skull_stripped": True, "intensity": "freesurfer"}


def image(subject="01", mask=None, session=None):
    prefix = f"sub-{subject}" + (f"_ses-{session}" if session else "")
    relative = f"sub-{subject}/anat/{prefix}_T1w.nii.gz"
    return T1wImage(Path("/data") / relative, prefix, subject, session, relative, mask)


@pytest.fixture
def config(tmp_path):
    return RunConfig(tmp_path / "in", tmp_path / "out", work_dir=tmp_path / "work", nprocs=4, omp_nthreads=2, mem_gb=3)


def build(config, networks, *images):
    subjects = {}
    for one in images or [image()]:
        subjects.setdefault(one.subject, []).append(one)
    workflow = init_medsegmamba_wf(subjects, config, networks, TEMPLATE)
    return {node.fullname: node for node in workflow._create_flat_graph().nodes()}


def names(nodes):
    return {name.split(".")[-1] for name in nodes}


def source(nodes, step, entry, config, networks, *images):
    """Node and output that an input comes from; nodes that only pass things on are looked through."""
    subjects = {"01": list(images) or [image()]}
    graph = init_medsegmamba_wf(subjects, config, networks, TEMPLATE)._create_flat_graph()
    (node,) = [node for node in graph.nodes() if node.name == step]
    found = (node, entry)
    while found is not None and (found[0].name == "inputnode" or found == (node, entry)):
        found = _before(graph, *found)
    return found and f"{found[0].name}.{found[1]}"


def _before(graph, node, entry):
    for before, _, edge in graph.in_edges(node, data=True):
        for output, into in edge["connect"]:
            if into == entry:
                return before, output
    return None


def test_heads_are_segmented_as_they_are(config):
    networks = Networks(network())
    nodes = build(config, networks)
    assert not names(nodes) & {"brain", "mask", "hippocampus"}
    assert source(nodes, "aseg", "in_file", config, networks) == "conform.out_file"
    assert source(nodes, "aseg", "mask_file", config, networks) is None
    assert source(nodes, "normalize", "mask_file", config, networks) == "aseg.mask_file"
    assert source(nodes, "normalize", "labels_file", config, networks) == "aseg.labels_file"


def test_the_authors_weights_get_a_normalised_brain(config):
    networks = Networks(network(**AUTHORS), None, network())
    nodes = build(config, networks)
    assert "brain" in names(nodes)
    assert source(nodes, "normalize", "mask_file", config, networks) == "brain.mask_file"
    assert source(nodes, "aseg", "in_file", config, networks) == "normalize.out_file"
    assert source(nodes, "aseg", "mask_file", config, networks) == "brain.mask_file"


def test_a_given_mask_needs_no_network(config):
    networks = Networks(network(**AUTHORS), None, network())
    masked = image(mask=Path("/masks/brain.nii.gz"))
    nodes = build(config, networks, masked)
    assert "brain" not in names(nodes)
    assert source(nodes, "aseg", "mask_file", config, networks, masked) == "mask.out_file"
    assert source(nodes, "write_aseg", "conformed_mask", config, networks, masked) == "mask.out_file"


def test_no_mask_at_all_takes_stripped_images_only(config):
    nodes = build(config, Networks(network(**AUTHORS)))
    (mask,) = [node for node in nodes.values() if node.name == "mask"]
    assert type(mask.interface).__name__ == "NonzeroMask"


def test_subfields_start_from_the_hippocampi(config):
    networks = Networks(network(), network("hippoFS60", "hippocampus"))
    nodes = build(config, networks)
    assert source(nodes, "hippocampus", "aseg_file", config, networks) == "aseg.labels_file"
    assert "write_hippocampus" in names(nodes)


def test_the_json_tells_the_steps_in_the_order_of_the_work(config):
    heads = build(config, Networks(network(), network("hippoFS60", "hippocampus")))
    steps = {node.name: node.interface._records for node in heads.values() if node.name.startswith("statistics")}
    done = ["record_native_aseg", "record_native_mask", "record_intracranial"]
    assert steps["statistics_aseg"] == ["record_conform", "record_aseg", "record_normalize", *done]
    assert steps["statistics_hippocampus"] == ["record_hippocampus", "record_native_hippocampus"]
    (brains,) = [
        node.interface._records
        for node in build(config, Networks(network(**AUTHORS), None, network())).values()
        if node.name == "statistics_aseg"
    ]
    assert brains == ["record_conform", "record_brain", "record_normalize", "record_aseg", *done]


def test_no_step_only_passes_files_on(config):
    """A process and a folder for each step of the work, and no more."""
    workflow = init_medsegmamba_wf(
        {"01": [image()]}, config, Networks(network(), network("hippoFS60", "hippocampus")), TEMPLATE
    )
    graph = generate_expanded_graph(workflow._create_flat_graph())
    assert names(node.fullname for node in graph.nodes()) == {
        *("conform", "aseg", "normalize", "hippocampus", "finish", "native_mask", "intracranial", "draw"),
        "report",
        *(f"{step}_{task}" for step in ("native", "statistics", "write") for task in ("aseg", "hippocampus")),
    }


def test_network_nodes_declare_what_they_need(config):
    networks = Networks(network(**AUTHORS), network("hippoFS60", "hippocampus"), network())
    found = {node.name: node for node in build(config, networks).values() if node.name in NETWORK_STEPS}
    assert found.keys() == NETWORK_STEPS
    for node in found.values():
        assert (node.n_procs, node.mem_gb) == (2, 3)  # 4 GB, but no more than there are
        assert node.interface.runs_network


def test_how_it_is_run_does_not_change_hashes(config):
    networks = Networks(network())
    other = replace(config, device="cuda", batch_size=3, low_memory=True, omp_nthreads=4, mem_gb=8)
    changed = replace(config, precision="bfloat16")
    hashes = [
        {node.name: node.inputs.get_hashval()[1] for node in build(one, networks).values() if node.name == "aseg"}
        for one in (config, other, changed)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_image_has_a_part_of_its_own(config):
    images = [image("01", session="a"), image("01", session="b"), image("02")]
    nodes = build(config, Networks(network()), *images)
    conform = sorted(name for name in nodes if name.endswith(".conform"))
    assert conform == [
        "medsegmamba_wf.sub_01_wf.T1w_sub_01_ses_a_wf.conform",
        "medsegmamba_wf.sub_01_wf.T1w_sub_01_ses_b_wf.conform",
        "medsegmamba_wf.sub_02_wf.T1w_sub_02_wf.conform",
    ]
    assert participant_work_dir("01", config).name == "sub_01_wf"
    for name in conform:
        crashes = nodes[name].config["execution"]["crashdump_dir"]
        assert crashes == str(config.participant_log_dir(name.split("_")[2]))


def test_labels_with_a_plus_have_parts_of_their_own(config):
    nodes = build(config, Networks(network()), image("A+1"), image("A1"))
    assert len({participant_work_dir(subject, config) for subject in ("A+1", "A1", "A2b1")}) == 3
    conform = [node for name, node in nodes.items() if name.endswith(".conform")]
    folders = {node.config["execution"]["crashdump_dir"] for node in conform}
    assert folders == {str(config.participant_log_dir(subject)) for subject in ("A+1", "A1")}


def test_metadata_name_sources_and_weights(config, tmp_path):
    found = product_metadata("aseg", image(), config, network())
    assert found == {
        "SpatialReference": "bids:raw:sub-01/anat/sub-01_T1w.nii.gz",
        "Sources": ["bids::sub-01/anat/sub-01_space-conform_seg-aseg_desc-medsegmamba_dseg.nii.gz"],
        "Weights": {"Name": "w-aseg_brain", "Checksum": "abc", "Fingerprint": network().info.fingerprint},
    }
    prep = replace(config, derivatives=(tmp_path / "prep",))
    masked = image(mask=tmp_path / "prep" / "sub-01" / "m.nii.gz")
    assert product_metadata("conformed_mask", masked, prep, network())["Sources"] == [
        "bids:derivatives1:sub-01/m.nii.gz"
    ]
    assert product_metadata("freesurfer_stats", image(), config, network()) == {}
    assert product_metadata("aseg_posteriors", image(), config, network())["LabelMap"][:2] == ["BG", "lWM"]


def test_graphs_are_built_without_torch(tmp_path):
    code = (
        "import sys; import medsegmamba_bids.execution.run, medsegmamba_bids.execution.plugin;"
        "assert not {'torch', 'SimpleITK', 'numba'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
