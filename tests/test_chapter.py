"""Every row of the textbook chapter, in both dtypes, and the tutorial that shows them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

import cyconv
from cyconv import nn

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.py"


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    return request.param


def arange(n, dtype):
    return np.arange(n * n, dtype=dtype).reshape(1, n, n)


def test_5_1_parameters_do_not_depend_on_the_image(dtype):
    layer = nn.Conv2D(16, 5)
    for size in (8, 32):
        layer(np.ones((1, size, size), dtype))
        assert sum(p.size for p in layer.parameters().values()) == 16 * 25 + 16
    dense = nn.Dense(10, in_features=32 * 32)
    assert sum(p.size for p in dense.parameters().values()) == 10 * 32 * 32 + 10


def test_5_2_1_cross_correlation(dtype):
    y = cyconv.conv2d(arange(3, dtype), arange(2, dtype)[None])
    np.testing.assert_array_equal(y, [[[19, 25], [37, 43]]])
    assert cyconv.conv2d(np.ones((1, 7, 9), dtype), np.ones((1, 1, 3, 2), dtype)).shape == (1, 7 - 3 + 1, 9 - 2 + 1)


def test_5_2_2_layer_is_cross_correlation_plus_bias(dtype):
    layer = nn.Conv2D(1, 2, in_channels=1, dtype=dtype)
    layer.parameters()["weight"][...] = arange(2, dtype)
    layer.parameters()["bias"][...] = 10
    np.testing.assert_array_equal(layer(arange(3, dtype)), [[[29, 35], [47, 53]]])


def edge_image(dtype):
    image = np.ones((1, 6, 8), dtype)
    image[:, :, 2:6] = 0
    return image


def test_5_2_3_edges(dtype):
    image, kernel = edge_image(dtype), np.array([[[[1, -1]]]], dtype)
    np.testing.assert_array_equal(cyconv.conv2d(image, kernel)[0], [[0, 1, 0, 0, 0, -1, 0]] * 6)
    np.testing.assert_array_equal(cyconv.conv2d(image.transpose(0, 2, 1), kernel), np.zeros((1, 8, 5)))


@pytest.mark.parametrize("seed", range(5))
def test_5_2_4_the_kernel_is_learned(dtype, seed):
    image = edge_image(dtype)
    edges = cyconv.conv2d(image, np.array([[[[1, -1]]]], dtype))
    layer = nn.Conv2D(1, (1, 2), bias=False, seed=seed)
    losses, distances = [], []
    for _ in range(10):
        y = layer(image)
        losses.append(np.sum((y - edges) ** 2))
        layer.backward(2 * (y - edges))
        layer.weight -= 3e-2 * layer.gradients()["weight"]
        distances.append(np.abs(layer.weight.ravel() - [1, -1]).max())
    assert (np.diff(losses) < 0).all()
    assert (np.diff(distances) < 0).all()
    assert distances[-1] < 0.2


def test_5_2_5_cross_correlation_and_convolution(dtype):
    image, kernel = arange(3, dtype), arange(2, dtype)
    correlation, convolution = (cyconv.conv2d(image, k[None])[0] for k in (kernel, kernel[:, ::-1, ::-1]))
    np.testing.assert_array_equal(correlation, signal.correlate2d(image[0], kernel[0], mode="valid"))
    np.testing.assert_array_equal(convolution, signal.convolve2d(image[0], kernel[0], mode="valid"))
    assert not np.array_equal(correlation, convolution)


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), ((5, 3), (2, 1)), (4, "same_lower"), (2, "same_lower")])
def test_5_3_1_padding_keeps_the_size(dtype, kernel, padding):
    assert nn.Conv2D(1, kernel, padding=padding)(np.ones((1, 8, 8), dtype)).shape == (1, 8, 8)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("p", range(5))
def test_5_3_1_output_size(dtype, k, p):
    y = cyconv.conv2d(np.ones((1, 8, 8), dtype), np.ones((1, 1, k, k), dtype), padding=((p, 0), (p - p // 2, p // 2)))
    assert y.shape == (1, 8 - k + p + 1, 8 - k + p + 1)


def test_5_3_1_same_lower_puts_the_odd_row_on_top(dtype):
    x = np.random.default_rng(0).random((1, 8, 8)).astype(dtype)
    kernel = np.ones((1, 1, 4, 4), dtype)
    expected = cyconv.conv2d(np.pad(x, ((0, 0), (2, 1), (2, 1))), kernel)
    np.testing.assert_array_equal(cyconv.conv2d(x, kernel, padding="same_lower"), expected)


@pytest.mark.parametrize(("kernel", "padding", "stride", "size"), [(3, 1, 2, (4, 4)), ((3, 5), (0, 1), (3, 4), (2, 2))])
def test_5_3_2_stride(dtype, kernel, padding, stride, size):
    assert nn.Conv2D(1, kernel, padding=padding, stride=stride)(np.ones((1, 8, 8), dtype)).shape == (1, *size)


def test_5_4_channels(dtype):
    x = np.concatenate([arange(3, dtype), 1 + arange(3, dtype)])
    k = np.stack([arange(2, dtype), 1 + arange(2, dtype)], axis=1)
    np.testing.assert_array_equal(cyconv.conv2d(x, k), [[[56, 72], [104, 120]]])
    k = np.concatenate([k, k + 1, k + 2])
    assert k.shape == (3, 2, 2, 2)
    expected = [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]]
    np.testing.assert_array_equal(cyconv.conv2d(x, k), expected)


def test_5_4_3_1x1_convolution_is_a_matrix_product(dtype):
    rng = np.random.default_rng(0)
    x, k = rng.random((3, 3, 3)).astype(dtype), rng.random((2, 3, 1, 1)).astype(dtype)
    product = (k[:, :, 0, 0] @ x.reshape(3, 9)).reshape(2, 3, 3)
    assert np.abs(cyconv.conv2d(x, k) - product).max() < 1e-6


def test_5_5_1_pooling(dtype):
    x = arange(3, dtype)
    np.testing.assert_array_equal(cyconv.max_pool2d(x, 2, stride=1), [[[4, 5], [7, 8]]])
    np.testing.assert_array_equal(cyconv.avg_pool2d(x, 2, stride=1), [[[2, 3], [5, 6]]])


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.MaxPool2D(3), [[10]]),
        (nn.MaxPool2D(3, padding=1, stride=2), [[5, 7], [13, 15]]),
        (nn.MaxPool2D((2, 3), padding=(1, 2), stride=(2, 3)), [[0, 3], [8, 11], [12, 15]]),
    ],
)
def test_5_5_2_padding_and_stride_of_pooling(dtype, pool, expected):
    np.testing.assert_array_equal(pool(arange(4, dtype)), [expected])


def test_5_5_3_channels_are_pooled_on_their_own(dtype):
    x = np.concatenate([arange(4, dtype), arange(4, dtype) + 1])
    y = nn.MaxPool2D(3, padding=1, stride=2)(x)
    np.testing.assert_array_equal(y, [[[5, 7], [13, 15]], [[6, 8], [14, 16]]])


def test_tutorial_runs_and_shows_every_section():
    run = subprocess.run([sys.executable, "-W", "error", str(TUTORIAL)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    sections = [line.split()[0] for line in run.stdout.splitlines() if line.startswith("5.")]
    rows = {"1": "", "2": ".1 .2 .3 .4 .5", "3": ".1 .2", "4": ".1 .2 .3", "5": ".1 .2 .3"}
    assert sections == [f"5.{n}{m}" for n, rest in rows.items() for m in rest.split(" ")]
    for shown in ("1,000,001,000 parameters", " 416 parameters", "[[19., 25.],\n [37., 43.]]", "all zeros"):
        assert shown in run.stdout
    assert "both are what scipy.signal computes" in run.stdout
