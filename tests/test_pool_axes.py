"""Pooling in one, two and three dimensions and its rarer kinds, against the plain reference, torch and differences."""

import itertools

import numpy as np
import pytest
from helpers import assert_adjoint, assert_bits, assert_close, assert_gradient, random, run_python
from pool_helpers import taken_by_torch, tied

import cyconv
from cyconv import _reference_pool as reference

# Spatial size, kernel_size, parameters.
CASES = [
    ((37,), 3, {"stride": 2, "padding": 1}),
    ((40,), (5,), {"stride": 1, "padding": ((4, 2),), "dilation": 2}),
    ((33,), 2, {"ceil_mode": True}),
    ((19,), 4, {"padding": "same", "stride": 3}),
    ((7, 18), (2, 3), {"stride": (2, 3), "padding": (1, 2)}),
    ((9, 35), 3, {"stride": 1, "padding": "same_lower", "dilation": (2, 1)}),
    ((4, 6, 18), 2, {}),
    ((5, 6, 19), 3, {"stride": 2, "padding": 1}),
    ((5, 4, 17), 3, {"stride": 1, "padding": 1}),
    ((6, 7, 8), (2, 3, 1), {"stride": (1, 2, 3), "padding": ((1, 0), (0, 2), (0, 0)), "dilation": (3, 1, 1)}),
    ((3, 5, 20), (1, 2, 3), {"ceil_mode": True, "padding": (0, 1, 1)}),
    ((4, 5, 6), 3, {"padding": 2, "stride": 2}),
]
# One plane; windows see more than it, or only padding: torch refuses these, and not all averages are numbers.
FLAT = [
    ((1, 6, 9), 3, {"padding": 1, "stride": 1}),
    ((1, 6, 9), (1, 2, 2), {"padding": ((1, 0), (0, 0), (0, 0)), "stride": (5, 2, 2)}),
]
ADAPTIVE = [
    ((17,), 5), ((20,), None), ((9, 35), (4, 7)), ((8, 32), 4), ((8, 30), (None, 7)), ((3, 40), (5, 50)),
    ((5, 6, 19), (2, None, 4)), ((4, 4, 4), 2), ((7, 7), 1),
]  # fmt: skip


def of(name, size):
    """The function of that name for this number of axes."""
    kind, _, backward = name.partition("_backward")
    return getattr(cyconv, f"{kind}{len(size)}d{'_backward' if backward or name.endswith('_backward') else ''}")


def without_batch(function, x, *rest, **parameters):
    """The result for an array with one image, and that it is the same without the batch axis."""
    result = function(x, *rest, **parameters)
    single = function(x[0], *(r[0] if isinstance(r, np.ndarray) else r for r in rest), **parameters)
    assert_bits(np.asarray(single), result[0])
    return result


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("size", "kernel", "parameters"), [*CASES, *FLAT])
def test_maximum(rng, dtype, size, kernel, parameters):
    for x in (random(rng, (2, 3, *size), dtype), tied(rng, (1, 2, *size), dtype)):
        expected, places = reference.max_pool(x, kernel, **parameters)
        out, indices = of("max_pool", size)(x, kernel, return_indices=True, **parameters)
        assert_bits(out, expected)
        assert_bits(indices, places)
        assert_bits(of("max_pool", size)(x, kernel, **parameters), expected)
        grad_out = rng.integers(-9, 10, out.shape).astype(dtype)
        expected = reference.max_pool_backward(grad_out, x, kernel, **parameters)
        backward = of("max_pool_backward", size)
        assert_bits(backward(grad_out, x, kernel, **parameters) + 0, expected + 0)
        assert_bits(backward(grad_out, x, kernel, indices=indices, **parameters) + 0, expected + 0)
    without_batch(of("max_pool", size), x, kernel, **parameters)
    without_batch(backward, grad_out, x, kernel, **parameters)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("average", [{}, {"count_include_pad": False}, {"divisor_override": 3}])
