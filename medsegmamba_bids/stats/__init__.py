"""Numbers from segmentations: volumes, intensities, measures of the whole brain, and their tables."""
