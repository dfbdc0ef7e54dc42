"""Gradients of pooling: plain reference, torch where it is installed, adjoint identity, finite differences, threads."""

import numpy as np
import pytest
from helpers import assert_adjoint, assert_bits, assert_close, assert_gradient, random
from hypothesis import given
from pool_helpers import AROUND_THE_VECTORS, AVERAGES, WINDOWS, poolings, split, taken_by_torch, tied

import cyconv
from cyconv import _reference_pool as reference

SHAPES = [(2, 2, 11, 20), (1, 1, 17, 66)]


def check_max(grad_out, x, kernel, **parameters):
    """grad_out holds small integers, so that sums are exact in any order; + 0 makes negative zeros positive."""
    expected = reference.max_pool_backward(grad_out, x, kernel, **parameters)
    assert_bits(cyconv.max_pool2d_backward(grad_out, x, kernel, **parameters) + 0, expected + 0)
    indices = cyconv.max_pool2d(x, kernel, return_indices=True, **parameters)[1]
    actual = cyconv.max_pool2d_backward(grad_out, np.zeros_like(x), kernel, indices=indices, **parameters)
    assert_bits(actual + 0, expected + 0)


def check_avg(grad_out, shape, kernel, **parameters):
    with np.errstate(divide="ignore"):
        expected = reference.avg_pool_backward(grad_out.astype(np.float64), shape, kernel, **parameters)
        magnitude = reference.avg_pool_backward(np.abs(grad_out).astype(np.float64), shape, kernel, **parameters)
    assert_close(cyconv.avg_pool2d_backward(grad_out, shape, kernel, **parameters), expected, magnitude)


def integers(rng, shape, dtype):
    return rng.integers(-9, 10, shape).astype(dtype)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("kernel", "parameters"), WINDOWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_agree_with_the_reference(rng, dtype, shape, kernel, parameters):
    for x in (random(rng, shape, dtype), tied(rng, shape, dtype)):
        grad_out = integers(rng, cyconv.max_pool2d(x, kernel, **parameters).shape, dtype)
        check_max(grad_out, x, kernel, **parameters)
    for average in AVERAGES:
        check_avg(grad_out, shape, kernel, **parameters, **average)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 64, 65, 67])
@pytest.mark.parametrize(("kernel", "parameters"), AROUND_THE_VECTORS)
def test_widths_around_the_vectors(rng, dtype, width, kernel, parameters):
    for height in (2, 5):
        if width < (kernel if isinstance(kernel, int) else kernel[1]) and "padding" not in parameters:
            continue
        x = random(rng, (1, 2, height, width), dtype)
        grad_out = integers(rng, cyconv.max_pool2d(x, kernel, **parameters).shape, dtype)
        check_max(grad_out, x, kernel, **parameters)
        check_avg(grad_out, x.shape, kernel, **parameters)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("kernel", "parameters"), AROUND_THE_VECTORS)
def test_planes_of_several_strips(rng, dtype, kernel, parameters):
    x = random(rng, (1, 2, 77, 130), dtype)
    grad_out = integers(rng, cyconv.max_pool2d(x, kernel, **parameters).shape, dtype)
    x[0, 1, 70, 9] = np.nan  # the rows around it are searched in another way
    check_max(grad_out, x, kernel, **parameters)
    check_avg(grad_out, x.shape, kernel, **parameters)


