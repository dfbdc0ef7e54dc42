"""conv2d against SciPy, for each instruction set and dtype."""

import numpy as np
import pytest
from helpers import LANE_SIZES, LAYERS, Oracle, assert_bits, assert_close, check_forward, random
from hypothesis import example, given
from strategies import convolutions

import cyconv
from cyconv import _reference

pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize("size", LANE_SIZES)
def test_sizes_around_the_lanes(rng, dtype, size):
    def check(C, F, H, W, K=3, **parameters):
        x, weight = random(rng, (2, C, H, W), dtype), random(rng, (F, C // parameters.get("groups", 1), K, K), dtype)
        check_forward(x, weight, random(rng, F, dtype), **parameters)

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
    check_forward(random(rng, x, dtype), random(rng, weight, dtype), random(rng, weight[0], dtype), c=8, **parameters)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(
    ("size", "K"), [((7, 7), 1), ((7, 7), 3), ((14, 14), 3), ((6, 11), 3), ((5, 7), 3), ((3, 17), 5)]
)
def test_last_pixels_of_small_maps(rng, dtype, size, K, activation):
    """A few pixels past the last whole vector, long sums in one block and in more, rows that tiles do not divide."""
    for N, C, F, groups in ((1, 64, 9, 1), (2, 300, 31, 2)):
        x, weight = random(rng, (N, C, *size), dtype), random(rng, (F // groups * groups, C // groups, K, K), dtype)
        bias = random(rng, len(weight), dtype)
        parameters = {"padding": K // 2, "groups": groups}
        oracle = Oracle(x, weight, **parameters)
        out = cyconv.conv2d(x, weight, bias, algorithm="direct", **parameters)
        assert_close(out, oracle.forward(bias), oracle.forward(bias, magnitude=True), dtype=dtype)
        with cyconv.num_threads(1):
            one = cyconv.conv2d(x, weight, bias, algorithm="direct", activation=activation, **parameters)
        with cyconv.num_threads(5):
            assert_bits(cyconv.conv2d(x, weight, bias, algorithm="direct", activation=activation, **parameters), one)
        assert_bits(
            cyconv.conv2d(x[:1], weight, bias, algorithm="direct", activation=activation, **parameters), one[:1]
        )


@given(case=convolutions())
@example(case=((1, 1, 1, 1), (1, 1, 1, 1), {}, 0))
@example(case=((1, 1, 1, 1), (1, 1, 2, 2), {"padding": ((5, 0), (0, 9)), "stride": 4}, 0))
@example(case=((3, 4, 5, 6), (6, 2, 3, 2), {"groups": 2, "padding": "same_lower", "stride": (3, 2), "dilation": 2}, 0))
def test_any_parameters(dtype, case):
    x, weight, parameters, seed = case
    rng = np.random.default_rng(seed)
    x, weight = random(rng, x, dtype), random(rng, weight, dtype)
    check_forward(x, weight, random(rng, len(weight), dtype), **parameters)


def test_agrees_with_the_reference(rng, dtype):
    x, weight, bias = random(rng, (2, 6, 9, 8), dtype), random(rng, (4, 3, 3, 2), dtype), random(rng, 4, dtype)
    parameters = {"stride": (2, 1), "padding": ((1, 2), (3, 0)), "dilation": (1, 2), "groups": 2}
    expected = _reference.conv2d(x.astype("d"), weight.astype("d"), bias.astype("d"), **parameters)
    assert_close(cyconv.conv2d(x, weight, bias, **parameters), expected, 30, dtype=dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("K", [1, 3])
def test_relu_is_the_maximum_of_the_result_and_zero(rng, dtype, bias, K):
    x, weight = random(rng, (2, 3, 9, 21), dtype), random(rng, (5, 3, K, K), dtype)
    bias = random(rng, 5, dtype) if bias else None
    out = cyconv.conv2d(x, weight, bias, activation="relu")
    assert (out == np.maximum(cyconv.conv2d(x, weight, bias), 0)).all()


def test_images_without_a_batch_axis(rng, dtype):
    x, weight = random(rng, (3, 9, 8), dtype), random(rng, (4, 3, 3, 3), dtype)
    out = cyconv.conv2d(x, weight, padding=1)
    assert out.shape == (4, 9, 8)
    assert_bits(out, cyconv.conv2d(x[None], weight, padding=1)[0])


@pytest.mark.parametrize(("mode", "numpy_mode"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
def test_padding_mode_is_that_of_numpy_pad(rng, dtype, mode, numpy_mode):
    x, weight = random(rng, (2, 3, 6, 7), dtype), random(rng, (4, 3, 3, 3), dtype)
    for padding, widths in ((2, ((2, 2), (2, 2))), (((0, 3), (4, 1)), ((0, 3), (4, 1))), ("same", ((1, 1), (1, 1)))):
        padded = np.pad(x, ((0, 0), (0, 0), *widths), mode=numpy_mode)
        out = cyconv.conv2d(x, weight, padding=padding, padding_mode=mode)
        assert_bits(out, cyconv.conv2d(padded, weight))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [2, 7, 14, 17, 23, 28])
def test_rows_that_share_a_vector_do_not_see_each_other(rng, dtype, width, stride):
    """Vectors of narrow maps cross from row to row: what is not finite reaches only the pixels whose window has it."""
    x, weight = random(rng, (2, 3, 6, width), dtype), random(rng, (9, 3, 3, 5), dtype)
    parameters = {"stride": stride, "padding": ((1, 1), (2, 3)), "algorithm": "direct"}
    check_forward(x, weight, stride=stride, padding=parameters["padding"])
    finite = cyconv.conv2d(x, weight, **parameters)
    windows = _reference.Windows((6, width), (3, 5), stride, parameters["padding"], 1)
    for column, value in ((0, np.nan), (width - 1, np.inf)):
        y = x.copy()
        y[:, :, 2, column] = value
        touched = np.zeros(finite.shape[2:], bool)
        for oy, ox in windows.pixels():
            touched[oy, ox] = any(tap[2:] == (2, column) for tap in windows.taps(oy, ox))
        out = cyconv.conv2d(y, weight, **parameters)
        assert_bits(out[:, :, ~touched], finite[:, :, ~touched])
        assert not np.isfinite(out[:, :, touched]).any()


def test_padding_forms_mean_the_same(rng, dtype):
    x, weight = random(rng, (1, 2, 8, 8), dtype), random(rng, (3, 2, 3, 3), dtype)
    expected = cyconv.conv2d(x, weight, padding=1)
    for padding in ((1, 1), [1, 1], ((1, 1), (1, 1)), [[1, 1], (1, 1)], "same", "same_lower", np.int64(1)):
        assert_bits(cyconv.conv2d(x, weight, padding=padding), expected)
    assert_bits(cyconv.conv2d(x, weight, padding="valid"), cyconv.conv2d(x, weight))


def test_same_puts_an_odd_cell_at_the_end_and_same_lower_at_the_start(dtype):
    x, weight = np.arange(1, 5, dtype=dtype).reshape(1, 1, 1, 4), np.ones((1, 1, 1, 2), dtype)
    assert cyconv.conv2d(x, weight, padding="same").tolist() == [[[[3, 5, 7, 4]]]]
    assert cyconv.conv2d(x, weight, padding="same_lower").tolist() == [[[[1, 3, 5, 7]]]]


def test_algorithm_direct_is_the_plain_sum(rng, dtype):
    x, weight = random(rng, (1, 8, 16, 16), dtype), random(rng, (8, 8, 3, 3), dtype)
    check_forward(x, weight, padding=1)
    assert cyconv.conv2d(x, weight, algorithm="direct").shape == (1, 8, 14, 14)
