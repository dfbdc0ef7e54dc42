"""conv2d_backward against SciPy, the adjoint identity and finite differences, for each instruction set and dtype."""

import numpy as np
import pytest
from helpers import (
    LANE_SIZES,
    LAYERS,
    Oracle,
    assert_adjoint,
    assert_bits,
    assert_close,
    assert_gradient,
    check_backward,
    random,
)
from hypothesis import example, given
from strategies import convolutions

import cyconv
from cyconv import _reference

pytestmark = pytest.mark.usefixtures("isa")


def layer(rng, dtype, x, weight, **parameters):
    """Return random grad_out, x and weight."""
    x, weight = random(rng, x, dtype), random(rng, weight, dtype)
    return random(rng, cyconv.conv2d(x, weight, **parameters).shape, dtype), x, weight


@pytest.mark.parametrize("size", LANE_SIZES)
def test_sizes_around_the_lanes(rng, dtype, size):
    def check(C, F, H, W, K=3, **parameters):
        weight = (F, C // parameters.get("groups", 1), K, K)
        check_backward(*layer(rng, dtype, (2, C, H, W), weight, **parameters), **parameters)

    check(2, 3, 5, size, padding=1)
    check(2, 3, size, 5, padding=1)
    check(2, 3, size, size, padding=2, stride=2)
    check(size, 3, 4, 5)
    check(3, size, 4, 5)
    check(size, 3, 4, 5, K=1)
    check(3, size, 5, 7, K=1)
    check(size, size, 4, 4, groups=size, padding=1)
    check(2, 2, 3, size, K=5, padding=4, dilation=2)


@pytest.mark.parametrize(("x", "weight", "parameters"), LAYERS)
def test_typical_layers(rng, dtype, x, weight, parameters):
    check_backward(*layer(rng, dtype, x, weight, **parameters), c=8, **parameters)


@given(case=convolutions())
@example(case=((1, 1, 1, 1), (1, 1, 1, 1), {}, 0))
@example(case=((1, 1, 1, 1), (1, 1, 2, 2), {"padding": ((5, 0), (0, 9)), "stride": 4}, 0))
@example(case=((3, 4, 5, 6), (6, 2, 3, 2), {"groups": 2, "padding": "same_lower", "stride": (3, 2), "dilation": 2}, 0))
@example(case=((1, 1, 3, 8), (1, 1, 1, 1), {"stride": (2, 1)}, 0))  # rows between those that have taps
@example(case=((1, 1, 16, 20), (1, 1, 1, 1), {"stride": (4, 1)}, 0))
def test_any_parameters(dtype, case):
    x, weight, parameters, seed = case
    grad_out, x, weight = layer(np.random.default_rng(seed), dtype, x, weight, **parameters)
    check_backward(grad_out, x, weight, **parameters)


@given(case=convolutions())
def test_gradients_are_adjoint_to_the_forward_pass(dtype, case):
    x, weight, parameters, seed = case
    grad_out, x, weight = layer(np.random.default_rng(seed), dtype, x, weight, **parameters)
    magnitude = np.vdot(Oracle(x, weight, **parameters).forward(magnitude=True), np.abs(grad_out))

    def gradients(grad_out):
        return cyconv.conv2d_backward(grad_out, x, weight, **parameters)

    assert_adjoint(lambda x: cyconv.conv2d(x, weight, **parameters), lambda g: gradients(g).x, x, grad_out, magnitude)
    assert_adjoint(
        lambda w: cyconv.conv2d(x, w, **parameters), lambda g: gradients(g).weight, weight, grad_out, magnitude
    )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_agree_with_finite_differences(rng, padding_mode, batch):
    parameters = {
        "stride": (1, 2), "padding": ((2, 1), (0, 3)), "dilation": (2, 1), "groups": 2, "padding_mode": padding_mode,
    }  # fmt: skip
    shapes = (*batch, 4, 7, 9), (6, 2, 3, 2)
    grad_out, x, weight = layer(rng, "float64", *shapes, **parameters)
    bias = rng.standard_normal(6)
    grad = cyconv.conv2d_backward(grad_out, x, weight, **parameters)

    def loss(x=x, weight=weight, bias=bias):
        return np.vdot(cyconv.conv2d(x, weight, bias, **parameters), grad_out)

    assert_gradient(lambda x: loss(x=x), x, grad.x, rng)
    assert_gradient(lambda weight: loss(weight=weight), weight, grad.weight, rng)
    assert_gradient(lambda bias: loss(bias=bias), bias, grad.bias, rng)


def test_agrees_with_the_reference(rng, dtype):
    parameters = {"stride": (2, 1), "padding": ((1, 2), (3, 0)), "dilation": (1, 2), "groups": 2}
    arrays = layer(rng, dtype, (2, 6, 9, 8), (4, 3, 3, 2), **parameters)
    expected = _reference.conv2d_backward(*(a.astype("d") for a in arrays), **parameters)
    for grad, e in zip(cyconv.conv2d_backward(*arrays, **parameters), expected, strict=True):
        assert_close(grad, e, 60, dtype=dtype)


def test_only_the_gradients_asked_for_are_computed(rng, dtype):
    arrays = layer(rng, dtype, (2, 3, 6, 7), (4, 3, 3, 3))
    every = cyconv.conv2d_backward(*arrays)
    for wrt in ((), ("x",), ("weight",), ("bias",), ("bias", "x"), ["weight", "bias"]):
        some = cyconv.conv2d_backward(*arrays, wrt=wrt)
        for name in ("x", "weight", "bias"):
            if name in wrt:
                assert_bits(getattr(some, name), getattr(every, name))
            else:
                assert getattr(some, name) is None


@pytest.mark.parametrize(("C", "F"), [(9, 40), (20, 33), (17, 16), (33, 20), (3, 40), (40, 3)])
def test_weight_of_1x1_kernels_with_more_channels_on_one_side(rng, dtype, C, F):
    for groups, N, size in ((1, 1, (5, 7)), (2, 3, (14, 14)), (1, 2, (1, 1)), (1, 1, (50, 60))):
        grad_out, x, weight = layer(rng, dtype, (N, groups * C, *size), (groups * F, C, 1, 1), groups=groups)
        check_backward(grad_out, x, weight, groups=groups, c=16)


def test_images_without_a_batch_axis(rng, dtype):
    grad_out, x, weight = layer(rng, dtype, (3, 6, 7), (4, 3, 3, 3), padding=1)
    one = cyconv.conv2d_backward(grad_out, x, weight, padding=1)
    batch = cyconv.conv2d_backward(grad_out[None], x[None], weight, padding=1)
    assert_bits(one.x, batch.x[0])
    assert_bits(one.weight, batch.weight)
    assert_bits(one.bias, batch.bias)


@pytest.mark.parametrize("F", [1, 20])
def test_long_sums_stay_accurate(F):
    """Gradients of weight and bias sum over many pixels of one sign: the error may not grow with their number."""
    x, grad_out = np.ones((2, 1, 300, 300), "float32"), np.full((2, F, 298, 298), 0.1, "float32")
    grad = cyconv.conv2d_backward(grad_out, x, np.ones((F, 1, 3, 3), "float32"), wrt=("weight", "bias"))
    expected = grad_out[:, 0].astype("float64").sum()
    assert_close(grad.bias, np.full(F, expected), expected, c=256)
    assert_close(grad.weight, np.full((F, 1, 3, 3), expected), expected, c=256)
