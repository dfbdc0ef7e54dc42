"""Oracles and assertions. test_helpers.py shows that each of them can fail."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.signal import convolve2d, correlate2d

import cyconv

# Around the vector lengths (2 to 16 lanes) and tile sizes of all instruction sets and dtypes.
LANE_SIZES = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33)

# The kinds of layers that networks have, made small: shapes of x and weight, parameters.
LAYERS = [
    ((4, 1, 28, 28), (6, 1, 5, 5), {}),
    ((2, 6, 14, 14), (16, 6, 5, 5), {}),
    ((1, 3, 40, 44), (20, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((1, 40, 14, 14), (36, 40, 3, 3), {"padding": 1}),
    ((2, 33, 7, 7), (35, 33, 3, 3), {"padding": 1}),
    ((1, 24, 20, 19), (26, 24, 3, 3), {"padding": 1, "stride": 2}),
    ((1, 70, 6, 6), (18, 70, 1, 1), {}),
    ((1, 30, 9, 10), (17, 30, 1, 1), {"stride": 2}),
    ((1, 3, 32, 32), (10, 3, 8, 8), {"stride": 8}),
    ((2, 4, 32, 24), (10, 2, 8, 8), {"stride": 8, "groups": 2}),
    ((1, 24, 13, 14), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
    ((1, 24, 13, 14), (24, 1, 7, 7), {"padding": 3, "groups": 24}),
    ((1, 12, 13, 14), (24, 1, 3, 3), {"padding": 1, "groups": 12, "stride": 2}),
    ((1, 24, 9, 9), (24, 4, 3, 3), {"padding": 1, "groups": 6}),
    ((1, 3, 67, 33), (3, 1, 3, 3), {"padding": 1, "groups": 3, "stride": 2}),
    ((2, 3, 6, 35), (3, 1, 3, 3), {"padding": 2, "groups": 3, "stride": 2}),
    ((1, 3, 31, 65), (3, 1, 5, 5), {"padding": 2, "groups": 3}),
    ((1, 3, 30, 66), (3, 1, 5, 5), {"padding": 2, "groups": 3, "stride": 2}),
    ((1, 3, 15, 70), (3, 1, 7, 7), {"padding": (2, 3), "groups": 3, "stride": 2}),
    ((1, 300, 14, 14), (290, 300, 3, 3), {"padding": 1}),
    ((1, 1300, 5, 7), (10, 1300, 1, 1), {}),  # read in place, in blocks of channels
    ((1, 40, 60, 60), (9, 40, 3, 3), {"padding": 1}),  # several strips whose rows share vectors
    ((1, 70, 60, 58), (5, 70, 3, 3), {"padding": 1, "stride": 2}),
    ((2, 5, 12, 13), (12, 5, 7, 7), {"padding": 3}),  # one vector of output channels, runs of seven taps
    ((2, 5, 12, 13), (7, 5, 7, 7), {"padding": 3}),  # the same in float64
    ((3, 40, 7, 7), (70, 40, 3, 3), {"padding": 1}),  # weight: taps in the lanes, the last panel in part
    ((2, 132, 9, 8), (100, 66, 3, 3), {"padding": 1, "stride": 2, "groups": 2}),  # the same
    ((2, 33, 6, 40), (130, 33, 1, 1), {}),  # the same, in place
    ((1, 1, 100, 130), (1, 1, 5, 5), {}),
    ((1, 2, 3, 300), (2, 2, 1, 9), {"padding": (0, 4)}),
    ((1, 2, 300, 3), (2, 2, 9, 1), {"padding": (4, 0)}),
    ((1, 2, 9, 9), (3, 2, 9, 9), {}),
    ((1, 2, 2, 3), (3, 2, 9, 11), {"padding": (8, 9)}),
    ((1, 2, 30, 30), (3, 2, 3, 3), {"dilation": 12, "padding": 12}),
    ((1, 2, 20, 20), (3, 2, 2, 2), {"stride": (5, 3)}),
]


def random(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def assert_close(actual, expected, magnitude, c=4, dtype=None):
    """Assert |actual - expected| <= c * eps(dtype) * magnitude, elementwise, where magnitude = sum |x||w|.

    Rounding errors of a sum of K products grow as sqrt(K) for random signs while sum |x||w| grows as K: c = 4 leaves
    room for any order of summation, and none for a missing tap.
    """
    dtype = actual.dtype if dtype is None else np.dtype(dtype)
    assert actual.dtype == dtype, f"dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    error = np.abs(actual.astype(np.float64) - expected)
    allowed = c * np.finfo(dtype).eps * magnitude
    wrong = ~(error <= allowed)  # true for NaN
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} elements are wrong, first {first}: {actual[first]!r}, "
            f"expected {expected[first]!r} +- {np.broadcast_to(allowed, wrong.shape)[first]:.3g}"
        )


def assert_bits(actual, expected):
    """Assert that two arrays are the same, bit for bit."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    same = actual.view(f"u{actual.itemsize}") == expected.view(f"u{actual.itemsize}")
    assert same.all(), f"{(~same).sum()} of {same.size} elements differ in their bits"


