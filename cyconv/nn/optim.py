"""Stochastic gradient descent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .._check import Array
    from .layers import Layer


class SGD:
    """Stochastic gradient descent with momentum: v = momentum * v + gradient, parameter -= rate * v.

    Parameters
    ----------
    model : Layer
        Whose parameters are changed in place.
    rate : float
        Positive; may be changed between steps.
    momentum : float
        At least 0, less than 1.
    """

    def __init__(self, model: Layer, rate: float, momentum: float = 0.0) -> None:
        for name, value in (("rate", rate), ("momentum", momentum)):
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 < rate < math.inf or not 0 <= momentum < 1:
            raise ValueError(f"rate must be positive and momentum in [0, 1), got rate={rate}, momentum={momentum}")
        self.model, self.rate, self.momentum = model, float(rate), float(momentum)
        self._velocity: dict[str, Array] = {}

    def step(self) -> None:
        """Change every parameter by the gradients of the last backward pass."""
        gradients = self.model.gradients()
        for name, parameter in self.model.parameters().items():
            step = gradients[name]
            if self.momentum:
                step = self._velocity[name] = self.momentum * self._velocity.get(name, 0) + step
            parameter -= self.rate * step
