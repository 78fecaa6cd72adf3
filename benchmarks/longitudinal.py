"""Visits made of one head: how well the processing of visits together repeats, and whether it finds a known change.

    python benchmarks/longitudinal.py OUT HEAD [HEAD ...] --pairs 4 --changes -5 -2 2 5
    python benchmarks/longitudinal.py OUT --tables-only

Each HEAD is a T1w. OUT holds a BIDS dataset of made visits, results and ``longitudinal.md``; what is there is not made
again. Participants are called by what they are: ``retest`` pairs differ in motion, voxel size, noise and bias field;
``hippocampus`` and ``ventricles`` besides by a smooth deformation of the left hippocampus and the lateral ventricles.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from made_visits import growth, make_scan, random_scan

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.image.grid import Grid
from medsegmamba_bids.image.io import load_image, save_image

TARGETS = {"hippocampus": (17,), "ventricles": (4, 43)}
MIRRORED = {"hippocampus": 53}
SESSIONS = ("1", "2")


def main() -> None:
    options = parse()
    bids = options.out / "bids"
    if not options.tables_only:
        bids.mkdir(parents=True, exist_ok=True)
        (bids / "dataset_description.json").write_text(json.dumps({"Name": "made", "BIDSVersion": "1.10.0"}))
        make_dataset(options, bids)
        process(options, bids)
    report(options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("heads", type=Path, nargs="*")
    parser.add_argument("--pairs", type=int, default=4, help="test-retest pairs of each head")
    parser.add_argument("--changes", type=float, nargs="*", default=[-5, -2, 2, 5], help="percent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--subfields", action="store_true", help="with hippocampal subfields")
    parser.add_argument("--tables-only", action="store_true")
    return parser.parse_args()


def make_dataset(options: argparse.Namespace, bids: Path) -> None:
    """Write the visits that are not there yet, with ``truth.json`` beside the dataset."""
    truth_file = options.out / "truth.json"
    truth = json.loads(truth_file.read_text()) if truth_file.is_file() else {}
    for number, path in enumerate(options.heads):
        head, labels = load_image(path), None
        wanted = [("retest", 0.0)] * options.pairs + [
            (kind, percent) for kind in TARGETS for percent in options.changes
        ]
        for place, (kind, percent) in enumerate(wanted):
            name = f"h{number}{kind}{place:02d}"
            if name in truth:
                continue
            pull, true = None, 0.0
            if kind in TARGETS:
                labels = segmented(head, options) if labels is None else labels
                pull, true = growth(np.isin(labels, TARGETS[kind]), Grid.of(head), percent)
            rng = np.random.default_rng([options.seed, number, place])
            scans = [random_scan(rng) for _ in SESSIONS]
            for session, scan in zip(SESSIONS, scans, strict=True):
                image = make_scan(head, scan, pull if session == SESSIONS[1] else None)
                folder = bids / f"sub-{name}" / f"ses-{session}" / "anat"
                save_image(np.asarray(image.dataobj), image.affine, folder / f"sub-{name}_ses-{session}_T1w.nii.gz")
            truth[name] = {"kind": kind, "percent": true, "head": path.name, "scans": [vars(scan) for scan in scans]}
            truth_file.write_text(json.dumps(truth, indent=1))


def segmented(head: nib.Nifti1Image, options: argparse.Namespace) -> np.ndarray:
    """The head's own labels, which say what is deformed."""
    from medsegmamba_bids.inference.device import use_threads
    from medsegmamba_bids.inference.segmenter import Segmenter
    from medsegmamba_bids.inference.single import conform_and_segment

    use_threads(options.threads)
    return conform_and_segment(Segmenter(), head).on_grid_of(head).aseg


