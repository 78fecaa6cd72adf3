"""Node: the derivatives of a participant -> its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces.base import DynamicTraitedSpec, File, isdefined, traits
from nipype.interfaces.io import add_traits

from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec

PICTURES, VIEWER = "_pictures", "_viewer"


class WriteReportInputSpec(DynamicTraitedSpec, StepInputSpec):
    """Inputs of :class:`WriteReport`, apart from three of each part that it waits for."""

    output_dir = traits.Str(mandatory=True)
    subject = traits.Str(mandatory=True, desc="participant's label, without sub-")
    thresholds = File(exists=True, desc="limits of the quality flags, in place of the package's")


class WriteReportOutputSpec(StepOutputSpec):
    """Outputs of :class:`WriteReport`."""

    out_file = File(desc="HTML")


class WriteReport(StepInterface):
    """Write a participant's report, from derivatives and pictures of them.

    Parameters
    ----------
    parts : sequence of str
        Inputs that it waits for and does not read, the results of T1w images; inputs of the same name with
        ``PICTURES`` and ``VIEWER`` added are the files of pictures drawn of it, and its viewer.
    """

    input_spec = WriteReportInputSpec
    output_spec = WriteReportOutputSpec
    _always_run = True  # it depends on files that are no inputs

    def __init__(self, parts: Sequence[str] = (), **inputs: Any) -> None:
        super().__init__(**inputs)
        self._parts = tuple(parts)
        add_traits(self.inputs, [name for part in parts for name in (part, part + PICTURES, part + VIEWER)])

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Write it."""
        from medsegmamba_bids.report.participant import write_report

        thresholds = Path(self.inputs.thresholds) if isdefined(self.inputs.thresholds) else None
        ahead = ([Path(getattr(self.inputs, part + kind)) for part in self._parts] for kind in (PICTURES, VIEWER))
        path = write_report(Path(self.inputs.output_dir), self.inputs.subject, thresholds, *ahead)
        return {"out_file": str(path)}
