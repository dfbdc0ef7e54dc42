"""What pooling refuses, what it accepts, what it leaves alone, and the values that are special."""

import numpy as np
import pytest
from helpers import assert_bits, random
from pool_helpers import WINDOWS

import cyconv

X = np.arange(2 * 4 * 6 * 5, dtype="f").reshape(2, 4, 6, 5)
OUT = (2, 4, 3, 2)
HUGE = 2**31


def max_pool(x=X, kernel=2, **parameters):
    return cyconv.max_pool2d(x, kernel, **parameters)


def max_backward(x=X, kernel=2, grad_out=None, **parameters):
    return cyconv.max_pool2d_backward(np.ones(OUT, "f") if grad_out is None else grad_out, x, kernel, **parameters)


def avg_pool(x=X, kernel=2, **parameters):
    return cyconv.avg_pool2d(x, kernel, **parameters)


def avg_backward(shape=X.shape, kernel=2, grad_out=None, **parameters):
    return cyconv.avg_pool2d_backward(np.ones(OUT, "f") if grad_out is None else grad_out, shape, kernel, **parameters)


FUNCTIONS = [max_pool, max_backward, avg_pool, avg_backward]
SWAPPED = ">f4" if np.little_endian else "<f4"


@pytest.mark.parametrize("bad", ["float16", "longdouble", "int32", "int64", "bool", "complex64", "object", SWAPPED])
def test_other_dtypes_are_refused_by_name(bad):
    for call in (max_pool, avg_pool, max_backward):
        with pytest.raises(TypeError, match=rf"x must be float32 or float64.*{np.dtype(bad)}"):
            call(X.astype(bad))
    for call in (max_backward, avg_backward):
        with pytest.raises(TypeError, match=rf"grad_out must be float32 or float64.*{np.dtype(bad)}"):
            call(grad_out=np.ones(OUT, bad))
    for call in (max_pool, avg_pool):
        with pytest.raises(TypeError, match=rf"out must be float32 or float64.*{np.dtype(bad)}"):
            call(out=np.ones(OUT, bad))


def test_mixed_dtypes_are_refused():
    with pytest.raises(TypeError, match="grad_out is float64"):
        max_backward(grad_out=np.ones(OUT))
    for call in (max_pool, avg_pool):
        with pytest.raises(TypeError, match="out must be float32"):
            call(out=np.ones(OUT))


@pytest.mark.parametrize("bad", [X.tolist(), np.ma.masked_array(X), None, 3.0, memoryview(X)])
def test_what_is_not_an_array_is_refused(bad):
    for call in (max_pool, avg_pool, max_backward):
        with pytest.raises(TypeError, match=r"x must be a numpy.ndarray, got \w"):
            call(bad)


