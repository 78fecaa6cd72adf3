"""``medsegmamba-train``: training on synthesised images and on pairs of images and labels."""
