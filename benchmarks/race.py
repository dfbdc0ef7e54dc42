"""Race cyconv's 2-D convolution, forward and backward, against torch, ONNX Runtime, OpenVINO and SciPy.

Results are checked before they are timed. Writes OUTPUT.json, OUTPUT.md and, with matplotlib, two plots.
"""

import sys
import time
from pathlib import Path

import harness
import numpy as np
import peers
from cases import CONVS, PASSES, expected, is_right, select
from harness import OURS, Result, geometric_mean

import cyconv

# (dtype, pass): the least geometric mean and the least ratio of a layer to its fastest peer, in the group "peers";
# then the least fraction of the FMA peak of wide dense layers (cases.Conv.is_wide).
WANTED = {
    ("float32", "forward"): (1.2, 0.85),
    ("float32", "grad_x"): (1.7, 0.9),
    ("float32", "grad_weight"): (1.6, 0.9),
    ("float64", "forward"): (3.5, 1.5),
    ("float64", "grad_x"): (3.5, 1.5),
    ("float64", "grad_weight"): (3.5, 1.5),
}
WANTED_OF_PEAK = {"forward": 0.88, "grad_x": 0.85, "grad_weight": 0.82}
# The race for one channel: 1024x1024 with a 5x5 kernel, forward, is to be this many times faster.
WANTED_ONE_CHANNEL = {"scipy correlate2d": 50, "torch": 10}
COLOURS = {OURS: "C3", "torch": "C0", "torch channels-last": "C9", "onnxruntime": "C2", "openvino": "C1"}


def options():
    p = harness.parser(__doc__.partition("\n")[0], "race")
    p.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    p.add_argument("--dtype", nargs="+", choices=("float32", "float64"), help="default: both; with --quick float32")
    p.add_argument("--algorithm", choices=("direct", "auto"), default="direct", help="of cyconv (default: %(default)s)")
    args = harness.arguments(p)
    args.dtype = args.dtype or (["float32"] if args.quick else ["float32", "float64"])
    args.layers = args.layers or (["peers:", "1024,1024 -> 1, 5"] if args.quick else [])
    return args


def schedule(args):
    """All (case, dtype, pass): in float64 the peers' layers only, unless layers are named."""
    for dtype in args.dtype:
        for case in select(CONVS, args.layers):
            if dtype == "float32" or args.layers or case.group == "peers":
                for kind in args.passes:
                    yield case, dtype, kind


def checked(contenders, wanted, terms, wrong, where):
    """Return {name: call} of those whose result is right; the others are added to `wrong`."""
    right = {}
    for name, (call, as_array) in contenders.items():
        if is_right(as_array(call()), wanted, terms):
            right[name] = call
        else:
            wrong.append(f"{name}: {where}")
    return right


def run(args, machine, wrong):
    races = [(*race, threads) for race in schedule(args) for threads in args.threads]
    progress = harness.Progress(len(races))
    results, last = [], None
    for case, dtype, kind, threads in races:
        if time.monotonic() > args.deadline:
            progress.print(f"out of time: {len(races) - progress.done} races left out")
            break
        if last != (case, dtype, kind):
            last = case, dtype, kind
            arrays = case.arrays(dtype)
            wanted, terms = expected(case, kind, *arrays)
        contenders = peers.conv(case, kind, threads, arrays, args.algorithm)
        calls = checked(contenders, wanted, terms, wrong, f"{case.name}, {kind}, {dtype}, {threads} threads")
        if OURS in calls:
            peaks = []
            seconds = harness.race(calls, args.rounds, lambda: peaks.append(machine.peak(dtype, threads)))  # noqa: B023
            size = case.bytes(arrays[0].itemsize)
            copy = machine.copy(size, threads)
            r = Result(case.name, case.group, kind, dtype, threads, case.flops, size, seconds, max(peaks), copy)
            results.append(r)
            progress.print(line(r))
        cyconv.release_scratch()
        progress.step(case.name)
    return results


