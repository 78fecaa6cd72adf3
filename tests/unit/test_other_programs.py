"""Results as pybids and nilearn find and read them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import ListedColormap, to_hex

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.execution.dataset_files import write_dataset_files
from medsegmamba_bids.image.io import save_image
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.interfaces.more_forms import FreeSurferSubfields
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, SEGMENTATIONS

LABELS = {kind.name: load_label_table(kind.widest).labels.tolist() for kind in SEGMENTATIONS}


def bars(labels, side=30):
    """Bars of 4 x 4 voxels, one a label."""
    data = np.zeros((side, side, side), np.uint16)
    for place, label in enumerate(labels):
        x, y = 5 * (place % 6), 5 * (place // 6)
        data[x : x + 4, y % side : y % side + 4, 5:25] = label
    return data


@pytest.fixture(scope="module")
def derivatives(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "n", "BIDSVersion": "1.10.0"}))
    out = root / "derivatives" / "medsegmamba"
    write_dataset_files(RunConfig(root, out))
    for kind in SEGMENTATIONS:
        data = bars(LABELS[kind.name][1:30])
        for name in (kind.native, kind.conformed):
            save_image(data, np.eye(4), out / output_name("sub-01", name), segmentation=kind.name)
        save_image(data / 9, np.eye(4), out / output_name("sub-01", kind.entropy), np.float32)
        save_image(data, np.eye(4), out / output_name("sub-01", kind.posteriors), np.uint8)
    return out


def test_pybids_finds_one_image_per_space_and_segmentation(derivatives):
    from bids.layout import BIDSLayout, Query

    layout = BIDSLayout(derivatives.parents[1], derivatives=derivatives, validate=False)
    (results,) = layout.derivatives.values()
    assert len(results.get(suffix="dseg", extension=".nii.gz")) == 2 * len(SEGMENTATIONS)
    for kind in SEGMENTATIONS:
        for space, product in ((Query.NONE, kind.native), ("conform", kind.conformed)):
            (found,) = results.get(suffix="dseg", extension=".nii.gz", space=space, segmentation=kind.name)
            assert found.path.endswith(output_name("sub-01", product))
        (found,) = results.get(suffix="probseg", extension=".nii.gz", segmentation=kind.name)
        assert found.path.endswith(output_name("sub-01", kind.posteriors))
        (found,) = results.get(suffix="entropy", segmentation=kind.name)
        assert found.path.endswith(output_name("sub-01", kind.entropy))


def test_nifti_headers_name_the_table(derivatives):
    for kind in SEGMENTATIONS:
        header = nib.load(derivatives / output_name("sub-01", kind.native)).header
        assert int(header["intent_code"]) == 1002  # NIFTI_INTENT_LABEL
        assert header.get_intent() == ("label", (), kind.name)
        assert (derivatives / header["aux_file"].item().decode()).is_file()
    assert int(nib.load(derivatives / output_name("sub-01", ASEG.entropy)).header["intent_code"]) == 0


def test_tables_of_other_programs_lie_at_the_root(derivatives):
    for kind in SEGMENTATIONS:
        for name in (f"seg-{kind.name}_LUT.txt", f"seg-{kind.name}.label", f"seg-{kind.name}.ctbl"):
            assert load_label_table(kind.widest).names[-1] in (derivatives / name).read_text()


@pytest.mark.parametrize("kind", SEGMENTATIONS, ids=lambda kind: kind.name)
def test_nileans_masker_names_structures(derivatives, kind):
    from nilearn.maskers import NiftiLabelsMasker

    image = nib.load(derivatives / output_name("sub-01", kind.native))
    values = np.asarray(image.dataobj).astype(np.float32)
    masker = NiftiLabelsMasker(image, lut=derivatives / kind.table_file, standardize=None)
    found = masker.fit_transform(nib.Nifti1Image(values[..., None], np.eye(4))).ravel()
    names = load_label_table(kind.widest).structures
    assert found.astype(int).tolist() == sorted(np.unique(values).astype(int).tolist())[1:]
    assert [masker.region_names_[place] for place in range(len(found))] == [names[int(label)] for label in found]


def color_map(table):
    """The colour map that docs/outputs.md makes of a table."""
    colors = table.set_index("index")["color"].reindex(range(table["index"].max() + 1), fill_value="#000000")
    return ListedColormap(colors)


def colors_drawn(image, colors):
    """Colour of each label as nilearn draws a slice of an image of bars."""
    from nilearn.plotting import plot_roi

    options = {"cmap": colors, "vmin": 0, "vmax": colors.N - 1, "colorbar": False}
    display = plot_roi(image, bg_img=None, display_mode="z", cut_coords=[15], annotate=False, **options)
    drawn = display.axes[15].ax.images[0]
    labels = set(np.ma.compressed(np.ma.masked_invalid(drawn.get_array())).astype(int).tolist()) - {0}
    display.close()
    return {label: to_hex(drawn.cmap(drawn.norm(label))) for label in labels}


@pytest.mark.parametrize("kind", SEGMENTATIONS, ids=lambda kind: kind.name)
def test_nilearn_draws_labels_in_their_colours(derivatives, kind):
    labels = LABELS[kind.name][1:]
    table = pd.read_csv(derivatives / kind.table_file, sep="\t")
    found = colors_drawn(nib.Nifti1Image(bars(labels, 36), np.eye(4)), color_map(table))
    assert found == {label: color for label, color in zip(table["index"], table["color"], strict=True) if label}


@pytest.mark.parametrize(("side", "added"), [("lh", 1000), ("rh", 2000)])
def test_nilearn_draws_freesurfers_file_of_one_side(derivatives, tmp_path, side, added):
    numbers = tmp_path / "numbers.json"
    numbers.write_text(json.dumps({"soft_volumes": {}, "mean_posteriors": {}}))
    inputs = {
        "labels_file": str(derivatives / output_name("sub-01", HIPPOCAMPUS.conformed)),
        "numbers_file": str(numbers),
    }
    folder = Path(FreeSurferSubfields(**inputs).run(cwd=tmp_path).outputs.out_dir)
    image = nib.load(folder / f"{side}.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz")
    table = pd.read_csv(derivatives / HIPPOCAMPUS.table_file, sep="\t")
    both = table.assign(index=table["index"] % 1000).drop_duplicates("index")
    of_side = table[table["index"] // 1000 == added // 1000]
    assert colors_drawn(image, color_map(both)) == {
        label - added: color for label, color in zip(of_side["index"], of_side["color"], strict=True) if label
    }
