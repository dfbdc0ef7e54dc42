"""Winograd's F(4x4, 3x3), F(2x2, 3x3), F(2x2, 5x5), F(4, 3), F(3x3, 4x4): results, accuracy, not finite, where used."""

import numpy as np
import pytest
from helpers import LANE_SIZES, Oracle, assert_adjoint, assert_bits, assert_close, pairs, random
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter

import cyconv
from cyconv import _dispatch, _reference, _winograd, conv

pytestmark = pytest.mark.usefixtures("isa")
FORMS = [(kernel, outputs) for kernel, several in _winograd.FORMS.items() for outputs in several]
SPECIAL = [np.nan, np.inf, -np.inf]
# x, weight, parameters: whole and cut tiles, joined images, parts of wide and of deep ones, blocks of output channels.
LAYERS = [
    ((3, 33, 7, 9), (15, 33, 3, 3), {"padding": 1}),
    ((9, 5, 14, 13), (29, 5, 3, 3), {"padding": 1}),
    ((1, 6, 50, 61), (13, 6, 3, 3), {}),
    ((2, 3, 9, 700), (2, 3, 3, 3), {"padding": ((0, 1), (2, 0))}),
    ((2, 1000, 9, 11), (3, 1000, 3, 3), {"padding": 1}),
    ((2, 12, 21, 40), (30, 4, 3, 3), {"padding": 2, "groups": 3}),
    ((5, 2, 1, 1), (1, 2, 3, 3), {"padding": 1}),
    ((1, 4, 5, 6), (4, 1, 3, 3), {"padding": (3, 9), "groups": 4}),
]


@pytest.fixture(params=FORMS, ids=lambda form: "{1}-{0[0]}x{0[1]}".format(*form))
def kernel(request, monkeypatch):
    """The size of a kernel, for which tiles have the outputs of one of the forms whatever the estimate says."""
    kernel, outputs = request.param
    monkeypatch.setattr(_winograd, "outputs", lambda *_: outputs)
    monkeypatch.setattr(conv, "_plans", {})
    return kernel


def fitted(parameters, kernel):
    """The parameters of a layer of 3x3 kernels, with the padding that a larger one needs."""
    return parameters | {"padding": 2} if kernel == (5, 5) and parameters.get("padding") == 1 else parameters


def forward(x, weight, bias=None, **parameters):
    return cyconv.conv2d(x, weight, bias, algorithm="winograd", **parameters)


def grad_x(grad_out, x, weight, algorithm="winograd", **parameters):
    return cyconv.conv2d_backward(grad_out, x, weight, wrt=("x",), algorithm=algorithm, **parameters).x


def grad_weight(grad_out, x, weight, algorithm="winograd", **parameters):
    return cyconv.conv2d_backward(grad_out, x, weight, wrt=("weight",), algorithm=algorithm, **parameters).weight


def around(magnitude):
    """The largest sum |x||w| in a tile's reach: its outputs have rounding errors in common."""
    return maximum_filter(magnitude, (1, 1, 7, 7)) + 1


def check(rng, dtype, x, weight, **parameters):
    """Assert that forward and the gradient of x agree with SciPy."""
    x, weight, bias = random(rng, x, dtype), random(rng, weight, dtype), random(rng, weight[0], dtype)
    oracle = Oracle(x, weight, **parameters)
    out = forward(x, weight, bias, **parameters)
    assert_close(out, oracle.forward(bias), around(oracle.forward(bias, magnitude=True)), 32, dtype)
    grad_out = random(rng, out.shape, dtype)
    grad = grad_x(grad_out, x, weight, **parameters)
    assert_close(grad, oracle.grad_x(grad_out), around(oracle.grad_x(grad_out, magnitude=True)), 32, dtype)


@pytest.mark.parametrize("size", LANE_SIZES)
def test_sizes_around_the_tiles_and_lanes(rng, dtype, kernel, size):
    padding = max(kernel) // 2
    check(rng, dtype, (2, 2, 5, size), (3, 2, *kernel), padding=padding)
    check(rng, dtype, (2, 2, size, 6), (3, 2, *kernel), padding=padding)
    check(rng, dtype, (1, size, 7, 7), (3, size, *kernel), padding=padding)
    check(rng, dtype, (1, 2, 6, 9), (size, 2, *kernel), padding=padding)
    check(rng, dtype, (1, 2, size + max(kernel) - 1, 4 * size + 3), (3, 2, *kernel))


