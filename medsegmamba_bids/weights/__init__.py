"""Weights files: what they say of themselves, where they lie, how they are read, written and made from checkpoints."""
