"""max_pool2d and avg_pool2d against the plain reference, torch where it is installed, and the chapter's examples."""

import numpy as np
import pytest
from helpers import LANE_SIZES, assert_bits, assert_close, random
from hypothesis import example, given
from pool_helpers import AROUND_THE_VECTORS, AVERAGES, WINDOWS, poolings, split, taken_by_torch, tied

import cyconv
from cyconv import _reference_pool as reference

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 9, 33), (1, 1, 17, 66)]


def check_max(x, kernel, **parameters):
    out, indices = reference.max_pool(x, kernel, **parameters)
    assert_bits(cyconv.max_pool2d(x, kernel, **parameters), out)
    with_indices, actual = cyconv.max_pool2d(x, kernel, return_indices=True, **parameters)
    assert_bits(with_indices, out)
    assert_bits(actual, indices)


def check_avg(x, kernel, **parameters):
    expected = reference.avg_pool(x.astype(np.float64), kernel, **parameters)
    magnitude = reference.avg_pool(np.abs(x).astype(np.float64), kernel, **parameters)
    actual = cyconv.avg_pool2d(x, kernel, **parameters)
    counted = ~np.isnan(expected)  # 0 / 0 elsewhere
    assert np.isnan(actual[~counted]).all()
    assert_close(np.where(counted, actual, 0), np.where(counted, expected, 0), np.where(counted, magnitude, 0))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("kernel", "parameters"), WINDOWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_max_pool_agrees_with_the_reference(rng, dtype, shape, kernel, parameters):
    x = random(rng, shape, dtype)
    try:
        reference.max_pool(x, kernel, **parameters)
    except ValueError:  # a window larger than this image
        with pytest.raises(ValueError, match="output would have no"):
            cyconv.max_pool2d(x, kernel, **parameters)
        return
    check_max(x, kernel, **parameters)
    check_max(tied(rng, shape, dtype), kernel, **parameters)
    check_avg(x, kernel, **parameters)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("width", [*LANE_SIZES, 32, 34, 63, 64, 65, 67])
@pytest.mark.parametrize(("kernel", "parameters"), AROUND_THE_VECTORS)
def test_widths_around_the_vectors(rng, dtype, width, kernel, parameters):
    for height in (2, 5):
        x = random(rng, (1, 2, height, width), dtype)
        if width < (kernel if isinstance(kernel, int) else kernel[1]) and "padding" not in parameters:
            continue
        check_max(x, kernel, **parameters)
        check_avg(x, kernel, **parameters)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("kernel", "parameters"), WINDOWS)
def test_divisors_of_averages(rng, dtype, kernel, parameters, average):
    check_avg(random(rng, (2, 2, 11, 20), dtype), kernel, **parameters, **average)


@given(poolings())
@example(((1, 1, 4, 4), (2, 3), {"stride": (2, 3), "padding": (1, 2)}, {}, 0))
@example(((1, 1, 1, 1), (1, 1), {"padding": ((3, 0), (0, 4)), "stride": 3}, {"count_include_pad": False}, 0))
@example(((1, 1, 5, 9), (3, 3), {"padding": ((1, 0), (1, 0)), "dilation": 2}, {}, 0))
def test_any_window(case):
    shape, kernel, parameters, average, seed = case
    rng = np.random.default_rng(seed)
    for dtype in (np.float32, np.float64):
        check_max(random(rng, shape, dtype), kernel, **parameters)
        check_max(tied(rng, shape, dtype), kernel, **parameters)
        check_avg(random(rng, shape, dtype), kernel, **parameters, **average)


def test_the_chapter():
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    assert cyconv.max_pool2d(x, 2, stride=1).tolist() == [[[[4, 5], [7, 8]]]]
    assert cyconv.avg_pool2d(x, 2, stride=1).tolist() == [[[[2, 3], [5, 6]]]]
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    assert cyconv.max_pool2d(x, 3).tolist() == [[[[10]]]]
    assert cyconv.max_pool2d(x, 3, padding=1, stride=2).tolist() == [[[[5, 7], [13, 15]]]]
    assert cyconv.max_pool2d(x, (2, 3), padding=(1, 2), stride=(2, 3)).tolist() == [[[[0, 3], [8, 11], [12, 15]]]]
    x = np.concatenate([x, x + 1], axis=1)
    expected = [[[[5, 7], [13, 15]], [[6, 8], [14, 16]]]]
    assert cyconv.max_pool2d(x, 3, padding=1, stride=2).tolist() == expected


@pytest.mark.parametrize(("kernel", "parameters"), [w for w in WINDOWS if taken_by_torch(*w)])
def test_torch_agrees(rng, dtype, kernel, parameters):
    torch = pytest.importorskip("torch")
    x = random(rng, (2, 3, 14, 23), dtype)
    windows, dilation = split(parameters)
    expected, indices = torch.nn.functional.max_pool2d(
        torch.from_numpy(x), kernel, dilation=dilation, return_indices=True, **windows
    )
    actual, places = cyconv.max_pool2d(x, kernel, return_indices=True, **parameters)
    assert_bits(actual, expected.numpy())
    assert_bits(places, indices.numpy())
    if dilation == 1:
        for average in AVERAGES:
            expected = torch.nn.functional.avg_pool2d(torch.from_numpy(x), kernel, **windows, **average).numpy()
            actual = cyconv.avg_pool2d(x, kernel, **parameters, **average)
            magnitude = torch.nn.functional.avg_pool2d(torch.from_numpy(np.abs(x)), kernel, **windows, **average)
            assert_close(actual, expected, magnitude.numpy(), c=16)


def test_the_average_of_equal_values_is_that_value(dtype):
    for k in range(1, 60):
        out = cyconv.avg_pool2d(np.full((1, 60, 3), 3, dtype), (k, 1), stride=1)
        assert (out == 3).all(), k


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    ("kernel", "stride"), [((1, 500), 1), ((300, 3), 2), ((64, 64), 16), ((200, 333), 7), ((600, 700), 1)]
)
def test_sums_over_large_windows_restart(rng, dtype, kernel, stride):
    """At most so many additions follow each other that the error stays below this bound, for values of one sign too."""
    x = (rng.random((1, 2, 600, 700)) + 1).astype(dtype)
    out = cyconv.avg_pool2d(x, kernel, stride=stride)
    sums = np.pad(x.astype(np.longdouble), ((0, 0), (0, 0), (1, 0), (1, 0))).cumsum(2).cumsum(3)
    (kh, kw), s = kernel, stride
    wide = sums[:, :, kh:, :] - sums[:, :, :-kh, :]
    expected = ((wide[..., kw:] - wide[..., :-kw]) / (kh * kw))[:, :, ::s, ::s]
    steps = kh * kw / 256 + 70 if kernel == (600, 700) else kh / 16 + 17 + 2 * np.log2(kw) + s
    assert (np.abs(out - expected) <= steps * np.finfo(dtype).eps / 2 * expected).all()