@pytest.mark.parametrize(("x", "weight", "parameters"), LAYERS)
def test_layers(rng, dtype, kernel, x, weight, parameters):
    check(rng, dtype, x, (*weight[:2], *kernel), **fitted(parameters, kernel))


@given(
    shape=st.tuples(*[st.integers(1, most) for most in (5, 3, 6, 5, 20, 30)]),
    padding=st.tuples(*[st.tuples(st.integers(0, 5), st.integers(0, 5))] * 2),
    seed=st.integers(0, 2**32 - 1),
)
@example(shape=(1, 1, 1, 1, 1, 1), padding=((1, 1), (1, 1)), seed=0)
def test_any_shape_and_padding(dtype, kernel, shape, padding, seed):
    N, groups, C, F, H, W = shape
    H, W = (max(m, k - sum(p)) for m, k, p in zip((H, W), kernel, padding, strict=True))
    rng = np.random.default_rng(seed)
    check(rng, dtype, (N, groups * C, H, W), (groups * F, C, *kernel), padding=padding, groups=groups)


@pytest.mark.parametrize(("x", "weight", "parameters"), LAYERS)
def test_grad_x_is_the_adjoint_of_forward(rng, dtype, kernel, x, weight, parameters):
    x, weight, parameters = (
        random(rng, x, dtype),
        random(rng, (*weight[:2], *kernel), dtype),
        fitted(parameters, kernel),
    )
    grad_out = random(rng, forward(x, weight, **parameters).shape, dtype)
    magnitude = np.vdot(around(Oracle(x, weight, **parameters).forward(magnitude=True)), np.abs(grad_out))

    def backward(g):
        return grad_x(g, x, weight, **parameters)

    assert_adjoint(lambda a: forward(a, weight, **parameters), backward, x, grad_out, magnitude, 8)


@pytest.mark.parametrize("bias", [False, True])
def test_relu_is_the_maximum_of_the_result_and_zero(rng, dtype, kernel, bias):
    x, weight = random(rng, (2, 3, 9, 21), dtype), random(rng, (5, 3, *kernel), dtype)
    bias = random(rng, 5, dtype) if bias else None
    assert (forward(x, weight, bias, activation="relu") == np.maximum(forward(x, weight, bias), 0)).all()


def test_padding_modes_views_and_results_that_are_not_contiguous(rng, dtype):
    x, weight = random(rng, (2, 3, 10, 21), dtype), random(rng, (5, 3, 3, 3), dtype)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    assert_bits(forward(x, weight, padding=2, padding_mode="reflect"), forward(padded, weight))
    assert_bits(forward(x[::-1, :, ::-1], weight)[::-1], forward(np.ascontiguousarray(x[:, :, ::-1]), weight))
    assert_bits(forward(x[0], weight), forward(x, weight)[0])
    whole = np.full((2, 5, 8, 25), 7, dtype)
    assert_bits(np.ascontiguousarray(forward(x, weight, out=whole[..., 3:22])), forward(x, weight))
    assert (whole[..., :3] == 7).all()
    assert (whole[..., 22:] == 7).all()
    assert forward(x[:0], weight).shape == (0, 5, 8, 19)


@pytest.mark.parametrize(("x", "weight", "parameters"), [*LAYERS, ((2, 24, 70, 70), (40, 24, 3, 3), {"padding": 1})])
def test_bits_do_not_depend_on_threads_and_batch(rng, dtype, kernel, x, weight, parameters):
    x, weight = random(rng, (5, *x[1:]), dtype), random(rng, (*weight[:2], *kernel), dtype)
    parameters = fitted(parameters, kernel)
    with cyconv.num_threads(1):
        out = forward(x, weight, **parameters)
        grad_out = random(rng, out.shape, dtype)
        grad = grad_x(grad_out, x, weight, **parameters)
    for n in (2, 3, 8):
        with cyconv.num_threads(n):
            assert_bits(forward(x, weight, **parameters), out)
            assert_bits(grad_x(grad_out, x, weight, **parameters), grad)
    for images in (slice(0, 1), slice(4, 5), slice(1, 4)):
        assert_bits(forward(x[images], weight, **parameters), out[images])
        assert_bits(grad_x(grad_out[images], x[images], weight, **parameters), grad[images])


