"""Layers: parameters and what the backward pass needs. The arithmetic is in `cyconv.conv`; `pooling.py` has more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _check
from ..conv import ConvGradients, conv2d, conv2d_backward

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from .._check import Array, IntLike, PaddingLike


class Layer:
    """Base of the layers: ``y = layer(x)``, then ``grad_x = layer.backward(grad_y)``.

    While `training` is True (the default) a forward pass keeps references to the arrays that backward reads, so they
    must not be changed in between; backward lets go of them. For inference set ``layer.training = False``: nothing
    is kept then.

    A layer of your own defines ``_forward(x) -> (y, kept)`` and ``_backward(grad_y, kept, wrt_x) -> grad_x``.
    """

    training: bool = True
    _kept: tuple[tuple[int, ...], np.dtype[Any], Any] | None = None

    def __call__(self, x: Array) -> Array:
        """Return the layer's output for `x`."""
        y, kept = self._forward(_check.array("x", x))
        self._kept = (y.shape, y.dtype, kept) if self.training else None
        return y

    def backward(self, grad_y: Array, *, wrt_x: bool = True) -> Array | None:
        """Compute the gradients of the latest training call.

        Parameters
        ----------
        grad_y : ndarray
            Gradient of the loss with respect to the output, same shape and dtype.
        wrt_x : bool
            False skips the gradient of the input, which a network's first layer does not need.

        Returns
        -------
        ndarray or None
            Gradient with respect to the input. Those of the parameters are in `gradients()`, until the next call.

        Raises
        ------
        RuntimeError
            Without a forward pass in training mode since the last backward pass.
        TypeError, ValueError
            If `grad_y` does not fit the output.
        """
        if self._kept is None:
            raise RuntimeError(f"{self}.backward needs a forward pass with training=True before it")
        shape, dtype, kept = self._kept
        if _check.array("grad_y", grad_y).dtype != dtype:
            raise TypeError(f"{self}.backward: grad_y must be {dtype} like the output, got {grad_y.dtype}")
        if grad_y.shape != shape:
            raise ValueError(f"{self}.backward: grad_y must have the output's shape {shape}, got {grad_y.shape}")
        grad_x = self._backward(grad_y, kept, wrt_x)
        self._kept = None
        return grad_x

    def parameters(self) -> dict[str, Array]:
        """Return the trained arrays by name: the arrays themselves, to be changed in place."""
        return {}

    def gradients(self) -> dict[str, Array]:
        """Return the gradients of the last backward pass, with the keys of `parameters()`."""
        return {}

    def _forward(self, x: Array) -> tuple[Array, Any]:
        raise NotImplementedError

    def _backward(self, grad_y: Array, kept: Any, wrt_x: bool) -> Array | None:
        raise NotImplementedError

    def _slots(self) -> dict[str, tuple[_Affine, str, tuple[int | None, ...]]]:
        """Name -> (layer, attribute, shape; None: a length that is not known yet), for loading."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Affine(Layer):
    """What Conv2D and Dense share: weight (outputs, inputs, ...), bias (outputs,), their creation and gradients."""

    weight: Array | None = None
    bias: Array | None = None

    def __init__(
        self, shape: tuple[Any, ...], bias: bool, activation: str | None, dtype: npt.DTypeLike | None,
        seed: int | np.random.Generator,
    ) -> None:  # fmt: skip
        # shape: (outputs, inputs or None, *window)
        _check.one_of("activation", activation, (None, "relu"))
        self.activation, self.seed = activation, seed
        self._shape, self._has_bias = shape, bool(bias)
        self._dtype = None if dtype is None else _check.array("dtype", np.empty(0, dtype)).dtype
        self._gradients: dict[str, Array] | None = None
        if shape[1] is not None:
            self._create(shape[1], np.dtype(np.float32))

    def _apply(self, x: Array, weight: Array) -> Array:
        raise NotImplementedError

    def _differentiate(self, grad_y: Array, x: Array, weight: Array, wrt: tuple[str, ...]) -> ConvGradients:
        raise NotImplementedError

    def _inputs(self, x: Array) -> int:
        """Return the number of inputs that `x` has, checked."""
        raise NotImplementedError

    def _forward(self, x: Array) -> tuple[Array, Any]:
        if self.weight is None or (self.bias is None and self._has_bias):
            self._create(self._inputs(x), x.dtype)
        y = self._apply(x, self.parameters()["weight"])
        return y, (x, y if self.activation else None)

    def _backward(self, grad_y: Array, kept: Any, wrt_x: bool) -> Array | None:
        x, y = kept
        grad_y = grad_y if y is None else _relu_backward(grad_y, y)
        parameters = self.parameters()
        gradients = self._differentiate(grad_y, x, parameters["weight"], ("x",) * wrt_x + tuple(parameters))
        self._gradients = {name: getattr(gradients, name).reshape(p.shape) for name, p in parameters.items()}
        return gradients.x

    def _create(self, inputs: int, dtype: np.dtype[Any]) -> None:
        """Create what is missing; numbers of inputs and dtypes that were given win over those of the first input."""
        if self.weight is None:
            shape = (self._shape[0], self._shape[1] or inputs, *self._shape[2:])
            limit = math.sqrt(6 / math.prod(shape[1:]))
            drawn = np.random.default_rng(self.seed).uniform(-limit, limit, shape)
            self.weight = drawn.astype(self._dtype or dtype)
        if self.bias is None and self._has_bias:
            self.bias = np.zeros(len(self.weight), self.weight.dtype)

    def parameters(self) -> dict[str, Array]:
        """Return {"weight": ..., "bias": ...}: the arrays themselves, to be changed in place.

        Raises
        ------
        RuntimeError
            If they do not exist yet because the number of inputs is not known.
        """
        if self.weight is None:
            raise RuntimeError(f"{self} has no parameters before its first input: the number of inputs is not known")
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def gradients(self) -> dict[str, Array]:
        """Return the gradients of the last backward pass, with the keys of `parameters()`.

        Raises
        ------
        RuntimeError
            Before the first backward pass.
        """
        if self._gradients is None:
            raise RuntimeError(f"{self} has no gradients before its first backward pass")
        return self._gradients

    def _slots(self) -> dict[str, tuple[_Affine, str, tuple[int | None, ...]]]:
        shape = self._shape if self.weight is None else self.weight.shape
        return {"weight": (self, "weight", shape)} | ({"bias": (self, "bias", shape[:1])} if self._has_bias else {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shape[0]})"


class Conv2D(_Affine):
    """Convolutional layer: `cyconv.conv2d` with a weight and a bias that are trained.

    The weight is drawn from He's uniform distribution (He et al., 2015, https://arxiv.org/abs/1502.01852), between -b
    and b for b = sqrt(6 / (in_channels / groups * KH * KW)), with `numpy.random.default_rng(seed)`; the bias starts
    at zero.

    Parameters
    ----------
    channels : int
        Output channels.
    kernel_size : int or (int, int)
    stride, padding, dilation, groups, padding_mode
        As in `cyconv.conv2d`.
    bias : bool
        Whether there is a bias.
    activation : None or "relu"
        Applied to the output within the kernel.
    in_channels : int, optional
        Input channels; without it, those of the first input.
    dtype : float32 or float64, optional
        Of the parameters; without it, that of the first input (float32 if `in_channels` is given).
    seed : int or numpy.random.Generator
        Layers that share a Generator draw from it one after the other; equal layers with equal integers start equal.

    Attributes
    ----------
    weight : ndarray (channels, in_channels / groups, KH, KW), or None before the first input
    bias : ndarray (channels,) or None

    Examples
    --------
    >>> import numpy as np
    >>> from cyconv import nn
    >>> nn.Conv2D(6, 5, padding="same")(np.ones((2, 1, 8, 8), np.float32)).shape
    (2, 6, 8, 8)
    """

    def __init__(
        self, channels: int, kernel_size: IntLike, *, stride: IntLike = 1, padding: PaddingLike = 0,
        dilation: IntLike = 1, groups: int = 1, padding_mode: str = "zeros", bias: bool = True,
        activation: str | None = None, in_channels: int | None = None, dtype: npt.DTypeLike | None = None,
        seed: int | np.random.Generator = 0,
    ) -> None:  # fmt: skip
        channels = _check.integer("channels", channels, 1)
        groups = _check.integer("groups", groups, 1)
        if channels % groups:
            raise ValueError(f"groups={groups} must divide channels={channels}")
        self.options: dict[str, Any] = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": padding_mode,
        }  # fmt: skip
        inputs = None if in_channels is None else self._per_group(_check.integer("in_channels", in_channels, 1))
        shape = (channels, inputs, *_check.ints("kernel_size", kernel_size, 2, 1))
        super().__init__(shape, bias, activation, dtype, seed)

    def _per_group(self, in_channels: int) -> int:
        groups: int = self.options["groups"]
        if in_channels % groups:
            raise ValueError(f"groups={groups} must divide the {in_channels} input channels")
        return in_channels // groups

    def _inputs(self, x: Array) -> int:
        _check.spatial("x", x.shape, 2)
        return self._per_group(x.shape[-3])

    def _apply(self, x: Array, weight: Array) -> Array:
        return conv2d(x, weight, self.bias, activation=self.activation, **self.options)

    def _differentiate(self, grad_y: Array, x: Array, weight: Array, wrt: tuple[str, ...]) -> ConvGradients:
        return conv2d_backward(grad_y, x, weight, wrt=wrt, **self.options)

    def __repr__(self) -> str:
        return f"Conv2D({self._shape[0]}, {self._shape[2:]})"


class Dense(_Affine):
    """Fully connected layer, y = x @ weight.T + bias, computed as a 1x1 convolution over the samples.

    The weight is drawn as in `Conv2D`: He's uniform distribution, between -b and b for b = sqrt(6 / in_features), with
    `numpy.random.default_rng(seed)`; the bias starts at zero.

    Parameters
    ----------
    units : int
        Output features.
    bias, activation, dtype, seed
        As in `Conv2D`.
    in_features : int, optional
        Input features; without it, those of the first input.

    Attributes
    ----------
    weight : ndarray (units, in_features), or None before the first input
    bias : ndarray (units,) or None
    """

    def __init__(
        self, units: int, *, bias: bool = True, activation: str | None = None, in_features: int | None = None,
        dtype: npt.DTypeLike | None = None, seed: int | np.random.Generator = 0,
    ) -> None:  # fmt: skip
        inputs = None if in_features is None else _check.integer("in_features", in_features, 1)
        super().__init__((_check.integer("units", units, 1), inputs), bias, activation, dtype, seed)

    def _forward(self, x: Array) -> tuple[Array, Any]:
        return super()._forward(_check.array("x", x, 2))

    def _inputs(self, x: Array) -> int:
        return _check.integer("features of x", x.shape[1], 1)

    def _apply(self, x: Array, weight: Array) -> Array:
        return _as_rows(conv2d(_as_pixels(x), weight[:, :, None, None], self.bias, activation=self.activation))

    def _differentiate(self, grad_y: Array, x: Array, weight: Array, wrt: tuple[str, ...]) -> ConvGradients:
        gradients = conv2d_backward(_as_pixels(grad_y), _as_pixels(x), weight[:, :, None, None], wrt=wrt)
        return gradients._replace(x=None if gradients.x is None else _as_rows(gradients.x))


def _as_pixels(x: Array) -> Array:
    """(N, C) as one image (1, C, 1, N), whose pixels are the samples; an empty batch as no image."""
    return x.T[None, :, None] if len(x) else x[:, :, None, None]


def _as_rows(y: Array) -> Array:
    """The inverse of `_as_pixels`."""
    return y.T.reshape(-1, y.shape[1])


def _relu_backward(grad_y: Array, y: Array) -> Array:
    # In the forward pass this was y = max(x, 0); a NaN lets its gradient through, so that it stays visible.
    # Bits are masked because np.where branches, and mispredicts, for each element.
    bits = np.dtype(f"i{grad_y.itemsize}")
    mask = (~(y <= 0)).astype(bits)
    np.negative(mask, out=mask)
    mask &= grad_y.view(bits)
    return mask.view(grad_y.dtype)


class ReLU(Layer):
    """Rectifier, max(x, 0); a NaN stays. The gradient at 0 is 0."""

    def _forward(self, x: Array) -> tuple[Array, Any]:
        y = np.maximum(x, 0)
        return y, y

    def _backward(self, grad_y: Array, kept: Any, wrt_x: bool) -> Array | None:
        return _relu_backward(grad_y, kept)


class Flatten(Layer):
    """Joins all axes but the first: (N, ...) to (N, features)."""

    def _forward(self, x: Array) -> tuple[Array, Any]:
        if x.ndim < 2:
            raise ValueError(f"x must have at least 2 axes, got shape {x.shape}")
        return x.reshape(len(x), math.prod(x.shape[1:])), x.shape

    def _backward(self, grad_y: Array, kept: Any, wrt_x: bool) -> Array | None:
        return grad_y.reshape(kept)


class Sequential(Layer):
    """Layers one after the other; parameter names are prefixed with their position: "0.weight".

    Setting `training` sets it for every layer.

    Examples
    --------
    >>> import numpy as np
    >>> from cyconv import nn
    >>> rng = np.random.default_rng(0)
    >>> net = nn.Sequential(nn.Conv2D(4, 3, seed=rng), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten(), nn.Dense(10, seed=rng))
    >>> net(np.ones((2, 1, 8, 8), np.float32)).shape
    (2, 10)
    >>> {name: p.shape for name, p in net.parameters().items()}
    {'0.weight': (4, 1, 3, 3), '0.bias': (4,), '4.weight': (10, 36), '4.bias': (10,)}
    """

    def __init__(self, *layers: Layer) -> None:
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"Sequential takes layers, got {layer!r}")
        if not layers or len(set(map(id, layers))) < len(layers):
            raise ValueError(f"Sequential takes one or more layers, each only once, got {layers}")
        self.layers = layers

    @property
    def training(self) -> bool:
        """Whether all layers keep what backward needs."""
        return all(layer.training for layer in self.layers)

    @training.setter
    def training(self, value: bool) -> None:
        for layer in self.layers:
            layer.training = value

    def __call__(self, x: Array) -> Array:
        """Return the last layer's output."""
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, grad_y: Array, *, wrt_x: bool = True) -> Array | None:
        """Compute the gradients of the latest training call, as `Layer.backward` does for one layer."""
        grad: Array | None = grad_y
        for layer in reversed(self.layers):
            grad = layer.backward(grad, wrt_x=wrt_x or layer is not self.layers[0])  # type: ignore[arg-type]
        return grad

    def parameters(self) -> dict[str, Array]:
        """Return the trained arrays of all layers, by position and name."""
        return self._join("parameters")

    def gradients(self) -> dict[str, Array]:
        """Return the gradients of the last backward pass, with the keys of `parameters()`."""
        return self._join("gradients")

    def _slots(self) -> dict[str, tuple[_Affine, str, tuple[int | None, ...]]]:
        return self._join("_slots")

    def _join(self, method: str) -> dict[str, Any]:
        return {f"{i}.{name}": a for i, layer in enumerate(self.layers) for name, a in getattr(layer, method)().items()}

    def __getitem__(self, position: int) -> Layer:
        return self.layers[position]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))})"
