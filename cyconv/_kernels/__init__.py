"""Compiled kernels, one module for each (family, instruction set, dtype); `_dispatch.kernels` chooses."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # as in cyconv
