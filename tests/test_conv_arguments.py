"""What conv2d and conv2d_backward refuse, what they accept, and what they leave alone."""

import fractions

import numpy as np
import pytest
from helpers import assert_bits, random

import cyconv

X, WEIGHT, BIAS = np.ones((2, 4, 6, 5), "f"), np.ones((6, 2, 3, 3), "f"), np.ones(6, "f")
HUGE = 2**31
OUT = (2, 6, 4, 3)


def conv2d(x=X, weight=WEIGHT, bias=None, **parameters):
    return cyconv.conv2d(x, weight, bias, **{"groups": 2, **parameters})


def conv2d_backward(grad_out=None, x=X, weight=WEIGHT, **parameters):
    grad_out = np.ones(OUT, "f") if grad_out is None else grad_out
    return cyconv.conv2d_backward(grad_out, x, weight, **{"groups": 2, **parameters})


SWAPPED = ">f4" if np.little_endian else "<f4"
BAD_DTYPES = ["float16", "longdouble", "int32", "int64", "bool", "complex64", "object", SWAPPED]


@pytest.mark.parametrize("bad", BAD_DTYPES)
def test_other_dtypes_are_refused_by_name(bad):
    for name, shape in (("x", X.shape), ("weight", WEIGHT.shape), ("bias", (6,)), ("out", OUT)):
        with pytest.raises(TypeError, match=rf"{name} must be float32 or float64.*{np.dtype(bad)}"):
            conv2d(**{name: np.zeros(shape, bad)})
    for name, shape in (("x", X.shape), ("weight", WEIGHT.shape), ("grad_out", OUT)):
        with pytest.raises(TypeError, match=rf"{name} must be float32 or float64.*{np.dtype(bad)}"):
            conv2d_backward(**{name: np.zeros(shape, bad)})


def test_mixed_dtypes_are_refused():
    for name, value in (("x", X), ("weight", WEIGHT), ("bias", BIAS)):
        with pytest.raises(TypeError, match=rf"{name} is float64"):
            conv2d(**{"bias": BIAS, name: value.astype("d")})
    for name, value in (("x", X), ("weight", WEIGHT), ("grad_out", np.ones(OUT))):
        with pytest.raises(TypeError, match=rf"{name} is float64"):
            conv2d_backward(**{name: value.astype("d")})
    with pytest.raises(TypeError, match="out must be float32"):
        conv2d(out=np.zeros(OUT))


@pytest.mark.parametrize("bad", [X.tolist(), np.ma.masked_array(X), None, 3.0, "x", memoryview(X)])
def test_what_is_not_an_array_is_refused(bad):
    for name in ("x", "weight"):
        with pytest.raises(TypeError, match=rf"{name} must be a numpy.ndarray, got \w"):
            conv2d(**{name: bad})
    if bad is not None:
        for name in ("bias", "out"):
            with pytest.raises(TypeError, match=rf"{name} must be a numpy.ndarray, got \w"):
                conv2d(**{name: bad})
        with pytest.raises(TypeError, match=r"grad_out must be a numpy.ndarray, got \w"):
            conv2d_backward(grad_out=bad)


