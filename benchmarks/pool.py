"""Race cyconv's 2-D pooling, forward and backward, against torch in both layouts, ONNX Runtime and a copy.

Results are checked before they are timed. Writes OUTPUT.json and OUTPUT.md.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import peers
from harness import OURS, Result, geometric_mean

import cyconv
from cyconv import _reference_pool as reference

torch, onnxruntime = peers.torch, peers.onnxruntime

PASSES = ("max", "average", "max backward", "max backward, indices", "average backward")
# The least geometric mean and the least ratio to the fastest peer; the geometric mean to torch on the same array; the
# least fraction of the speed of a copy for the group "large".
WANTED, WANTED_TO_TORCH, WANTED_OF_COPY = (3.0, 1.0), 10.0, 0.6
# About as many seconds does a race take, unless that leaves fewer than three rounds.
RACE = 0.3


@dataclass(frozen=True)
class Pooling:
    """A pooling layer."""

    group: str
    x: tuple[int, int, int, int]  # N C H W
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: int = 0

    @property
    def name(self):
        window = f"{self.kernel[0]}x{self.kernel[1]}/{self.stride[0]}" + f" pad {self.padding}" * bool(self.padding)
        return f"{','.join(map(str, self.x))}, {window}"

    @property
    def out(self):
        sizes = zip(self.x[2:], self.kernel, self.stride, strict=True)
        return (*self.x[:2], *((m + 2 * self.padding - k) // s + 1 for m, k, s in sizes))

    def bytes(self, kind, itemsize):
        """Read or written once: x, the output or its gradient, the gradient of x, indices."""
        x, out = int(np.prod(self.x)), int(np.prod(self.out))
        if kind == "max backward, indices":
            return itemsize * (x + out) + 8 * out
        return itemsize * (x + out + x * (kind == "max backward"))


def _poolings():
    shapes = [(64, 6, 28), (16, 64, 28), (16, 64, 56), (16, 64, 112)]
    for n, c, h in shapes:
        for kernel, stride, padding in (
            ((2, 2), 2, 0),
            ((3, 3), 2, 1),
            ((3, 3), 1, 1),
            ((5, 5), 1, 2),
            ((2, 3), None, 0),
        ):
            strides = kernel if stride is None else (stride, stride)
            large = h == 112 and strides != (1, 1)
            yield Pooling("large" if large else "usual", (n, c, h, h), kernel, strides, padding)
    for n, c in ((64, 96), (64, 512)):
        yield Pooling("usual", (n, c, 7, 7), (7, 7), (1, 1))


def contenders(case, kind, threads, x, grad_out, indices):
    """Return {name: (call, as_array)} of all who can compute this pass."""
    cyconv.set_num_threads(threads)
    found = {OURS: (_cyconv(case, kind, x, grad_out, indices), np.asarray)}
    if torch:
        torch.set_num_threads(threads)
        for name, layout in (("torch", torch.contiguous_format), ("torch channels-last", torch.channels_last)):
            tensors = (torch.from_numpy(a).contiguous(memory_format=layout) for a in (x, grad_out, indices))
            found[name] = (_torch(case, kind, *tensors), lambda y: y.numpy())
    if onnxruntime and "backward" not in kind and x.dtype == np.float32:
        found["onnxruntime"] = _onnxruntime(case, kind, threads, x)
    return found


def _cyconv(case, kind, x, grad_out, indices):
    windows = {"stride": case.stride, "padding": case.padding}
    if kind == "average backward":
        return lambda: cyconv.avg_pool2d_backward(grad_out, case.x, case.kernel, **windows)
    if "backward" in kind:
        known = {"indices": indices} if "indices" in kind else {}
        return lambda: cyconv.max_pool2d_backward(grad_out, x, case.kernel, **windows, **known)
    function, out = cyconv.max_pool2d if kind == "max" else cyconv.avg_pool2d, np.empty_like(grad_out)
    return lambda: function(x, case.kernel, out=out, **windows)


def _torch(case, kind, x, grad_out, indices):
    """Torch's backward always has the indices, which its forward pass returns."""
    ops, windows = torch.ops.aten, ([*case.kernel], [*case.stride], [case.padding] * 2)
    if kind == "average backward":
        return lambda: ops.avg_pool2d_backward(grad_out, x, *windows, False, True, None)
    if "backward" in kind:
        return lambda: ops.max_pool2d_with_indices_backward(grad_out, x, *windows, [1, 1], False, indices)
    function = ops.max_pool2d if kind == "max" else ops.avg_pool2d
    return lambda: function(x, *windows)


