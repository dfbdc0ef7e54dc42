"""The layers that are raced, their arrays, and what the results must be."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

PASSES = ("forward", "grad_x", "grad_weight")


@dataclass(frozen=True)
class Conv:
    """A convolutional layer; `group` "peers" is the list that the thresholds are about."""

    group: str
    x: tuple[int, int, int, int]  # N C H W
    channels: int  # F
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1

    @property
    def name(self):
        kh, kw = self.kernel
        kernel = f"{kh}" if kh == kw else f"{kh}x{kw}"
        text = f"{','.join(map(str, self.x))} -> {self.channels}, {kernel}/{self.stride}"
        if self.groups > 1:
            text += ", depthwise" if self.groups == self.x[1] else f", {self.groups} groups"
        return text + (f", dilation {self.dilation}" if self.dilation > 1 else "")

    @property
    def weight(self):
        return (self.channels, self.x[1] // self.groups, *self.kernel)

    @cached_property
    def out(self):
        size = (
            (m + 2 * p - self.dilation * (k - 1) - 1) // self.stride + 1
            for m, k, p in zip(self.x[2:], self.kernel, self.padding, strict=True)
        )
        return (self.x[0], self.channels, *size)

    @property
    def flops(self):
        """Of each pass: a multiplication and an addition for each tap of each output, those in the padding too."""
        return 2 * int(np.prod(self.out)) * int(np.prod(self.weight[1:]))

    def bytes(self, itemsize):
        """Input, weight and output, or two of them and the gradient of the third: the same for each pass."""
        return itemsize * sum(int(np.prod(shape)) for shape in (self.x, self.weight, self.out))

    @property
    def parameters(self):
        """For cyconv: what is not its default."""
        given = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return {name: value for name, value in given.items() if value not in (1, (0, 0))}

    def is_wide(self):
        """Dense 3x3 and 1x1 layers with at least 64 channels on maps of at least 14x14: bound by arithmetic alone."""
        return (
            self.groups == 1
            and self.kernel in ((3, 3), (1, 1))
            and min(self.weight[:2]) >= 64
            and min(self.out[2:]) >= 14
        )

    def arrays(self, dtype):
        """Return x, weight, grad_out: uniform in -1..1."""
        rng = np.random.default_rng(0)
        return tuple((2 * rng.random(shape) - 1).astype(dtype) for shape in (self.x, self.weight, self.out))


def _conv(group, n, c, h, f, k, s=1, groups=1, padding=None, dilation=1):
    size, kernel = (m if isinstance(m, tuple) else (m, m) for m in (h, k))
    if padding is None:  # as many cells as keep the size at stride 1
        padding = tuple(dilation * (k - 1) // 2 for k in kernel)
    padding = padding if isinstance(padding, tuple) else (padding, padding)
    return Conv(group, (n, c, *size), f, kernel, s, padding, dilation, groups)


# N, C, H = W or (H, W), F, K, stride, groups, padding, dilation
_LAYERS = {
    "peers": [
        (64, 1, 28, 6, 5),  # LeNet
        (64, 6, 14, 16, 5, 1, 1, 0),
        (1, 3, 224, 64, 7, 2),  # ResNet
        (1, 64, 56, 64, 3),
        (1, 128, 28, 128, 3),
        (1, 256, 14, 256, 3),
        (1, 512, 7, 512, 3),
        (16, 128, 28, 128, 3),
        (1, 128, 56, 128, 3, 2),
        (1, 64, 56, 256, 1),
        (1, 1024, 14, 256, 1),
        (1, 256, 56, 512, 1, 2),
        (1, 64, 224, 64, 3),
        (1, 144, 56, 144, 3, 1, 144),
        (1, 144, 56, 144, 3, 2, 144),
        (1, 96, 56, 96, 7, 1, 96),
        (1, 128, 56, 128, 3, 1, 32),
    ],
    "one channel": [(1, 1, 1024, 1, 5), (1, 1, 1024, 1, 3), (1, 1, 512, 1, 9), (1, 1, 512, 8, 3), (1, 16, 256, 1, 3)],
    "small": [(1, 1, 8, 1, 3), (1, 8, 8, 8, 3), (1, 64, 8, 64, 1)],
    "LeNet": [(256, 1, 28, 6, 5), (256, 6, 14, 16, 5, 1, 1, 0), (1, 1, 28, 6, 5), (1, 6, 14, 16, 5, 1, 1, 0)],
    "ResNet-50": [
        (1, 64, 56, 64, 1),
        (1, 256, 56, 64, 1),
        (1, 256, 56, 128, 1),
        (1, 128, 28, 512, 1),
        (1, 512, 28, 128, 1),
        (1, 512, 28, 1024, 1, 2),
        (1, 256, 28, 256, 3, 2),
        (1, 256, 14, 1024, 1),
        (1, 1024, 14, 2048, 1, 2),
        (1, 512, 14, 512, 3, 2),
        (1, 512, 7, 2048, 1),
        (1, 2048, 7, 512, 1),
        (16, 64, 56, 64, 3),
        (16, 256, 14, 256, 3),
        (16, 512, 7, 512, 3),
    ],
    "VGG-16": [
        (1, 3, 224, 64, 3),
        (1, 64, 112, 128, 3),
        (1, 128, 112, 128, 3),
        (1, 256, 56, 256, 3),
        (1, 512, 28, 512, 3),
        (1, 512, 14, 512, 3),
    ],
    "MobileNet": [
        (1, 3, 224, 32, 3, 2),
        (1, 32, 112, 32, 3, 1, 32),
        (1, 16, 112, 96, 1),
        (1, 96, 112, 96, 3, 2, 96),
        (1, 96, 56, 24, 1),
        (1, 192, 28, 192, 3, 1, 192),
        (1, 240, 28, 240, 5, 1, 240),
        (1, 384, 14, 384, 3, 1, 384),
        (1, 576, 14, 576, 3, 2, 576),
        (1, 672, 14, 672, 5, 2, 672),
        (1, 960, 7, 960, 3, 1, 960),
        (1, 160, 7, 960, 1),
        (1, 320, 7, 1280, 1),
        (16, 192, 28, 192, 3, 1, 192),
    ],
    "ConvNeXt": [
        (1, 3, 224, 96, 4, 4, 1, 0),
        (1, 192, 28, 192, 7, 1, 192),
        (1, 384, 14, 384, 7, 1, 384),
        (1, 768, 7, 768, 7, 1, 768),
        (1, 96, 56, 384, 1),
        (1, 96, 56, 192, 2, 2, 1, 0),
    ],
    "ViT": [(1, 3, 224, 768, 16, 16, 1, 0)],
    "ResNeXt-50": [
        (1, 256, 56, 256, 3, 2, 32),
        (1, 256, 28, 256, 3, 1, 32),
        (1, 512, 14, 512, 3, 1, 32),
        (1, 1024, 7, 1024, 3, 1, 32),
    ],
    "Winograd": [
        (1, 128, 56, 128, 3),
        (8, 128, 56, 128, 3),
        (8, 64, 56, 64, 3),
        (8, 128, 28, 128, 3),
        (1, 256, 28, 256, 3),
        (8, 256, 28, 256, 3),
        (8, 256, 14, 256, 3),
    ],
    "one axis": [
        (1, 64, 35, 64, (1, 3)),
        (1, 64, 35, 64, (3, 1)),
        (1, 128, 17, 128, (1, 3)),
        (1, 192, 17, 192, (3, 1)),
        (8, 192, 17, 192, (1, 3)),
        (1, 384, 8, 384, (3, 1)),
        (1, 64, (1, 4096), 64, (1, 3)),
        (1, 128, (1, 1024), 128, (1, 3)),
        (16, 256, (1, 100), 256, (1, 3)),
    ],
    # torch leaves oneDNN for im2col at inputs of at most 20480 numbers of a single image; odd kernels, dilation
    "edges": [
        (1, 64, 17, 64, 3),
        (1, 64, 18, 64, 3),
        (1, 64, 17, 64, 1),
        (1, 64, 18, 64, 1),
        (1, 192, 17, 192, (1, 7)),
        (1, 192, 17, 192, (7, 1)),
        (1, 256, 28, 256, 3, 1, 1, None, 2),
        (1, 17, 33, 19, 3),
    ],
}  # fmt: skip

CONVS = [_conv(group, *row) for group, rows in _LAYERS.items() for row in rows]


def select(cases, words):
    """Those whose name or group contains one of the words; all without words."""
    found = [c for c in cases if not words or any(w.lower() in f"{c.group}: {c.name}".lower() for w in words)]
    if not found:
        raise SystemExit(f"no layer has any of {words} in its name; groups: {sorted({c.group for c in cases})}")
    return found


def expected(case, kind, x, weight, grad_out):
    """The pass in float64, tap by tap as products of matrices; and how many products an element is the sum of."""
    n, c, h, w = case.x
    f, g = case.channels, case.groups
    (ph, pw), s, d = case.padding, case.stride, case.dilation
    oh, ow = case.out[2:]
    padded = np.zeros((n, g, c // g, h + 2 * ph, w + 2 * pw))
    padded[..., ph : ph + h, pw : pw + w] = x.reshape(n, g, c // g, h, w)
    weight = weight.astype(np.float64).reshape(g, f // g, *weight.shape[1:])
    grad_out = grad_out.astype(np.float64).reshape(n, g, f // g, oh * ow)
    out, grad_x, grad_weight = np.zeros_like(grad_out), np.zeros_like(padded), np.zeros_like(weight)
    for ky, kx in np.ndindex(*case.kernel):
        rows, columns = slice(ky * d, ky * d + s * oh, s), slice(kx * d, kx * d + s * ow, s)
        tap = np.ascontiguousarray(weight[..., ky, kx])  # g, F, C
        if kind == "grad_x":
            grad_x[..., rows, columns] += (tap.swapaxes(1, 2) @ grad_out).reshape(n, g, c // g, oh, ow)
            continue
        pixels = padded[..., rows, columns].reshape(n, g, c // g, oh * ow)
        if kind == "forward":
            out += tap @ pixels
        else:
            grad_weight[..., ky, kx] = (grad_out @ pixels.swapaxes(2, 3)).sum(axis=0)
    taps = case.kernel[0] * case.kernel[1]
    if kind == "forward":
        return out.reshape(case.out), taps * c // g
    if kind == "grad_x":
        return grad_x[..., ph : ph + h, pw : pw + w].reshape(case.x), taps * f // g
    return grad_weight.reshape(case.weight), n * oh * ow


def is_right(result, wanted, terms):
    """Whether rounding explains the difference: `terms` products of at most 1, and what FFT and Winograd lose."""
    tolerance = np.finfo(result.dtype).eps * (4 * terms + 64)
    return result.shape == wanted.shape and bool(np.abs(result - wanted).max() <= tolerance)