PARAMETERS = [
    ("stride", 0, ValueError), ("stride", -1, ValueError), ("stride", HUGE, ValueError), ("stride", 10**99, ValueError),
    ("stride", 1.0, TypeError), ("stride", True, TypeError), ("stride", "1", TypeError), ("stride", None, TypeError),
    ("stride", (1,), ValueError), ("stride", (1, 1, 1), ValueError), ("stride", (1, 1.5), TypeError),
    ("stride", (1, False), TypeError), ("stride", (2, 0), ValueError), ("stride", np.float32(1), TypeError),
    ("stride", fractions.Fraction(1), TypeError), ("stride", np.array([1]), TypeError), ("stride", {1, 2}, TypeError),
    ("stride", (1, (1, 1)), TypeError), ("stride", np.bool_(True), TypeError), ("stride", np.array(1), TypeError),
    ("dilation", 0, ValueError), ("dilation", -3, ValueError), ("dilation", HUGE, ValueError),
    ("dilation", HUGE - 1, ValueError), ("dilation", 2.0, TypeError), ("dilation", (1, 2, 3), ValueError),
    ("padding", -1, ValueError), ("padding", (0, -1), ValueError), ("padding", HUGE, ValueError),
    ("padding", HUGE - 1, ValueError), ("padding", ((0, HUGE - 1), 0), ValueError), ("padding", 1.0, TypeError),
    ("padding", True, TypeError), ("padding", "full", ValueError), ("padding", (1, 1, 1, 1), ValueError),
    ("padding", ((1, 1), (1,)), ValueError), ("padding", ((1, 1), (1, "1")), TypeError), ("padding", None, TypeError),
    ("groups", 0, ValueError), ("groups", -2, ValueError), ("groups", 3, ValueError), ("groups", HUGE, ValueError),
    ("groups", 2.0, TypeError), ("groups", (2, 2), TypeError), ("groups", True, TypeError),
    ("padding_mode", "constant", ValueError), ("padding_mode", None, TypeError), ("padding_mode", 0, TypeError),
    ("algorithm", "fast", ValueError), ("algorithm", "fft", ValueError), ("algorithm", None, TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error"), PARAMETERS)
def test_bad_parameters_are_refused_with_their_value(name, value, error):
    for function in (conv2d, conv2d_backward):
        with pytest.raises(error, match=r"[0-9'\"]|None|True|got|number"):
            function(**{name: value})


@pytest.mark.parametrize(("value", "error"), [("gelu", ValueError), ("", ValueError), (True, TypeError)])
def test_unknown_activations_are_refused(value, error):
    with pytest.raises(error, match="activation must be one of None, 'relu', got"):
        conv2d(activation=value)


@pytest.mark.parametrize(("value", "error"), [("x", TypeError), ((1,), TypeError), (("y",), ValueError)])
def test_unknown_wrt_is_refused(value, error):
    with pytest.raises(error, match="wrt"):
        conv2d_backward(wrt=value)


def test_parameters_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        cyconv.conv2d(X, WEIGHT, BIAS, 1)
    with pytest.raises(TypeError, match="positional"):
        cyconv.conv2d_backward(np.ones(OUT, "f"), X, WEIGHT, 1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((5, 5), "f")}, r"x must have 4 axes \(N, C, H, W\), or 3 without the batch, got shape \(5, 5\)"),
        ({"x": np.ones((1, 1, 4, 5, 5), "f")}, "x must have 4 axes"),
        ({"x": np.ones((2, 4, 0, 5), "f")}, r"x has an empty axis .*\(2, 4, 0, 5\)"),
        ({"x": np.ones((2, 0, 5, 5), "f")}, "x has an empty axis"),
        ({"x": np.ones((2, 3, 5, 5), "f")}, r"x has 3 channels, but weight of shape \(6, 2, 3, 3\) with groups=2"),
        ({"weight": np.ones((5, 2, 3, 3), "f")}, "groups=2 must divide the 5 output channels"),
        ({"weight": np.ones((2, 3, 3), "f")}, r"weight must have 4 axes \(F, C/groups, KH, KW\).*\(2, 3, 3\)"),
        ({"weight": np.ones((6, 2, 0, 3), "f")}, r"weight must have 4 axes.*none of them empty.*\(6, 2, 0, 3\)"),
        ({"weight": np.ones((0, 2, 3, 3), "f")}, "none of them empty"),
        ({"bias": np.ones(5, "f")}, r"bias must have shape \(6,\), got \(5,\)"),
        ({"bias": np.ones((6, 1), "f")}, r"bias must have 1 axes, got shape \(6, 1\)"),
        ({"out": np.ones((2, 6, 4, 4), "f")}, r"out must have shape \(2, 6, 4, 3\), got \(2, 6, 4, 4\)"),
        ({"out": np.ones((6, 4, 3), "f")}, r"out must have shape \(2, 6, 4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_shown(arrays, message):
    with pytest.raises(ValueError, match=message):
        conv2d(**arrays)


def test_grad_out_must_have_the_shape_of_the_result():
    for shape in ((2, 6, 4, 4), (6, 4, 3), (1, 6, 4, 3), (2, 5, 4, 3)):
        with pytest.raises(ValueError, match=r"grad_out must have shape \(2, 6, 4, 3\), got"):
            conv2d_backward(np.ones(shape, "f"))


def test_an_empty_output_shows_the_arithmetic():
    with pytest.raises(ValueError, match=r"no height: .* 6 \+ 0 \+ 0 = 6, kernel extent 3 \* \(3 - 1\) \+ 1 = 7"):
        conv2d(dilation=(3, 1))
    with pytest.raises(ValueError, match=r"no width: .* 5 \+ 1 \+ 0 = 6, kernel extent 4 \* \(3 - 1\) \+ 1 = 9"):
        conv2d(dilation=(1, 4), padding=(0, (1, 0)))


def test_results_that_cannot_be_allocated_are_refused():
    with pytest.raises(MemoryError):
        conv2d(padding=10**7)
    with pytest.raises((MemoryError, ValueError)):
        conv2d(padding=2**30 - 8)


def test_an_axis_beyond_int_is_refused():
    x = np.broadcast_to(np.float32(0), (1, 1, 1, HUGE))
    with pytest.raises(ValueError, match="longer than 2147483647"):
        cyconv.conv2d(x, np.ones((1, 1, 1, 1), "f"))


def test_huge_legal_parameters():
    assert (conv2d(stride=HUGE - 1, padding=1)[0, 0] == 8).all()
    assert conv2d(stride=HUGE - 1).shape == (2, 6, 1, 1)
    assert cyconv.conv2d(X, np.ones((1, 4, 1, 1), "f"), dilation=HUGE - 1).shape == (2, 1, 6, 5)
    grad = cyconv.conv2d_backward(np.ones((2, 6, 1, 1), "f"), X, WEIGHT, stride=HUGE - 1, groups=2)
    assert grad.x.sum() == 2 * 6 * 18


def test_padding_modes_that_the_image_cannot_fill_are_refused():
    with pytest.raises(ValueError, match=r'"reflect" takes padding less than the size 5, got \(5, 5\)'):
        conv2d(padding=(0, 5), padding_mode="reflect")
    with pytest.raises(ValueError, match=r'"circular" takes padding at most the size 6, got \(0, 7\)'):
        conv2d(padding=((0, 7), 0), padding_mode="circular")
    assert conv2d(padding=((6, 6), 5), padding_mode="circular").shape == (2, 6, 16, 13)
    assert conv2d(padding=9, padding_mode="replicate").shape == (2, 6, 22, 21)


def test_numpy_integers_and_lists_are_accepted(rng):
    x, weight = random(rng, X.shape, "f"), random(rng, WEIGHT.shape, "f")
    expected = conv2d(x, weight, stride=2, padding=(1, 2), dilation=(1, 2))
    given = {"stride": np.int8(2), "padding": [np.uint64(1), 2], "dilation": [1, np.int32(2)], "groups": np.uint8(2)}
    assert_bits(conv2d(x, weight, **given), expected)


def test_inputs_are_not_changed(rng):
    arrays = [random(rng, shape, "f") for shape in (OUT, X.shape, WEIGHT.shape, (6,))]
    copies = [a.copy() for a in arrays]
    grad_out, x, weight, bias = arrays
    conv2d(x, weight, bias, activation="relu")
    conv2d_backward(grad_out, x, weight)
    for a, copy in zip(arrays, copies, strict=True):
        assert_bits(a, copy)


def test_out_is_written_and_returned(rng, dtype):
    x, weight = random(rng, X.shape, dtype), random(rng, WEIGHT.shape, dtype)
    expected = conv2d(x, weight)
    whole = np.full((4, 12, 8, 6), 7, dtype)
    transposed = np.full((3, 4, 6, 2), 7, dtype)
    for out in (
        np.full(OUT, 7, dtype),
        whole[::2, ::-2, ::2, ::2],
        whole[:2, :6, :4, :3],
        transposed.T,
        np.full(int(np.prod(OUT)) * dtype.itemsize + 1, 7, "u1")[1:].view(dtype).reshape(OUT),
    ):
        assert conv2d(x, weight, out=out) is out
        assert_bits(np.ascontiguousarray(out), expected)
    assert (whole[1::2] == 7).sum() > 0
    out = np.full(OUT[1:], 7, dtype)
    assert conv2d(x[0], weight, out=out) is out
    assert_bits(out, expected[0])


def test_out_must_not_overlap_an_input(rng):
    x, weight = random(rng, (2, 3, 5, 5), "f"), np.ones((3, 1, 1, 1), "f")
    shared = random(rng, (2, 3, 5, 10), "f")
    left = shared[..., :5]
    for image, out in ((x, x), (x, x[::-1]), (left, shared[..., 1:6]), (shared[..., ::2], shared[..., 8:3:-1])):
        before = out.copy()
        with pytest.raises(ValueError, match="out must not overlap an input"):
            cyconv.conv2d(image, weight, groups=3, out=out)
        assert_bits(np.ascontiguousarray(out), before)
    weight, bias = np.ones((3, 3, 5, 5), "f"), np.ones(75, "f")
    with pytest.raises(ValueError, match="overlap"):
        cyconv.conv2d(shared[:1, :, :, :5], weight, bias[:3], out=weight.reshape(-1)[:3].reshape(1, 3, 1, 1))
    with pytest.raises(ValueError, match="overlap"):
        cyconv.conv2d(shared[:1, :, :, :5], weight, bias[:3], out=bias[2:5].reshape(1, 3, 1, 1))


def test_out_may_interleave_with_an_input(rng):
    shared, weight = random(rng, (2, 3, 5, 10), "f"), random(rng, (3, 1, 1, 1), "f")
    expected = cyconv.conv2d(shared[..., ::2].copy(), weight, groups=3)
    assert_bits(cyconv.conv2d(shared[..., ::2], weight, groups=3, out=shared[..., 1::2]).copy(), expected)


def test_out_that_cannot_be_written_is_refused():
    out = np.full(OUT, 7, "f")
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        conv2d(out=out)
    row = np.full((3,), 7, "f")
    repeated = np.lib.stride_tricks.as_strided(row, OUT, (0, 0, 0, 4))
    with pytest.raises(ValueError, match="elements of out share memory"):
        conv2d(out=repeated)
    assert (out == 7).all()
    assert (row == 7).all()


@pytest.mark.parametrize(("name", "value", "error"), PARAMETERS)
def test_out_is_untouched_when_a_call_is_refused(name, value, error):
    out = np.full(OUT, 7, "f")
    with pytest.raises(error):
        conv2d(out=out, **{name: value})
    assert (out == 7).all()
