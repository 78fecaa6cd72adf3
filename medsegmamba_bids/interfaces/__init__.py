"""Nipype nodes: read inputs, call one function, write outputs."""
