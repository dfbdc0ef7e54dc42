"""Rounding errors of 3x3 layers: the direct sum and Winograd's algorithm, against a sum in higher precision.

The reference of float32 is a sum in float64; that of float64 is one in NumPy's longdouble (80 bits on x86-64). Prints
a Markdown table for each dtype.
"""

import argparse

import numpy as np

import cyconv
from cyconv import _dispatch

CHANNELS = (3, 8, 16, 32, 64, 128, 256, 512)
KINDS = {
    "normal": lambda rng, x: x,
    "post-ReLU": lambda rng, x: np.maximum(x, 0),
    "offset": lambda rng, x: x + 100,
    "scaled channels": lambda rng, x: x * 10 ** rng.uniform(-4, 4, (len(x), 1, 1)),
    "scaled pixels": lambda rng, x: x * 10 ** rng.uniform(-4, 4, x.shape),
    "one pixel": lambda rng, x: np.where(np.arange(x[0].size).reshape(x[0].shape) == x[0].size // 2, 1e4, x),
}
HIGHER = {"float32": np.float64, "float64": np.longdouble}


def reference(x, weight, dtype):
    """The sum over channels and taps in `dtype`, padding 1."""
    H, W = x.shape[1:]
    padded, weight = np.pad(x, ((0, 0), (1, 1), (1, 1))).astype(dtype), weight.astype(dtype)
    return sum(
        np.tensordot(weight[:, :, ky, kx], padded[:, ky : ky + H, kx : kx + W], 1) for ky in range(3) for kx in range(3)
    )


def errors(kind, C, dtype, outputs, size, repeats):
    """Return for each algorithm (rms error, largest error, largest error / (eps * sum |x||w|))."""
    found = {"direct": [], "winograd": []}
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        x = KINDS[kind](rng, rng.standard_normal((C, size, size))).astype(dtype)
        weight = (rng.standard_normal((outputs, C, 3, 3)) / np.sqrt(9 * C)).astype(dtype)
        expected = reference(x, weight, HIGHER[dtype])
        magnitude = reference(abs(x), abs(weight), HIGHER[dtype]) * np.finfo(dtype).eps
        for algorithm, list_of in found.items():
            error = abs(cyconv.conv2d(x, weight, padding=1, algorithm=algorithm) - expected)
            list_of.append((np.mean(error**2), error.max(), (error / magnitude).max()))
    return {a: (np.sqrt(np.mean([e[0] for e in es])), *np.max(es, 0)[1:]) for a, es in found.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--dtype", nargs="+", choices=HIGHER, default=list(HIGHER))
    p.add_argument("--repeats", type=int, default=4, help="layers of other random numbers, for each row")
    args = p.parse_args()
    for dtype in args.dtype:
        outputs, size = (32, 28) if dtype == "float32" else (8, 16)
        print(
            f"\n{dtype}, {_dispatch.isa()}, {outputs} output channels of {size}x{size}, {args.repeats} layers a row\n"
        )
        print("| input | C | rms | max | direct: largest | winograd: largest |")
        print("|---|---|---|---|---|---|")
        for kind in KINDS:
            for C in CHANNELS:
                e = errors(kind, C, dtype, outputs, size, args.repeats)
                rms, largest = (e["winograd"][i] / e["direct"][i] for i in (0, 1))
                print(f"| {kind} | {C} | {rms:.2f} | {largest:.2f} | {e['direct'][2]:.3g} | {e['winograd'][2]:.3g} |")


if __name__ == "__main__":
    main()
