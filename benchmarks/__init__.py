"""Measurements of whole training steps, sparse beside dense. Run from a checkout."""