def of_peak(r):
    return r.rate() / r.peak


def line(r):
    text = f"{r.dtype} {r.name:38} {r.kind:11} {r.threads} threads {1e6 * r.median():8.1f} us "
    text += f"+-{r.spread():3.0%} {r.rate() / 1e9:6.1f} GFLOP/s, "
    text += f"{of_peak(r):4.0%} of peak, {r.limit() / r.median():4.0%} of limit"
    if r.fastest():
        rates = ", ".join(f"{name} {r.rate(name) / 1e9:.1f}" for name in r.seconds if name != OURS)
        text += f" | {r.ratio():6.2f} x {r.fastest()} ({rates})"
    return text


def tables(results):
    """One table for each dtype and number of threads, a row for each layer: speed, fraction of peak, ratio."""
    parts = []
    for (dtype, threads), some in harness.by(results, lambda r: (r.dtype, r.threads)).items():
        passes = [kind for kind in PASSES if any(r.kind == kind for r in some)]
        rows = []
        for (group, name), layer in harness.by(some, lambda r: (r.group, r.name)).items():
            cells = {r.kind: r for r in layer}
            rows.append([group, name])
            for kind in passes:
                r = cells.get(kind)
                numbers = r and (f"{r.rate() / 1e9:.0f}", f"{of_peak(r):.2f}", f"{r.ratio():.2f}", r.fastest() or "")
                rows[-1] += numbers or [""] * 4
        header = ["", "layer"]
        for kind in passes:
            header += [f"{kind} GFLOP/s", "of peak", "ratio", "to"]
        peak = np.median([r.peak for r in some]) / 1e9
        parts.append(f"{dtype}, {threads} threads, peak {peak:.0f} GFLOP/s\n\n{harness.table(header, rows)}")
    return "\n\n".join(parts)


def verdict(results):
    """The geometric means beside what is wanted, and every layer below its threshold by name."""
    rows, below = [], []
    for (dtype, kind, threads), some in harness.by(results, lambda r: (r.dtype, r.kind, r.threads)).items():
        mean, least = WANTED[dtype, kind]
        listed = [r for r in some if r.group == "peers" and r.fastest()]
        if listed:
            worst = min(listed, key=Result.ratio)
            mean_of = f"{geometric_mean(r.ratio() for r in listed):.2f}"
            everywhere = f"{geometric_mean(r.ratio() for r in some):.2f}"
            rows.append([dtype, kind, threads, mean_of, mean, f"{worst.ratio():.2f}", least, worst.name, everywhere])
        below += [
            f"{r.ratio():.2f} < {least} x {r.fastest()}: {where(r)}" for r in some if r.fastest() and r.ratio() < least
        ]
        wide = {case.name for case in CONVS if case.is_wide()}
        below += [
            f"{of_peak(r):.2f} < {WANTED_OF_PEAK[kind]} of peak: {where(r)}"
            for r in some
            if r.name in wide and of_peak(r) < WANTED_OF_PEAK[kind]
        ]
        below += [
            f"{r.ratio(peer):.1f} < {times} x {peer}: {where(r)}"
            for r in some
            for peer, times in WANTED_ONE_CHANNEL.items()
            if (r.name, kind, dtype) == ("1,1,1024,1024 -> 1, 5/1", "forward", "float32") and r.ratio(peer) < times
        ]
    header = ["dtype", "pass", "threads", "geometric mean", "wanted", "lowest", "wanted", "layer", "mean of all layers"]
    text = f"Ratio to the fastest peer, PEERS' layers\n\n{harness.table(header, rows)}\n\n" if rows else ""
    return text + "Below the threshold: " + ("".join(f"\n- {b}" for b in below) or "none")


def where(r):
    return f"{r.name}, {r.kind}, {r.dtype}, {r.threads} threads ({r.group})"


