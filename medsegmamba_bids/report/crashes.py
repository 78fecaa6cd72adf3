"""What failed, read from Nipype's crash files: they are the same whichever plugin ran the nodes."""

from __future__ import annotations

import re
from pathlib import Path

from medsegmamba_bids.errors import UserError

_NODE = re.compile(r"^Node: (\S+)$", re.MULTILINE)
_ERROR = re.compile(r"^\s*((?:[A-Za-z_]\w*\.)*)(\w*(?:Error|Exception|Interrupt|Exit))(?:: (.*))?$")
_OURS = f"{UserError.__module__}."  # where all errors of ours live: a traceback names them with it

_SYSTEM = re.compile(r"\[Errno \d+\] (?P<reason>[^:]+)(?:: (?P<quote>['\"])(?P<file>.*)(?P=quote))?")


def read_crashes(folder: Path) -> dict[str, str]:
    """Return full name of a node -> what it failed with, from the crash files in a folder."""
    crashes = map(read_crash, sorted(folder.glob("crash-*.txt")))
    return {node: reason for node, reason in crashes if node}


def read_crash(path: Path) -> tuple[str, str]:
    """Return the full name of a node, empty where a crash file does not tell it, and what it failed with."""
    text = path.read_text(encoding="utf-8", errors="replace")
    match = _NODE.search(text)
    return match[1] if match else "", last_error(text)


def last_error(text: str) -> str:
    r"""Return the sentence of the last error in a traceback.

    Examples
    --------
    >>> last_error("Traceback:\n  File ...\nmedsegmamba_bids.errors.ImageError: a.nii: empty\n\n")
    'a.nii: empty'
    >>> last_error("OSError: [Errno 28] No space left on device: '/out/a.nii'")
    '/out/a.nii: No space left on device'
    >>> last_error("KeyError: 'x'")
    "KeyError: 'x'"
    """
    for line in reversed(text.splitlines()):
        match = _ERROR.match(line)
        if match and match[2] != "NodeExecutionError":
            if system := _SYSTEM.fullmatch(match[3] or ""):
                return ": ".join(filter(None, (system["file"], system["reason"])))
            return match[3] if match[1] == _OURS and match[3] else line.strip()
    return "it failed for an unknown reason"
