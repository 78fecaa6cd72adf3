"""Node: labels, intensities and posteriors -> the table of volumes, its JSON and aseg.stats."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nipype.interfaces.base import DynamicTraitedSpec, File, isdefined, traits
from nipype.interfaces.io import add_traits

from medsegmamba_bids import __version__
from medsegmamba_bids.data.names import output_name
from medsegmamba_bids.image.io import load_as_is, write_text
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.interfaces.segmentation import read_numbers
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec
from medsegmamba_bids.stats.intracranial import Template
from medsegmamba_bids.stats.measures import (
    INTRACRANIAL,
    IntracranialSpace,
    Measure,
    brain_measures,
    hypointensity_sides,
    intracranial_measures,
    intracranial_space,
)
from medsegmamba_bids.stats.structures import NOT_FOUND, structure_statistics, volume_definition
from medsegmamba_bids.stats.tables import table_sidecar, to_aseg_stats, to_tsv

_PACKAGES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "nipype")


class StatisticsInputSpec(DynamicTraitedSpec, StepInputSpec):
    """Inputs of :class:`Statistics`, apart from ``record_<step>``, the record of each step before."""

    labels_file = File(exists=True, mandatory=True, desc="FreeSurfer labels on the conformed grid")
    norm_file = File(exists=True, mandatory=True, desc="normalised T1w")
    mask_file = File(exists=True, desc="brain mask, for measures of the whole brain")
    around_file = File(exists=True, desc="labels of what lies around structures that do not cover the brain")
    whole_brain = traits.List(traits.Dict, desc="measures of the whole brain that another table has, for this one too")
    numbers_file = File(exists=True, mandatory=True, desc="soft volumes and mean posteriors, JSON")
    table = traits.Str(mandatory=True, desc="label table whose structures are listed")
    etiv = traits.Float(desc="estimated total intracranial volume, mm3")
    template = traits.Instance(Template, desc="what was registered to")
    subject = traits.Str(mandatory=True, desc="name of the T1w without suffix; aseg.stats calls it so")
    notes = traits.List(traits.Str, desc="what is known beforehand, a sentence each")


class StatisticsOutputSpec(StepOutputSpec):
    """Outputs of :class:`Statistics`."""

    table_file = File(desc="TSV, a row per structure")
    sidecar_file = File(desc="JSON: columns, measures of the brain, notes and how the run went")
    fs_file = File(desc="FreeSurfer's aseg.stats")
    measures = traits.List(traits.Dict, desc="measures of the whole brain")


class Statistics(StepInterface):
    """Measure the structures of a segmentation.

    Parameters
    ----------
    steps : sequence of str
        Steps whose records (inputs ``record_<step>``) go into the JSON, in order.
    """

    input_spec = StatisticsInputSpec
    output_spec = StatisticsOutputSpec

    def __init__(self, steps: Sequence[str] = (), **inputs: Any) -> None:
        super().__init__(**inputs)
        self._records = [f"record_{step}" for step in steps]
        add_traits(self.inputs, self._records)

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, measure, save."""
        table = load_label_table(self.inputs.table)
        labels, brain, around = (_load(getattr(self.inputs, f"{name}_file")) for name in ("labels", "mask", "around"))
        space = None if brain is None else intracranial_space(labels, brain > 0)
        soft, means = read_numbers(self.inputs.numbers_file)
        guide = _load(self.inputs.norm_file)
        if space is not None:
            guide = np.where(space.mask, guide, guide.dtype.type(0))  # as in FreeSurfer's norm
        rows = structure_statistics(labels, guide, table, soft_volumes=soft, mean_posteriors=means, around=around)
        measures = self._measures(rows, labels, brain, space)
        definition = volume_definition(table, posteriors=True, guide=True)
        sidecar = table_sidecar(measures, self._run(rows), definition)
        names = {"SegVolFile": "conformed_aseg", "InVolFile": "conformed", "PVVolFile": "conformed"}
        files = {key: Path(output_name(self.inputs.subject, name)).name for key, name in names.items()}
        texts = {
            "table_file": ("stats.tsv", to_tsv(rows)),
            "sidecar_file": ("stats.json", json.dumps(sidecar, indent=2) + "\n"),
            "fs_file": ("aseg.stats", to_aseg_stats(rows, measures, self.inputs.subject, files)),
        }
        for name, text in texts.values():
            write_text(folder / name, text)
        outputs = {output: str(folder / name) for output, (name, _) in texts.items()}
        return {**outputs, "measures": [asdict(measure) for measure in measures]}

    def _measures(
        self, rows: pd.DataFrame, labels: np.ndarray, brain: np.ndarray | None, space: IntracranialSpace | None
    ) -> list[Measure]:
        if brain is None:
            given = [Measure(**entry) for entry in self.inputs.whole_brain]
            return [measure for measure in given if measure.name in INTRACRANIAL]
        measures = brain_measures(rows, hypointensities=hypointensity_sides(labels))
        whole = next((measure.value for measure in measures if measure.name == "BrainSegVol"), None)
        etiv = self.inputs.etiv if isdefined(self.inputs.etiv) else None
        template = self.inputs.template.name if isdefined(self.inputs.template) else ""
        return measures + intracranial_measures(brain > 0, etiv, whole, template, space=space)

    def _run(self, rows: pd.DataFrame) -> dict[str, Any]:
        """Return what is known about the run, for reports and for people."""
        records = [dict(getattr(self.inputs, name)) for name in self._records]
        told = self.inputs.notes if isdefined(self.inputs.notes) else []
        notes = [*told, *(note for record in records for note in record.pop("Notes"))]
        missing = rows.loc[rows["Flag"] == NOT_FOUND, "StructName"].tolist()
        if missing:
            notes.append(f"not found: {', '.join(missing)}")
        out: dict[str, Any] = {"Notes": list(dict.fromkeys(notes)), "Missing": missing, "Steps": records}
        if isdefined(self.inputs.template):
            out["Template"] = {
                "Name": self.inputs.template.name,
                "Volume_mm3": self.inputs.template.volume,
                "Source": self.inputs.template.source,
            }
        out["Versions"] = {"medsegmamba_bids": __version__, "python": platform.python_version()}
        out["Versions"] |= {name: version(name) for name in _PACKAGES}
        return out


def _load(path: Any) -> np.ndarray | None:
    return np.asanyarray(load_as_is(path).dataobj) if isdefined(path) else None