def pairs(padding, size=None, kernel=None, stride=(1, 1), dilation=(1, 1)):
    """((top, bottom), (left, right)) of any form of padding, by the definitions: independent of cyconv._check."""
    if padding == "valid":
        return ((0, 0), (0, 0))
    if isinstance(padding, str):
        found = []
        for m, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            outputs = -(-m // s)
            total = max((outputs - 1) * s + d * (k - 1) + 1 - m, 0)
            small, large = total // 2, total - total // 2
            found.append((small, large) if padding == "same" else (large, small))
        return tuple(found)
    per_axis = (padding, padding) if isinstance(padding, int) else padding
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in per_axis)


def two(value):
    return (value, value) if isinstance(value, int) else tuple(value)


class Oracle:
    """conv2d and its gradients by scipy.signal in float64, one pair of channels at a time."""

    def __init__(self, x, weight, stride=1, padding=0, dilation=1, groups=1):
        self.x, self.weight, self.groups = x.astype(np.float64), weight.astype(np.float64), groups
        self.stride, self.dilation = two(stride), two(dilation)
        self.padding = pairs(padding, x.shape[2:], weight.shape[2:], self.stride, self.dilation)

    def channel_pairs(self):
        """Yield (f, c of x, c of weight)."""
        F, per_group = self.weight.shape[:2]
        for f in range(F):
            for c in range(per_group):
                yield f, f // (F // self.groups) * per_group + c, c

    def padded(self, x):
        return np.pad(x, ((0, 0), (0, 0), *self.padding))

    def dilated(self, weight):
        KH, KW = weight.shape[2:]
        (dh, dw) = self.dilation
        wide = np.zeros((*weight.shape[:2], (KH - 1) * dh + 1, (KW - 1) * dw + 1))
        wide[:, :, ::dh, ::dw] = weight
        return wide

    def spread(self, grad_out):
        """grad_out with the pixels between those that the stride keeps: zeros, as many as stride 1 would give."""
        shape = [
            m + sum(p) - d * (k - 1)
            for m, p, d, k in zip(self.x.shape[2:], self.padding, self.dilation, self.weight.shape[2:], strict=True)
        ]
        dense = np.zeros((*grad_out.shape[:2], *shape))
        dense[:, :, :: self.stride[0], :: self.stride[1]] = grad_out
        return dense

    def forward(self, bias=None, magnitude=False):
        measure = np.abs if magnitude else np.array
        x, weight = self.padded(measure(self.x)), self.dilated(measure(self.weight))
        dense = 0
        for n in range(len(x)):
            planes = np.zeros((len(weight), *(a - b + 1 for a, b in zip(x.shape[2:], weight.shape[2:], strict=True))))
            for f, c, k in self.channel_pairs():
                planes[f] += correlate2d(x[n, c], weight[f, k], "valid")
            if n == 0:
                dense = np.empty((len(x), *planes.shape))
            dense[n] = planes
        out = dense[:, :, :: self.stride[0], :: self.stride[1]]
        return out if bias is None else out + measure(bias.astype(np.float64))[:, None, None]

    def grad_x(self, grad_out, magnitude=False):
        measure = np.abs if magnitude else np.array
        dense, weight = self.spread(measure(grad_out.astype(np.float64))), self.dilated(measure(self.weight))
        grad = np.zeros_like(self.padded(self.x))
        for n in range(len(grad)):
            for f, c, k in self.channel_pairs():
                grad[n, c] += convolve2d(dense[n, f], weight[f, k], "full")
        (top, _), (left, _) = self.padding
        return grad[:, :, top : top + self.x.shape[2], left : left + self.x.shape[3]]

    def grad_weight(self, grad_out, magnitude=False):
        measure = np.abs if magnitude else np.array
        dense, x = self.spread(measure(grad_out.astype(np.float64))), self.padded(measure(self.x))
        grad = np.zeros_like(self.weight)
        for n in range(len(x)):
            for f, c, k in self.channel_pairs():
                grad[f, k] += correlate2d(x[n, c], dense[n, f], "valid")[:: self.dilation[0], :: self.dilation[1]]
        return grad

    def grad_bias(self, grad_out, magnitude=False):
        measure = np.abs if magnitude else np.array
        return measure(grad_out.astype(np.float64)).sum(axis=(0, 2, 3))


