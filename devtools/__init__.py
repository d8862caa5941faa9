"""What developers of fastgrad compile, inspect and run its CUDA kernels with, on machines without a GPU.

Imported from a checkout, by tests and tools; no part of the wheel.

cuda_on_cpu  runs a .cu file on NumPy arrays, under a checker
nvrtc        compiles one as CuPy would
sass         reports registers, spills and the widths of memory accesses
"""
