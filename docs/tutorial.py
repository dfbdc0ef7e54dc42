"""Convolutional networks from the ground up, with cyconv: run ``python docs/tutorial.py``.

It follows the sections of "Dive into Deep Learning", chapter 5 (https://d2l.ai). Every claim is an assertion, so the
script ends only if all the numbers are right. Arrays are (batch, channels, height, width), or without the batch.
"""

from itertools import pairwise

import numpy as np

import cyconv
from cyconv import nn

f = np.float32


def image(rows):
    """One image with one channel, (1, H, W)."""
    return np.array(rows, f)[None]


def kernel(rows):
    """One kernel for one channel, (1, 1, KH, KW)."""
    return np.array(rows, f)[None, None]


def show(text, array=None):
    print(text if array is None else f"{text}\n{np.array2string(np.asarray(array), separator=', ')}")


def heading(text):
    print(f"\n{text}\n{'-' * len(text)}")


heading("5.1 From dense layers to convolutions")
# A dense layer joins every pixel of a 1000x1000 image with every unit. A convolution looks at a small window (locality)
# and uses the same weights everywhere (translation invariance): its parameters do not depend on the size of the image.
pixels, units = 1000 * 1000, 1000
dense_parameters = pixels * units + units
conv = nn.Conv2D(16, 5, in_channels=1)
conv_parameters = sum(p.size for p in conv.parameters().values())
show(f"dense layer, {units} units on 1 megapixel: {dense_parameters:,} parameters")
show(f"convolution, 16 kernels of 5x5:            {conv_parameters:,} parameters")
small = nn.Dense(10, in_features=64)  # the same count on an image of 8x8, by building the layer
assert sum(p.size for p in small.parameters().values()) == 64 * 10 + 10
assert dense_parameters == 1_000_001_000
assert conv_parameters == 16 * 5 * 5 + 16 == 416

heading("5.2.1 Cross-correlation")
# The kernel slides over the image; each output is the sum of the products in its window.
x, k = image(np.arange(9).reshape(3, 3)), kernel([[0, 1], [2, 3]])
y = cyconv.conv2d(x, k)
show("cross-correlation of arange(9) with [[0, 1], [2, 3]]:", y[0])
np.testing.assert_array_equal(y[0], [[19, 25], [37, 43]])
assert y.shape[1:] == (3 - 2 + 1, 3 - 2 + 1)  # (H - h + 1, W - w + 1)

heading("5.2.2 A convolutional layer")
# The layer owns the kernel and a bias, which training changes.
layer = nn.Conv2D(1, 2)
y = layer(x)
show("parameters: " + ", ".join(f"{name} {p.shape}" for name, p in layer.parameters().items()))
layer.bias[...] = 10
np.testing.assert_allclose(layer(x), cyconv.conv2d(x, layer.weight) + 10, rtol=1e-6)

heading("5.2.3 Edges")
x = np.ones((1, 6, 8), f)
x[:, :, 2:6] = 0
edge = kernel([[1, -1]])
edges = cyconv.conv2d(x, edge)
show("image, white with four black columns:", x[0].astype(int))
show("correlated with [1, -1]: 1 from white to black, -1 from black to white:", edges[0].astype(int))
np.testing.assert_array_equal(edges[0], np.tile([0, 1, 0, 0, 0, -1, 0], (6, 1)))
assert not cyconv.conv2d(x.transpose(0, 2, 1), edge).any()
show("the transposed image has horizontal edges only, which this kernel does not see: all zeros")

heading("5.2.4 Learning the kernel")
# From the image and its edges alone: squared loss, gradient descent with rate 3e-2.
layer, loss = nn.Conv2D(1, (1, 2), bias=False), nn.MSE("sum")
sgd, losses = nn.SGD(layer, rate=3e-2), []
for epoch in range(10):
    losses.append(loss(layer(x), edges))
    layer.backward(loss.backward())
    sgd.step()
    show(f"epoch {epoch + 1:2}, loss {losses[-1]:.3f}")
show(f"learned kernel: {layer.weight.ravel().round(3)}")
assert all(later < earlier for earlier, later in pairwise(losses))
np.testing.assert_allclose(layer.weight.ravel(), [1, -1], rtol=0, atol=0.05)

heading("5.2.5 Cross-correlation and convolution")
# True convolution flips the kernel first. A learned kernel does not care: it would be learned flipped.
x, k = image(np.arange(9).reshape(3, 3)), kernel([[0, 1], [2, 3]])
correlation, convolution = cyconv.conv2d(x, k), cyconv.conv2d(x, k[:, :, ::-1, ::-1])
show("cross-correlation:", correlation[0])
show("convolution, with the kernel flipped:", convolution[0])
np.testing.assert_array_equal(convolution[0], [[5, 11], [23, 29]])
try:
    from scipy import signal
