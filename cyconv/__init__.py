"""Fast multi-threaded convolution and pooling, forward and backward, for NumPy arrays on the CPU.

Functions take and return float32 or float64 arrays shaped ([N,] C, H, W); `cyconv.nn` has layers to train with.
"""

from typing import Any

__version__ = "0.1.0"

from ._dispatch import get_num_threads, num_threads, release_scratch, set_num_threads, show_config
from .conv import ConvGradients, conv2d, conv2d_backward
from .pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward

__all__ = [
    "ConvGradients",
    "avg_pool2d",
    "avg_pool2d_backward",
    "conv2d",
    "conv2d_backward",
    "get_num_threads",
    "max_pool2d",
    "max_pool2d_backward",
    "nn",
    "num_threads",
    "release_scratch",
    "set_num_threads",
    "show_config",
]


def __getattr__(name: str) -> Any:
    if name == "nn":  # imported when first used
        from importlib import import_module

        return import_module("cyconv.nn")
    raise AttributeError(f"module 'cyconv' has no attribute {name!r}")