@pytest.mark.parametrize(("size", "kernel", "parameters"), CASES)
def test_average(rng, dtype, size, kernel, parameters, average):
    x = random(rng, (1, 3, *size), dtype)
    parameters = parameters | average

    def wide(function, a, *rest):
        return function(a.astype(np.float64), *rest, kernel, **parameters)

    forward, backward = of("avg_pool", size), of("avg_pool_backward", size)
    out = without_batch(forward, x, kernel, **parameters)
    assert_close(out, wide(reference.avg_pool, x), wide(reference.avg_pool, np.abs(x)), c=8)
    grad_out = random(rng, out.shape, dtype)
    expected, magnitude = (wide(reference.avg_pool_backward, g, x.shape) for g in (grad_out, np.abs(grad_out)))
    grad_x = backward(grad_out, x.shape, kernel, **parameters)
    assert_close(grad_x, expected, magnitude, c=8)
    assert_bits(backward(grad_out[0], x.shape[1:], kernel, **parameters), grad_x[0])
    assert_adjoint(
        lambda v: forward(v, kernel, **parameters), lambda g: backward(g, x.shape, kernel, **parameters), x, grad_out,
        np.vdot(np.abs(grad_x), np.abs(x)) + np.vdot(np.abs(out), np.abs(grad_out)),
    )  # fmt: skip


@pytest.mark.parametrize(("size", "kernel", "parameters"), [c for c in CASES if taken_by_torch(*c[1:])])
def test_torch_agrees(rng, dtype, size, kernel, parameters):
    torch = pytest.importorskip("torch")
    functional, n = torch.nn.functional, len(size)
    x = random(rng, (2, 3, *size), dtype)
    leaf = torch.from_numpy(x).requires_grad_()
    windows = {name: value for name, value in parameters.items() if name != "dilation"}
    out, indices = getattr(functional, f"max_pool{n}d")(leaf, kernel, return_indices=True, **parameters)
    actual, places = of("max_pool", size)(x, kernel, return_indices=True, **parameters)
    assert_bits(actual, out.detach().numpy())
    assert_bits(places, indices.numpy())
    grad_out = rng.integers(-9, 10, actual.shape).astype(dtype)
    expected = torch.autograd.grad(out, leaf, torch.from_numpy(grad_out))[0].numpy()
    assert_bits(of("max_pool_backward", size)(grad_out, x, kernel, **parameters) + 0, expected + 0)
    if "dilation" not in parameters:
        out = getattr(functional, f"avg_pool{n}d")(leaf, kernel, **windows)
        expected = torch.autograd.grad(out, leaf, torch.from_numpy(grad_out))[0].numpy()
        eps = 50 * np.finfo(dtype).eps
        np.testing.assert_allclose(of("avg_pool", size)(x, kernel, **windows), out.detach().numpy(), eps, eps)
        actual = of("avg_pool_backward", size)(grad_out, x.shape, kernel, **windows)
        np.testing.assert_allclose(actual, expected, eps, 9 * eps)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("size", "output_size"), ADAPTIVE)
def test_adaptive_windows(rng, dtype, size, output_size):
    windows = reference.AdaptiveWindows(size, output_size)
    for x in (random(rng, (2, 3, *size), dtype), tied(rng, (2, 3, *size), dtype)):
        expected, places = reference.max_pool(x, windows=windows)
        out, indices = of("adaptive_max_pool", size)(x, output_size, return_indices=True)
        assert_bits(out, expected)
        assert_bits(indices, places)
        assert_bits(of("adaptive_max_pool", size)(x, output_size), expected)
        grad_out = rng.integers(-9, 10, out.shape).astype(dtype)
        expected = reference.max_unpool(grad_out, places, size)
        backward = of("adaptive_max_pool_backward", size)
        assert_bits(backward(grad_out, x) + 0, expected + 0)
        assert_bits(backward(grad_out, x, indices=indices) + 0, expected + 0)
        assert_bits(backward(grad_out[0], x[0]) + 0, expected[0] + 0)
    x, grad_out = random(rng, (2, 3, *size), dtype), random(rng, out.shape, dtype)
    expected, magnitude = (reference.avg_pool(a.astype(float), windows=windows) for a in (x, np.abs(x)))
    assert_close(of("adaptive_avg_pool", size)(x, output_size), expected, magnitude, c=8)
    expected, magnitude = (
        reference.avg_pool_backward(g.astype(float), x.shape, windows=windows) for g in (grad_out, np.abs(grad_out))
    )
    assert_close(of("adaptive_avg_pool_backward", size)(grad_out, x.shape), expected, magnitude, c=8)