def plot_roofline(results, output):
    """A row for each dtype and number of threads, a column for each pass."""
    panels = harness.by(results, lambda r: (r.dtype, r.threads))
    passes = [kind for kind in PASSES if any(r.kind == kind for r in results)]
    if not panels or not (fig := harness.figure(5 * len(passes), 4 * len(panels))):
        return
    for axes, ((dtype, threads), some) in zip(
        fig.subplots(len(panels), len(passes), squeeze=False, sharex=True, sharey="row"), panels.items(), strict=True
    ):
        intensity = [r.flops / r.bytes for r in some]
        xs = np.geomspace(min(intensity) / 1.5, max(intensity) * 1.5)
        peak, copies = np.median([r.peak for r in some]), [r.copy for r in some]
        for ax, kind in zip(axes, passes, strict=True):
            for copy, style in ((min(copies), "k-"), (max(copies), "k:")):
                ax.plot(
                    xs, np.minimum(peak, copy * xs) / 1e9, style, lw=1, label=f"peak, copy at {copy / 1e9:.0f} GB/s"
                )
            for name in reversed(COLOURS):
                points = [r for r in some if r.kind == kind and name in r.seconds]
                rates = [r.rate(name) / 1e9 for r in points]
                ax.scatter([r.flops / r.bytes for r in points], rates, s=14, c=COLOURS[name], label=name, lw=0)
            ax.set(xscale="log", yscale="log", title=f"{kind}, {dtype}, {threads} threads")
            ax.set(xlabel="operations per byte of input and output", ylabel="GFLOP/s")
        axes[-1].legend(fontsize=7)
    harness.save(fig, f"{output}-roofline")


def plot_ratios(results, output):
    results = [r for r in results if r.fastest()]
    panels = harness.by(results, lambda r: (r.dtype, r.kind))
    if not panels or not (fig := harness.figure(5 * len(panels), 2 + 0.2 * max(map(len, panels.values())))):
        return
    for ax, ((dtype, kind), some) in zip(fig.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        layers, counts = list(harness.by(some, lambda r: r.name)), sorted({r.threads for r in some})
        height = 0.8 / len(counts)
        for i, threads in enumerate(counts):
            bars = [(layers.index(r.name) + i * height, r.ratio()) for r in some if r.threads == threads]
            ax.barh(*zip(*bars, strict=True), height, label=f"{threads} threads")
        ax.set(xscale="log", title=f"{kind}, {dtype}", xlabel="times the speed of the fastest peer")
        ax.set_yticks(np.arange(len(layers)) + 0.4 - height / 2, layers, fontsize=7)
        ax.invert_yaxis()
        ax.axvline(1, color="k", lw=1)
        ax.legend(fontsize=8)
    harness.save(fig, f"{output}-ratios")


def main():
    args = options()
    facts = harness.about(peers.MODULES)
    print(f"{harness.listed(facts)}, algorithm {args.algorithm}")
    for name, reason in harness.skipped.items():
        print(f"skipped: {name} ({reason})")
    machine, wrong = harness.Machine(), []
    for threads in args.threads:
        machine.measure_copies(threads)
        speeds = ", ".join(
            f"{speed / 1e9:.0f} at {size / 1e6:.0f} MB" for size, speed in machine.copies[threads].items()
        )
        peaks = ", ".join(f"{dtype} {machine.peak(dtype, threads) / 1e9:.0f} GFLOP/s" for dtype in args.dtype)
        print(f"{threads} threads: FMA peak {peaks}; copies in GB/s, read and written: {speeds}")
    results = run(args, machine, wrong)
    text = f"{verdict(results)}\n\n{tables(results)}"
    print(f"\n{text}\n")
    Path(f"{args.output}.md").write_text(f"{harness.listed(facts)}, algorithm {args.algorithm}\n\n{text}\n")
    harness.write_json(
        args.output, about=facts, algorithm=args.algorithm, copies=machine.copies, results=results, wrong=wrong
    )
    plot_roofline(results, args.output)
    plot_ratios(results, args.output)
    if wrong:
        sys.exit("wrong results: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
