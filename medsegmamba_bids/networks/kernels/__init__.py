"""Kernels of the networks: the selective scan and group normalisation, each beside its slow, obvious reference."""
