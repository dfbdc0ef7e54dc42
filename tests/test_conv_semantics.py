"""What the results mean for unusual values and memory: NaN, inf, empty batches, strides, views, files."""

import numpy as np
import pytest
from helpers import assert_bits, random
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import convolutions

import cyconv
from cyconv import _reference

pytestmark = pytest.mark.usefixtures("isa")

SPECIAL = [np.nan, np.inf, -np.inf]
LAYERS = [
    ((1, 2, 7, 19), (3, 2, 3, 3), {"padding": 1}),
    ((2, 3, 6, 18), (20, 3, 1, 1), {}),
    ((1, 2, 9, 17), (2, 2, 3, 3), {"padding": 3, "stride": 2}),
    ((1, 4, 8, 20), (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    ((1, 3, 9, 18), (3, 1, 5, 5), {"padding": 2, "stride": 2, "groups": 3}),
    ((1, 2, 5, 5), (3, 2, 3, 3), {"padding": 2, "dilation": 2}),
]


def assert_same_kind(actual, expected):
    """Assert that NaN, inf and -inf are at the same places; finite values are compared loosely."""
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("x", "weight", "parameters"), LAYERS)
@pytest.mark.parametrize("value", SPECIAL)
def test_nan_and_inf_of_the_image_reach_exactly_their_windows(rng, dtype, value, x, weight, parameters):
    x, weight = random(rng, x, dtype), random(rng, weight, dtype)
    H, W = x.shape[2:]
    for y, column in ((0, 0), (H - 1, W - 1), (H // 2, W // 2), (0, W - 1)):
        special = x.copy()
        special[0, 0, y, column] = value
        expected = _reference.conv2d(special, weight, **parameters)
        assert_same_kind(cyconv.conv2d(special, weight, **parameters), expected)


@pytest.mark.parametrize(("x", "weight", "parameters"), LAYERS)
@pytest.mark.parametrize("value", SPECIAL)
def test_nan_and_inf_of_the_weight_reach_exactly_their_taps(rng, dtype, value, x, weight, parameters):
    x, weight = random(rng, x, dtype), random(rng, weight, dtype)
    for ky, kx in {(0, 0), (weight.shape[2] - 1, 0), (weight.shape[2] // 2, weight.shape[3] // 2)}:
        special = weight.copy()
        special[1, 0, ky, kx] = value
        assert_same_kind(cyconv.conv2d(x, special, **parameters), _reference.conv2d(x, special, **parameters))


@pytest.mark.parametrize(("x", "weight", "parameters"), LAYERS)
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("where", ["grad_out", "x", "weight"])
def test_nan_and_inf_reach_exactly_their_gradients(rng, dtype, value, where, x, weight, parameters):
    x, weight = random(rng, x, dtype), random(rng, weight, dtype)
    grad_out = random(rng, cyconv.conv2d(x, weight, **parameters).shape, dtype)
    for corner in (0, -1):
        arrays = {"grad_out": grad_out, "x": x, "weight": weight}
        arrays[where] = arrays[where].copy()
        arrays[where].reshape(-1)[corner] = value
        with np.errstate(invalid="ignore"):
            expected = _reference.conv2d_backward(**arrays, **parameters)
        for actual, e in zip(cyconv.conv2d_backward(**arrays, **parameters), expected, strict=True):
            assert_same_kind(actual, e)


@settings(max_examples=settings().max_examples // 2)
@given(case=convolutions(largest=5), data=st.data())
def test_nan_and_inf_anywhere(case, data):
    x, weight, parameters, seed = case
    rng = np.random.default_rng(seed)
    arrays = {"x": random(rng, x, "f"), "weight": random(rng, weight, "f")}
    arrays["grad_out"] = random(rng, cyconv.conv2d(**arrays, **parameters).shape, "f")
    for _ in range(data.draw(st.integers(1, 2))):
        a = arrays[data.draw(st.sampled_from(sorted(arrays)))].reshape(-1)
        a[data.draw(st.integers(0, a.size - 1))] = data.draw(st.sampled_from(SPECIAL))
    with np.errstate(invalid="ignore"):
        out = _reference.conv2d(arrays["x"], arrays["weight"], **parameters)
        gradients = _reference.conv2d_backward(**arrays, **parameters)
    assert_same_kind(cyconv.conv2d(arrays["x"], arrays["weight"], **parameters), out)
    for actual, expected in zip(cyconv.conv2d_backward(**arrays, **parameters), gradients, strict=True):
        assert_same_kind(actual, expected)


def test_relu_keeps_nan(dtype):
    x = np.array([np.nan, -1, 2, np.inf, -np.inf], dtype).reshape(1, 1, 1, 5)
    out = cyconv.conv2d(np.tile(x, 9), np.ones((1, 1, 1, 1), dtype), activation="relu")
    np.testing.assert_array_equal(out.reshape(-1), np.tile([np.nan, 0, 2, np.inf, 0], 9))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_an_empty_batch_gives_an_empty_result(dtype, padding_mode):
    x, weight = np.empty((0, 3, 8, 9), dtype), np.ones((4, 3, 3, 3), dtype)
    parameters = {"padding": 1, "padding_mode": padding_mode}
    out = cyconv.conv2d(x, weight, np.ones(4, dtype), **parameters)
    assert out.shape == (0, 4, 8, 9)
    assert out.dtype == dtype
    assert cyconv.conv2d(x, weight, out=out, **parameters) is out
    grad = cyconv.conv2d_backward(out, x, weight, **parameters)
    assert grad.x.shape == x.shape
    assert_bits(grad.weight, np.zeros_like(weight))
    assert_bits(grad.bias, np.zeros(4, dtype))


def views(a):
    """Yield the array in other memory: transposed, reversed, spread out, misaligned, read-only, in Fortran order."""
    yield a.copy(order="F")
    yield np.ascontiguousarray(a.T).T
    yield np.ascontiguousarray(a[..., ::-1])[..., ::-1]
    yield np.ascontiguousarray(a[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1]
    spread = np.zeros([2 * m for m in a.shape], a.dtype)
    spread[::2, ::2, ::2, ::2] = a
    yield spread[::2, ::2, ::2, ::2]
    misaligned = np.zeros(a.nbytes + 1, "u1")[1:].view(a.dtype).reshape(a.shape)
    misaligned[...] = a
    assert not misaligned.flags.aligned
    yield misaligned
    read_only = a.copy()
    read_only.flags.writeable = False
    yield read_only
    # a slice of a larger array whose first axis has length 1: contiguous for NumPy, with a stride of its own
    yield np.stack([a, a], 1)[:, 0]


def test_the_memory_layout_of_the_inputs_does_not_matter(rng, dtype):
    x, weight, grad_out = (random(rng, s, dtype) for s in ((1, 3, 6, 7), (4, 3, 3, 3), (1, 4, 4, 5)))
    bias = random(rng, 4, dtype)
    out, grad = cyconv.conv2d(x, weight, bias), cyconv.conv2d_backward(grad_out, x, weight)
    for x_view, weight_view, grad_view in zip(views(x), views(weight), views(grad_out), strict=True):
        assert_bits(cyconv.conv2d(x_view, weight_view, np.repeat(bias, 2)[::2]), out)
        for actual, expected in zip(cyconv.conv2d_backward(grad_view, x_view, weight_view), grad, strict=True):
            assert_bits(actual, expected)


def test_broadcast_arrays(rng, dtype):
    x = np.broadcast_to(random(rng, (1, 3, 1, 7), dtype), (2, 3, 6, 7))
    weight = np.broadcast_to(random(rng, (4, 1, 1, 1), dtype), (4, 3, 3, 3))
    assert_bits(cyconv.conv2d(x, weight), cyconv.conv2d(x.copy(), weight.copy()))


def test_memory_mapped_arrays(rng, dtype, tmp_path):
    x, weight = random(rng, (2, 3, 6, 7), dtype), random(rng, (4, 3, 3, 3), dtype)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_bits(cyconv.conv2d(mapped, weight), cyconv.conv2d(x, weight))
    assert type(cyconv.conv2d(mapped, weight)) is np.ndarray
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", dtype, (2, 4, 4, 5))
    cyconv.conv2d(mapped, weight, out=out)
    out.flush()
    assert_bits(np.load(tmp_path / "out.npy"), cyconv.conv2d(x, weight))


def test_padding_larger_than_the_kernel(rng, dtype):
    x, weight, bias = random(rng, (1, 2, 3, 4), dtype), random(rng, (3, 2, 2, 3), dtype), random(rng, 3, dtype)
    out = cyconv.conv2d(x, weight, bias, padding=((7, 9), (40, 3)))
    inner = cyconv.conv2d(x, weight, bias, padding=((1, 1), (2, 2)))
    assert out.shape == (1, 3, 18, 45)
    np.testing.assert_allclose(out[:, :, 6:10, 38:44], inner, rtol=1e-5, atol=1e-5)
    outside = np.ones(out.shape, bool)
    outside[:, :, 6:10, 38:44] = False
    assert (out == bias[:, None, None])[outside].all()


def test_every_element_of_the_result_is_written(rng, dtype):
    for shape, weight, parameters in LAYERS:
        x, weight = random(rng, shape, dtype), random(rng, weight, dtype)
        expected = cyconv.conv2d(x, weight, **parameters)
        out = np.full(expected.shape, np.nan, dtype)
        assert_bits(cyconv.conv2d(x, weight, out=out, **parameters), expected)


def test_results_that_are_not_contiguous_do_not_write_between_their_elements(rng, dtype):
    x, weight = random(rng, (1, 2, 5, 21), dtype), random(rng, (3, 2, 3, 3), dtype)
    whole = np.full((1, 3, 3, 25), 7, dtype)
    cyconv.conv2d(x, weight, out=whole[..., 3:22])
    assert (whole[..., :3] == 7).all()
    assert (whole[..., 22:] == 7).all()
