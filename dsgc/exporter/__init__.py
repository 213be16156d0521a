"""Compiled models as files: artifacts that run without torch and TVM, and ONNX."""

from dsgc.exporter.artifact import export
from dsgc.exporter.onnx import export_onnx

__all__ = ["export", "export_onnx"]