def assert_direct(actual, expected, value):
    """Bit for bit the direct sum, or, where 2x2 outputs of huge values did not overflow, close to it."""
    if value == "largest" and _winograd.outputs() == 2 and np.isfinite(actual).all():
        assert np.abs(actual - expected).max() <= 64 * np.finfo(actual.dtype).eps * np.abs(expected).max()
    else:
        assert_bits(actual, expected)


@pytest.mark.parametrize(("x", "weight", "parameters"), LAYERS)
@pytest.mark.parametrize("value", [*SPECIAL, "largest"])
def test_images_that_are_not_finite_are_those_of_the_direct_sum(rng, dtype, kernel, value, x, weight, parameters):
    """Overflow too: of the transforms alone, since the direct sums are finite for the weights that are chosen."""
    x, weight = random(rng, (4, *x[1:]), dtype), random(rng, (*weight[:2], *kernel), dtype) / (2 * x[1])
    parameters = fitted(parameters, kernel)
    weight *= np.minimum(1, 1 / np.abs(weight).sum((1, 2, 3), keepdims=True)) / 2
    out = forward(x, weight, **parameters)
    grad_out = random(rng, out.shape, dtype)
    grad = grad_x(grad_out, x, weight, **parameters)
    if value == "largest":
        x[2], grad_out[2] = (np.copysign(0.9 * np.finfo(dtype).max, a[2]) for a in (x, grad_out))
    else:
        (top, _), _ = pairs(parameters.get("padding", 0))
        row = min(top + x.shape[2], grad_out.shape[2]) - 1  # the last that reaches x
        x[2, -1, x.shape[2] // 2, -1] = grad_out[2, 0, row, grad_out.shape[3] // 2] = value
    for activation in (None, "relu"):
        expected = cyconv.conv2d(x, weight, activation=activation, algorithm="direct", **parameters)
        actual = forward(x, weight, activation=activation, **parameters)
        assert_direct(actual[2], expected[2], value)
        rest = [0, 1, 3]
        assert_bits(actual[rest], out[rest] if activation is None else np.maximum(out[rest], 0))
    with np.errstate(over="ignore"):
        expected = grad_x(grad_out, x, weight, "direct", **parameters)
    actual = grad_x(grad_out, x, weight, **parameters)
    assert_direct(actual[2], expected[2], value)
    assert_bits(actual[rest], grad[rest])


@pytest.mark.parametrize("value", SPECIAL)
def test_weights_that_are_not_finite_are_those_of_the_direct_sum(rng, dtype, kernel, value):
    x, weight = random(rng, (3, 4, 9, 21), dtype), random(rng, (6, 2, *kernel), dtype)
    weight[1, 1, 0, -1] = value
    parameters = {"padding": 1, "groups": 2}
    out = forward(x, weight, **parameters)
    assert_bits(out, cyconv.conv2d(x, weight, algorithm="direct", **parameters))
    assert_bits(grad_x(out, x, weight, **parameters), grad_x(out, x, weight, "direct", **parameters))


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [((3, 3), {"stride": (1, 2)}), ((1, 3), {"dilation": 2}), ((3, 2), {}), ((5, 5), {"stride": 2}), ((7, 7), {})],
)
def test_it_is_refused_where_it_does_not_exist(dtype, kernel, parameters):
    x, weight = np.zeros((1, 1, 9, 9), dtype), np.zeros((1, 1, *kernel), dtype)
    with pytest.raises(ValueError, match=f"winograd.*3x3, 5x5, 1x3 and 3x1 .*{kernel[0]}x{kernel[1]}"):
        forward(x, weight, **parameters)
    out = cyconv.conv2d(x, weight, **parameters)
    with pytest.raises(ValueError, match=r"winograd.*3x3"):
        grad_x(out, x, weight, **parameters)


