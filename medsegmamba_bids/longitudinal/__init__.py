"""Several visits of one person: one space for all, labels that know of each other, and what changed."""
