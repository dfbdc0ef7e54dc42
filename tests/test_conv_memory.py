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
        gradients = cyconv.conv2d_backward(grad_out, x, weight, wrt=("x", "weight"), **parameters)
    assert not any(np.isnan(a).any() for a in (out, gradients.x, gradients.weight))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "shape", "padding"),
    [
        (3, (56, 56), 1),
        (3, (5, 37), 0),
        (5, (28, 29), 2),
        (5, (6, 130), 2),
        (7, (9, 17), ((3, 2), (6, 0))),
        (7, (7, 7), 3),
        (3, (2, 70), ((0, 1), (0, 40))),
    ],
)
@pytest.mark.parametrize("at_the_end", [False, True])
def test_planes(rng, dtype, at_the_end, size, shape, padding, stride):
    """Nothing outside their array is read; a channel is as it would be alone, bit for bit."""
    C = 19
    guarded, parameters = Guarded(at_the_end), {"padding": padding, "stride": stride}
    x, weight = guarded.random(rng, (1, C, *shape), dtype), guarded.random(rng, (C, 1, size, size), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", guarded.empty)
        out = cyconv.conv2d(x, weight, groups=C, algorithm="direct", **parameters)
        grad_out = guarded.random(rng, out.shape, dtype)
        g = cyconv.conv2d_backward(grad_out, x, weight, groups=C, algorithm="direct", **parameters)
    for c in (0, 1, C - 1):
        alone = x[:, c : c + 1], weight[c : c + 1]
        assert np.array_equal(out[:, c : c + 1], cyconv.conv2d(*alone, algorithm="direct", **parameters))
        one = cyconv.conv2d_backward(grad_out[:, c : c + 1], *alone, algorithm="direct", **parameters)
        assert np.array_equal(g.x[:, c : c + 1], one.x)
        # Alone it is summed in more parts: up to 3136 products of about 0.64 each, of which half an eps may be lost.
        np.testing.assert_allclose(g.weight[c : c + 1], one.weight, rtol=0, atol=1e3 * np.finfo(dtype).eps)
