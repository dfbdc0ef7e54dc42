"""Pooling layers: the functions of `cyconv.pool`, each for one, two and three axes from one class."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from .. import pool
from .layers import Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._check import Array, IntLike, PaddingLike


class _Pooling(Layer):
    """A layer that calls the functions of that name. Its docstring: what it does, an example with {...} for n axes."""

    _name: str
    _text: str
    _n: int
    _functions: Any  # forward and backward

    def __init_subclass__(cls, n: int | None = None) -> None:
        if hasattr(cls, "_n"):
            return  # a user's class
        if n is None:
            cls._text, cls.__doc__ = inspect.cleandoc(cls.__doc__ or ""), None  # its example is not Python yet
            return
        name = cls._name.replace("{n}", str(n))
        cls._n, cls._functions = n, (getattr(pool, name), getattr(pool, f"{name}_backward"))
        what, _, example = cls._text.partition("\n\n")
        if parameters := ", ".join(list(inspect.signature(cls).parameters)):
            what += f"\n\nParameters\n----------\n{parameters}\n    As in `cyconv.{name}`."
        text = f"{what}\n\nExamples\n--------\n>>> import numpy as np\n>>> from cyconv import nn\n{example}"
        cls.__doc__ = text.replace("{n}", str(n)).replace("{1,}", "1, " * (n - 1))

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options

    def _forward(self, x: Array) -> tuple[Array, Any]:
        y = self._functions[0](x, *self.arguments, **self.options)
        return y, x.shape if "avg" in self._name else x  # an average is linear: its gradient does not depend on x

    def _backward(self, grad_y: Array, kept: Any, wrt_x: bool) -> Array | None:
        return self._functions[1](grad_y, kept, *self.arguments, **self.options) if wrt_x else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.arguments))})"


class _MaxPool(_Pooling):
    """Maximum over windows: `cyconv.max_pool{n}d`.

    >>> nn.MaxPool{n}D(({1,}3), stride=2)(np.arange(5.0).reshape(1, 1, {1,}5)).ravel()
    array([2., 4.])
    """

    _name = "max_pool{n}d"

    def __init__(
        self, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0, dilation: IntLike = 1,
        ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)


class _AvgPool(_Pooling):
    """Average over windows: `cyconv.avg_pool{n}d`.

    >>> nn.AvgPool{n}D(({1,}3), stride=2)(np.arange(5.0).reshape(1, 1, {1,}5)).ravel()
    array([1., 3.])
    """

    _name = "avg_pool{n}d"

    def __init__(
        self, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0, dilation: IntLike = 1,
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        windows = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
        average = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
        super().__init__(kernel_size, **windows, **average)


class _LPPool(_Pooling):
    """p-norm over windows: `cyconv.lp_pool{n}d`.

    >>> nn.LPPool{n}D(2, ({1,}2))(np.array([3.0, -4.0]).reshape(1, 1, {1,}2)).ravel()
    array([5.])
    """

    _name = "lp_pool{n}d"

    def __init__(
        self, p: float, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0,
        dilation: IntLike = 1, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(p, kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)


class _AdaptiveMaxPool(_Pooling):
    """Maximum over as many windows as asked for: `cyconv.adaptive_max_pool{n}d`.

    >>> nn.AdaptiveMaxPool{n}D(({1,}2))(np.arange(5.0).reshape(1, 1, {1,}5)).ravel()
    array([2., 4.])
    """

    _name = "adaptive_max_pool{n}d"

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        super().__init__(output_size)

    def _backward(self, grad_y: Array, kept: Any, wrt_x: bool) -> Array | None:
        return self._functions[1](grad_y, kept) if wrt_x else None


class _AdaptiveAvgPool(_AdaptiveMaxPool):
    """Average over as many windows as asked for: `cyconv.adaptive_avg_pool{n}d`.

    >>> nn.AdaptiveAvgPool{n}D(({1,}2))(np.arange(5.0).reshape(1, 1, {1,}5)).ravel()
    array([1., 3.])
    """

    _name = "adaptive_avg_pool{n}d"


class _GlobalMaxPool(_Pooling):
    """Maximum of each channel: `cyconv.global_max_pool`, with or without a batch axis.

    >>> nn.GlobalMaxPool{n}D()(np.arange(5.0).reshape(1, 1, {1,}5)).ravel()
    array([4.])
    """

    _name = "global_max_pool"

    def __init__(self) -> None:
        super().__init__(axes=self._n)


class _GlobalAvgPool(_GlobalMaxPool):
    """Average of each channel: `cyconv.global_avg_pool`, with or without a batch axis.

    >>> nn.GlobalAvgPool{n}D()(np.arange(5.0).reshape(1, 1, {1,}5)).ravel()
    array([2.])
    """

    _name = "global_avg_pool"


class _MaxUnpool(_Pooling):
    """Elements put where indices say: `cyconv.max_unpool{n}d`. It is called with two arrays, ``layer(x, indices)``.

    >>> x, indices = np.array([3.0, 5.0]).reshape(1, {1,}2), np.array([1, 2]).reshape(1, {1,}2)
    >>> nn.MaxUnpool{n}D(({1,}2))(x, indices).ravel()
    array([0., 3., 5., 0.])
    """

    _name = "max_unpool{n}d"

    def __init__(
        self, kernel_size: IntLike, *, stride: IntLike | None = None, padding: PaddingLike = 0,
        output_size: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(kernel_size, stride=stride, padding=padding, output_size=output_size)

    def __call__(self, x: Array, indices: Any = None) -> Array:
        """Return the planes that hold `x` at the indices."""
        y: Array = self._functions[0](x, indices, *self.arguments, **self.options)
        self._kept = (y.shape, y.dtype, indices) if self.training else None
        return y

    def _backward(self, grad_y: Array, kept: Any, wrt_x: bool) -> Array | None:
        return self._functions[1](grad_y, kept) if wrt_x else None


# fmt: off
class MaxPool1D(_MaxPool, n=1): ...
class MaxPool2D(_MaxPool, n=2): ...
class MaxPool3D(_MaxPool, n=3): ...
class AvgPool1D(_AvgPool, n=1): ...
class AvgPool2D(_AvgPool, n=2): ...
class AvgPool3D(_AvgPool, n=3): ...
class LPPool1D(_LPPool, n=1): ...
class LPPool2D(_LPPool, n=2): ...
class LPPool3D(_LPPool, n=3): ...
class AdaptiveMaxPool1D(_AdaptiveMaxPool, n=1): ...
class AdaptiveMaxPool2D(_AdaptiveMaxPool, n=2): ...
class AdaptiveMaxPool3D(_AdaptiveMaxPool, n=3): ...
class AdaptiveAvgPool1D(_AdaptiveAvgPool, n=1): ...
class AdaptiveAvgPool2D(_AdaptiveAvgPool, n=2): ...
class AdaptiveAvgPool3D(_AdaptiveAvgPool, n=3): ...
class GlobalMaxPool1D(_GlobalMaxPool, n=1): ...
class GlobalMaxPool2D(_GlobalMaxPool, n=2): ...
class GlobalMaxPool3D(_GlobalMaxPool, n=3): ...
class GlobalAvgPool1D(_GlobalAvgPool, n=1): ...
class GlobalAvgPool2D(_GlobalAvgPool, n=2): ...
class GlobalAvgPool3D(_GlobalAvgPool, n=3): ...
class MaxUnpool1D(_MaxUnpool, n=1): ...
class MaxUnpool2D(_MaxUnpool, n=2): ...
class MaxUnpool3D(_MaxUnpool, n=3): ...
