"""Names of the files that are written: entities in, BIDS names out. The table is ``bids/outputs.json``."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from medsegmamba_bids.data import data_path

_KEY = re.compile(r"(?:^|(?<=_))([a-zA-Z]+)-")
_NUMBER = re.compile(r"__([0-9a-f]+)_")


@lru_cache
def _table() -> dict[str, Any]:
    return json.loads(data_path("bids/outputs.json").read_text(encoding="utf-8"))


def product(name: str) -> dict[str, Any]:
    """Return entities, suffix, extension and fixed metadata of a file that is written per T1w."""
    return _table()["products"][name]


def bidsignore() -> list[str]:
    """Return the lines of ``.bidsignore``."""
    return list(_table()["bidsignore"])


def split_prefix(prefix: str) -> dict[str, str]:
    """Return the entities of a name without suffix.

    Examples
    --------
    >>> split_prefix("sub-01_ses-a_run-2")
    {'sub': '01', 'ses': 'a', 'run': '2'}
    """
    return dict(part.split("-", 1) for part in prefix.split("_"))


def as_identifier(name: str) -> str:
    """Return a name made of entities as letters, digits and underscores, as Nipype wants them; one to one.

    Underscores separate, and cannot stand within labels; what else labels hold (BIDS allows ``+``) becomes its number,
    between two underscores and one.

    Examples
    --------
    >>> as_identifier("sub-01_acq-a_ce-b"), as_identifier("sub-01_acq-a+ce")
    ('sub_01_acq_a_ce_b', 'sub_01_acq_a__2b_ce')
    """
    return re.sub(r"\W", lambda sign: f"__{ord(sign[0]):x}_", _KEY.sub(r"\1_", name))


def with_signs(identifier: str) -> str:
    """Return an identifier with its labels as they are, for people to read.

    Examples
    --------
    >>> with_signs("sub_01_acq_a__2b_ce")
    'sub_01_acq_a+ce'
    """
    return _NUMBER.sub(lambda number: chr(int(number[1], 16)), identifier)


def output_folder(prefix: str) -> str:
    """Return the folder of a T1w's results, relative to the output's root.

    Examples
    --------
    >>> output_folder("sub-01_ses-a_run-2")
    'sub-01/ses-a/anat'
    """
    entities = split_prefix(prefix)
    session = f"ses-{entities['ses']}/" if "ses" in entities else ""
    return f"sub-{entities['sub']}/{session}anat"


def folder_start(prefix: str, name: str) -> str:
    """Return what precedes the names of files that a node made as a folder, relative to the output's root.

    Examples
    --------
    >>> folder_start("sub-01_ses-a", "aseg_meshes"), folder_start("sub-01", "template_0")
    ('sub-01/ses-a/meshes/sub-01_ses-a_', 'sub-01/anat/sub-01_')
    """
    anat = output_folder(prefix)
    start = _table()["folders"][name.rstrip("0123456789")]
    return start.format(anat=anat, session=anat.removesuffix("/anat"), prefix=prefix)


def output_name(prefix: str, name: str, extension: str | None = None, **fill: str) -> str:
    """Return the path of a product of a T1w, relative to the output's root.

    Parameters
    ----------
    prefix : str
        The T1w's name without ``_T1w`` and extension.
    name : str
        Of the product, see :func:`product`.
    extension : str, optional
        Another one, such as ``.json``.
    fill : str
        For placeholders in the table (``template``).

    Examples
    --------
    >>> output_name("sub-01_run-2", "conformed_aseg")
    'sub-01/anat/sub-01_run-2_space-conform_seg-aseg_desc-medsegmamba_dseg.nii.gz'
    """
    entry = product(name)
    added = {key: value.format(**fill) for key, value in entry["entities"].items()}
    entities = {**split_prefix(prefix), **added}
    order = {entity: place for place, entity in enumerate(_table()["entity_order"])}
    # An entity that the table does not know stays where names of raw images have it, before all that is added.
    ordered = sorted(entities, key=lambda entity: order.get(entity, order["proc"]))
    stem = "_".join(f"{entity}-{entities[entity]}" for entity in ordered)
    return f"{output_folder(prefix)}/{stem}_{entry['suffix']}{extension or entry['extension']}"