PARAMETERS = [
    ("kernel", 0, ValueError), ("kernel", -1, ValueError), ("kernel", 2.0, TypeError), ("kernel", True, TypeError),
    ("kernel", None, TypeError), ("kernel", (2, 2, 2), ValueError), ("kernel", (2, 2.0), TypeError),
    ("kernel", (2, True), TypeError), ("kernel", HUGE, ValueError), ("kernel", HUGE - 1, ValueError),
    ("kernel", "2", TypeError), ("kernel", 7, ValueError), ("kernel", (6, 6), ValueError),
    ("kernel", {1, 2}, TypeError),
    ("stride", 0, ValueError), ("stride", -1, ValueError), ("stride", 1.0, TypeError), ("stride", True, TypeError),
    ("stride", (1,), ValueError), ("stride", (1, 0), ValueError), ("stride", HUGE, ValueError),
    ("stride", [1, 2.0], TypeError),
    ("dilation", 0, ValueError), ("dilation", 2.0, TypeError), ("dilation", 6, ValueError),
    ("dilation", HUGE - 1, ValueError),
    ("padding", -1, ValueError), ("padding", (0, -1), ValueError), ("padding", 1.0, TypeError),
    ("padding", True, TypeError), ("padding", "full", ValueError), ("padding", ((1, 1), (1,)), ValueError),
    ("padding", (1, 1.0), TypeError),
    ("padding", HUGE - 1, ValueError), ("padding", HUGE, ValueError), ("padding", None, TypeError),
    ("padding", {1, 2}, TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error"), PARAMETERS)
def test_bad_parameters_are_refused_with_their_value(name, value, error):
    for call in FUNCTIONS:
        call(kernel=2, stride=2, padding=0, dilation=1)  # what equals a bad value may be known already
        with pytest.raises(error, match=r"[0-9'\"]|None|True|got"):
            call(**{name: value})


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_divisors_are_refused(value, error):
    for call in (avg_pool, avg_backward):
        with pytest.raises(error, match="divisor_override"):
            call(divisor_override=value)


@pytest.mark.parametrize("shape", [(6, 5), (1, 2, 4, 6, 5), (2, 4, 0, 5), (2, 0, 6, 5), (5,), ()])
def test_bad_shapes_are_refused(shape):
    for call in (max_pool, avg_pool, max_backward):
        with pytest.raises(ValueError, match="shape"):
            call(np.zeros(shape, "f"))
    with pytest.raises(ValueError, match="input_shape"):
        avg_backward(shape)


BAD_SHAPES = [
    (None, ValueError), ((2, 4, 6, 5.0), TypeError), ((2, 4, -6, 5), ValueError), ((2, 4, 6, HUGE), ValueError),
    (9, ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "error"), BAD_SHAPES)
def test_a_bad_input_shape_is_refused(shape, error):
    with pytest.raises(error, match="input_shape"):
        avg_backward(shape)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (4, 3, 2), (1, 4, 3, 2), (2, 4, 6)])
def test_a_gradient_of_another_shape_is_refused(shape):
    for call in (max_backward, avg_backward):
        with pytest.raises(ValueError, match="grad_out must have shape"):
            call(grad_out=np.ones(shape, "f"))


@pytest.mark.parametrize("value", [30, 2**40, 2**63 - 1, -2, -(2**63)])
def test_an_index_outside_the_plane_is_refused(value):
    indices = max_pool(return_indices=True)[1]
    indices[1, 3, 2, 1] = value
    with pytest.raises(ValueError, match=rf"indices must lie inside the plane \(6, 5\).*{value}"):
        max_backward(indices=indices)


@pytest.mark.parametrize("indices", [np.zeros(OUT, "i4"), np.zeros(OUT), 7, np.zeros(OUT, SWAPPED.replace("f4", "i8"))])
def test_indices_must_be_int64(indices):
    with pytest.raises(TypeError, match="indices must be an int64 array, got"):
        max_backward(indices=indices)


def test_indices_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="indices must have shape"):
        max_backward(indices=np.zeros((2, 4, 3, 3), np.int64))


def test_indices_may_repeat_and_come_in_any_order():
    indices = np.array([[[29, 0], [29, 7], [-1, 28]]])
    grad_x = max_backward(X[0, :1], grad_out=np.arange(6, dtype="f").reshape(1, 3, 2), indices=indices).ravel()
    expected = np.zeros(30)
    expected[[29, 0, 7, 28]] = 0 + 2, 1, 3, 5
    assert grad_x.tolist() == expected.tolist()


@pytest.mark.parametrize("call", [max_pool, avg_pool])
def test_out(call):
    expected = call()
    whole = np.full((4, 8, 6, 4), 7, "f")
    for view in (
        whole[:2, :4, :3, :2].copy(),
        whole[1:3, 2:6, ::2, 1:3],
        whole[3:1:-1, ::2, ::-2, ::2],
        whole[:2, :4, :3, :2],
        np.frombuffer(bytearray(193), np.uint8)[1:].view("f").reshape(OUT),  # unaligned
    ):
        view[...] = 7
        out = call(out=view)
        assert out is view
        assert_bits(np.ascontiguousarray(out), expected)
    assert (whole[0, :, 5] == 7).all()
    buffer = np.full(200, 7, "f")
    read_only = buffer[:48].reshape(OUT)
    read_only.flags.writeable = False
    x = buffer[20:140].reshape(1, 4, 6, 5)
    for bad in (read_only, buffer[:40].reshape(1, 4, 5, 2), buffer[:8].reshape(2, 4, 1, 1)):
        with pytest.raises(ValueError, match="out"):
            call(out=bad)
    with pytest.raises(ValueError, match="out must not overlap an input"):
        call(x, out=buffer[:24].reshape(1, 4, 3, 2))
    with pytest.raises(ValueError, match="share memory"):
        call(out=np.lib.stride_tricks.as_strided(buffer, OUT, (0, 0, 8, 4)))
    assert (buffer == 7).all()