except ImportError:
    show("(SciPy is not installed: not compared with it)")
else:
    np.testing.assert_array_equal(correlation[0], signal.correlate2d(x[0], k[0, 0], mode="valid"))
    np.testing.assert_array_equal(convolution[0], signal.convolve2d(x[0], k[0, 0], mode="valid"))
    show("both are what scipy.signal computes")

heading("5.3.1 Padding")
# p rows of zeros in total give n - k + p + 1 rows of output.
x = np.random.default_rng(0).random((1, 8, 8)).astype(f)
for size, padding in (((3, 3), 1), ((5, 3), (2, 1))):
    y = nn.Conv2D(1, size, padding=padding)(x)
    show(f"8x8, kernel {size}, padding {padding}: {y.shape[1]}x{y.shape[2]}")
    assert y.shape == (1, 8, 8)
# An even kernel needs an odd number of rows to keep the size: "same_lower" puts ceil(p/2) on top, floor(p/2) below.
even = np.ones((1, 1, 4, 4), f)
same_lower = cyconv.conv2d(x, even, padding="same_lower")
np.testing.assert_array_equal(same_lower, cyconv.conv2d(x, even, padding=((2, 1), (2, 1))))
assert same_lower.shape == (1, 8, 8)
show('8x8, kernel (4, 4), padding "same_lower" = 2 rows on top, 1 at the bottom: 8x8')

heading("5.3.2 Stride")
# floor((n - k + p + s) / s) rows of output.
for size, padding, stride, expected in ((3, 1, 2, (4, 4)), ((3, 5), (0, 1), (3, 4), (2, 2))):
    y = nn.Conv2D(1, size, padding=padding, stride=stride)(x)
    show(f"8x8, kernel {size}, padding {padding}, stride {stride}: {y.shape[1]}x{y.shape[2]}")
    assert y.shape[1:] == expected

heading("5.4.1 Several input channels")
# Each channel has its own kernel; the results are added.
x = np.stack([np.arange(9).reshape(3, 3), 1 + np.arange(9).reshape(3, 3)]).astype(f)
k = np.array([[[[0, 1], [2, 3]], [[1, 2], [3, 4]]]], f)
y = cyconv.conv2d(x, k)
show("two input channels, one output channel:", y[0])
np.testing.assert_array_equal(y, [[[56, 72], [104, 120]]])

heading("5.4.2 Several output channels")
k = np.concatenate([k, k + 1, k + 2])
assert k.shape == (3, 2, 2, 2)
y = cyconv.conv2d(x, k)
show("kernels of shape (3, 2, 2, 2), three output channels:", y)
np.testing.assert_array_equal(y, [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]])

heading("5.4.3 1x1 convolution")
# It mixes the channels of each pixel: a matrix product.
rng = np.random.default_rng(0)
x, k = rng.random((3, 3, 3)).astype(f), rng.random((2, 3, 1, 1)).astype(f)
difference = np.abs(cyconv.conv2d(x, k) - (k[:, :, 0, 0] @ x.reshape(3, 9)).reshape(2, 3, 3)).max()
show(f"1x1 convolution against the matrix product: difference {'below 1e-6' if difference < 1e-6 else difference}")
assert difference < 1e-6

heading("5.5.1 Maximum and average pooling")
x = image(np.arange(9).reshape(3, 3))
maximum, average = cyconv.max_pool2d(x, 2, stride=1), cyconv.avg_pool2d(x, 2, stride=1)
show("maximum over 2x2:", maximum[0])
show("average over 2x2:", average[0])
np.testing.assert_array_equal(maximum[0], [[4, 5], [7, 8]])
np.testing.assert_array_equal(average[0], [[2, 3], [5, 6]])

heading("5.5.2 Padding and stride of pooling")
x = image(np.arange(16).reshape(4, 4))
for pool, text, expected in (
    (nn.MaxPool2D(3), "MaxPool2D(3): the stride is the window by default", [[10]]),
    (nn.MaxPool2D(3, padding=1, stride=2), "MaxPool2D(3, padding=1, stride=2)", [[5, 7], [13, 15]]),
    (
        nn.MaxPool2D((2, 3), padding=(1, 2), stride=(2, 3)),
        "MaxPool2D((2, 3), padding=(1, 2), stride=(2, 3))",
        [[0, 3], [8, 11], [12, 15]],
    ),
):
    y = pool(x)
    show(text, y[0])
    np.testing.assert_array_equal(y[0], expected)

heading("5.5.3 Several channels")
# Pooling treats each channel on its own.
x = np.concatenate([x, x + 1])
y = nn.MaxPool2D(3, padding=1, stride=2)(x)
show("channels X and X + 1:", y)
np.testing.assert_array_equal(y, [[[5, 7], [13, 15]], [[6, 8], [14, 16]]])

show("\nAll numbers are those of the chapter. Next: python -m cyconv demo")
