"""FastSurferVINN's segmentation of images, by FastSurfer itself where it is installed."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from medsegmamba_bids.datasets.places import find_images
from medsegmamba_bids.datasets.scan_names import listed
from medsegmamba_bids.errors import EvaluationError

logger = logging.getLogger(__name__)

SCRIPT = "run_fastsurfer.sh"
#: What tells that a subject is segmented.
RESULT = "mri/aparc.DKTatlas+aseg.deep.mgz"


def find_fastsurfer(script: Path | None = None) -> Path:
    """Return FastSurfer's script: the one that is named, on the PATH, or in ``$FASTSURFER_HOME``.

    Raises
    ------
    EvaluationError
        There is none.
    """
    if script is not None:
        if not script.is_file():
            raise EvaluationError(f"--fastsurfer {script}: no such file")
        return script
    if installed := shutil.which(SCRIPT):
        return Path(installed)
    home = os.environ.get("FASTSURFER_HOME", "")
    if home and (Path(home) / SCRIPT).is_file():
        return Path(home) / SCRIPT
    raise EvaluationError(
        f"FastSurfer is not installed: there is no {SCRIPT} on the PATH or in $FASTSURFER_HOME. Install it "
        "(https://github.com/Deep-MI/FastSurfer), or name the script with --fastsurfer"
    )


def segment_all(
    images: str,
    out: Path,
    script: Path | None = None,
    participants: Sequence[str] = (),
    more: str = "",
) -> list[str]:
    """Segment images that are not segmented yet, one after the other; without surfaces.

    Parameters
    ----------
    images : str
        A place of T1-weighted images, see :func:`~medsegmamba_bids.datasets.places.find_images`.
    out : Path
        FreeSurfer's folder of subjects to write into; a subject is called as its image, without ``_T1w``.
    script : Path, optional
    participants : sequence of str
        Only these.
    more : str
        Further options of FastSurfer.

    Returns
    -------
    list of str
        Sentences about what failed.

    Raises
    ------
    EvaluationError
        FastSurfer is not installed, or there are no such images.
    """
    script = find_fastsurfer(script)
    scans = find_images(images)
    if wanted := {label.removeprefix("sub-") for label in participants}:
        known = {name.participant for name in scans}
        if unknown := sorted(wanted - known):
            raise EvaluationError(f"{images}: has no image of {listed(unknown)}; there are {listed(sorted(known))}")
        scans = {name: file for name, file in scans.items() if name.participant in wanted}
    if not scans:
        raise EvaluationError(f"{images}: no T1-weighted images (*_T1w.nii.gz) found")
    out.mkdir(parents=True, exist_ok=True)
    problems = [_segment(script, str(name), file, out, more) for name, file in scans.items()]
    return [problem for problem in problems if problem]


def command_line(script: Path, subject: str, image: Path, out: Path, more: str = "") -> list[str]:
    """Return how FastSurfer is called for one image.

    Examples
    --------
    >>> " ".join(command_line(Path("run_fastsurfer.sh"), "sub-01", Path("/data/a.nii"), Path("/out"), "--threads 4"))
    'run_fastsurfer.sh --t1 /data/a.nii --sid sub-01 --sd /out --seg_only --threads 4'
    """
    files = ["--t1", str(image.resolve()), "--sid", subject, "--sd", str(out.resolve())]
    return [str(script), *files, "--seg_only", *shlex.split(more)]


def _segment(script: Path, subject: str, image: Path, out: Path, more: str) -> str:
    """Return why it failed; empty where it did not."""
    if (out / subject / RESULT).is_file():
        logger.info("%s: is segmented already", subject)
        return ""
    command = command_line(script, subject, image, out, more)
    logger.info("%s", shlex.join(command))
    finished = subprocess.run(command, check=False)
    if finished.returncode:
        return f"{subject}: {SCRIPT} ended with {finished.returncode}; its log is in {out / subject / 'scripts'}"
    if not (out / subject / RESULT).is_file():
        return f"{subject}: {SCRIPT} ended well, but wrote no {RESULT}"
    return ""
