"""Training on pairs of images and labels, as the paper does."""