def _onnxruntime(case, kind, threads, x):
    average = {"count_include_pad": 1} if kind == "average" else {}
    node = peers.onnx.helper.make_node(
        "AveragePool" if average else "MaxPool", ["x"], ["out"], kernel_shape=case.kernel, strides=case.stride,
        pads=[case.padding] * 4, **average,
    )  # fmt: skip
    return peers.onnx_model([node], {}, x, case.out, threads)


def expected(case, kind, x, grad_out, indices):
    """The right result for these images, from the plain reference."""
    windows = {"stride": case.stride, "padding": case.padding}
    if kind == "max":
        return reference.max_pool(x, case.kernel, **windows)[0]
    if kind == "average":
        return reference.avg_pool(x.astype(np.float64), case.kernel, **windows)
    if kind == "average backward":
        return reference.avg_pool_backward(grad_out.astype(np.float64), x.shape, case.kernel, **windows)
    planes, wanted = indices.reshape(-1, int(np.prod(indices.shape[2:]))), np.zeros(x.shape)
    flat = wanted.reshape(len(planes), -1)
    np.add.at(flat, (np.arange(len(planes))[:, None], planes), grad_out.reshape(planes.shape))
    return wanted


def rounds_of(calls, most):
    """How many rounds there is time for, from the time of the last call of each contender."""
    one = sum(harness.PAUSE + max(harness.LEAST, 2 * seconds) for seconds in calls)
    return min(most, max(3, round(RACE / one)))


def is_right(result, wanted, taps):
    """Whether rounding explains the difference: `taps` terms of at most 1."""
    tolerance = np.finfo(result.dtype).eps * 2 * taps
    return result.shape == wanted.shape and bool(np.abs(result - wanted).max() <= tolerance)


def run(args, machine, wrong):
    cases = [c for c in _poolings() if not args.layers or any(w in f"{c.group}: {c.name}" for w in args.layers)]
    races = [(c, d, k, t) for c in cases for d in args.dtype for k in args.passes for t in args.threads]
    progress, results, last, last_kind = harness.Progress(len(races)), [], None, None
    for case, dtype, kind, threads in races:
        if time.monotonic() > args.deadline:
            progress.print(f"out of time: {len(races) - progress.done} races left out")
            break
        if last != (case, dtype):
            last, last_kind, rng = (case, dtype), None, np.random.default_rng(0)
            x, grad_out = ((2 * rng.random(shape) - 1).astype(dtype) for shape in (case.x, case.out))
            windows = {"stride": case.stride, "padding": case.padding}
            indices = cyconv.max_pool2d(x, case.kernel, return_indices=True, **windows)[1]
            ends = slice(None, None, len(x) - 1)  # the first image and the last are compared
            if (indices[ends] != reference.max_pool(x[ends], case.kernel, **windows)[1]).any():
                sys.exit(f"wrong indices: {case.name}, {dtype}")
        if last_kind != kind:
            last_kind, wanted = kind, expected(case, kind, x[ends], grad_out[ends], indices[ends])
        calls, seconds = {}, []
        for name, (call, as_array) in contenders(case, kind, threads, x, grad_out, indices).items():
            start = time.perf_counter()
            result = as_array(call())
            seconds.append(time.perf_counter() - start)
            if is_right(result[ends], wanted, case.kernel[0] * case.kernel[1]):
                calls[name] = call
            else:
                wrong.append(f"{name}: {case.name}, {kind}, {dtype}, {threads} threads")
        if OURS in calls:
            size = case.bytes(kind, x.itemsize)
            seconds = harness.race(calls, rounds_of(seconds, args.rounds))
            copy = machine.copy(size, threads)
            results.append(Result(case.name, case.group, kind, dtype, threads, 0, size, seconds, np.nan, copy))
            progress.print(line(results[-1]))
        cyconv.release_scratch()
        progress.step(case.name)
    return results