@given(poolings())
def test_any_window(case):
    shape, kernel, parameters, average, seed = case
    rng = np.random.default_rng(seed)
    for dtype in (np.float32, np.float64):
        for x in (random(rng, shape, dtype), tied(rng, shape, dtype)):
            grad_out = integers(rng, cyconv.max_pool2d(x, kernel, **parameters).shape, dtype)
            check_max(grad_out, x, kernel, **parameters)
        check_avg(grad_out, shape, kernel, **parameters, **average)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    ("kernel", "parameters", "average"),
    # windows that count nothing have no average
    [(*w, a) for w in WINDOWS for a in AVERAGES if w[1].get("padding") != 5 or a != {"count_include_pad": False}],
)
def test_average_and_gradient_are_adjoint(rng, dtype, kernel, parameters, average):
    x = random(rng, (2, 3, 14, 23), dtype)
    grad_out = random(rng, cyconv.avg_pool2d(x, kernel, **parameters).shape, dtype)
    forward = cyconv.avg_pool2d(np.abs(x), kernel, **parameters, **average)
    assert_adjoint(
        lambda v: cyconv.avg_pool2d(v, kernel, **parameters, **average),
        lambda g: cyconv.avg_pool2d_backward(g, x.shape, kernel, **parameters, **average),
        x, grad_out, np.vdot(forward, np.abs(grad_out)),
    )  # fmt: skip


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("kernel", "parameters"), WINDOWS)
def test_gradient_of_the_maximum_by_finite_differences(rng, kernel, parameters):
    x = rng.permutation(2 * 14 * 23).reshape(1, 2, 14, 23) / 100  # no ties within a step
    out = cyconv.max_pool2d(x, kernel, **parameters)
    grad_out = np.where(out > -np.inf, rng.standard_normal(out.shape), 0)

    def loss(v):
        out = cyconv.max_pool2d(v, kernel, **parameters)
        return np.vdot(np.where(out > -np.inf, out, 0), grad_out)

    assert_gradient(loss, x, cyconv.max_pool2d_backward(grad_out, x, kernel, **parameters), rng, rtol=1e-6)


@pytest.mark.parametrize(("kernel", "parameters"), [w for w in WINDOWS if taken_by_torch(*w)])
def test_torch_agrees(rng, dtype, kernel, parameters):
    torch = pytest.importorskip("torch")
    x = integers(rng, (2, 3, 14, 23), dtype)
    windows, dilation = split(parameters)

    def gradient(function, grad_out, **more):
        leaf = torch.from_numpy(x).requires_grad_()
        return torch.autograd.grad(function(leaf, kernel, **windows, **more), leaf, torch.from_numpy(grad_out))[
            0
        ].numpy()

    grad_out = integers(rng, cyconv.max_pool2d(x, kernel, **parameters).shape, dtype)
    expected = gradient(torch.nn.functional.max_pool2d, grad_out, dilation=dilation)
    assert_bits(cyconv.max_pool2d_backward(grad_out, x, kernel, **parameters) + 0, expected + 0)
    if dilation == 1:
        for average in AVERAGES:
            expected = gradient(torch.nn.functional.avg_pool2d, grad_out, **average)
            actual = cyconv.avg_pool2d_backward(grad_out, x.shape, kernel, **parameters, **average)
            np.testing.assert_allclose(actual, expected, rtol=20 * np.finfo(dtype).eps, atol=50 * np.finfo(dtype).eps)


LARGE = [((1, 1, 300, 301), 4), ((5, 7, 57, 65), 3), ((2, 40, 32, 32), 2), ((1, 3, 500, 70), 1)]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("kernel", "parameters"), WINDOWS)
@pytest.mark.parametrize(("shape", "scale"), LARGE)
def test_result_is_bitwise_independent_of_threads(rng, dtype, shape, scale, kernel, parameters):
    x = random(rng, shape, dtype)
    x[-1, -1, shape[2] // 3, 20] = np.nan  # what is near it is computed in another way
    grad_out = random(rng, cyconv.max_pool2d(x, kernel, **parameters).shape, dtype)

    def results():
        out, indices = cyconv.max_pool2d(x, kernel, return_indices=True, **parameters)
        return (
            out,
            indices,
            cyconv.max_pool2d(x, kernel, **parameters),
            cyconv.max_pool2d_backward(grad_out, x, kernel, **parameters),
            cyconv.max_pool2d_backward(grad_out, x, kernel, indices=indices, **parameters),
            cyconv.avg_pool2d(x, kernel, **parameters),
            cyconv.avg_pool2d_backward(grad_out, x.shape, kernel, **parameters),
        )

    with cyconv.num_threads(1):
        expected = results()
    for n in (2, 3, 5, 8):
        with cyconv.num_threads(n):
            for actual, e in zip(results(), expected, strict=True):
                assert_bits(actual, e)
