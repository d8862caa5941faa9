"""Kernels of fastgrad, one stem per operation: ``<op>_ref`` is the definition in plain NumPy, ``<op>_cpu`` fast.

Nothing here checks its arguments; ``fastgrad`` does, and picks the module. Importing this package imports no kernel.
"""