def test_any_strides_are_accepted(rng, dtype):
    whole = random(rng, (4, 6, 20, 24), dtype)
    unaligned = np.frombuffer(b"\0" + whole.tobytes(), np.uint8)[1:].view(dtype).reshape(whole.shape)
    read_only = whole.copy()
    read_only.flags.writeable = False
    views = [whole[::-1, :, ::2, ::-3], whole.transpose(1, 0, 3, 2), np.asfortranarray(whole), unaligned, read_only]
    for x in [*views, np.broadcast_to(whole[:1], whole.shape)]:
        plain = np.array(x, order="C")
        out, indices = max_pool(x, 3, stride=2, return_indices=True)
        assert_bits(out, max_pool(plain, 3, stride=2))
        assert_bits(avg_pool(x, 3, stride=2), avg_pool(plain, 3, stride=2))
        grad_out = rng.integers(-9, 10, out.shape[::-1]).astype(dtype).T  # exact in any order of summation
        plain_grad = np.array(grad_out, order="C")
        expected = max_backward(plain, 3, plain_grad, stride=2)
        assert_bits(max_backward(x, 3, grad_out, stride=2), expected)
        assert_bits(max_backward(x, 3, grad_out, stride=2, indices=np.asfortranarray(indices)), expected)
        actual = avg_backward(x.shape, 3, grad_out, stride=2)
        assert_bits(actual, avg_backward(x.shape, 3, plain_grad, stride=2))


def test_subclasses_give_plain_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "x", "f", "w+", shape=X.shape)
    mapped[...] = X
    assert type(max_pool(mapped)) is np.ndarray
    assert_bits(max_pool(mapped), max_pool())


def test_the_batch_axis_is_optional():
    for call in (max_pool, avg_pool):
        assert_bits(call(X[1]), call()[1])
    assert_bits(max_backward(X[1], grad_out=np.ones(OUT[1:], "f")), max_backward()[1])
    assert_bits(avg_backward(X.shape[1:], grad_out=np.ones(OUT[1:], "f")), avg_backward()[1])


def test_an_empty_batch_gives_an_empty_result():
    x, grad_out = np.ones((0, 4, 6, 5)), np.ones((0, 4, 3, 2))
    assert max_pool(x).shape == avg_pool(x).shape == (0, 4, 3, 2)
    assert [a.shape for a in max_pool(x, return_indices=True)] == [(0, 4, 3, 2)] * 2
    assert max_backward(x, grad_out=grad_out).shape == avg_backward(x.shape, grad_out=grad_out).shape == x.shape
    assert max_backward(x, grad_out=grad_out, indices=np.ones(grad_out.shape, np.int64)).shape == x.shape


def test_numpy_integers_and_lists_are_accepted():
    assert_bits(max_pool(kernel=[np.int8(2), 2], stride=np.uint64(2), padding=[0, [0, 0]]), max_pool())


def test_parameters_are_keyword_only():
    for call in (cyconv.max_pool2d, cyconv.avg_pool2d):
        with pytest.raises(TypeError, match="positional"):
            call(X, 2, 2)