@pytest.mark.parametrize(
    ("kernel", "C", "F", "size", "taken"),
    [
        ((3, 3), 64, 64, (56, 56), 4),
        ((3, 3), 128, 128, (28, 28), 4),
        ((3, 3), 64, 64, (3, 3), 0),
        ((3, 3), 3, 64, (56, 56), 0),
        ((3, 3), 256, 256, (10, 10), 2),
        ((5, 5), 64, 64, (28, 28), 2),
        ((3, 1), 64, 64, (56, 56), 4),
        ((1, 3), 128, 128, (1, 1024), 4),
        ((1, 3), 64, 64, (1, 9), 0),
    ],
)
def test_auto_takes_it_by_the_shape_of_one_image(rng, dtype, kernel, C, F, size, taken):
    x, weight, padding = (
        random(rng, (2, C, *size), dtype),
        random(rng, (F, C, *kernel), dtype),
        [k // 2 for k in kernel],
    )
    out = cyconv.conv2d(x, weight, padding=padding)
    expected = np.empty_like(out)
    if size == (10, 10):  # small maps fill more lanes of fewer
        taken = _winograd.outputs(kernel, F, C, size, dtype, True)
    if taken:
        assert not _winograd.convolve(x, weight, False, taken, None, expected, padding, 1, False)
    assert_bits(out, expected if taken else cyconv.conv2d(x, weight, padding=padding, algorithm="direct"))
    with cyconv.num_threads(1):
        assert_bits(cyconv.conv2d(x[:1], weight, padding=padding), out[:1])
    grad = grad_x(out, x, weight, "auto", padding=padding)
    backward = "winograd" if taken and C > 3 else "direct"
    assert_bits(grad, grad_x(out, x, weight, backward, padding=padding))


@pytest.mark.parametrize(("outputs", "least"), [(4, 32), (2, 8)])
def test_auto_needs_channels_enough_for_its_accuracy(monkeypatch, dtype, outputs, least):
    assert _winograd.outputs((3, 3), 512, 32, (112, 112), dtype, False) == 4
    monkeypatch.setattr(_winograd, "gain", lambda _kernel, m, *_: 3 if m == outputs else 2)
    choose = _winograd._outputs.__wrapped__
    assert choose(False, (3, 3), 512, least, 112, 112, 4) == outputs
    assert choose(False, (3, 3), 512, least - 1, 112, 112, 4) != outputs


@pytest.mark.parametrize("kind", ["normal", "relu", "scaled"])
@pytest.mark.parametrize(("form", "C"), [((k, m), C) for k, m in FORMS for C in (_winograd.FORMS[k][m][0], 128)])
def test_accuracy_that_auto_keeps(rng, dtype, kind, form, C):
    """At most five times the direct sum's rms error, and 64 eps * sum |x||w|: docs/accuracy.md."""
    kernel, outputs = form
    x, weight = rng.standard_normal((1, C, 30, 30)), random(rng, (16, C, *kernel), dtype)
    if kind == "relu":
        x = np.maximum(x, 0)
    if kind == "scaled":
        x *= 10 ** rng.uniform(-4, 4, (C, 1, 1))
    x, padding = x.astype(dtype), tuple(k // 2 for k in kernel)
    oracle = Oracle(x, weight, padding=padding)
    direct = cyconv.conv2d(x, weight, padding=padding, algorithm="direct")
    out = np.empty_like(direct)
    assert not _winograd.convolve(x, weight, False, outputs, None, out, padding, 1, False)
    assert_close(out, oracle.forward(), oracle.forward(magnitude=True), 64, dtype)
    if dtype == np.float32:  # in float64 SciPy's own errors are as large
        rms, rms_direct = (np.sqrt(np.mean((a - oracle.forward()) ** 2)) for a in (out, direct))
        assert rms < 5 * rms_direct
        assert form == ((3, 3), 2) or rms > rms_direct


def test_scratch_does_not_grow_with_the_batch_or_the_image(rng, kernel):
    weight = random(rng, (16, 16, *kernel), np.float32)

    def scratch(*shape):
        cyconv.release_scratch()
        with cyconv.num_threads(1):
            forward(random(rng, shape, np.float32), weight)
        return sum(map(len, _dispatch.scratch))

    few = scratch(2, 16, 100, 100)
    assert few < 2 << 20
    assert scratch(4, 16, 300, 900) < 1.5 * few


# The gradient of the weight.
WEIGHT_LAYERS = [*LAYERS, ((9, 5, 11, 6), (130, 5, 3, 3), {"padding": 1}), ((1, 300, 7, 8), (3, 300, 3, 3), {})]


def layer(rng, dtype, x, weight, **parameters):
    """Return random grad_out, x and weight."""
    x, weight = random(rng, x, dtype), random(rng, weight, dtype)
    return random(rng, cyconv.conv2d(x, weight, **parameters).shape, dtype), x, weight


def check_weight(rng, dtype, x, weight, **parameters):
    """Assert that the gradient of the weight agrees with SciPy: the taps of a kernel have rounding errors in common."""
    grad_out, x, weight = layer(rng, dtype, x, weight, **parameters)
    oracle = Oracle(x, weight, **parameters)
    magnitude = oracle.grad_weight(grad_out, magnitude=True).max((2, 3), keepdims=True) + 1
    assert_close(grad_weight(grad_out, x, weight, **parameters), oracle.grad_weight(grad_out), magnitude, 32, dtype)


@pytest.mark.parametrize("size", LANE_SIZES)
def test_grad_weight_at_sizes_around_the_tiles_and_lanes(rng, dtype, size):
    check_weight(rng, dtype, (2, 2, 5, size), (3, 2, 3, 3), padding=1)
    check_weight(rng, dtype, (2, 2, size, 6), (3, 2, 3, 3), padding=1)
    check_weight(rng, dtype, (1, size, 7, 7), (3, size, 3, 3), padding=1)
    check_weight(rng, dtype, (1, 2, 6, 9), (size, 2, 3, 3), padding=1)
    check_weight(rng, dtype, (size, 2, 6, 9), (3, 2, 3, 3), padding=1)
    check_weight(rng, dtype, (1, 2, size + 2, 4 * size + 3), (3, 2, 3, 3))


@pytest.mark.parametrize(("x", "weight", "parameters"), WEIGHT_LAYERS)
def test_grad_weight_of_layers(rng, dtype, x, weight, parameters):
    check_weight(rng, dtype, x, weight, **parameters)


@given(
    shape=st.tuples(*[st.integers(1, most) for most in (5, 3, 6, 5, 20, 30)]),
    padding=st.tuples(*[st.tuples(st.integers(0, 5), st.integers(0, 5))] * 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_grad_weight_of_any_shape_and_padding(dtype, shape, padding, seed):
    N, groups, C, F, H, W = shape
    H, W = (max(m, 3 - sum(p)) for m, p in zip((H, W), padding, strict=True))
    rng = np.random.default_rng(seed)
    check_weight(rng, dtype, (N, groups * C, H, W), (groups * F, C, 3, 3), padding=padding, groups=groups)


def test_grad_weight_agrees_with_the_reference(rng, dtype):
    parameters = {"padding": ((1, 2), (0, 3)), "groups": 2}
    arrays = layer(rng, dtype, (2, 4, 9, 8), (6, 2, 3, 3), **parameters)
    expected = _reference.conv2d_backward(*(a.astype("d") for a in arrays), **parameters)[1]
    assert_close(grad_weight(*arrays, **parameters), expected, 2 * 9 * 8, 4, dtype)


@pytest.mark.parametrize(("x", "weight", "parameters"), WEIGHT_LAYERS)
def test_grad_weight_is_the_adjoint_of_forward(rng, dtype, x, weight, parameters):
    grad_out, x, weight = layer(rng, dtype, x, weight, **parameters)
    magnitude = np.vdot(around(Oracle(x, weight, **parameters).forward(magnitude=True)), np.abs(grad_out))

    def backward(g):
        return grad_weight(g, x, weight, **parameters)

    assert_adjoint(lambda w: forward(x, w, **parameters), backward, weight, grad_out, magnitude, 8)


@pytest.mark.parametrize(
    ("x", "weight", "parameters"), [*WEIGHT_LAYERS, ((2, 40, 70, 70), (140, 40, 3, 3), {"padding": 1})]
)
def test_bits_of_grad_weight_do_not_depend_on_threads(rng, dtype, x, weight, parameters):
    arrays = layer(rng, dtype, (5, *x[1:]), weight, **parameters)
    with cyconv.num_threads(1):
        expected = grad_weight(*arrays, **parameters)
    for n in (2, 3, 6, 7):
        with cyconv.num_threads(n):
            assert_bits(grad_weight(*arrays, **parameters), expected)


@pytest.mark.parametrize(("x", "weight", "parameters"), WEIGHT_LAYERS)
@pytest.mark.parametrize("value", [*SPECIAL, "largest"])
@pytest.mark.parametrize("where", [0, 1])
def test_grad_weight_that_is_not_finite_is_the_direct_sum(rng, dtype, value, where, x, weight, parameters):
    """Where nothing but the transforms overflows, too."""
    arrays = layer(rng, dtype, x, weight, **parameters)
    if value == "largest":
        arrays[where][...] = np.copysign(0.9 * np.finfo(dtype).max, arrays[where])
        arrays[1 - where][...] /= 2 * arrays[0].size
    else:
        arrays[where][-1, 0, -1, arrays[where].shape[3] // 2] = value
    with np.errstate(over="ignore"):
        expected = grad_weight(*arrays, "direct", **parameters)
    assert_bits(grad_weight(*arrays, **parameters), expected)


@pytest.mark.parametrize(
    ("x", "F", "taken"),
    [
        ((1, 64, 56, 56), 64, True),
        ((1, 128, 28, 28), 128, True),
        ((8, 64, 14, 14), 64, True),
        ((16, 128, 7, 7), 128, True),
        ((8, 31, 28, 28), 64, False),
        ((8, 64, 28, 28), 31, False),
        ((32, 64, 6, 28), 64, False),
        ((1, 256, 7, 7), 256, False),
    ],
)
def test_auto_takes_it_for_grad_weight_by_the_shapes(rng, dtype, x, F, taken):
    arrays = layer(rng, dtype, x, (F, x[1], 3, 3), padding=1)
    grad = grad_weight(*arrays, "auto", padding=1)
    assert_bits(grad, grad_weight(*arrays, "winograd" if taken else "direct", padding=1))
    assert np.array_equal(grad, grad_weight(*arrays, "direct", padding=1)) != taken


@pytest.mark.parametrize("kind", ["normal", "relu", "scaled"])
@pytest.mark.parametrize("shape", [(1, 7, 7), (32, 7, 7), (1, 56, 56), (32, 14, 14)])
def test_accuracy_of_grad_weight_that_auto_keeps(rng, dtype, kind, shape):
    """At most five times the direct sum's rms error, and 64 eps * sum |x||grad_out|: docs/accuracy.md."""
    N, *size = shape
    x, grad_out = rng.standard_normal((N, 16, *size)), random(rng, (N, 16, *size), dtype)
    if kind == "relu":
        x = np.maximum(x, 0)
    if kind == "scaled":
        x *= 10 ** rng.uniform(-4, 4, (16, 1, 1))
    arrays = grad_out, x.astype(dtype), np.zeros((16, 16, 3, 3), dtype)
    oracle = Oracle(*arrays[1:], padding=1)
    expected, magnitude = oracle.grad_weight(grad_out), oracle.grad_weight(grad_out, magnitude=True)
    grad = grad_weight(*arrays, padding=1)
    assert_close(grad, expected, magnitude, 64, dtype)
    if dtype == np.float32:  # in float64 SciPy's own errors are as large
        direct = grad_weight(*arrays, "direct", padding=1)
        rms, rms_direct = (np.sqrt(np.mean(((a - expected) / magnitude) ** 2)) for a in (grad, direct))
        assert rms < 5 * rms_direct


def test_scratch_of_grad_weight_does_not_grow_with_the_batch_or_the_image(rng):
    def scratch(*shape):
        arrays = layer(rng, np.float32, shape, (16, 16, 3, 3))
        cyconv.release_scratch()
        with cyconv.num_threads(1):
            grad_weight(*arrays)
        return sum(map(len, _dispatch.scratch))

    few = scratch(2, 16, 100, 100)
    assert few < 2 << 20
    assert scratch(4, 16, 300, 900) < 1.5 * few
