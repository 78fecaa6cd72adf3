"""Records of finished runs: where they stand, how they are read, and whether the files that they list are as before.

``interfaces.record`` writes them, last of all files of a T1w or of a participant's visits.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from medsegmamba_bids.data.names import split_prefix

_CHUNK = 1 << 20


def record_path(output_dir: Path, prefix: str, suffix: str = "T1w") -> Path:
    """Return the path of the record of a T1w, or of what is called otherwise.

    Examples
    --------
    >>> record_path(Path("out"), "sub-01_ses-a").as_posix()
    'out/sub-01/log/sub-01_ses-a_T1w.json'
    """
    return output_dir / f"sub-{split_prefix(prefix)['sub']}" / "log" / f"{prefix}_{suffix}.json"


def read_record(path: Path) -> dict[str, Any]:
    """Read a record; empty where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def size_and_time(path: Path) -> dict[str, int]:
    """Return size in bytes and time of change in ns of a file; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return {}
    return {"Size": status.st_size, "Modified": status.st_mtime_ns}


def fingerprint(path: Path) -> dict[str, Any]:
    """Return size, time of change and SHA-256 of a file; empty where it cannot be read."""
    state: dict[str, Any] = size_and_time(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return {}
    return {**state, "SHA256": digest.hexdigest()}


def is_unchanged(path: Path, before: Any) -> bool:
    """Return whether a file is what its fingerprint says; its content is read only where size and time do not tell."""
    now = size_and_time(path)
    if not (now and isinstance(before, dict)) or now["Size"] != before.get("Size"):
        return False
    return now["Modified"] == before.get("Modified") or fingerprint(path).get("SHA256") == before.get("SHA256")
