"""The oracles and assertions of helpers.py: right for right results, and failing for wrong ones."""

import numpy as np
import pytest
from helpers import (
    Oracle,
    assert_adjoint,
    assert_bits,
    assert_close,
    assert_gradient,
    check_backward,
    check_forward,
    pairs,
    random,
    run_python,
)

import cyconv
from cyconv import _reference

CASES = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 3), "padding": ((2, 1), (0, 3)), "dilation": (1, 2), "groups": 2},
    {"padding": "same", "stride": 2},
    {"padding": "same_lower", "dilation": 2},
    {"groups": 4, "padding": (4, 5)},
]


@pytest.fixture
def case(rng, dtype):
    return random(rng, (2, 4, 6, 7), dtype), random(rng, (8, 4, 3, 2), dtype)


def test_oracle_gives_the_textbook_example():
    x, weight = np.arange(9.0).reshape(1, 1, 3, 3), np.arange(4.0).reshape(1, 1, 2, 2)
    assert Oracle(x, weight).forward().tolist() == [[[[19, 25], [37, 43]]]]


@pytest.mark.parametrize("parameters", CASES)
def test_reference_agrees_with_scipy(rng, dtype, parameters):
    groups = parameters.get("groups", 1)
    x, weight = random(rng, (2, 4, 6, 7), dtype), random(rng, (8, 4 // groups, 3, 2), dtype)
    bias = random(rng, 8, dtype)
    oracle = Oracle(x, weight, **parameters)
    out = _reference.conv2d(x, weight, bias, **parameters)
    assert_close(out, oracle.forward(bias), oracle.forward(bias, magnitude=True))
    grad_out = random(rng, out.shape, dtype)
    for name, grad in zip(
        ("x", "weight", "bias"), _reference.conv2d_backward(grad_out, x, weight, **parameters), strict=True
    ):
        expected = getattr(oracle, f"grad_{name}")
        assert_close(grad, expected(grad_out), expected(grad_out, magnitude=True))


def test_padding_forms():
    assert pairs(1) == ((1, 1), (1, 1))
    assert pairs((1, 2)) == ((1, 1), (2, 2))
    assert pairs(((1, 2), (3, 4))) == ((1, 2), (3, 4))
    assert pairs("same", (8, 8), (2, 3)) == ((0, 1), (1, 1))
    assert pairs("same_lower", (8, 8), (2, 3)) == ((1, 0), (1, 1))
    assert pairs("same", (8, 7), (3, 3), (2, 2)) == ((0, 1), (1, 1))


WRONG = {
    "one tap missing": lambda x, w: cyconv.conv2d(x, np.where(np.arange(2) == 1, w, 0).astype(w.dtype)),
    "true convolution": lambda x, w: cyconv.conv2d(x, np.ascontiguousarray(w[:, :, ::-1, ::-1])),
    "one pixel off": lambda x, w: np.roll(cyconv.conv2d(x, w), 1, axis=3),
    "channels swapped": lambda x, w: cyconv.conv2d(x, w)[:, ::-1],
    "one element off by 1e-5": lambda x, w: cyconv.conv2d(x, w) * np.where(np.arange(6) == 5, 1 + 1e-5, 1).astype("f"),
    "a NaN": lambda x, w: np.where(np.arange(6) == 5, np.nan, cyconv.conv2d(x, w)),
    "an inf": lambda x, w: np.where(np.arange(6) == 5, np.inf, cyconv.conv2d(x, w)),
    "wrong shape": lambda x, w: cyconv.conv2d(x, w)[:, :, :1],
    "zeros": lambda x, w: 0 * cyconv.conv2d(x, w),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_assert_close_fails(case, wrong):
    x, weight = case
    oracle = Oracle(x, weight)
    with pytest.raises(AssertionError):
        assert_close(WRONG[wrong](x, weight).astype(x.dtype), oracle.forward(), oracle.forward(magnitude=True))


def test_assert_close_fails_for_the_wrong_dtype():
    with pytest.raises(AssertionError, match="dtype"):
        assert_close(np.ones(3), np.ones(3), 1, dtype="float32")


def test_check_forward_fails_for_a_wrong_kernel(case, monkeypatch):
    check_forward(*case)
    conv2d = cyconv.conv2d
    monkeypatch.setattr(cyconv, "conv2d", lambda *a, **k: conv2d(*a, **k) * (1 + 1e-5))
    with pytest.raises(AssertionError, match="wrong"):
        check_forward(*case)


@pytest.mark.parametrize("wrong", ["x", "weight", "bias"])
def test_check_backward_fails_for_a_wrong_gradient(case, monkeypatch, wrong):
    x, weight = case
    grad_out = np.ones((2, 8, 4, 6), x.dtype)
    grad = check_backward(grad_out, x, weight)
    broken = grad._replace(**{wrong: getattr(grad, wrong) * x.dtype.type(1 + 1e-4)})
    monkeypatch.setattr(cyconv, "conv2d_backward", lambda *a, **k: broken)
    with pytest.raises(AssertionError, match="wrong"):
        check_backward(grad_out, x, weight)


def test_assert_bits_fails_for_a_signed_zero_and_the_last_bit():
    assert_bits(np.array([1.0, np.nan]), np.array([1.0, np.nan]))
    for a, b in ((0.0, -0.0), (1.0, np.nextafter(1.0, 2)), (1.0, np.nan)):
        with pytest.raises(AssertionError, match="bits"):
            assert_bits(np.array([a]), np.array([b]))


def test_assert_adjoint_fails(rng):
    a, x, y = rng.standard_normal((5, 4)), rng.standard_normal(4), rng.standard_normal(5)
    magnitude = np.abs(y) @ np.abs(a) @ np.abs(x)
    assert_adjoint(lambda x: a @ x, lambda y: a.T @ y, x, y, magnitude)
    with pytest.raises(AssertionError):
        assert_adjoint(lambda x: a @ x, lambda y: a.T @ y * (1 + 1e-12), x, y, magnitude)


def test_assert_gradient_fails(rng):
    x = rng.standard_normal(5)
    assert_gradient(lambda x: (x**2).sum(), x, 2 * x, rng)
    with pytest.raises(AssertionError):
        assert_gradient(lambda x: (x**2).sum(), x, 2 * x + 1e-5, rng)


def test_run_python_reports_failure():
    assert run_python("print(6 * 7)") == "42"
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python("1 / 0")
