"""What generated kernels need to run: threads, workspace and large buffers, and a loader.

This package knows neither torch nor TVM's compiler; it stands on ``apache-tvm-ffi`` alone.
"""

from dsgc_runtime.loader import RuntimeBuildError, compiler_command, load_kernels, shim_path
from dsgc_runtime.memory import MemoryPool

__all__ = ["MemoryPool", "RuntimeBuildError", "compiler_command", "load_kernels", "shim_path"]
