"""Rounding errors: the direct sum and the forms of Winograd's algorithm, against a sum in higher precision.

The reference of float32 is a sum in float64; that of float64 is one in NumPy's longdouble (80 bits on x86-64). Prints
a Markdown table for each dtype and form.
"""

import argparse
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
HIGHER = {"float32": np.float64, "float64": np.longdouble}


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


def errors(kind, form, C, dtype, F, size, repeats):
    """Return for each algorithm (rms error, largest error, largest error / (eps * sum |x||w|))."""
    kernel, outputs = FORMS[form]
    padding = tuple(k // 2 for k in kernel)
    found = {"direct": [], "winograd": []}
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        x = KINDS[kind](rng, rng.standard_normal((C, size, size))).astype(dtype)
        weight = (rng.standard_normal((F, C, *kernel)) / np.sqrt(C * np.prod(kernel))).astype(dtype)
        expected = reference(x, weight, HIGHER[dtype])
        magnitude = reference(abs(x), abs(weight), HIGHER[dtype]) * np.finfo(dtype).eps
        results = {
            "direct": cyconv.conv2d(x, weight, padding=padding, algorithm="direct"),
            "winograd": winograd(x, weight, outputs, padding),
        }
        for algorithm, out in results.items():
            error = abs(out - expected)
            with np.errstate(divide="ignore"):  # where all inputs are 0, Winograd may have errors of its neighbours
                of_sum = np.divide(error, magnitude, out=np.zeros_like(error), where=error > 0).max()
            found[algorithm].append((np.mean(error**2), error.max(), of_sum))
    return {a: (np.sqrt(np.mean([e[0] for e in es])), *np.max(es, 0)[1:]) for a, es in found.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--dtype", nargs="+", choices=HIGHER, default=list(HIGHER))
    p.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    p.add_argument("--repeats", type=int, default=4, help="layers of other random numbers, for each row")
    args = p.parse_args()
    for dtype, form in product(args.dtype, args.forms):
        F, size = (32, 28) if dtype == "float32" else (8, 16)
        facts = f"{form}, {dtype}, {_dispatch.isa()}, {F} output channels of {size}x{size}"
        print(f"\n{facts}, {args.repeats} layers a cell\n")
        print(f"| C | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 1)}")
        for C in CHANNELS:
            cells = [f"{C}"]
            for kind in KINDS:
                e = errors(kind, form, C, dtype, F, size, args.repeats)
                rms, largest = (e["winograd"][i] / e["direct"][i] for i in (0, 1))
                of_sum = (f"{v:.2g}" if v < 100 else f"{v:.0f}" for v in (e["direct"][2], e["winograd"][2]))
                cells.append(f"{rms:.1f} {largest:.1f} / {' '.join(of_sum)}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
