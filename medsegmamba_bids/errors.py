"""The errors of this package: what a user can mend, each with a sentence that says what, where and what is allowed.

Commands print the sentence of a :class:`UserError` and end with 1. Any other exception is a fault of the program and
keeps its traceback.
"""

from __future__ import annotations

_KILLED = (
    "its process was killed, most likely because memory ran out; give the job more memory, or lower --mem or --nprocs"
)


class UserError(ValueError):
    """Something that a user can mend; the message names the file or option and says why and what is allowed."""


class ConfigError(UserError):
    """Options or a configuration that cannot be carried out."""


class DatasetError(UserError):
    """Images or label images that cannot be found, told apart or read as what they should be."""


class BIDSError(DatasetError):
    """A dataset that cannot be used; the message names the folder."""


class ImageError(UserError):
    """An image that cannot be used; the message names the file."""


class TableError(UserError):
    """A table that cannot be read or is not known; the message names it."""


class ThresholdError(UserError):
    """A file of thresholds that cannot be used; the message names it."""


class NetworkError(UserError):
    """A network that cannot be built as it was described."""


class WeightsError(UserError):
    """A weights file that cannot be used; the message names it."""


class DeviceError(UserError):
    """A device or a scan backend that cannot be used."""


class SegmentationError(UserError):
    """An image that cannot be segmented."""


class LockError(UserError):
    """A lock file that cannot be used, so that nobody knows whether another run is there; the message names it."""


class WorkerDiedError(UserError):
    """A process that ran a node is gone."""

    def __init__(self, message: str = _KILLED) -> None:
        super().__init__(message)


class ReportError(UserError):
    """A report that cannot be written."""


class GroupError(UserError):
    """Results that cannot be gathered; the message says which."""


class PairError(UserError):
    """An image and labels that cannot be trained on."""


class SplitError(UserError):
    """Participants that cannot be divided, or a division that cannot be used."""


class ExperimentError(UserError):
    """An experiment that cannot be run as it was asked for."""


class EvaluationError(UserError):
    """An input that cannot be evaluated; the message names it and says what to do."""


class CaseError(UserError):
    """A case of a model card that cannot be measured."""


def reason(error: BaseException) -> str:
    """Return why something failed, for a sentence that names the file already.

    Examples
    --------
    >>> reason(FileNotFoundError(2, "No such file or directory", "/nope.json"))
    'No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
