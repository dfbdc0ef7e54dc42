"""Convolution of images: conv2d and its gradients. Arguments are checked here and results allocated."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _check, _dispatch, _runtime, _winograd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._check import Array, IntLike, Ints, PaddingLike, Pairs

_BORDERS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # padding_mode: numpy.pad's name
_ALGORITHMS = ("auto", "direct", "winograd")
_PLAIN = (1, 1, 0, 0, 1, 1)  # stride, padding, dilation


class ConvGradients(NamedTuple):
    """Gradients of a convolution; None where not asked for."""

    x: Array | None
    weight: Array | None
    bias: Array | None


@dataclass(slots=True)
class _Plan:
    """What follows from the shapes, dtypes and parameters of a call, and need not be found out again."""

    kernels: Any
    dtype: Any
    one_dtype: bool
    batched: bool  # x has a batch axis
    result: Ints  # the result's shape
    x: Ints  # the shape of x with its border and a batch axis
    pads: Pairs
    window: Ints  # stride, padding with zeros before, dilation
    groups: int
    geometry: bytes
    patches: bool  # the gradient of x is that of a 1x1 kernel over patches
    winograd: int  # for the result: outputs of a tile along an axis, 0 for the direct sum
    winograd_x: int  # for the gradient of x
    winograd_weight: bool


_plans: dict[Any, _Plan] = {}


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: IntLike = 1,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
    out: Array | None = None,
    algorithm: str = "auto",
) -> Array:
    """Convolve images with a set of kernels (cross-correlation: the kernels are not flipped).

    ``out[n, f, oy, ox] = bias[f] + sum over c, ky, kx of
    x[n, c, oy * stride - top + ky * dilation, ox * stride - left + kx * dilation] * weight[f, c, ky, kx]``

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, C, H, W) or (C, H, W)
        Images. Any strides; a copy is made of arrays that are not C-contiguous.
    weight : ndarray, shape (F, C / groups, KH, KW)
        Kernels, of the dtype of `x`.
    bias : ndarray, shape (F,), optional
        Added to each output channel.
    stride : int or (int, int)
        Step between windows, at least 1.
    padding : int, (int, int), ((top, bottom), (left, right)), "valid", "same" or "same_lower"
        Cells added around the image. "valid" adds none; "same" gives ceil(H / stride) rows and puts an odd cell at the
        end, as TensorFlow and ONNX (SAME_UPPER) do, and torch, which takes it for stride 1 only; "same_lower" puts it
        at the start. May be larger than the kernel.
    dilation : int or (int, int)
        Step between the taps of a kernel, at least 1.
    groups : int
        Number of groups of channels that are convolved independently; divides C and F.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the added cells hold. "reflect" takes padding less than the image, "circular" at most as large.
    activation : {None, "relu"}
        Applied to the result before it is stored. ReLU keeps NaN.
    out : ndarray, shape of the result, optional
        Where to write the result; must not overlap an input.
    algorithm : {"auto", "direct", "winograd"}
        "direct" is the plain sum. "winograd" computes 4x4 or 2x2 outputs at once, 4 in a row for kernels with one row
        or column, with a quarter to a half of the multiplications and rounding errors that are up to five times
        larger; it exists for 3x3, 5x5, 1x3 and 3x1 kernels with stride and dilation 1. "auto" takes it where it is
        faster and has enough input channels (of a group) to average its errors, 32, or 8 for 2x2 outputs: by the shapes
        of one image and of the weight, the dtype and the instruction set alone. See docs/accuracy.md.

    Returns
    -------
    ndarray, shape (N, F, OH, OW) or (F, OH, OW)
        `out`, or a new array; ``OH = (H + top + bottom - dilation * (KH - 1) - 1) // stride + 1``.

    Raises
    ------
    TypeError
        For arrays that are not float32 or float64, mixed dtypes, parameters that are not integers.
    ValueError
        For shapes that do not fit each other, parameters out of range, an `out` that cannot take the result, an
        algorithm that does not exist for the layer.

    Notes
    -----
    The result is the same, bit for bit, for any number of threads, and that of an image does not depend on its batch.
    Only taps inside the image take part: zero padding never turns an inf of the image into a NaN.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    >>> weight = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    >>> cyconv.conv2d(x, weight)
    array([[[19., 25.],
            [37., 43.]]], dtype=float32)
    """
    if activation is not None:
        _check.one_of("activation", activation, (None, "relu"))
    parameters = stride, padding, dilation, groups, padding_mode, algorithm
    key = _runtime.key(_dispatch._isa, np.ndarray, x, weight, parameters)
    plan = _plans.get(key) or _new_plan(key, x, weight, parameters)
    if bias is None:
        if not plan.one_dtype:
            _check.same_dtype(x=x, weight=weight)
    else:
        _check.array("bias", bias, 1)
        if not plan.one_dtype or bias.dtype != plan.dtype:
            _check.same_dtype(x=x, weight=weight, bias=bias)
        if len(bias) != len(weight):
            _check.same_shape("bias", bias, weight.shape[:1])
        bias = _check.contiguous(bias)
    if out is None:
        result: Array = np.empty(plan.result, plan.dtype)
    else:
        result = _check.output("out", out, plan.result, plan.dtype, x, weight, bias)
    if not plan.x[0]:
        return result
    if padding_mode != "zeros":
        x = _fill_border(x, plan.pads, padding_mode)
    target = result
    if not plan.batched:
        x, target = x[None], result[None]
    buffer = target if out is None else _check.contiguous(target)
    if not x.flags.carray:
        x = _check.contiguous(x)
    if not weight.flags.carray:
        weight = _check.contiguous(weight)
    relu, forward, threads, scratch = activation is not None, plan.kernels.forward, _dispatch.threads, _dispatch.scratch
    if plan.winograd:
        rest = plan.window[2:4], plan.groups, relu
        for n in _winograd.convolve(x, weight, False, plan.winograd, bias, buffer, *rest):
            if forward(x[n], weight, bias, buffer[n], _of_one_image(plan), relu, threads, scratch):
                _mend(x[n], weight, bias, buffer[n], plan, relu)
    elif forward(x, weight, bias, buffer, plan.geometry, relu, threads, scratch):
        _mend(x, weight, bias, buffer, plan, relu)
    if buffer is not target:
        target[...] = buffer
    return result


def conv2d_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    *,
    stride: IntLike = 1,
    padding: PaddingLike = 0,
    dilation: IntLike = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    wrt: tuple[str, ...] = ("x", "weight", "bias"),
    algorithm: str = "auto",
) -> ConvGradients:
    """Return the gradients of `conv2d`: given d loss / d out, those of x, weight and bias.

    Parameters
    ----------
    grad_out : ndarray, the shape of the result of ``conv2d(x, weight, ...)``
        Gradient of a scalar with respect to that result. With ``activation="relu"`` multiply it by ``out > 0`` first.
    x, weight : ndarray
        As given to `conv2d`.
    stride, padding, dilation, groups, padding_mode, algorithm
        As given to `conv2d`. The gradient of weight has a Winograd form for 3x3 kernels only, which "auto" takes by the
        shapes of the whole batch; for others, as that of bias, it is the direct sum.
    wrt : tuple of {"x", "weight", "bias"}
        Which gradients to compute.

    Returns
    -------
    ConvGradients
        New arrays ``(x, weight, bias)`` in the shapes of what they are the gradients of, None where not asked for.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`, and if `grad_out` has not the shape of its result.

    Examples
    --------
    >>> import numpy as np
    >>> import cyconv
    >>> x = np.arange(9.0).reshape(1, 3, 3)
    >>> weight = np.arange(4.0).reshape(1, 1, 2, 2)
    >>> gradients = cyconv.conv2d_backward(np.ones((1, 2, 2)), x, weight)
    >>> gradients.weight
    array([[[[ 8., 12.],
             [20., 24.]]]])
    >>> gradients.bias
    array([4.])
    """
    wrt = _check.wrt(wrt)
    _check.array("grad_out", grad_out)
    parameters = stride, padding, dilation, groups, padding_mode, algorithm
    key = _runtime.key(_dispatch._isa, np.ndarray, x, weight, parameters)
    plan = _plans.get(key) or _new_plan(key, x, weight, parameters)
    dtype = plan.dtype
    if not plan.one_dtype or grad_out.dtype != dtype:
        _check.same_dtype(grad_out=grad_out, x=x, weight=weight)
    _check.same_shape("grad_out", grad_out, plan.result)
    empty = plan.x[0] == 0
    make = np.zeros if empty else np.empty
    grad_bias = make(len(weight), dtype) if "bias" in wrt else None
    grad_weight = make(weight.shape, dtype) if "weight" in wrt else None
    if empty:
        return ConvGradients(np.empty(x.shape, dtype) if "x" in wrt else None, grad_weight, grad_bias)
    grad_out = _check.contiguous(grad_out if plan.batched else grad_out[None])
    if grad_bias is not None:
        plan.kernels.grad_bias(grad_out, grad_bias, plan.geometry, _dispatch.threads)
    if grad_weight is not None:
        if padding_mode != "zeros":
            x = _fill_border(x, plan.pads, padding_mode)
        x4 = _check.contiguous(x if plan.batched else x[None])
        pads, groups = plan.window[2:4], plan.groups
        if not plan.winograd_weight or not _winograd.weight_gradient(x4, grad_out, grad_weight, pads, groups):
            _grad_weight(x4, grad_out, grad_weight, plan)
    grad_x = None
    if "x" in wrt:
        grad_x, weight = np.empty(plan.x, dtype), _check.contiguous(weight)
        if plan.winograd_x:
            rest = plan.window[2:4], plan.groups, False
            for n in _winograd.convolve(grad_out, weight, True, plan.winograd_x, None, grad_x, *rest):
                _grad_x(grad_out[n], weight, grad_x[n], plan, _of_one_image(plan))
        else:
            _grad_x(grad_out, weight, grad_x, plan, plan.geometry)
        if padding_mode != "zeros":
            grad_x = _fold_border(grad_x, plan.pads, padding_mode)
        if not plan.batched:
            grad_x = grad_x[0]
    return ConvGradients(grad_x, grad_weight, grad_bias)


def _mend(x: Any, weight: Any, bias: Any, out: Any, plan: _Plan, relu: bool) -> None:
    """Sum again what `forward` calls suspect, if a weight is not finite: over the real taps alone."""
    if np.isfinite(weight).all():
        return
    out[...] = 0 if bias is None else bias[:, None, None]
    for tap, inside, outputs in _taps(plan.x, weight.shape, plan.result[-2:], plan.window):
        part, inputs = np.empty(out[outputs].shape, plan.dtype), (x[inside].copy(), weight[tap].copy())
        geometry = _pack(inputs[0].shape, inputs[1].shape, part.shape, _PLAIN, plan.groups)
        plan.kernels.forward(*inputs, None, part, geometry, False, _dispatch.threads, _dispatch.scratch)
        _add(out[outputs], part)
    if relu:
        np.maximum(out, 0, out=out)


def _grad_weight(x: Any, grad_out: Any, grad_weight: Any, plan: _Plan) -> None:
    """grad_weight = the direct sum."""
    kernel, threads, scratch = plan.kernels.grad_weight, _dispatch.threads, _dispatch.scratch
    if kernel(x, grad_out, grad_weight, plan.geometry, threads, scratch) and not np.isfinite(grad_out).all():
        grad_weight[...] = 0
        for tap, inside, outputs in _taps(plan.x, grad_weight.shape, plan.result[-2:], plan.window):
            part, inputs = np.empty(grad_weight[tap].shape, plan.dtype), (x[inside].copy(), grad_out[outputs].copy())
            geometry = _pack(inputs[0].shape, part.shape, inputs[1].shape, _PLAIN, plan.groups)
            kernel(*inputs, part, geometry, threads, scratch)
            grad_weight[tap] = part


def _grad_x(grad_out: Any, weight: Any, grad_x: Any, plan: _Plan, geometry: bytes) -> None:
    """grad_x = the direct sum."""
    kernel, threads, scratch = plan.kernels.grad_x, _dispatch.threads, _dispatch.scratch
    if plan.patches:
        (n, c), (kh, kw), (oh, ow) = grad_x.shape[:2], weight.shape[2:], plan.result[-2:]
        weight, part = weight.reshape(len(weight), -1, 1, 1), np.empty((1, c * kh * kw, oh, ow), plan.dtype)
        geometry = _pack(part.shape, weight.shape, (oh, ow), _PLAIN, plan.groups)
        patches, pixels = grad_x.reshape(n, c, oh, kh, ow, kw), part.reshape(c, kh, kw, oh, ow)
        for i in range(n):  # so that memory does not grow with the batch
            kernel(grad_out[i : i + 1], weight, part, geometry, threads, scratch)
            patches[i] = pixels.transpose(0, 3, 1, 4, 2)
        return
    if kernel(grad_out, weight, grad_x, geometry, threads, scratch) and not np.isfinite(weight).all():
        grad_x[...] = 0
        for tap, inside, outputs in _taps(plan.x, weight.shape, plan.result[-2:], plan.window):
            part, inputs = np.empty(grad_x[inside].shape, plan.dtype), (grad_out[outputs].copy(), weight[tap].copy())
            geometry = _pack(part.shape, inputs[1].shape, inputs[0].shape, _PLAIN, plan.groups)
            kernel(*inputs, part, geometry, threads, scratch)
            _add(grad_x[inside], part)


def _new_plan(key: Any, x: Any, weight: Any, parameters: tuple[Any, ...]) -> _Plan:
    """Check what forward and backward have in common; return the plan and keep it under the key."""
    stride, padding, dilation, groups, padding_mode, algorithm = parameters
    _check.array("x", x)
    _check.array("weight", weight)
    batched = _check.spatial("x", x.shape, 2)
    groups = _check.integer("groups", groups, 1)
    _check.weight(x.shape, weight.shape, groups, 2)
    size, kernel = x.shape[-2:], weight.shape[2:]
    stride = _check.ints("stride", stride, 2, 1)
    dilation = _check.ints("dilation", dilation, 2, 1)
    pads = _check.padding(padding, size, kernel, stride, dilation)
    _check.one_of("padding_mode", padding_mode, ("zeros", *_BORDERS))
    _check.border(padding_mode, pads, size)
    _check.one_of("algorithm", algorithm, _ALGORITHMS)
    winograd = _winograd.exists(kernel, stride, dilation)
    if algorithm == "winograd" and not winograd:
        raise ValueError(
            'algorithm="winograd" is for 3x3, 5x5, 1x3 and 3x1 kernels with stride 1 and dilation 1, got a kernel of '
            f"{kernel[0]}x{kernel[1]}, stride={stride}, dilation={dilation}"
        )
    size = _check.output_size(size, kernel, stride, pads, dilation)
    window = *stride, *(pair[0] for pair in pads), *dilation
    padded = x.shape if batched else (1, *x.shape)
    if padding_mode != "zeros":
        window = *stride, 0, 0, *dilation
        padded = *padded[:2], *(m + sum(pair) for m, pair in zip(padded[2:], pads, strict=True))
    result = *x.shape[:-3], len(weight), *size
    rows, channels = len(weight) // groups, weight.shape[1]
    outputs = outputs_x = 0
    of_weight = False
    if winograd and algorithm != "direct":
        forced = algorithm == "winograd"
        outputs = _winograd.outputs(kernel, rows, channels, size, x.dtype, forced)
        outputs_x = _winograd.outputs(kernel, channels, rows, padded[2:], x.dtype, forced)
        of_weight = kernel == (3, 3) and (forced or _winograd.takes_weight(rows, channels, padded[0], size, x.dtype))
    kernels, one_dtype = _dispatch.kernels("conv", x.dtype), x.dtype == weight.dtype
    geometry = _pack(padded, weight.shape, size, window, groups)
    # Patches that tile x. Below 8x8 the phases of the kernels are faster than a transposition (race.py on Zen 5).
    tiled = padded[2:] == tuple(m * k for m, k in zip(size, kernel, strict=True))
    patches = tiled and window == (*kernel, 0, 0, 1, 1) and math.prod(kernel) >= 64
    fixed = kernels, x.dtype, one_dtype, batched, result, padded, pads, window, groups
    plan = _Plan(*fixed, geometry, patches, outputs, outputs_x, of_weight)
    if key is not None:
        if len(_plans) >= 1024:
            _plans.clear()
        _plans[key] = plan
    return plan


def _pack(x: Ints, weight: Ints, out: Ints, window: Ints, groups: int) -> bytes:
    """Return what the kernels are told about shapes and parameters: the Geometry of pyx/conv.pyx."""
    return struct.pack("16n", x[0], groups, weight[0] // groups, *weight[1:], *x[2:], *out[-2:], *window)


def _of_one_image(plan: _Plan) -> bytes:
    """Return the geometry of one image of the batch."""
    return struct.pack("n", 1) + plan.geometry[struct.calcsize("n") :]


def _taps(x: Ints, weight: Ints, size: Ints, geometry: Ints) -> Iterator[tuple[Any, Any, Any]]:
    """Yield for each tap the slices of the weight, of the x it reads without padding, and of the outputs it adds to.

    The kernels multiply padding as zeros, which is wrong only where the other factor is inf or NaN. That is rare and
    easily seen in their result; it is then summed again as 1x1 convolutions over the real taps alone.
    """
    for taps in np.ndindex(*weight[2:]):
        inside, outputs = [slice(None)] * 2, [slice(None)] * 2
        for k, m, o, s, before, d in zip(taps, x[2:], size, geometry[:2], geometry[2:4], geometry[4:6], strict=True):
            start = k * d - before
            first, last = max(0, -(start // s)), min(o, (m - 1 - start) // s + 1)
            outputs.append(slice(first, max(first, last)))
            inside.append(slice(first * s + start, max(first, last) * s + start, s))
        if all(o.start < o.stop for o in outputs[2:]):
            yield (slice(None), slice(None), *(slice(k, k + 1) for k in taps)), tuple(inside), tuple(outputs)


def _add(total: Any, part: Any) -> None:
    """Total += part, without NumPy's warnings: a kernel has none."""
    with np.errstate(invalid="ignore", over="ignore"):
        total += part


def _border_indices(size: Ints, pads: Pairs, mode: str) -> list[np.ndarray]:
    """For each axis, the position in the image of every position of the padded image."""
    return [np.pad(np.arange(m), pair, mode=_BORDERS[mode]) for m, pair in zip(size, pads, strict=True)]  # type: ignore[call-overload]


def _fill_border(x: Array, pads: Pairs, mode: str) -> Array:
    """Return x padded from the image itself."""
    rows, columns = _border_indices(x.shape[-2:], pads, mode)
    return x[..., rows[:, None], columns]


def _fold_border(grad: Any, pads: Pairs, mode: str) -> Any:
    """The gradient of `_fill_border`: there each cell was read from a place in the image, so now it is added to it."""
    for axis, (before, after) in ((2, pads[0]), (3, pads[1])):
        grad = np.moveaxis(grad, axis, 0)
        m = len(grad) - before - after
        folded = grad[before : before + m].copy()
        (indices,) = _border_indices((m,), ((before, after),), mode)
        for i in (*range(before), *range(before + m, before + m + after)):
            folded[indices[i]] += grad[i]
        grad = np.moveaxis(folded, 0, axis)
    return np.ascontiguousarray(grad)
