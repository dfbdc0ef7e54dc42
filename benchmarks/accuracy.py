"""Rounding errors: the direct sum and the forms of Winograd's algorithm, against a sum in higher precision.

The reference of float32 is a sum in float64; that of float64 is one in NumPy's longdouble (80 bits on x86-64). Prints
a Markdown table for each dtype and form.
"""

import argparse
from functools import partial
from itertools import product

import numpy as np

import cyconv
from cyconv import _dispatch, _winograd

CHANNELS = (3, 8, 16, 32, 64, 128, 256, 512)
KINDS = {
    "normal": lambda rng, x: x,
    "post-ReLU": lambda rng, x: np.maximum(x, 0),
    "offset": lambda rng, x: x + 100,
    "scaled channels": lambda rng, x: x * 10 ** rng.uniform(-4, 4, (len(x), 1, 1)),
    "scaled pixels": lambda rng, x: x * 10 ** rng.uniform(-4, 4, x.shape),
    "one pixel": lambda rng, x: np.where(np.arange(x[0].size).reshape(x[0].shape) == x[0].size // 2, 1e4, x),
}
FORMS = {
    "F(4x4, 3x3)": ((3, 3), 4),
    "F(2x2, 3x3)": ((3, 3), 2),
    "F(2x2, 5x5)": ((5, 5), 2),
    "F(4, 3)": ((1, 3), 4),
}  # kernel, outputs of a tile
WEIGHT_FORM, WEIGHT_CHANNELS = "F(3x3, 4x4)", 16  # the gradient of a 3x3 weight, in and out of the layer
MAPS = ((1, 7), (1, 14), (1, 28), (1, 56), (8, 7), (8, 14), (8, 28), (32, 7), (32, 14))  # images, height and width
HIGHER = {"float32": np.float64, "float64": np.longdouble}
LAYER = {"float32": (32, 28), "float64": (8, 16)}  # output channels, height and width of the forward pass


def reference(x, weight, dtype):
    """The sum over channels and taps in `dtype`, with the padding that keeps the size."""
    (H, W), kernel = x.shape[1:], weight.shape[2:]
    padded = np.pad(x, ((0, 0), *((k // 2, k // 2) for k in kernel))).astype(dtype)
    weight = weight.astype(dtype)
    return sum(
        np.tensordot(weight[:, :, ky, kx], padded[:, ky : ky + H, kx : kx + W], 1) for ky, kx in np.ndindex(kernel)
    )


def winograd(x, weight, outputs, padding):
    out = np.empty((1, len(weight), *x.shape[1:]), x.dtype)
    _winograd.convolve(x[None], weight, False, outputs, None, out, padding, 1, False)
    return out[0]


def weight_reference(x, grad_out, dtype):
    """The gradient of a 3x3 weight in `dtype`, with the padding that keeps the size."""
    H, W = x.shape[2:]
    padded, grad_out = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))).astype(dtype), grad_out.astype(dtype)
    taps = [padded[:, :, ky : ky + H, kx : kx + W] for ky, kx in np.ndindex(3, 3)]
    return np.stack([np.tensordot(grad_out, tap, ((0, 2, 3), (0, 2, 3))) for tap in taps], 2)


def forward_layer(kind, form, C, dtype, rng):
    """Return the expected result of a random layer, its sums |x||w|, and {algorithm: result}."""
    (kernel, outputs), (F, size) = FORMS[form], LAYER[dtype]
    padding = tuple(k // 2 for k in kernel)
    x = KINDS[kind](rng, rng.standard_normal((C, size, size))).astype(dtype)
    weight = (rng.standard_normal((F, C, *kernel)) / np.sqrt(C * np.prod(kernel))).astype(dtype)
    results = {
        "direct": cyconv.conv2d(x, weight, padding=padding, algorithm="direct"),
        "winograd": winograd(x, weight, outputs, padding),
    }
    return reference(x, weight, HIGHER[dtype]), reference(abs(x), abs(weight), HIGHER[dtype]), results


def weight_layer(kind, maps, dtype, rng):
    """The same for the gradient of the weight, with sums |x||grad_out|."""
    (N, size), C = maps, WEIGHT_CHANNELS
    x = np.stack([KINDS[kind](rng, rng.standard_normal((C, size, size))) for _ in range(N)]).astype(dtype)
    grad_out, weight = rng.standard_normal(x.shape).astype(dtype), np.zeros((C, C, 3, 3), dtype)
    given = {"padding": 1, "wrt": ("weight",)}
    results = {
        algorithm: cyconv.conv2d_backward(grad_out, x, weight, algorithm=algorithm, **given).weight.reshape(C, C, 9)
        for algorithm in ("direct", "winograd")
    }
    return (
        weight_reference(x, grad_out, HIGHER[dtype]),
        weight_reference(abs(x), abs(grad_out), HIGHER[dtype]),
        results,
    )


def errors(layer, dtype, repeats):
    """Return for each algorithm (rms error, largest error, largest error / (eps * sum |x||w|))."""
    found = {"direct": [], "winograd": []}
    for seed in range(repeats):
        expected, magnitude, results = layer(np.random.default_rng(seed))
        magnitude = magnitude * np.finfo(dtype).eps
        for algorithm, out in results.items():
            error = abs(out - expected)
            with np.errstate(divide="ignore"):  # where all inputs are 0, Winograd may have errors of its neighbours
                of_sum = np.divide(error, magnitude, out=np.zeros_like(error), where=error > 0).max()
            found[algorithm].append((np.mean(error**2), error.max(), of_sum))
    return {a: (np.sqrt(np.mean([e[0] for e in es])), *np.max(es, 0)[1:]) for a, es in found.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--dtype", nargs="+", choices=HIGHER, default=list(HIGHER))
    p.add_argument("--forms", nargs="+", choices=(*FORMS, WEIGHT_FORM), default=[*FORMS, WEIGHT_FORM])
    p.add_argument("--repeats", type=int, default=4, help="layers of other random numbers, for each row")
    args = p.parse_args()
    for dtype, form in product(args.dtype, args.forms):
        of_weight = form == WEIGHT_FORM
        what = "{0} output channels of {1}x{1}".format(*LAYER[dtype])
        if of_weight:
            what = f"gradient of the weight, {WEIGHT_CHANNELS} channels"
        print(f"\n{form}, {dtype}, {_dispatch.isa()}, {what}, {args.repeats} layers a cell\n")
        print(f"| {'maps' if of_weight else 'C'} | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 1)}")
        for row in MAPS if of_weight else CHANNELS:
            cells = ["{0} of {1}x{1}".format(*row) if of_weight else f"{row}"]
            for kind in KINDS:
                layer = (
                    partial(weight_layer, kind, row, dtype)
                    if of_weight
                    else partial(forward_layer, kind, form, row, dtype)
                )
                e = errors(layer, dtype, args.repeats)
                rms, largest = (e["winograd"][i] / e["direct"][i] for i in (0, 1))
                of_sum = (f"{v:.2g}" if v < 100 else f"{v:.0f}" for v in (e["direct"][2], e["winograd"][2]))
                cells.append(f"{rms:.1f} {largest:.1f} / {' '.join(of_sum)}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
