"""Node that writes results under their BIDS names: atomically, and only what is new."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any

from nipype.interfaces.base import DynamicTraitedSpec, File, SimpleInterface, TraitedSpec, isdefined, traits
from nipype.interfaces.io import add_traits

from medsegmamba_bids.data.names import folder_start, output_name
from medsegmamba_bids.image.io import atomic_path, write_text

#: Appended to the name of a product: a file with metadata of its own, which join the fixed ones.
METADATA = "_json"


class WriteOutputsInputSpec(DynamicTraitedSpec):
    """Inputs of :class:`WriteOutputs`, apart from a file per product."""

    output_dir = traits.Str(mandatory=True)
    prefix = traits.Str(mandatory=True, desc="name of the T1w without suffix and extension")
    metadata = traits.Dict(desc="product -> what its JSON says")
    template = traits.Str("", usedefault=True, desc="name of the template, for the transform")


class WriteOutputsOutputSpec(TraitedSpec):
    """Outputs of :class:`WriteOutputs`."""

    out_files = traits.List(File, desc="what is there now")


class WriteOutputs(SimpleInterface):
    """Copy files to the output folder, each under the name of its product, with a JSON beside it.

    Parameters
    ----------
    products : sequence of str
        Inputs for files, named as in ``data/bids/outputs.json``. One that is undefined is left out.
    """

    input_spec = WriteOutputsInputSpec
    output_spec = WriteOutputsOutputSpec
    _always_run = True  # the output folder may have changed

    def __init__(self, products: tuple[str, ...] = (), **inputs: Any) -> None:
        super().__init__(**inputs)
        self._products = products
        add_traits(self.inputs, [name for entry in products for name in (entry, entry + METADATA)])

    def _run_interface(self, runtime: Any) -> Any:
        written = []
        for name in self._products:
            source = getattr(self.inputs, name)
            if isdefined(source):
                written += self._write(name, Path(source))
        self._results["out_files"] = [str(path) for path in written]
        return runtime

    def _write(self, name: str, source: Path) -> list[Path]:
        if source.is_dir():
            return self._write_folder(name, source)
        fill = {"template": self.inputs.template}
        folder, prefix = Path(self.inputs.output_dir), self.inputs.prefix
        path = folder / output_name(prefix, name, **fill)
        copy_new(source, path)
        metadata = dict(self.inputs.metadata.get(name, {})) if isdefined(self.inputs.metadata) else {}
        own = getattr(self.inputs, name + METADATA)
        if isdefined(own):
            metadata = {**json.loads(Path(own).read_text(encoding="utf-8")), **metadata}
        if not metadata:
            return [path]
        sidecar = folder / output_name(prefix, name, extension=".json", **fill)
        write_new(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", sidecar)
        return [path, sidecar]

    def _write_folder(self, name: str, source: Path) -> list[Path]:
        """Copy all files of a folder, behind what the table of names puts before theirs."""
        start = folder_start(self.inputs.prefix, name)
        written = [(path, Path(self.inputs.output_dir, start + path.name)) for path in sorted(source.iterdir())]
        for path, there in written:
            copy_new(path, there)
        return [there for _, there in written]


def copy_new(source: Path, path: Path) -> bool:
    """Copy a file unless the same is there already; return whether it was copied."""
    if path.is_file() and filecmp.cmp(source, path, shallow=False):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)
    return True


def write_new(text: str, path: Path) -> bool:
    """Write a text unless the same is there already; return whether it was written."""
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return True
