"""Node that records, once all results of a T1w are written, what they were made from; and how that is taken back."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from medsegmamba_bids.interfaces.sink import write_new
from medsegmamba_bids.report.run_records import fingerprint, is_unchanged, read_record, record_path

logger = logging.getLogger(__name__)


class WriteRecordInputSpec(BaseInterfaceInputSpec):
    """Inputs of :class:`WriteRecord`."""

    output_dir = traits.Str(mandatory=True)
    prefix = traits.Str(mandatory=True, desc="name of the T1w without suffix and extension")
    suffix = traits.Str("T1w", usedefault=True, desc="ends the record's name")
    made_from = traits.Dict(mandatory=True, desc="weights, options, version")
    in_files = traits.Dict(mandatory=True, desc="name -> path, size and time of a file that was read")
    aseg_files = traits.List(traits.Str, mandatory=True, desc="what was written")
    hippocampus_files = traits.List(traits.Str, desc="what was written of the subfields")
    more_files = traits.List(traits.Str, desc="what was written on request")


class WriteRecordOutputSpec(TraitedSpec):
    """Outputs of :class:`WriteRecord`."""

    out_file = File(desc="JSON; undefined where an input has changed since")


class WriteRecord(SimpleInterface):
    """Write the record of a T1w, last of all its files: without it, or with another, the T1w is processed again."""

    input_spec = WriteRecordInputSpec
    output_spec = WriteRecordOutputSpec
    _always_run = True  # the output folder may have changed

    def _run_interface(self, runtime: Any) -> Any:
        root = Path(self.inputs.output_dir)
        inputs = {name: fingerprint(Path(entry["Path"])) for name, entry in self.inputs.in_files.items()}
        if changed := [name for name, now in inputs.items() if not _as_before(now, self.inputs.in_files[name])]:
            logger.warning("%s: the %s changed during the run; run it again", self.inputs.prefix, ", ".join(changed))
            return runtime
        files = [self.inputs.aseg_files, self.inputs.hippocampus_files, self.inputs.more_files]
        written = [Path(path) for part in files for path in part or []]
        outputs = {path.relative_to(root).as_posix(): fingerprint(path) for path in written}
        record = {"MadeFrom": self.inputs.made_from, "Inputs": inputs, "Outputs": outputs}
        path = record_path(root, self.inputs.prefix, self.inputs.suffix)
        # Before the new record: a run that is killed meanwhile leaves one that fits no longer, and is done again.
        if gone := _remove_earlier(path, outputs, root):
            logger.warning(
                "%s: removed %d results of an earlier run, which this one does not make: %s",
                *(self.inputs.prefix, len(gone), ", ".join(gone)),
            )
        write_new(json.dumps(record, indent=1) + "\n", path)
        self._results["out_file"] = str(path)
        return runtime


def _remove_earlier(path: Path, outputs: dict[str, Any], root: Path) -> list[str]:
    """Remove what the record at ``path`` lists and new outputs are not; return the names of what was removed.

    What another image's record lists too stays, and so does what lies outside the participant's folders and what
    someone has changed since. Folders stay: another image may be about to write into them.
    """
    participant, before = path.parent.parent.name, _listed(path)
    earlier = [name for name in before if name not in outputs and _belongs(root / name, participant, root)]
    others = {name for other in path.parent.glob("*.json") if earlier and other != path for name in _listed(other)}
    gone = [name for name in earlier if name not in others and is_unchanged(root / name, before[name])]
    for name in gone:
        (root / name).unlink(missing_ok=True)
    return gone


def _listed(path: Path) -> dict[str, Any]:
    outputs = read_record(path).get("Outputs")
    return outputs if isinstance(outputs, dict) else {}


def _belongs(path: Path, participant: str, root: Path) -> bool:
    """Return whether there is a file, or a link, that is one of a participant's results."""
    if path.is_dir() or not (path.exists() or path.is_symlink()):
        return False
    folder, root = path.parent.resolve(), root.resolve()
    if not folder.is_relative_to(root):
        return False
    first, second, *_ = (*folder.relative_to(root).parts, "", "")
    return first == participant or (first == "freesurfer" and second.split("_")[0] == participant)


def _as_before(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return all(now.get(key) == before.get(key) for key in ("Size", "Modified"))


def forget(path: Path) -> None:
    """Have a record no longer say that something is done, but still what was written: the next one may remove it."""
    outputs = read_record(path).get("Outputs")
    if isinstance(outputs, dict):
        write_new(json.dumps({"Outputs": outputs}) + "\n", path)
    else:
        path.unlink(missing_ok=True)
