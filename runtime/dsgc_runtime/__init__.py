"""What generated kernels need to run: threads and workspace on OpenMP, and a loader.

This package knows neither torch nor TVM's compiler; it stands on ``apache-tvm-ffi`` alone.
"""

from dsgc_runtime.loader import RuntimeBuildError, compiler_command, load_kernels, shim_path

__all__ = ["RuntimeBuildError", "compiler_command", "load_kernels", "shim_path"]
