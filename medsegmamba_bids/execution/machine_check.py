"""What a run needs of the machine, tried before any work is done."""

from __future__ import annotations

import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.devices import check_precision
from medsegmamba_bids.errors import ConfigError, DeviceError, reason


def check_machine(config: RunConfig) -> None:
    """Refuse a machine on which the run could only fail.

    Raises
    ------
    ConfigError, DeviceError
        Processes cannot share memory; the device does not work, or not in the precision.
    """
    try:
        mp.get_context("spawn").Lock()
    except OSError as error:
        raise ConfigError(
            f"/dev/shm: processes cannot share memory there ({reason(error)}); make it a folder that can be written, "
            "as docker run --tmpfs /dev/shm or --ipc host do"
        ) from error
    certain = config.device in ("auto", "cpu") and config.precision != "float16"
    if not (certain or config.use_plugin or config.reports_only):  # a plugin's machines may be others
        _try_device(config.device, config.precision)


def _try_device(device: str, precision: str) -> None:
    """Try a device in a process of its own: CUDA must not be touched in the main one."""
    try:
        with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
            pool.submit(_trial, device, precision).result()
    except BrokenProcessPool as error:
        raise DeviceError(f"device {device!r} cannot be used: the process that tried it was killed") from error


def _trial(device: str, precision: str) -> None:
    from medsegmamba_bids.inference.device import choose_device

    check_precision(precision, choose_device(device).type)
