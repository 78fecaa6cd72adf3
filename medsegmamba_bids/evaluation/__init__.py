"""How well segmentations agree with a reference: metrics, and the measured part of the model card."""
