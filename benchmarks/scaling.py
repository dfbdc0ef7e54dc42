"""Time and memory of 2-D convolution against batch, size of the image, channels and threads.

Time should grow as the work does, memory beyond inputs and outputs should not. Memory is what the first call adds to
the resident memory of a process of its own (Linux only). Writes OUTPUT.json, OUTPUT.md and a plot.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import harness
import numpy as np
from cases import PASSES, Conv

import cyconv

# glibc: give freed memory back at once, or a call would reuse what lies around and seem to need none.
NO_REUSE = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
# axis: (values, the layer for a value)
AXES = {
    "batch": ((1, 2, 4, 8, 16, 32), lambda v: Conv("batch", (v, 64, 56, 56), 64, (3, 3), padding=(1, 1))),
    "image size": ((28, 56, 112, 224, 448), lambda v: Conv("size", (1, 32, v, v), 32, (3, 3), padding=(1, 1))),
    "channels": ((16, 32, 64, 128, 256), lambda v: Conv("channels", (4, v, 28, 28), v, (3, 3), padding=(1, 1))),
    "threads": ((1, 2, 4), lambda _: Conv("threads", (4, 128, 56, 56), 128, (3, 3), padding=(1, 1))),
}


def status(name):
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {name}")


def prepare(axis, value, kind, threads):
    """Return a call of the pass, and the bytes of its result."""
    case = AXES[axis][1](value)
    x, weight, grad_out = case.arrays("float32")
    cyconv.set_num_threads(threads)
    if kind == "forward":
        return lambda: cyconv.conv2d(x, weight, **case.parameters), grad_out.nbytes
    wrt = kind.removeprefix("grad_")
    call = partial(cyconv.conv2d_backward, grad_out, x, weight, wrt=(wrt,), **case.parameters)
    return call, {"x": x, "weight": weight}[wrt].nbytes


def added_bytes(axis, value, kind, threads):
    """Return what the first call of the pass adds to the memory of this process, beyond its result."""
    call, result = prepare(axis, value, kind, threads)
    small, one = np.ones((threads, 8, 32, 32), np.float32), np.ones((8, 8, 3, 3), np.float32)
    cyconv.conv2d_backward(cyconv.conv2d(small, one), small, one)  # the kernels and OpenMP's threads are there now
    cyconv.release_scratch()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
    before = status("VmRSS")
    call()
    return status("VmHWM") - before - result


def points(args):
    for axis, (values, layer) in AXES.items():
        if args.layers and not any(word in axis for word in args.layers):
            continue
        for kind in PASSES:
            for value in values[:4] if args.quick else values:
                for threads in [value] if axis == "threads" else args.threads:
                    yield axis, kind, value, threads, layer(value)


def run(args):
    todo = list(points(args))
    progress, results = harness.Progress(len(todo)), []
    for axis, kind, value, threads, case in todo:
        if time.monotonic() > args.deadline:
            progress.print(f"out of time: {len(todo) - progress.done} points left out")
            break
        point = axis, value, kind, threads
        seconds = harness.race({harness.OURS: prepare(*point)[0]}, args.rounds)[harness.OURS]
        command = [sys.executable, __file__, "--added-bytes", json.dumps(point)]
        added = int(subprocess.check_output(command, env=os.environ | NO_REUSE))
        r = {"axis": axis, "pass": kind, "value": value, "threads": threads, "layer": case.name, "flops": case.flops}
        r |= {"bytes": case.bytes(4), "added bytes": added, "seconds": seconds, "median": float(np.median(seconds))}
        results.append(r)
        progress.print(
            f"{axis:10} {value:4} {kind:11} {threads} threads {1e3 * r['median']:9.3f} ms {rate(r):6.1f} GFLOP/s, "
            f"arrays {r['bytes'] / 1e6:7.2f} MB, added {added / 1e6:6.2f} MB"
        )
        progress.step(axis)
    return results


def rate(r):
    return r["flops"] / r["median"] / 1e9


def table(results):
    rows = [
        [
            *(r[key] for key in ("axis", "value", "pass", "threads")),
            f"{1e3 * r['median']:.3f}",
            f"{rate(r):.0f}",
            f"{r['bytes'] / 1e6:.2f}",
            f"{r['added bytes'] / 1e6:.2f}",
        ]
        for r in results
    ]
    return harness.table(["axis", "value", "pass", "threads", "ms", "GFLOP/s", "arrays, MB", "added, MB"], rows)


def plot(results, output):
    """Above the time, below the memory, one column for each axis; the slope of the dotted line is that of the work."""
    axes = list(dict.fromkeys(r["axis"] for r in results))
    if not axes or not (fig := harness.figure(4.5 * len(axes), 8)):
        return
    for axis, (top, bottom) in zip(axes, fig.subplots(2, len(axes), squeeze=False).T, strict=True):
        some = [r for r in results if r["axis"] == axis]
        lines = {}
        for r in some:
            lines.setdefault((r["pass"], None if axis == "threads" else r["threads"]), []).append(r)
        for (kind, threads), line in lines.items():
            label = kind + (f", {threads} threads" if threads else "")
            values = [r["value"] for r in line]
            style = {
                "color": f"C{PASSES.index(kind)}",
                "ls": "-" if threads == some[0]["threads"] or not threads else "--",
            }
            top.plot(values, [1e3 * r["median"] for r in line], "o", label=label, **style)
            bottom.plot(values, [r["added bytes"] / 1e6 for r in line], "o", label=label, **style)
        first = next(iter(lines.values()))
        share = [r["flops"] / (r["value"] if axis == "threads" else 1) for r in first]
        top.plot(
            [r["value"] for r in first],
            [1e3 * first[0]["median"] * s / share[0] for s in share],
            "k:",
            label="the work",
        )
        top.set(xscale="log", yscale="log", ylabel="ms", title=axis)
        bottom.plot([r["value"] for r in first], [r["bytes"] / 1e6 for r in first], "k:", label="inputs and output")
        bottom.set(xscale="log", yscale="symlog", ylabel="MB beyond inputs and output", xlabel=axis)
        bottom.set_ylim(bottom=0)
        for ax in (top, bottom):
            ax.set_xticks(AXES[axis][0], AXES[axis][0])
            ax.minorticks_off()
    top.legend(fontsize=7)
    bottom.legend(fontsize=7)
    harness.save(fig, output)


def main():
    if sys.argv[1:2] == ["--added-bytes"]:
        print(added_bytes(*json.loads(sys.argv[2])))
        return
    p = harness.parser(__doc__.partition("\n")[0], "scaling")
    args = harness.arguments(p)
    facts = harness.about()
    print(harness.listed(facts))
    results = run(args)
    Path(f"{args.output}.md").write_text(f"{harness.listed(facts)}\n\n{table(results)}\n")
    harness.write_json(args.output, about=facts, results=results)
    plot(results, args.output)


if __name__ == "__main__":
    main()
