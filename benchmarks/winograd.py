"""The rule by which "auto" chooses Winograd's algorithm: what it estimates, and what is measured.

One image and every combination of channels and size: the case in which Winograd gains least, since kernels are
transformed for a single task and threads that share the image transform it twice. A layer that the rule takes should
not be slower than the direct sum, nor one that it leaves much faster. Needs a quiet machine.
"""

from itertools import product

import harness
import numpy as np

import cyconv
from cyconv import _dispatch, _winograd

CHANNELS = ((8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (3, 64), (16, 64), (64, 16), (512, 32))
SQUARES = (4, 6, 7, 8, 10, 12, 13, 14, 16, 20, 24, 28, 32, 56, 112)
SIZES = {kernel: [(s, s) for s in SQUARES] for kernel in ((3, 3), (5, 5), (3, 1))}
SIZES[1, 3] = [*SIZES[3, 1], *((1, s) for s in (16, 50, 100, 256, 1024, 4096))]
MOST = 10**9  # multiply-adds


def measured(algorithm, kernel, C, F, size, dtype, rounds):
    """Return how many times faster than the direct sum another algorithm is."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(dtype) for s in ((1, C, *size), (F, C, *kernel)))
    out, padding = np.empty((1, F, *size), dtype), [k // 2 for k in kernel]
    seconds = harness.race(
        {
            a: lambda a=a: cyconv.conv2d(x, weight, padding=padding, out=out, algorithm=a)
            for a in ("direct", algorithm)
        },
        rounds,
    )  # fmt: skip
    return float(np.median(seconds["direct"]) / np.median(seconds[algorithm]))


def main():
    p = harness.parser(__doc__.partition("\n")[0], "winograd")
    p.add_argument("--dtype", nargs="+", choices=("float32", "float64"), default=["float32"])
    p.add_argument(
        "--kernels", nargs="+", choices=[f"{h}x{w}" for h, w in SIZES], default=[f"{h}x{w}" for h, w in SIZES]
    )
    args = harness.arguments(p)
    facts = harness.about()
    print(harness.listed(facts))
    results = []
    cases = [
        (kernel, C, F, size)
        for kernel, sizes in SIZES.items()
        for (C, F), size in product(CHANNELS, sizes)
        if "{}x{}".format(*kernel) in args.kernels and C * F * np.prod(kernel) * np.prod(size) <= MOST
    ]
    for dtype, threads in product(args.dtype, args.threads):
        cyconv.set_num_threads(threads)
        lanes = _winograd.lanes(np.dtype(dtype))
        for kernel, C, F, size in cases[:: 8 if args.quick else 1]:
            taken, forced = (_winograd.outputs(kernel, F, C, size, np.dtype(dtype), forced) for forced in (False, True))
            estimated = _winograd.gain(kernel, taken or forced, F, C, *size, lanes)
            actual = measured("auto" if taken else "winograd", kernel, C, F, size, dtype, args.rounds)
            verdict = "slower" if taken and actual < 0.95 else "left" if not taken and actual > 1.2 else ""
            names = "{}x{}".format(*kernel), "{}x{}".format(*size)
            results.append([dtype, threads, names[0], C, F, names[1], estimated, actual, taken, verdict])
            text = f"{dtype} {threads} {names[0]} {C:4} -> {F:4} {names[1]:7} estimated {estimated:.2f} {actual:.2f}"
            print(f"{text} {taken} {verdict}", flush=True)
    results.sort(key=lambda r: r[6])
    head = ["dtype", "threads", "kernel", "C", "F", "size", "estimated", "measured", "outputs", ""]
    rows = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in r] for r in results]
    text = f"{harness.listed(facts)}, {_dispatch.isa()}\n\n{harness.table(head, rows)}\n"
    harness.write_json(args.output, about=facts, results=[dict(zip(head, r, strict=True)) for r in results])
    with open(f"{args.output}.md", "w") as f:
        f.write(text)


if __name__ == "__main__":
    main()