def of_copy(r):
    return r.bytes / r.copy / r.median()


def line(r):
    text = f"{r.dtype} {r.name:32} {r.kind:21} {r.threads} threads {1e6 * r.median():8.1f} us +-{r.spread():3.0%} "
    others = ", ".join(f"{r.ratio(name):.1f} x {name}" for name in r.seconds if name != OURS)
    return f"{text}{of_copy(r):5.2f} of a copy | {others}"


def tables(results):
    """One table for each dtype and number of threads: the ratios to the fastest peer, to torch, and to a copy."""
    parts = []
    for (dtype, threads), some in harness.by(results, lambda r: (r.dtype, r.threads)).items():
        kinds = [k for k in PASSES if any(r.kind == k for r in some)]
        rows = []
        for name, layer in harness.by(some, lambda r: r.name).items():
            cells = {r.kind: r for r in layer}
            rows.append([name])
            for kind in kinds:
                r = cells.get(kind)
                rows[-1].append(f"{r.ratio():.1f} / {r.ratio('torch'):.1f} / {of_copy(r):.2f}" if r else "")
        parts.append(f"{dtype}, {threads} threads\n\n{harness.table(['', *kinds], rows)}")
    return "Ratio to the fastest peer / to torch on the same array / of copy speed\n\n" + "\n\n".join(parts)


def verdict(results):
    rows = []
    for (dtype, threads), some in harness.by(results, lambda r: (r.dtype, r.threads)).items():
        for kind in ("all", *PASSES):
            listed = [r for r in some if kind in ("all", r.kind) and r.fastest()]
            if listed:
                lowest = min(listed, key=Result.ratio)
                means = geometric_mean(r.ratio() for r in listed), geometric_mean(r.ratio("torch") for r in listed)
                rows.append([dtype, threads, kind, *(f"{m:.2f}" for m in means), f"{lowest.ratio():.2f}", lowest.name])
    header = ["dtype", "threads", "pass", f"mean, {WANTED[0]} wanted", f"to torch, {WANTED_TO_TORCH} wanted"]
    text = harness.table([*header, f"lowest, {WANTED[1]} wanted", ""], rows)
    below = [
        f"{of_copy(r):.2f} < {WANTED_OF_COPY} of a copy: {r.name}, {r.kind}, {r.dtype}, {r.threads} threads"
        for r in results
        if r.group == "large" and of_copy(r) < WANTED_OF_COPY
    ]
    return f"{text}\n\nLarge layers below their share of a copy: " + ("".join(f"\n- {b}" for b in below) or "none")


def main():
    p = harness.parser(__doc__.partition("\n")[0], "pool")
    p.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    p.add_argument("--dtype", nargs="+", choices=("float32", "float64"), help="default: both; with --quick float32")
    args = harness.arguments(p)
    args.dtype = args.dtype or (["float32"] if args.quick else ["float32", "float64"])
    facts = harness.about((torch, onnxruntime))
    print(harness.listed(facts))
    for name, reason in harness.skipped.items():
        print(f"skipped: {name} ({reason})")
    machine, wrong = harness.Machine(), []
    results = run(args, machine, wrong)
    text = f"{verdict(results)}\n\n{tables(results)}"
    print(f"\n{text}\n")
    Path(f"{args.output}.md").write_text(f"{harness.listed(facts)}\n\n{text}\n")
    harness.write_json(args.output, about=facts, copies=machine.copies, results=results, wrong=wrong)
    if wrong:
        sys.exit("wrong results: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
