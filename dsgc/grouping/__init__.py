"""Reordering the channels of a dense model, so that neurons that fire together share a block."""

from dsgc.grouping.group import Grouping, group_neurons

__all__ = ["Grouping", "group_neurons"]
