"""No kernel touches memory outside its arrays: they end, or begin, at pages that cannot be read or written."""

import ctypes
import mmap
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions

import cyconv

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called through the C library of Linux"),
]


class Guarded:
    """Arrays whose last (or first) element lies next to a protected page; they live as long as this object."""

    def __init__(self, at_the_end):
        self.at_the_end, self.maps = at_the_end, []

    def empty(self, shape, dtype=np.float64):
        dtype, page = np.dtype(dtype), mmap.PAGESIZE
        size = int(np.prod(shape)) * dtype.itemsize
        pages = -(-size // page) * page
        memory = mmap.mmap(-1, pages + 2 * page)
        handle = ctypes.c_char.from_buffer(memory)
        for start in (0, page + pages):
            assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(ctypes.addressof(handle) + start), page, 0)
        self.maps.append((memory, handle))
        offset = page + (pages - size if self.at_the_end else 0)
        a = np.frombuffer(memory, dtype, size // dtype.itemsize, offset).reshape(shape)
        a.fill(np.nan)
        return a

    def random(self, rng, shape, dtype):
        a = self.empty(shape, dtype)
        a[...] = rng.standard_normal(shape)
        return a


@given(case=convolutions(), at_the_end=st.booleans())
def test_nothing_outside_the_arrays_is_touched(dtype, case, at_the_end):
    x_shape, weight_shape, parameters, seed = case
    rng, guarded = np.random.default_rng(seed), Guarded(at_the_end)
    x, weight = guarded.random(rng, x_shape, dtype), guarded.random(rng, weight_shape, dtype)
    bias = guarded.random(rng, weight_shape[:1], dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", guarded.empty)
        out = cyconv.conv2d(x, weight, bias, **parameters)
        grad_out = guarded.random(rng, out.shape, dtype)
        gradients = cyconv.conv2d_backward(grad_out, x, weight, **parameters)
    assert not any(np.isnan(a).any() for a in (out, *gradients))


@given(
    shape=st.tuples(*[st.integers(1, most) for most in (3, 2, 6, 5, 20, 40)]),
    padding=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    at_the_end=st.booleans(),
)
def test_winograd_touches_nothing_outside_the_arrays(rng, dtype, shape, padding, at_the_end):
    N, groups, C, F, H, W = shape
    H, W = (max(m, 3 - sum(p)) for m, p in zip((H, W), padding, strict=True))
    guarded, parameters = Guarded(at_the_end), {"padding": padding, "groups": groups, "algorithm": "winograd"}
    x, weight = guarded.random(rng, (N, groups * C, H, W), dtype), guarded.random(rng, (groups * F, C, 3, 3), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", guarded.empty)
        out = cyconv.conv2d(x, weight, guarded.random(rng, len(weight), dtype), **parameters)
        grad_out = guarded.random(rng, out.shape, dtype)
        grad = cyconv.conv2d_backward(grad_out, x, weight, wrt=("x",), **parameters).x
    assert not any(np.isnan(a).any() for a in (out, grad))
