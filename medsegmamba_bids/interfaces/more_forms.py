"""Nodes: labels in other forms, on request. Each fills a folder, whose files keep their names behind a T1w's prefix."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import Directory, File, isdefined, traits

from medsegmamba_bids.anatomy import SUBFIELDS_FROM
from medsegmamba_bids.datasets.space_templates import SpaceTemplate
from medsegmamba_bids.image.grid import Box, Grid
from medsegmamba_bids.image.io import load_as_is, save_image, write_text
from medsegmamba_bids.image.labels import load_label_table
from medsegmamba_bids.image.meshes import mesh_of, save_mesh
from medsegmamba_bids.interfaces.segmentation import read_numbers
from medsegmamba_bids.interfaces.step import StepInputSpec, StepInterface, StepOutputSpec
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS, of_name

logger = logging.getLogger(__name__)

_SIDES = dict(zip(("lh", "rh"), SUBFIELDS_FROM.values(), strict=True))
# What FreeSurfer calls in its tables of volumes what its colour table names otherwise.
_FREESURFER_NAMES = {
    "GC-DG": "GC-ML-DG",
    "hippocampal_fissure": "hippocampal-fissure",
    "HP_tail": "Hippocampal_tail",
}
_FISSURE = 215  # no part of FreeSurfer's whole hippocampus
_MNI152, _TEMPLATE = 4, 5  # NIfTI's codes of spaces


class FolderOutputSpec(StepOutputSpec):
    """Outputs of these nodes."""

    out_dir = Directory(desc="folder of the files")


class MakeMeshesInputSpec(StepInputSpec):
    """Inputs of :class:`MakeMeshes`."""

    labels_file = File(exists=True, mandatory=True, desc="labels on the conformed grid")
    segmentation = traits.Str(mandatory=True, desc="whose labels these are")


class MakeMeshes(StepInterface):
    """Write the surface of each structure."""

    input_spec = MakeMeshesInputSpec
    output_spec = FolderOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, find surfaces, save."""
        kind, image = of_name(self.inputs.segmentation), load_as_is(self.inputs.labels_file)
        table, labels = load_label_table(kind.widest).table, np.asanyarray(image.dataobj)
        out = _emptied(folder / "meshes")
        for label, name, short in table[["label", "name", "abbreviation"]].itertuples(index=False):
            mesh = mesh_of(labels == label, image.affine) if label else None
            if mesh is not None:
                save_mesh(mesh, out / f"seg-{kind.name}_label-{short}_mesh.surf.gii", name)
        return {"out_dir": str(out)}


class FreeSurferSubfieldsInputSpec(StepInputSpec):
    """Inputs of :class:`FreeSurferSubfields`."""

    labels_file = File(exists=True, mandatory=True, desc="subfields on the conformed grid")
    numbers_file = File(exists=True, mandatory=True, desc="soft volumes, JSON")


