"""FreeSurfer's labels that code speaks of by what they are; numbers as in FreeSurferColorLUT.txt."""

from __future__ import annotations

from collections.abc import Iterable

LEFT_WHITE_MATTER, LEFT_CORTEX, RIGHT_WHITE_MATTER, RIGHT_CORTEX = 2, 3, 41, 42
WHITE_MATTER = (LEFT_WHITE_MATTER, RIGHT_WHITE_MATTER)
CORTEX = (LEFT_CORTEX, RIGHT_CORTEX)
CEREBRUM = (LEFT_WHITE_MATTER, LEFT_CORTEX, RIGHT_WHITE_MATTER, RIGHT_CORTEX)
#: White and gray matter, each as its left and right label, cerebral first; networks know one pair at least.
TISSUES = ((WHITE_MATTER, CORTEX), ((7, 46), (8, 47)))
CSF = 24
THALAMI = (10, 49)
#: Small structures around the thalami: nuclei, hippocampi, amygdalae, and the horns of the ventricles beside these.
DEEP = (5, 10, 11, 12, 13, 17, 18, 26, 28, 44, 49, 50, 51, 52, 53, 54, 58, 60)
CEREBELLUM = (7, 8, 46, 47)
BRAIN_STEM = 16
HYPOINTENSITIES = 77
CALLOSUM = (251, 252, 253, 254, 255)
#: What ``aseg.stats`` lists beside the structures that networks of this package may know.
FREESURFER_ONLY = {
    30: "Left-vessel",
    62: "Right-vessel",
    72: "5th-Ventricle",
    78: "Left-WM-hypointensities",
    79: "Right-WM-hypointensities",
    80: "non-WM-hypointensities",
    81: "Left-non-WM-hypointensities",
    82: "Right-non-WM-hypointensities",
    85: "Optic-Chiasm",
    251: "CC_Posterior",
    252: "CC_Mid_Posterior",
    253: "CC_Central",
    254: "CC_Mid_Anterior",
    255: "CC_Anterior",
}
FIFTH_VENTRICLE, OPTIC_CHIASM = 72, 85
#: CSF-ExtraCerebral, of networks that know it: fluid between brain and skull, so no part of the brain.
OUTER_CSF = 257
OUTSIDE_BRAIN = (OUTER_CSF,)
#: Between these intensities decide: what is around the brain, fluid, cortex, white matter. Nuclei are not among them;
#: they share intensities with their surroundings. Nor are ventricles and hypointensities: their own intensities spread
#: widely, and they took what lies between fluid or cortex and white matter.
TOLD_BY_INTENSITY = (0, OUTER_CSF, CSF, LEFT_CORTEX, RIGHT_CORTEX, LEFT_WHITE_MATTER, RIGHT_WHITE_MATTER)

LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS = 17, 53
HIPPOCAMPI = {LEFT_HIPPOCAMPUS: "left", RIGHT_HIPPOCAMPUS: "right"}
#: What is added to the numbers of FreeSurfer's subfields (201 to 246), which are the same on both sides.
SUBFIELDS_FROM = {LEFT_HIPPOCAMPUS: 1000, RIGHT_HIPPOCAMPUS: 2000}
#: Nuclei of the amygdala, in the files of the hippocampal subfields.
NUCLEI = (*range(7001, 7016),)

#: Parcels of the cortex in aparc+aseg, by what they are parts of.
PARCELS = {LEFT_CORTEX: range(1000, 2000), RIGHT_CORTEX: range(2000, 3000)}
#: Beside the classes FreeSurfer's aseg and aparc+aseg have these (vessels, optic chiasm, lesions, callosum, parcels).
ASEG_BACKGROUND = (2, 3, 25, 29, 30, 41, 42, 57, 61, 62, 72, 78, 79, 80, 81, 82, 85, *CALLOSUM)
ASEG_BACKGROUND += (*OUTSIDE_BRAIN, *range(1000, 1036), *range(2000, 2036))

#: What hides the rest in drawings in three dimensions.
OUTER = (*CEREBRUM, CSF, HYPOINTENSITIES)


def covers_brain(labels: Iterable[int]) -> bool:
    """Return whether classes with these labels cover the whole brain: cerebral white matter and cortex are among
    them.
    """
    return set(labels) >= set(CEREBRUM)