def process(options: argparse.Namespace, bids: Path) -> None:
    """Run the app's own workflows, without reports."""
    from nipype.pipeline.engine import Workflow

    from medsegmamba_bids.bids import collect_inputs
    from medsegmamba_bids.execution.resume import visits_of
    from medsegmamba_bids.stats.intracranial import find_template
    from medsegmamba_bids.workflows.longitudinal import init_longitudinal_wf
    from medsegmamba_bids.workflows.networks import choose_networks
    from medsegmamba_bids.workflows.t1w import init_t1w_wf

    config = RunConfig(
        *(bids, options.out / "results"),
        work_dir=options.out / "work",
        nprocs=options.threads,
        omp_nthreads=options.threads,
        hippocampus_weights=None if options.subfields else "none",
        longitudinal=True,
    )
    networks, template = choose_networks(config), find_template()
    for subject, images in collect_inputs(config).subjects().items():
        if table_of(options.out, subject).is_file():
            continue
        for stage in ("alone", "together"):
            workflow = Workflow(name=f"{subject}_{stage}", base_dir=str(config.work_dir))
            if stage == "alone":
                workflow.add_nodes([init_t1w_wf(image, config, networks, template) for image in images])
            else:
                visits = visits_of(subject, images, config)
                workflow.add_nodes([init_longitudinal_wf(visits, config, networks, template)])
            # Classes lie as files beside the one that is an output, as in the app.
            kept = {"remove_unnecessary_outputs": False}
            workflow.config["execution"] |= {"crashdump_dir": str(options.out / "crashes"), **kept}
            workflow.run(plugin="Linear")


def table_of(out: Path, subject: str) -> Path:
    return out / "results" / output_name(f"sub-{subject}", "aseg_changes")


def report(out: Path) -> None:
    """Write what was found as tables of Markdown."""
    truth = json.loads((out / "truth.json").read_text())
    found = {name: read(out, name) for name in truth if table_of(out, name).is_file()}
    parts = [repeated(truth, found), *(changed(truth, found, kind) for kind in TARGETS)]
    text = "\n\n".join(part for part in parts if part)
    (out / "longitudinal.md").write_text(text + "\n")
    print(text)


def read(out: Path, subject: str) -> pd.DataFrame:
    """Symmetrised difference of the visits in percent, a row per structure, alone and together."""
    rows = pd.read_csv(table_of(out, subject), sep="\t", na_values="n/a")
    first, second = (rows[rows["session_id"] == f"ses-{session}"].set_index("StructName") for session in SESSIONS)
    columns = {"alone": "CrossSectionalVolume_mm3", "together": "Volume_mm3"}
    return pd.DataFrame(
        {
            name: 200 * (second[column] - first[column]) / (second[column] + first[column])
            for name, column in columns.items()
        }
        | {"SegId": first["SegId"]}
    )


def repeated(truth: dict, found: dict[str, pd.DataFrame]) -> str:
    """Standard deviation of the difference of two scans of one head, by structure."""
    pairs = [table for name, table in found.items() if truth[name]["kind"] == "retest"]
    if not pairs:
        return ""
    # Around 0: the head is the same.
    deviations = pd.DataFrame(
        {way: np.sqrt(sum(t[way] ** 2 for t in pairs) / len(pairs)) for way in ("alone", "together")}
    )
    ratio = deviations["together"] / deviations["alone"]
    lines = [f"{len(pairs)} pairs, standard deviation of the difference in percent", ""]
    lines += ["| structure | alone | together | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['alone']:.2f} | {row['together']:.2f} | {ratio[name]:.2f} |"
        for name, row in deviations.iterrows()
        if row.notna().all()
    ]
    lines.append(
        "| median | "
        + " | ".join(f"{column.median():.2f}" for column in (*deviations.to_dict("series").values(), ratio))
        + " |"
    )
    lines.append(f"| structures higher | | | {int((ratio > 1).sum())} of {int(ratio.notna().sum())} |")
    return "\n".join(lines)


def changed(truth: dict, found: dict[str, pd.DataFrame], kind: str) -> str:
    """Found against true change of a deformed structure, and its slope through the origin."""
    rows = []
    for name, table in found.items():
        if truth[name]["kind"] != kind:
            continue
        # The true change is of both ventricles together, and so is the mean over them.
        target = table[table["SegId"].isin(TARGETS[kind])][["alone", "together"]].mean()
        true = truth[name]["percent"]
        symmetric = 200 * true / (200 + true)
        other = table.loc[table["SegId"] == MIRRORED.get(kind), "together"]
        rows.append((symmetric, target["alone"], target["together"], float(other.iloc[0]) if len(other) else np.nan))
    if not rows:
        return ""
    true, alone, together, _ = np.array(rows).T
    slopes = [float((true * way).sum() / (true**2).sum()) for way in (alone, together)]
    lines = [
        f"{kind}: symmetrised change in percent",
        "",
        "| true | alone | together | other side, together |",
        "|---|---|---|---|",
    ]
    lines += [
        "| " + " | ".join("" if np.isnan(value) else f"{value:.2f}" for value in row) + " |" for row in sorted(rows)
    ]
    lines.append(f"| slope | {slopes[0]:.2f} | {slopes[1]:.2f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