@pytest.mark.parametrize(("size", "output_size"), ADAPTIVE)
def test_adaptive_torch_agrees(rng, dtype, size, output_size):
    torch = pytest.importorskip("torch")
    functional, n, x = torch.nn.functional, len(size), random(rng, (2, 3, *size), dtype)
    sizes = size if output_size is None else output_size
    out, indices = getattr(functional, f"adaptive_max_pool{n}d")(torch.from_numpy(x), sizes, return_indices=True)
    actual, places = of("adaptive_max_pool", size)(x, output_size, return_indices=True)
    assert_bits(actual, out.numpy())
    assert_bits(places, indices.numpy())
    leaf = torch.from_numpy(x).requires_grad_()
    out = getattr(functional, f"adaptive_avg_pool{n}d")(leaf, sizes)
    eps = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(of("adaptive_avg_pool", size)(x, output_size), out.detach().numpy(), eps, eps)
    grad_out = random(rng, tuple(out.shape), dtype)
    expected = torch.autograd.grad(out, leaf, torch.from_numpy(grad_out))[0].numpy()
    actual = of("adaptive_avg_pool_backward", size)(grad_out, x.shape)
    np.testing.assert_allclose(actual, expected, eps, eps)


@pytest.mark.parametrize("output_size", [0, -1, 2.0, True, (2,), (2, 2, 2), (2, 0), "2", {1, 2}])
def test_bad_output_sizes_are_refused(output_size):
    for call in (cyconv.adaptive_max_pool2d, cyconv.adaptive_avg_pool2d):
        with pytest.raises((ValueError, TypeError), match="output_size"):
            call(np.ones((1, 4, 4)), output_size)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [(1,), (40,), (1, 1), (7, 7), (5, 13), (3, 7, 5), (30, 70)])
def test_global(rng, dtype, size):
    n, axes = len(size), tuple(range(-len(size), 0))
    for planes in ((2, 3), (1, 17), (4, 8)):
        x = random(rng, (*planes, *size), dtype)
        out, indices = cyconv.global_max_pool(x, return_indices=True)
        assert_bits(out, x.max(axes, keepdims=True))
        assert_bits(indices.ravel(), x.reshape(planes[0] * planes[1], -1).argmax(1))
        assert_bits(cyconv.global_max_pool(x[0], axes=n), out[0])
        average = cyconv.global_avg_pool(x)
        magnitude = np.abs(x).mean(axes, keepdims=True, dtype=float)
        assert_close(average, x.mean(axes, keepdims=True, dtype=float), magnitude)
        assert_bits(cyconv.global_avg_pool(x[0], axes=n), average[0])
        grad_out = random(rng, out.shape, dtype)
        expected = reference.max_unpool(grad_out, indices, size)
        assert_bits(cyconv.global_max_pool_backward(grad_out, x), expected)
        assert_bits(cyconv.global_max_pool_backward(grad_out[0], x[0], axes=n), expected[0])
        assert_bits(cyconv.global_max_pool_backward(grad_out, x, indices=indices), expected)
        expected = np.broadcast_to(grad_out.astype(float) / np.prod(size), x.shape)
        grad_x = cyconv.global_avg_pool_backward(grad_out, x.shape)
        assert_close(grad_x, expected, np.abs(expected))
        assert_bits(cyconv.global_avg_pool_backward(grad_out[0], x.shape[1:], axes=n), grad_x[0])
    x = tied(rng, (3, 5, *size), dtype)
    expected, places = reference.max_pool(x, size)
    out, indices = cyconv.global_max_pool(x, return_indices=True)
    assert_bits(out, expected)
    assert_bits(indices, places)
    assert_bits(cyconv.global_max_pool(x), expected)


def test_global_pooling_refuses_other_numbers_of_axes_and_no_gradient():
    for call in (cyconv.global_max_pool, cyconv.global_avg_pool):
        for shape, axes in (((2, 3), None), ((1, 2, 3, 4, 5, 6), None), ((1, 2, 3), 3), ((1, 2, 3), 0)):
            with pytest.raises(ValueError, match=r"ax[ie]s"):
                call(np.ones(shape), axes=axes)
    with pytest.raises(TypeError, match=r"grad_out must be a numpy.ndarray, got \w"):
        cyconv.global_max_pool_backward(None, np.ones((1, 2, 3)))


LP = [1, 2, 3, 2.5, 7]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("p", LP)
@pytest.mark.parametrize(("size", "kernel", "parameters"), CASES)
def test_p_norms(rng, dtype, size, kernel, parameters, p):
    x = random(rng, (2, 2, *size), dtype)
    expected = reference.lp_pool(x.astype(float), p, kernel, **parameters)
    out = without_batch(of("lp_pool", size), x[:1], p, kernel, **parameters)
    assert_close(out, expected[:1], expected[:1], c=20)
    given = np.empty(expected.shape, dtype)
    assert of("lp_pool", size)(x, p, kernel, out=given, **parameters) is given
    assert_close(given, expected, expected, c=20)


