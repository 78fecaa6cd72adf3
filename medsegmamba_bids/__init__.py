"""MedSegMamba as a BIDS App: subcortical and hippocampal-subfield segmentation of T1w images."""

__version__ = "0.1.0"
