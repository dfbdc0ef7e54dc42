"""The rule by which "auto" chooses Winograd's algorithm: what it estimates, and what is measured.

One image and every combination of channels and size: the case in which Winograd gains least, since kernels are
transformed for a single task and threads that share the image transform it twice. The rule of the gradient of a 3x3
weight knows the batch: one image, and eight. A layer that the rule takes should
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


def measured(algorithm, kind, kernel, N, C, F, size, dtype, rounds):
    """Return how many times faster than the direct sum another algorithm is."""
    rng = np.random.default_rng(0)
    x, weight, out = (rng.standard_normal(s).astype(dtype) for s in ((N, C, *size), (F, C, *kernel), (N, F, *size)))
    padding = [k // 2 for k in kernel]

    def call(algorithm):
        if kind == "forward":
            cyconv.conv2d(x, weight, padding=padding, out=out, algorithm=algorithm)
        else:
            cyconv.conv2d_backward(out, x, weight, padding=padding, wrt=("weight",), algorithm=algorithm)

    seconds = harness.race({a: lambda a=a: call(a) for a in ("direct", algorithm)}, rounds)
    return float(np.median(seconds["direct"]) / np.median(seconds[algorithm]))


def main():
    p = harness.parser(__doc__.partition("\n")[0], "winograd")
    p.add_argument("--dtype", nargs="+", choices=("float32", "float64"), default=["float32"])
    p.add_argument(
        "--kernels", nargs="+", choices=[f"{h}x{w}" for h, w in SIZES], default=[f"{h}x{w}" for h, w in SIZES]
    )
    p.add_argument("--passes", nargs="+", choices=("forward", "grad_weight"), default=["forward", "grad_weight"])
    args = harness.arguments(p)
    facts = harness.about()
    print(harness.listed(facts))
    results = []
    cases = [
        (kind, kernel, N, C, F, size)
        for kind, (kernel, sizes) in product(args.passes, SIZES.items())
        for N, (C, F), size in product((1,) if kind == "forward" else (1, 8), CHANNELS, sizes)
        if "{}x{}".format(*kernel) in args.kernels and N * C * F * np.prod(kernel) * np.prod(size) <= MOST
        if kind == "forward" or kernel == (3, 3)
    ]
    for dtype, threads in product(args.dtype, args.threads):
        cyconv.set_num_threads(threads)
        lanes = _winograd.lanes(np.dtype(dtype))
        for kind, kernel, N, C, F, size in cases[:: 8 if args.quick else 1]:
            if kind == "forward":
                taken, forced = (_winograd.outputs(kernel, F, C, size, np.dtype(dtype), f) for f in (False, True))
                estimated = _winograd.gain(kernel, taken or forced, F, C, *size, lanes)
            else:
                taken = 3 * _winograd.takes_weight(F, C, N, size, np.dtype(dtype))
                estimated = _winograd.weight_gain(F, C, N, *size, lanes)
            actual = measured("auto" if taken else "winograd", kind, kernel, N, C, F, size, dtype, args.rounds)
            verdict = "slower" if taken and actual < 0.95 else "left" if not taken and actual > 1.2 else ""
            names = "{}x{}".format(*kernel), "{}x{}".format(*size)
            results.append([dtype, threads, kind, names[0], N, C, F, names[1], estimated, actual, taken, verdict])
            text = f"{dtype} {threads} {kind} {names[0]} {N} {C:4} -> {F:4} {names[1]:7}"
            print(f"{text} estimated {estimated:.2f} {actual:.2f} {taken} {verdict}", flush=True)
    results.sort(key=lambda r: r[8])
    head = ["dtype", "threads", "pass", "kernel", "N", "C", "F", "size", "estimated", "measured", "outputs", ""]
    rows = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in r] for r in results]
    text = f"{harness.listed(facts)}, {_dispatch.isa()}\n\n{harness.table(head, rows)}\n"
    harness.write_json(args.output, about=facts, results=[dict(zip(head, r, strict=True)) for r in results])
    with open(f"{args.output}.md", "w") as f:
        f.write(text)


if __name__ == "__main__":
    main()
