"""The paper's experiment in small: made-up brains, tiny networks, on a CPU (subcortical structures: minutes).

    python benchmarks/small_experiment.py FOLDER [--participants 20] [--epochs 15] [--tasks aseg hippocampus]

It writes FreeSurfer subjects of made-up brains, divides them, makes tiny copies of the package's configurations
(``paper_*.toml``) and runs ``medsegmamba-train experiment`` on them. Its numbers say nothing about real images.
"""

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

LIA = np.array([[-1.0, 0, 0, 128], [0, 0, 1, -128], [0, -1, 0, 128], [0, 0, 0, 1]])
SIDE, MARGIN = 256, 20
#: Left and right label, centre on the right and radii (voxels of the LIA grid), brightness.
STRUCTURES = (
    ((2, 41), (7, 0, 0), (8, 14, 14), 110),
    ((10, 49), (4, 1, 1), (3, 3.5, 4), 92),
    ((11, 50), (5, -6, -7), (3, 3, 4), 78),
    ((12, 51), (10, 0, -3), (3, 4, 5), 85),
    ((17, 53), (6, 8, 3), (3, 3, 6), 70),
)
#: FreeSurfer's subfields from front to back of a hippocampus, with what is added to its brightness.
SUBFIELDS = ((206, 0), (205, 12), (226, -12))
NETWORKS = {
    "": {"channels": [8, 8, 16, 16], "bottleneck": 64, "state": 8, "blocks": 3},
    "_segmambabot": {"channels": [8, 8, 16, 16], "bottleneck": 64, "state": 8, "blocks": 3},
    "_tabsurfer": {"channels": [8, 8, 16, 16], "embedding": 64, "heads": 4, "layers": 3},
}
PATCH = 32  # a brain fits into it; subfields are trained in their whole box, as in the paper


def make_brain(rng):
    """Brightness, aseg labels and subfields (both sides, 0 outside), each (40, 40, 40): a box of the conformed grid."""
    side = 2 * MARGIN
    grid = np.stack(np.meshgrid(*[np.arange(side) - side / 2 + 0.5] * 3, indexing="ij"))
    image, aseg, subfields = np.zeros((side,) * 3), np.zeros((side,) * 3, np.uint8), np.zeros((side,) * 3, np.int32)
    middle = rng.uniform(-1, 1, 3)
    for labels, centre, radii, bright in STRUCTURES:
        size, shift = rng.uniform(0.9, 1.1), rng.uniform(-0.5, 0.5, 3)
        bright = bright + rng.uniform(-4, 4)
        for label, sign in zip(labels, (1, -1), strict=True):
            place = middle + (np.array(centre) + shift) * (sign, 1, 1)  # LIA: the left side has the higher indices
            apart = (grid - place[:, None, None, None]) / (size * np.array(radii))[:, None, None, None]
            inside = (apart**2).sum(0) < 1
            if label in (2, 41):
                inside &= aseg == 0
            image[inside], aseg[inside] = bright, label
            if label in (17, 53):
                third = np.clip(((apart[2] + 1) * 1.5).astype(int), 0, 2)
                for number, (subfield, brighter) in enumerate(SUBFIELDS):
                    part = inside & (third == number)
                    image[part], subfields[part] = bright + brighter, subfield * sign
    image = ndimage.gaussian_filter(image, 0.6) + rng.normal(0, 3, image.shape)
    return np.clip(image, 1, 255) * (aseg > 0), aseg, subfields


def write_subject(folder, rng):
    """A FreeSurfer subject: ``mri/`` with brain, aseg and both files of subfields."""
    image, aseg, subfields = make_brain(rng)
    sides = {"lh": subfields.clip(min=0), "rh": (-subfields).clip(min=0)}
    files = {f"{side}.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace": values for side, values in sides.items()}
    (folder / "mri").mkdir(parents=True, exist_ok=True)
    for name, values in {"brain": image.round(), "aseg": aseg, **files}.items():
        whole = np.zeros((SIDE,) * 3, np.int16 if name[1] == "h" else np.uint8)
        whole[(slice(SIDE // 2 - MARGIN, SIDE // 2 + MARGIN),) * 3] = values
        nib.save(nib.MGHImage(whole, LIA), folder / "mri" / f"{name}.mgz")


def make_subjects(folder, participants, seed=0):
    """Subjects of made-up brains, and a participants.tsv with ages, sexes and two sites."""
    rows = ["participant_id\tage\tsex\tsite"]
    for number in range(1, participants + 1):
        rng = np.random.default_rng((seed, number))
        write_subject(folder / f"sub-{number:02}", rng)
        rows.append(f"sub-{number:02}\t{rng.integers(20, 80)}\t{'FM'[number % 2]}\t{'AB'[number // 2 % 2]}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")


def write_configs(folder, task, epochs):
    """Tiny copies of the package's configurations: the network, the patches and the epochs differ."""
    from medsegmamba_bids.training.training_config import find_config

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for suffix, sizes in NETWORKS.items():
        text = find_config(f"paper_{task}{suffix}").read_text()
        entries = "".join(f"{key} = {value}\n" for key, value in sizes.items())
        changes = [
            ("[network]\n", f"[network]\n{entries}"),
            ("epochs = 15" if task == "aseg" else "epochs = 63", f"epochs = {epochs}\nrate = 1e-2\nworkers = 0"),
            ('name = "paper-', 'name = "small-'),
        ]
        if task == "aseg":
            changes += [
                ("patch_size = 96", f"patch_size = {PATCH}"),
                ("patches_per_axis = 3", "patches_per_axis = 1"),
                ("step = 32", f"step = {PATCH // 2}"),
            ]
        for old, new in changes:
            text = text.replace(old, new)
        files.append(folder / f"small_{task}{suffix}.toml")
        files[-1].write_text(text)
    return files


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--participants", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--tasks", nargs="+", choices=("aseg", "hippocampus"), default=["aseg", "hippocampus"])
    options = parser.parse_args(argv)

    from medsegmamba_bids.cli.train import main as train

    subjects, split = options.folder / "subjects", options.folder / "split.tsv"
    if not (subjects / "participants.tsv").exists():
        make_subjects(subjects, options.participants)
    if code := train(["split", str(subjects / "participants.tsv"), "--out", str(split)]):
        return code
    for task in options.tasks:
        configs = write_configs(options.folder / "configs", task, options.epochs)
        places = ["--subjects-dir", subjects, "--split", split, "--out", options.folder / "experiment"]
        sites = ["--participants", subjects / "participants.tsv", "--dataset-column", "site"]
        if code := train([str(o) for o in ("experiment", *configs, *places, *sites, "--device", "cpu")]):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