def check_forward(x, weight, bias=None, c=4, **parameters):
    """Assert that conv2d agrees with SciPy; return its result."""
    oracle = Oracle(x, weight, **parameters)
    out = cyconv.conv2d(x, weight, bias, **parameters)
    assert_close(out, oracle.forward(bias), oracle.forward(bias, magnitude=True), c, x.dtype)
    return out


def check_backward(grad_out, x, weight, c=4, **parameters):
    """Assert that conv2d_backward agrees with SciPy; return its result."""
    oracle = Oracle(x, weight, **parameters)
    grad = cyconv.conv2d_backward(grad_out, x, weight, **parameters)
    for name in ("x", "weight", "bias"):
        expected = getattr(oracle, f"grad_{name}")
        assert_close(getattr(grad, name), expected(grad_out), expected(grad_out, magnitude=True), c, x.dtype)
    return grad


def assert_adjoint(forward, backward, x, grad_out, magnitude, c=4):
    """Assert <forward(x), grad_out> == <x, backward(grad_out)> for a linear map, to c * eps * magnitude."""
    left = np.vdot(forward(x).astype(np.float64), grad_out.astype(np.float64))
    right = np.vdot(x.astype(np.float64), backward(grad_out).astype(np.float64))
    allowed = c * np.finfo(x.dtype).eps * magnitude
    assert abs(left - right) <= allowed, f"{left!r} != {right!r} +- {allowed:.3g}"


def assert_gradient(function, x, gradient, rng, step=1e-6, rtol=1e-7):
    """Assert <gradient, d> == d function(x + t d) / dt at t = 0, by central differences, for three directions d."""
    assert x.dtype == gradient.dtype == np.float64
    for _ in range(3):
        d = rng.standard_normal(x.shape)
        difference = (function(x + step * d) - function(x - step * d)) / (2 * step)
        allowed = rtol * (np.abs(gradient * d).sum() + abs(function(x)))
        assert abs(np.vdot(gradient, d) - difference) <= allowed, f"{np.vdot(gradient, d)!r} != {difference!r}"


def run_python(code, check=True, timeout=120, **environment):
    """Run code in a new interpreter that imports the cyconv under test; return its output (and error output)."""
    package = str(Path(cyconv.__file__).parents[1])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CYCONV_", "OMP_"))}
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**inherited, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
    return done.stdout.strip() if check else done