@pytest.mark.parametrize("call", [max_pool, avg_pool])
def test_huge_windows_and_padding(call):
    """Legal, if pointless: no memory or time in proportion to them."""
    big = HUGE // 2 - 10
    out = call(X, big, padding=((big - 6, 0), (big - 5, 0)), stride=1)
    assert out.shape == (2, 4, 1, 1)
    out = call(X, 2, padding=big, stride=big)
    assert out.shape == (2, 4, 3, 3)
    assert call(X, 1, stride=HUGE - 1).shape == (2, 4, 1, 1)
    assert call(X, 2, dilation=big, padding=big // 2, stride=HUGE - 1).shape == (2, 4, 1, 1)


def test_windows_of_more_cells_than_places_are_exact_for_are_refused():
    x = np.broadcast_to(np.float32(0), (1, (1 << 24) + 2))
    with pytest.raises(ValueError, match="16777216"):
        cyconv.max_pool1d(x, (1 << 24) + 1)


def test_huge_windows_in_the_backward_pass():
    big = HUGE // 2 - 10
    windows = {
        "kernel": big,
        "padding": ((big - 6, 0), (big - 5, 0)),
        "stride": 1,
        "grad_out": np.ones((2, 4, 1, 1), "f"),
    }
    expected = np.zeros_like(X)
    expected[:, :, 5, 4] = 1
    assert_bits(max_backward(**windows), expected)
    assert (avg_backward(**windows) > 0).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("width", [3, 20, 40])
def test_nan_wins_wherever_it_lies(dtype, width):
    for kernel, parameters in WINDOWS:
        for i in range(2 * width):
            x = np.full((1, 5, width), np.inf, dtype)
            x.flat[i + width] = np.nan
            try:
                out, indices = max_pool(x, kernel, return_indices=True, **parameters)
            except ValueError:
                continue
            assert_bits(np.isnan(out), indices == i + width)
            assert_bits(np.isnan(max_pool(x, kernel, **parameters)), indices == i + width)


def test_of_equal_values_the_first_gets_the_whole_gradient(dtype):
    for x in (np.zeros((1, 8, 40), dtype), np.full((1, 8, 40), -np.inf, dtype), np.full((1, 8, 40), np.nan, dtype)):
        for kernel, stride in ((2, 2), (3, 3), (4, 4)):
            grad_out = np.ones((1, 8 // stride if stride != 3 else 2, 40 // stride), dtype)
            grad_x = max_backward(x, kernel, grad_out)
            expected = np.zeros_like(x)
            expected[0, : grad_out.shape[1] * stride : stride, : grad_out.shape[2] * stride : stride] = 1
            assert_bits(grad_x, expected)


def test_negative_zero_equals_zero(dtype):
    x = np.array([[[0.0, -0.0], [-0.0, 0.0]], [[-0.0, 0.0], [0.0, -0.0]]], dtype)
    assert max_pool(x, 2, return_indices=True)[1].tolist() == [[[0]], [[0]]]


def test_windows_wholly_in_padding(dtype):
    x = np.ones((1, 2, 2), dtype)
    out, indices = max_pool(x, 2, padding=4, stride=2, return_indices=True)
    inside = np.zeros((1, 5, 5), bool)
    inside[0, 2, 2] = True
    assert_bits(out, np.where(inside, 1, -np.inf).astype(dtype))
    assert_bits(indices, np.where(inside, 0, -1))
    assert max_backward(x, 2, np.ones_like(out), padding=4, stride=2).tolist() == [[[1, 0], [0, 0]]]
    assert avg_pool(x, 2, padding=4, stride=2).sum() == 1
    out = avg_pool(x, 2, padding=4, stride=2, count_include_pad=False)
    assert_bits(np.isnan(out), ~inside)


def test_all_minus_inf_has_the_first_cell_of_the_image(dtype):
    x = np.full((1, 6, 40), -np.inf, dtype)
    for stride in (1, 2, 3):
        indices = max_pool(x, 3, padding=1, stride=stride, return_indices=True)[1]
        y, left = np.ogrid[: indices.shape[1], : indices.shape[2]]
        assert (indices[0] == np.maximum(y * stride - 1, 0) * 40 + np.maximum(left * stride - 1, 0)).all()


def test_infinities_and_nan_stay_in_their_windows(dtype):
    x = np.ones((1, 4, 40), dtype)
    x[0, 1, 5], x[0, 1, 9], x[0, 3, 20] = np.inf, -np.inf, np.nan
    out = avg_pool(x, 2)
    assert (out[0, 0, 2], out[0, 0, 4]) == (np.inf, -np.inf)
    assert np.isnan(out[0, 1, 10])
    assert np.isfinite(out).sum() == out.size - 3
