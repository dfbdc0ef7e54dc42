"""Layers, losses and an optimiser on top of cyconv's functions: enough to train a convolutional network in NumPy.

``y = layer(x)`` computes, ``grad_x = layer.backward(grad_y)`` differentiates, ``layer.parameters()`` and
``layer.gradients()`` are dicts of arrays with the same keys.
"""

from .layers import (
    AvgPool2D,
    Conv2D,
    Dense,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    MaxPool2D,
    ReLU,
    Sequential,
)
from .losses import MSE, SoftmaxCrossEntropy
from .optim import SGD
from .storage import load, save

__all__ = [
    "MSE",
    "SGD",
    "AvgPool2D",
    "Conv2D",
    "Dense",
    "Flatten",
    "GlobalAvgPool2D",
    "Layer",
    "MaxPool2D",
    "ReLU",
    "Sequential",
    "SoftmaxCrossEntropy",
    "load",
    "save",
]
