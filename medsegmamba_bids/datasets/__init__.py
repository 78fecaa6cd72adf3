"""Finding and reading images and label images of this and other tools."""
