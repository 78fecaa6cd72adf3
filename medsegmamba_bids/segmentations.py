"""What is segmented: one record for the subcortical structures, one for the hippocampal subfields.

Whatever depends on which of the two it is, names above all, is read here. The label table of a *network* is not: it
stands in the header of its weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from medsegmamba_bids.anatomy import ASEG_BACKGROUND, OUTSIDE_BRAIN
from medsegmamba_bids.errors import TableError

#: Patterns of the files, one or several, that hold a label image, each with what is added to its labels.
Patterns = tuple[tuple[str, int], ...]

CORRECTED, POSTERIORS, VOXELS = "corrected", "posteriors", "voxels"
#: What the volumes of a table may be, for the JSON beside it.
VOLUME_DEFINITIONS = {
    CORRECTED: "Volume corrected for partial volume at borders, as FreeSurfer's mri_segstats --pv does in aseg.stats",
    POSTERIORS: "Sum of the posterior probabilities times the voxel volume, as FreeSurfer reports subfields",
    VOXELS: "Number of voxels times the voxel volume",
}


@dataclass(frozen=True, eq=False)
class SegmentationKind:
    """What networks of one task segment, and how it is named everywhere.

    Attributes
    ----------
    name : str
        In file names (``seg-``), tables and reports.
    task : str
        In weights files; the step of the workflow that segments is called so as well.
    titles : dict of str to str
        Label table that its networks may have -> what its structures are called on pages. The narrowest comes first,
        which is the published networks'; each holds those before it.
    listed : str
        The table whose structures are listed in any case, though a network may not know them all.
    short : str
        How values of ``seg-`` begin that mean the same segmentation by others.
    files : tuple of Patterns
        Label images in ``mri/`` of a FreeSurfer or FastSurfer subject; the first that is there counts.
    described_as : dict of str to int
        Value of ``desc-`` by which others name it, without ``seg-`` -> rank.
    volumes : str
        What its volumes are where all that is needed is there: a key of ``VOLUME_DEFINITIONS``.
    beside : tuple of int
        Labels beside the tables' that FreeSurfer's files of it hold, and that count as background.
    """

    name: str
    task: str
    titles: dict[str, str]
    listed: str
    short: str
    files: tuple[Patterns, ...]
    described_as: dict[str, int] = field(default_factory=dict)
    volumes: str = CORRECTED
    beside: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """What its structures are called on pages."""
        return next(iter(self.titles.values()))

    @property
    def tables(self) -> tuple[str, ...]:
        """Its label tables, the narrowest first."""
        return tuple(self.titles)

    @property
    def published(self) -> str:
        """Label table of the published networks."""
        return self.tables[0]

    @property
    def widest(self) -> str:
        """The label table that holds all others: for colours, and for whoever reads label images."""
        return self.tables[-1]

    @property
    def native(self) -> str:
        """Product: labels on the T1w's own grid."""
        return self.task

    @property
    def conformed(self) -> str:
        """Product: labels on the conformed grid."""
        return f"conformed_{self.task}"

    @property
    def entropy(self) -> str:
        """Product: entropy of the class probabilities."""
        return f"{self.task}_entropy"

    @property
    def posteriors(self) -> str:
        """Product: class probabilities."""
        return f"{self.task}_posteriors"

    @property
    def stats(self) -> str:
        """Product: the table of volumes."""
        return f"{self.task}_stats"

    @property
    def changes(self) -> str:
        """Product: the table of a participant's visits."""
        return f"{self.task}_changes"

    @property
    def table_file(self) -> str:
        """Name of the label table at the root of an output folder."""
        return f"seg-{self.name}_dseg.tsv"

    def listed_table(self, labels: Iterable[int]) -> str:
        """Return the label table whose structures are listed for a network with these classes.

        The first, from ``listed`` on, that holds all classes; ``listed`` where none does (someone else's classes).
        Fluid outside the brain is no structure, so it asks for no table.

        Examples
        --------
        >>> ASEG.listed_table((0, 4, 10, 16, 257))
        'aseg_brain'
        """
        from medsegmamba_bids.image.labels import load_label_table  # pandas takes a while

        wanted = set(labels) - set(OUTSIDE_BRAIN)
        wide = self.tables[self.tables.index(self.listed) :]
        return next((name for name in wide if wanted <= set(load_label_table(name).labels.tolist())), self.listed)


ASEG = SegmentationKind(
    name="aseg",
    task="aseg",
    titles={
        "aseg": "Subcortical structures",
        "aseg_brain": "Brain structures",
        "aseg_head": "Brain structures and the fluid around the brain",
    },
    listed="aseg_brain",
    short="aseg",
    files=tuple(
        ((pattern, 0),)
        for pattern in (
            "aseg.mgz",
            "aparc.DKTatlas+aseg.deep.mgz",
            "aparc.DKTatlas+aseg*.mgz",
            "aparc+aseg.mgz",
            "aseg.auto*.mgz",
        )
    ),
    described_as={"aseg": 1, "aparcaseg": 2},
    beside=ASEG_BACKGROUND,
)
HIPPOCAMPUS = SegmentationKind(
    name="hippoFS60",
    task="hippocampus",
    titles={"hippoFS60": "Hippocampal subfields"},
    listed="hippoFS60",
    short="hippo",
    volumes=POSTERIORS,
    files=(
        (
            ("lh.hippoAmygLabels-T1*.FS60.FSvoxelSpace.mgz", 1000),
            ("rh.hippoAmygLabels-T1*.FS60.FSvoxelSpace.mgz", 2000),
        ),
    ),
)
SEGMENTATIONS = (ASEG, HIPPOCAMPUS)
TASKS = tuple(kind.task for kind in SEGMENTATIONS)
TABLES = tuple(table for kind in SEGMENTATIONS for table in kind.tables)


def of_name(name: str) -> SegmentationKind:
    """Return the segmentation that files call so (``aseg``, ``hippoFS60``).

    Examples
    --------
    >>> of_name("hippoFS60").stats
    'hippocampus_stats'
    """
    return _only("segmentation", name, {kind.name: kind for kind in SEGMENTATIONS})


def of_task(task: str) -> SegmentationKind:
    """Return the segmentation that weights call so (``aseg``, ``hippocampus``)."""
    return _only("task", task, {kind.task: kind for kind in SEGMENTATIONS})


def of_table(table: str) -> SegmentationKind:
    """Return the segmentation that a label table belongs to.

    Examples
    --------
    >>> of_table("aseg_brain").name
    'aseg'
    """
    return _only("label table", table, {name: kind for kind in SEGMENTATIONS for name in kind.tables})


def _only(what: str, value: str, known: dict[str, SegmentationKind]) -> SegmentationKind:
    if value not in known:
        raise TableError(f"the {what} {value!r} is unknown; there are {', '.join(known)}")
    return known[value]
