"""What a run would do, and for how long; nothing is processed and nothing written."""

from __future__ import annotations

from dataclasses import dataclass, field

from medsegmamba_bids.bids import Inputs, T1wImage
from medsegmamba_bids.config import RunConfig
from medsegmamba_bids.execution.resume import images_of, visits_left, why_unfinished
from medsegmamba_bids.segmentations import ASEG, HIPPOCAMPUS
from medsegmamba_bids.stats.intracranial import find_template
from medsegmamba_bids.workflows.ingredients import made_from
from medsegmamba_bids.workflows.longitudinal import RECORD, Visits
from medsegmamba_bids.workflows.networks import Networks, choose_networks

#: Steps other than networks take this of a T1w, s of one processor (docs/performance.md: 23 s on two of them).
OTHER_STEPS_S = 45.0
#: The deformation of a visit takes this besides (docs/longitudinal.md).
DEFORMATION_S = 25.0


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes
    ----------
    process : list of (T1wImage, str)
        With the reason for which it is processed.
    finished : list of T1wImage
    skipped, left_out : dict of str to str
        As those of `Inputs`.
    networks : Networks
    together : list of (Visits, str)
        Visits that are processed together, with the reason.
    """

    process: list[tuple[T1wImage, str]]
    finished: list[T1wImage]
    skipped: dict[str, str]
    left_out: dict[str, str]
    networks: Networks
    together: list[tuple[Visits, str]] = field(default_factory=list)


def plan_run(inputs: Inputs, config: RunConfig) -> Plan:
    """Say what a run would process.

    Raises
    ------
    WeightsError
        Weights cannot be used.
    """
    networks, template = choose_networks(config), find_template()
    reasons = [
        (image, why_unfinished(image, made_from(image, config, networks, template), config)) for image in inputs.images
    ]
    process = [(image, why) for image, why in reasons if why]
    left = [image for image, _ in process]
    found = [visits_left(*one, left, config, networks, template) for one in inputs.subjects().items()]
    together = [visits for visits in found if visits]
    finished = [image for image, why in reasons if not why]
    return Plan(process, finished, inputs.skipped, inputs.left_out, networks, together)


def plan_text(plan: Plan) -> str:
    """Return a line for each image: what would become of it and why."""
    rows = [(f"{image.prefix}_T1w", "processed", why) for image, why in plan.process]
    rows += [
        (f"{image.prefix}_T1w", "finished", "its results are there (--force redoes them)") for image in plan.finished
    ]
    rows += [(f"{visits.prefix}_{RECORD}", "processed", f"its visits together: {why}") for visits, why in plan.together]
    rows += [(name, "skipped", why) for name, why in plan.skipped.items()]
    rows.sort()
    rows += [(name, "left out", why) for name, why in sorted(plan.left_out.items())]
    width = max((len(name) for name, _, _ in rows), default=0)
    lines = [f"{name:<{width}}  {what:<9}  {why}" for name, what, why in rows]
    counts = [
        (len(plan.process) + len(plan.together), "processed"),
        (len(plan.finished), "finished already"),
        (len(plan.skipped), "skipped"),
    ]
    return "\n".join([*lines, "would be: " + ", ".join(f"{number} {what}" for number, what in counts)])


def seconds_of_networks(plan: Plan, config: RunConfig) -> tuple[float, str]:
    """Return how long the networks take for a T1w on this machine, s, and on which device: a patch of each is timed."""
    from medsegmamba_bids.inference.device import use_threads
    from medsegmamba_bids.inference.segmenter import InferenceSettings, Segmenter
    from medsegmamba_bids.inference.speed import image_seconds

    use_threads(config.omp_nthreads)
    segmenter = Segmenter(
        InferenceSettings(
            config.device, config.precision, config.step_size, config.batch_size, low_memory=config.low_memory
        )
    )
    networks = plan.networks
    used = [(networks.aseg, ASEG.task), (networks.hippocampus, HIPPOCAMPUS.task), (networks.brain, ASEG.task)]
    seconds = sum(image_seconds(segmenter, network, task) for network, task in used if network)
    return seconds, segmenter.device.type


def images_together(plan: Plan) -> int:
    """Return how many images ``--longitudinal`` segments besides: visits, and their template, of each participant."""
    return sum(images_of(visits) for visits, _ in plan.together)


def seconds_of_run(images: int, network_s: float, config: RunConfig, on_cpu: bool, together: int = 0) -> float:
    """Return how long a run takes, s: networks one image after the other, the other steps beside them.

    Parameters
    ----------
    images : int
    network_s : float
        Of an image.
    config : RunConfig
    on_cpu : bool
        Whether networks take processors from the other steps.
    together : int
        Images that visits processed together add, see :func:`images_together`.

    Examples
    --------
    >>> from pathlib import Path
    >>> config = RunConfig(Path("in"), Path("out"), nprocs=4, omp_nthreads=4)
    >>> seconds_of_run(10, 60.0, config, on_cpu=True), seconds_of_run(10, 60.0, config, on_cpu=False)
    (712.5, 600.0)
    """
    processor_s = OTHER_STEPS_S + (network_s * config.omp_nthreads if on_cpu else 0.0)
    alone = images * max(network_s, processor_s / config.nprocs)
    return alone + together * max(network_s, (processor_s + DEFORMATION_S) / config.nprocs)
