"""Losses: ``value = loss(prediction, target)``, then ``grad_prediction = loss.backward()``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check

if TYPE_CHECKING:
    import numpy.typing as npt

    from .._check import Array


class _Loss:
    _kept: Any = None

    def backward(self) -> Array:
        """Return the gradient of the latest value with respect to the prediction.

        Raises
        ------
        RuntimeError
            If the loss has not been computed since the last backward pass.
        """
        if self._kept is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward pass before it")
        kept, self._kept = self._kept, None
        return self._backward(*kept)

    def _backward(self, *kept: Any) -> Array:
        raise NotImplementedError


class SoftmaxCrossEntropy(_Loss):
    """Mean over the samples of -log(softmax(logits)[label]).

    Call it with `logits` (N, classes), float32 or float64, and `labels` (N,), integers from 0 to classes - 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cyconv import nn
    >>> loss = nn.SoftmaxCrossEntropy()
    >>> round(loss(np.zeros((2, 4)), np.array([1, 3])), 6)  # log(4)
    1.386294
    >>> loss.backward()
    array([[ 0.125, -0.375,  0.125,  0.125],
           [ 0.125,  0.125,  0.125, -0.375]])
    """

    def __call__(self, logits: Array, labels: npt.NDArray[np.integer[Any]]) -> float:
        """Return the loss of a batch that is not empty."""
        n, classes = _check.array("logits", logits, 2).shape
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be an array of integers, got {getattr(labels, 'dtype', type(labels))}")
        if not n or labels.shape != (n,):
            raise ValueError(f"labels must have shape (N,) for N > 0 logits, got {labels.shape} for {logits.shape}")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"labels must be in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
        shifted = logits - logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
        softmax = np.exp(shifted)
        total = softmax.sum(axis=1, keepdims=True)
        softmax /= total
        self._kept = softmax, labels
        return float(np.mean(np.log(total[:, 0]) - shifted[np.arange(n), labels]))

    def _backward(self, softmax: Array, labels: npt.NDArray[np.integer[Any]]) -> Array:
        # In the forward pass this was loss = mean(log(sum(exp(logits))) - logits[label]).
        softmax[np.arange(len(labels)), labels] -= 1
        softmax /= len(labels)
        return softmax


class MSE(_Loss):
    """Squared error (prediction - target)**2 of two arrays of one shape and dtype.

    Parameters
    ----------
    reduction : "mean" or "sum"
        Over all elements.
    """

    def __init__(self, reduction: str = "mean") -> None:
        _check.one_of("reduction", reduction, ("mean", "sum"))
        self.reduction = reduction

    def __call__(self, prediction: Array, target: Array) -> float:
        """Return the loss of arrays that are not empty."""
        _check.array("prediction", prediction)
        _check.same_shape("target", _check.array("target", target), prediction.shape)
        _check.same_dtype(prediction=prediction, target=target)
        if not prediction.size:
            raise ValueError(f"prediction is empty: shape {prediction.shape}")
        difference = prediction - target
        self._kept = (difference,)
        return float(getattr(np, self.reduction)(difference * difference))

    def _backward(self, difference: Array) -> Array:
        return difference * (2 / (difference.size if self.reduction == "mean" else 1))