@pytest.mark.parametrize("p", LP)
@pytest.mark.parametrize(("size", "kernel", "parameters"), CASES)
def test_gradient_of_p_norms_by_finite_differences(rng, size, kernel, parameters, p):
    x = random(rng, (2, 2, *size), np.float64)
    x += np.sign(x) / 10  # no sign changes within a step
    out = of("lp_pool", size)(x, p, kernel, **parameters)
    grad_out = random(rng, out.shape, np.float64)
    gradient = of("lp_pool_backward", size)(grad_out, x, p, kernel, **parameters)
    assert_gradient(
        lambda v: np.vdot(of("lp_pool", size)(v, p, kernel, **parameters), grad_out), x, gradient, rng, rtol=1e-6
    )


def test_p_norms_are_homogeneous_wherever_powers_overflow_or_vanish(rng, dtype):
    x = random(rng, (1, 1, 8, 8), dtype)
    info, grad_out = np.finfo(dtype), np.ones((1, 1, 4, 4), dtype)
    for p in (1, 2, 3, 10, 100):
        out = cyconv.lp_pool2d(x, p, 2)
        gradient = cyconv.lp_pool2d_backward(grad_out, x, p, 2)
        for e in (info.maxexp - 10, info.maxexp // 2, info.minexp // 2, info.minexp + 12):
            scaled = np.ldexp(x, e)
            np.testing.assert_allclose(cyconv.lp_pool2d(scaled, p, 2), np.ldexp(out, e), rtol=2e3 * info.eps)
            actual = cyconv.lp_pool2d_backward(grad_out, scaled, p, 2)
            np.testing.assert_allclose(actual, gradient, rtol=2e3 * info.eps, atol=info.eps)
        mixed = x.copy()
        mixed[..., :4] = np.ldexp(mixed[..., :4], info.maxexp - 10)
        mixed[..., 4:] = np.ldexp(mixed[..., 4:], info.minexp + 12)
        expected = np.ldexp(out, [info.maxexp - 10] * 2 + [info.minexp + 12] * 2)
        np.testing.assert_allclose(cyconv.lp_pool2d(mixed, p, 2), expected, rtol=2e3 * info.eps)
        actual = cyconv.lp_pool2d_backward(grad_out, mixed, p, 2)
        np.testing.assert_allclose(actual, gradient, rtol=2e3 * info.eps, atol=info.eps)


def test_p_norms_of_zero_inf_and_nan():
    x = np.array([0, 0, np.inf, 1, np.nan, 1, -3, 4.0]).reshape(1, 8)
    assert_bits(cyconv.lp_pool1d(x, 2, 2), np.array([[0, np.inf, np.nan, 5.0]]))
    assert cyconv.lp_pool1d_backward(np.ones((1, 4)), x, 2, 2)[0, [0, 1, 6, 7]] == pytest.approx([0, 0, -0.6, 0.8])
    assert cyconv.lp_pool1d(x[:, 6:], 3, 2) == pytest.approx(np.cbrt(27 + 64))


@pytest.mark.parametrize("p", [0, 0.5, -2, 101, np.inf, np.nan, "2", None, True, [2]])
def test_bad_orders_are_refused(p):
    with pytest.raises((ValueError, TypeError), match="p must be"):
        cyconv.lp_pool2d(np.ones((1, 4, 4)), p, 2)


@pytest.mark.parametrize(
    ("size", "kernel", "parameters"), [c for c in CASES if not {"dilation", "ceil_mode"} & {*c[2]}]
)
def test_unpooling(rng, dtype, size, kernel, parameters):
    if parameters.get("padding") == "same":
        parameters = parameters | {"padding": 1}
    x = random(rng, (2, 3, *size), dtype)
    out, indices = of("max_pool", size)(x, kernel, return_indices=True, **parameters)
    out, indices = np.where(indices < 0, 0, out), np.maximum(indices, 0)
    unpool, backward = of("max_unpool", size), of("max_unpool_backward", size)
    try:
        actual = unpool(out, indices, kernel, output_size=size, **parameters)
    except ValueError as error:
        assert "output_size must differ" in str(error)  # noqa: PT017
        return
    expected = np.zeros_like(x)
    np.put_along_axis(expected.reshape(6, -1), indices.reshape(6, -1), out.reshape(6, -1), 1)
    assert_bits(actual, expected)
    assert_bits(unpool(out[0], indices[0], kernel, output_size=(3, *size), **parameters), expected[0])
    grad_out = random(rng, x.shape, dtype)
    expected = np.take_along_axis(grad_out.reshape(6, -1), indices.reshape(6, -1), 1)
    assert_bits(backward(grad_out, indices), expected.reshape(out.shape))
    assert_bits(backward(grad_out[0], indices[0]), expected.reshape(out.shape)[0])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_unpooling_as_torch_does(rng, dtype, n):
    torch = pytest.importorskip("torch")
    x = random(rng, (2, 3, *[8] * n), dtype)
    for stride, padding in itertools.product((2, 3), (0, 1)):
        pooled, indices = (
            a.numpy() for a in getattr(torch.nn.functional, f"max_pool{n}d")(
                torch.from_numpy(x), 3, stride, padding, return_indices=True
            )
        )  # fmt: skip
        if stride == 2:
            continue  # overlapping windows: torch leaves open who is the last
        arguments = torch.from_numpy(pooled), torch.from_numpy(indices), 3, stride, padding
        expected = getattr(torch.nn.functional, f"max_unpool{n}d")(*arguments, output_size=(8,) * n)
        actual = getattr(cyconv, f"max_unpool{n}d")(
            pooled, indices, 3, stride=stride, padding=padding, output_size=(8,) * n
        )
        assert_bits(actual, expected.numpy())


def test_an_index_outside_the_plane_is_never_written_to(dtype):
    x = np.ones((1, 2, 2, 2), dtype)
    for bad in (-1, 16, 2**40, -(2**63), 2**63 - 1):
        indices = np.zeros(x.shape, np.int64)
        indices[0, 1, 1, 0] = bad
        with pytest.raises(ValueError, match=rf"indices must lie inside the plane \(4, 4\).*{bad}"):
            cyconv.max_unpool2d(x, indices, 2)
        with pytest.raises(ValueError, match=rf"indices must lie inside the plane \(4, 4\).*{bad}"):
            cyconv.max_unpool2d_backward(np.ones((1, 2, 4, 4), dtype), indices)


UNPOOLS = [
    ({"indices": np.zeros((1, 2, 2), "i4")}, TypeError), ({"indices": np.zeros((1, 2, 3), int)}, ValueError),
    ({"kernel_size": 0}, ValueError), ({"stride": 1.0}, TypeError), ({"padding": 2}, ValueError),
    ({"padding": "same"}, ValueError), ({"output_size": 4}, ValueError), ({"output_size": (6, 4)}, ValueError),
    ({"output_size": (2, 4, 4)}, ValueError), ({"output_size": (4.0, 4)}, TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error"), UNPOOLS)
def test_bad_unpoolings_are_refused(change, error):
    arguments = {"x": np.ones((1, 2, 2)), "indices": np.zeros((1, 2, 2), int), "kernel_size": 2} | change
    with pytest.raises(error):
        cyconv.max_unpool2d(**arguments)


def test_empty_batches():
    for n in (1, 2, 3):
        x, y = np.ones((0, 2, *[4] * n)), np.ones((0, 2, *[2] * n))
        indices = np.ones(y.shape, np.int64)
        results = {
            "lp_pool": (of("lp_pool", (0,) * n)(x, 2, 2), y),
            "lp_pool_backward": (of("lp_pool_backward", (0,) * n)(y, x, 2, 2), x),
            "adaptive_avg_pool": (of("adaptive_avg_pool", (0,) * n)(x, 2), y),
            "adaptive_max_pool_backward": (of("adaptive_max_pool_backward", (0,) * n)(y, x), x),
            "max_unpool": (of("max_unpool", (0,) * n)(y, indices, 2), x),
            "max_unpool_backward": (of("max_unpool_backward", (0,) * n)(x, indices), y),
        }
        for name, (actual, expected) in results.items():
            assert actual.shape == expected.shape, name
        assert cyconv.global_avg_pool(x).shape == (0, 2, *[1] * n)


def test_signatures_and_docstrings_name_their_axes():
    import inspect

    for n, name in itertools.product((1, 2, 3), ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "max_unpool")):
        for suffix in ("", "_backward"):
            function = getattr(cyconv, f"{name}{n}d{suffix}")
            assert function.__name__ == f"{name}{n}d{suffix}"
            assert "_n" not in inspect.signature(function).parameters
            assert f"{name}{n}d" in function.__doc__
            assert "{" not in function.__doc__


def test_docstrings_may_be_left_out():
    assert run_python("import cyconv.nn; print(cyconv.max_pool2d.__doc__)", PYTHONOPTIMIZE="2") == ""
