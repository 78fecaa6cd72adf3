"""The measured part of the model card of the package's weights."""
