"""Pooling: maxima, averages and p-norms over windows, and their gradients."""

from ._pool_average import *  # noqa: F403
from ._pool_max import *  # noqa: F403
