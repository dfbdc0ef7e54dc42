"""Compiled kernels, one module for each (family, instruction set, dtype); `_dispatch.kernels` chooses."""
