"""Names of devices and precisions, known without torch, so that what cannot be is refused before any work."""

from __future__ import annotations

import re

from medsegmamba_bids.errors import DeviceError

PRECISIONS = ("float32", "bfloat16", "float16")
_NAMES = re.compile(r"auto|cpu|cuda(:\d+)?|mps")


def device_name(name: str) -> str:
    """Return torch's name of what a user calls a device; ``gpu`` is ``cuda``.

    Raises
    ------
    DeviceError
        There is no such kind of device.

    Examples
    --------
    >>> device_name("GPU:1")
    'cuda:1'
    """
    plain = re.sub(r"^gpu(?=:|$)", "cuda", name.strip().lower())
    if not _NAMES.fullmatch(plain):
        raise DeviceError(f"device {name!r} is unknown; allowed are auto, cpu, cuda, cuda:N, mps")
    return plain


def check_precision(precision: str, device: str) -> None:
    """Refuse a precision that is unknown, or that the device computes badly.

    Parameters
    ----------
    precision : str
    device : str
        Its kind, such as ``cpu``; ``auto`` is not known yet.

    Raises
    ------
    DeviceError
        With what is allowed.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f"precision {precision!r} is unknown; allowed are {', '.join(PRECISIONS)}")
    if precision == "float16" and device == "cpu":
        raise DeviceError(
            "precision float16 is for GPUs: CPUs are slower with it and overflow; "
            "allowed on the CPU are float32 and bfloat16"
        )
