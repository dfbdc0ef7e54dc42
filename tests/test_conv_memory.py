"""No kernel touches memory outside its arrays: they end, or begin, at pages that cannot be read or written."""

import sys

import numpy as np
import pytest
from guarded import Guarded
from hypothesis import given
from hypothesis import strategies as st
from strategies import convolutions

import cyconv
from cyconv import _winograd

pytestmark = [
    pytest.mark.usefixtures("isa"),
    pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called through the C library of Linux"),
]


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
    kernel=st.sampled_from([*_winograd.FORMS]),
    at_the_end=st.booleans(),
)
def test_winograd_touches_nothing_outside_the_arrays(rng, dtype, shape, padding, kernel, at_the_end):
    N, groups, C, F, H, W = shape
    H, W = (max(m, k - sum(p)) for m, k, p in zip((H, W), kernel, padding, strict=True))
    guarded, parameters = Guarded(at_the_end), {"padding": padding, "groups": groups, "algorithm": "winograd"}
    x, weight = (guarded.random(rng, s, dtype) for s in ((N, groups * C, H, W), (groups * F, C, *kernel)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", guarded.empty)
        out = cyconv.conv2d(x, weight, guarded.random(rng, len(weight), dtype), **parameters)
        grad_out = guarded.random(rng, out.shape, dtype)
        grad = cyconv.conv2d_backward(grad_out, x, weight, wrt=("x",), **parameters).x
    assert not any(np.isnan(a).any() for a in (out, grad))
