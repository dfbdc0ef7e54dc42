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
SIZES = (4, 6, 7, 8, 10, 12, 13, 14, 16, 20, 24, 28, 32, 56, 112)
MOST = 10**9  # multiply-adds


def measured(C, F, size, dtype, rounds):
    """Return how many times faster than the direct sum Winograd is."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, C, size, size)).astype(dtype), rng.standard_normal((F, C, 3, 3)).astype(dtype)
    out = np.empty((1, F, size, size), dtype)
    seconds = harness.race(
        {
            a: lambda a=a: cyconv.conv2d(x, weight, padding=1, out=out, algorithm=a)
            for a in ("direct", "winograd")
        },
        rounds,
    )  # fmt: skip
    return float(np.median(seconds["direct"]) / np.median(seconds["winograd"]))


def main():
    p = harness.parser(__doc__.partition("\n")[0], "winograd")
    p.add_argument("--dtype", nargs="+", choices=("float32", "float64"), default=["float32"])
    args = harness.arguments(p)
    facts = harness.about()
    print(harness.listed(facts))
    results = []
    cases = [(C, F, s) for (C, F), s in product(CHANNELS, SIZES) if 9 * C * F * s * s <= MOST]
    for dtype, threads in product(args.dtype, args.threads):
        cyconv.set_num_threads(threads)
        lanes = _winograd.lanes(np.dtype(dtype))
        for C, F, size in cases[:: 4 if args.quick else 1]:
            taken = _winograd.pays(F, C, (size, size), np.dtype(dtype))
            estimated, actual = _winograd.gain(F, C, size, size, lanes), measured(C, F, size, dtype, args.rounds)
            verdict = "slower" if taken and actual < 0.95 else "left" if not taken and actual > 1.2 else ""
            results.append([dtype, threads, C, F, size, estimated, actual, "yes" if taken else "no", verdict])
            print(f"{dtype} {threads} {C:4} -> {F:4} {size:4}  estimated {estimated:.2f}  {actual:.2f}  {verdict}")
    results.sort(key=lambda r: r[5])
    head = ["dtype", "threads", "C", "F", "size", "estimated", "measured", "taken", ""]
    rows = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in r] for r in results]
    text = f"{harness.listed(facts)}, {_dispatch.isa()}\n\n{harness.table(head, rows)}\n"
    harness.write_json(args.output, about=facts, results=[dict(zip(head, r, strict=True)) for r in results])
    with open(f"{args.output}.md", "w") as f:
        f.write(text)


if __name__ == "__main__":
    main()
