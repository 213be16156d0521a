"""Compiled models as files that run without torch and TVM."""

from dsgc.exporter.artifact import export

__all__ = ["export"]