class FreeSurferSubfields(StepInterface):
    """Write subfields and their volumes as FreeSurfer 7.2 and later do, a file per side."""

    input_spec = FreeSurferSubfieldsInputSpec
    output_spec = FolderOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, renumber, save."""
        image, (volumes, _) = load_as_is(self.inputs.labels_file), read_numbers(self.inputs.numbers_file)
        labels, out = np.asanyarray(image.dataobj).astype(np.int32), _emptied(folder / "mri")
        for side, added in _SIDES.items():
            here = np.where(labels // 1000 == added // 1000, labels - added, 0)
            save_image(here, image.affine, out / f"{side}.hippoAmygLabels-T1.v22.FS60.FSvoxelSpace.mgz", np.int32)
            write_text(out / f"{side}.hippoSfVolumes-T1.v22.txt", _volumes_text(volumes, added))
        return {"out_dir": str(out)}


def _volumes_text(volumes: dict[int, float], added: int) -> str:
    """Return name and volume (mm3) of each subfield of a side, and of all without the fissure."""
    names = load_label_table(HIPPOCAMPUS.widest).structures
    side = {label - added: volumes.get(label, 0.0) for label in names if label // 1000 == added // 1000}
    plain = {label: names[label + added].split("-", 1)[1] for label in side}
    lines = [f"{_FREESURFER_NAMES.get(plain[label], plain[label])} {volume:.6f}" for label, volume in side.items()]
    whole = sum(volume for label, volume in side.items() if label != _FISSURE)
    return "\n".join([*lines, f"Whole_hippocampus {whole:.6f}"]) + "\n"


class ToTemplateInputSpec(StepInputSpec):
    """Inputs of :class:`ToTemplate`."""

    template = traits.Instance(SpaceTemplate, mandatory=True)
    norm_file = File(exists=True, mandatory=True, desc="normalised T1w")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    aseg_file = File(exists=True, mandatory=True, desc="structures on the conformed grid")
    hippocampus_file = File(exists=True, desc="subfields on the conformed grid")
    metadata = traits.Dict(desc="task -> what the JSON beside its labels says besides")


class ToTemplate(StepInterface):
    """Register to a template and bring the labels to it; only affine, and named so, where the rest fails."""

    input_spec = ToTemplateInputSpec
    output_spec = FolderOutputSpec

    def run_step(self, folder: Path) -> dict[str, Any]:
        """Load, register, resample, save."""
        import SimpleITK as sitk

        template, out = self.inputs.template, _emptied(folder / "template")
        mask = np.asanyarray(load_as_is(self.inputs.mask_file).dataobj) > 0
        if not mask.any():
            return {"out_dir": str(out), "notes": [f"nothing is in {template.name}: no brain was found"]}
        transform, how = self._registered(mask)
        sitk.WriteTransform(transform, str(out / f"from-T1w_to-{template.space}_mode-image_xfm.h5"))
        grid = Grid.of(nib.load(template.path))
        for kind in (ASEG, HIPPOCAMPUS):
            labels_file = getattr(self.inputs, f"{kind.task}_file")
            if isdefined(labels_file):
                self._save(kind, load_as_is(labels_file), grid, transform, how, out)
        return {"out_dir": str(out), "details": {"Registration": how}}

    def _registered(self, mask: np.ndarray) -> tuple[Any, str]:
        """Return the transform from the template's points, and what it is."""
        from medsegmamba_bids.image.registration import register_affine_brain, register_field

        image, template = load_as_is(self.inputs.norm_file), self.inputs.template
        box = Box.around(mask, margin=10)
        moving = np.where(mask, np.asanyarray(image.dataobj), 0)[box].astype(np.float32)
        brains = moving, Grid.of(image).cut(box), *template.brain()
        affine = register_affine_brain(*brains, threads=self.inputs.num_threads)
        try:
            return register_field(*brains, affine, threads=self.inputs.num_threads), "diffeomorphic demons"
        except RuntimeError as error:  # ITK's
            logger.warning("%s: the nonlinear registration failed (%s); labels are affine", template.name, error)
            return affine, "affine"

    def _save(self, kind: Any, image: Any, grid: Grid, transform: Any, how: str, out: Path) -> None:
        from medsegmamba_bids.image.registration import labels_through

        template = self.inputs.template
        labels = labels_through(np.asanyarray(image.dataobj), Grid.of(image), grid, transform)
        desc = "medsegmambaAffine" if how == "affine" else "medsegmamba"
        stem = f"space-{template.space}_seg-{kind.name}_res-{template.resolution}_desc-{desc}_dseg"
        code = _MNI152 if template.name.startswith("MNI152") else _TEMPLATE
        save_image(labels, grid.affine, out / f"{stem}.nii.gz", code=code, segmentation=kind.name)
        entries = {
            **(self.inputs.metadata[kind.task] if isdefined(self.inputs.metadata) else {}),
            "SpatialReference": template.reference,
            "Resolution": f"That of the template, {' x '.join(f'{zoom:g}' for zoom in grid.zooms.round(3))} mm",
            "Registration": {"Method": how, "Software": f"SimpleITK {_version()}"},
            "Template": template.facts(),
        }
        write_text(out / f"{stem}.json", json.dumps(entries, indent=2) + "\n")


def _version() -> str:
    from importlib.metadata import version

    return version("SimpleITK")


def _emptied(folder: Path) -> Path:
    """Return a folder without files of an earlier run."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder
