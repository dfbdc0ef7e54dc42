"""Race cyconv through the convolutions of VGG-16, end to end, against torch, ONNX Runtime and OpenVINO.

Results are compared before they are timed. Writes OUTPUT.json, OUTPUT.md and, with matplotlib, a plot.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import peers
from cases import Conv, select
from harness import OURS, Result
from peers import onnx, openvino, torch

import cyconv

BLOCKS = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)  # channels; a pooling ends each
ALGORITHMS = {OURS: "auto", f"{OURS} direct": "direct"}


@dataclass(frozen=True)
class Net:
    """The 13 convolutions of VGG-16, 3x3 with bias and ReLU, and its 5 poolings."""

    batch: int
    group = "VGG-16"

    @property
    def name(self):
        return f"batch {self.batch}"

    def layers(self):
        """Return [(Conv, whether a 2x2 max pooling follows)]."""
        layers, c, h = [], 3, 224
        for block in BLOCKS:
            for i, f in enumerate(block, 1):
                layers.append((Conv(self.group, (self.batch, c, h, h), f, (3, 3), padding=(1, 1)), i == len(block)))
                c = f
            h //= 2
        return layers

    def arrays(self):
        """Return x and for each layer whether it is pooled, weight, bias: normal, the weight scaled as by He et al."""
        rng = np.random.default_rng(0)
        x, steps = rng.normal(size=(self.batch, 3, 224, 224)).astype(np.float32), []
        for case, pooled in self.layers():
            weight = rng.normal(0, math.sqrt(2 / math.prod(case.weight[1:])), case.weight)
            steps.append((pooled, weight.astype(np.float32), rng.normal(0, 0.1, case.channels).astype(np.float32)))
        return x, steps


def contenders(net, threads):
    """Return {name: (call, as_array)}."""
    x, steps = net.arrays()
    shape = (net.batch, BLOCKS[-1][-1], 7, 7)
    cyconv.set_num_threads(threads)
    found = {name: (_cyconv(net, x, steps, algorithm), np.asarray) for name, algorithm in ALGORITHMS.items()}
    if torch:
        torch.set_num_threads(threads)
        for name, layout in (("torch", torch.contiguous_format), ("torch channels-last", torch.channels_last)):
            found[name] = (_torch(x, steps, layout), lambda y: y.numpy())
    if peers.onnxruntime:
        found["onnxruntime"] = _onnxruntime(x, steps, shape, threads)
    if openvino:
        found["openvino"] = _openvino(x, steps, shape, threads)
    return found


def _cyconv(net, x, steps, algorithm):
    """Layers write in turn to two buffers that are allocated once."""
    buffers, outs = [np.empty(64 * 224 * 224 * net.batch, x.dtype) for _ in range(2)], []
    for case, pooled in net.layers():
        n, f, h, w = case.out
        for shape in ((n, f, h, w), (n, f, h // 2, w // 2))[: 1 + pooled]:
            buffers.reverse()
            outs.append(buffers[0][: math.prod(shape)].reshape(shape))

    def call():
        y, out = x, iter(outs)
        for pooled, weight, bias in steps:
            y = cyconv.conv2d(y, weight, bias, padding=1, activation="relu", algorithm=algorithm, out=next(out))
            y = cyconv.max_pool2d(y, 2, out=next(out)) if pooled else y
        return y

    return call


def _torch(x, steps, layout):
    functions, x = torch.nn.functional, torch.from_numpy(x).contiguous(memory_format=layout)
    steps = [(p, torch.from_numpy(w).contiguous(memory_format=layout), torch.from_numpy(b)) for p, w, b in steps]

    @torch.inference_mode()
    def call():
        y = x
        for pooled, weight, bias in steps:
            y = functions.relu_(functions.conv2d(y, weight, bias, padding=1))
            y = functions.max_pool2d(y, 2) if pooled else y
        return y

    return call


def _onnxruntime(x, steps, shape, threads):
    nodes, constants, y, make = [], {}, "x", onnx.helper.make_node
    for i, (pooled, weight, bias) in enumerate(steps):
        constants |= {f"weight{i}": weight, f"bias{i}": bias}
        nodes.append(make("Conv", [y, f"weight{i}", f"bias{i}"], [f"conv{i}"], pads=[1] * 4))
        nodes.append(make("Relu", [f"conv{i}"], [y := f"relu{i}"]))
        if pooled:
            nodes.append(make("MaxPool", [y], [y := f"pool{i}"], kernel_shape=[2, 2], strides=[2, 2]))
    nodes[-1].output[0] = "out"
    return peers.onnx_model(nodes, constants, x, shape, threads)


def _openvino(x, steps, shape, threads):
    ops, none, one, two = openvino.opset13, [0, 0], [1, 1], [2, 2]
    y = image = ops.parameter(x.shape, np.float32)
    for pooled, weight, bias in steps:
        y = ops.convolution(y, ops.constant(weight), one, one, one, one)
        y = ops.relu(ops.add(y, ops.constant(bias[:, None, None])))
        y = ops.max_pool(y, two, one, none, none, two).output(0) if pooled else y
    return peers.openvino_model(image, y, x, shape, threads)


def tolerance(net, wanted):
    """The largest difference that rounding explains.

    docs/accuracy.md: an error of Winograd's is at most 64 eps sum |x||w|. That sum is at most |x| |w| (Cauchy-Schwarz),
    which for random weights is sqrt(K) times the rms of the layer's sums of K products. He's scaling keeps the ratio of
    errors to rms on the way through later layers; those of all layers are independent: their squares add up.
    """
    products = sum(math.prod(case.weight[1:]) for case, _ in net.layers())
    rms = math.sqrt(np.mean(np.square(wanted, dtype=np.float64)))
    return 64 * float(np.finfo(wanted.dtype).eps) * math.sqrt(products) * rms


def differences(net, found):
    """{name: largest difference from torch's result or, without torch, from the direct sum, as part of `tolerance`}."""
    results = {name: as_array(call()) for name, (call, as_array) in found.items()}
    wanted = results.get("torch", results[f"{OURS} direct"])
    return {name: float(np.abs(y - wanted).max()) / tolerance(net, wanted) for name, y in results.items()}


def run(args, machine, wrong):
    nets = select([Net(1)] if args.quick else [Net(1), Net(8)], args.layers)
    progress, results, shares = harness.Progress(len(nets) * len(args.threads)), [], {}
    for net, threads in ((net, threads) for net in nets for threads in args.threads):
        where, peaks, found = f"{net.name}, {threads} threads", [], contenders(net, threads)
        shares[where] = differences(net, found)
        calls = {name: found[name][0] for name, share in shares[where].items() if share <= 1}
        wrong += [f"{name}: {where}" for name in found if name not in calls]
        if OURS in calls:
            seconds = harness.race(calls, args.rounds, lambda: peaks.append(machine.peak("float32", threads)))  # noqa: B023
            flops = sum(case.flops for case, _ in net.layers())
            r = Result(net.name, net.group, "forward", "float32", threads, flops, np.nan, seconds, max(peaks))
            results.append(r)
            times = (f"{name} {1e3 * r.median(name):.0f} ms +-{r.spread(name):.0%}" for name in seconds)
            progress.print(f"{where}: {', '.join(times)}")
        cyconv.release_scratch()
        progress.step(where)
    return results, shares


def images(r, name):
    """Images per second."""
    return int(r.name.split()[-1]) / r.median(name)


def rows(results):
    for r in results:
        least = min((r.median(name) for name in r.seconds if name not in ALGORITHMS), default=math.nan)
        for name in r.seconds:
            rates = f"{images(r, name):.2f}", f"{r.rate(name) / 1e9:.0f}", f"{r.rate(name) / r.peak:.2f}"
            times = f"{1e3 * r.median(name):.1f}", f"{r.spread(name):.0%}"
            yield [r.name, r.threads, name, *times, *rates, f"{least / r.median(name):.2f}"]


def plot(results, output):
    nets = list(dict.fromkeys(r.name for r in results))
    if not nets or not (fig := harness.figure(5 * len(nets), 4)):
        return
    for ax, net in zip(fig.subplots(1, len(nets), squeeze=False).flat, nets, strict=True):
        some = [r for r in results if r.name == net]
        names, height = list(dict.fromkeys(name for r in some for name in r.seconds)), 0.8 / len(some)
        for i, r in enumerate(some):
            at, lengths = zip(*((names.index(name) + i * height, images(r, name)) for name in r.seconds), strict=True)
            ax.bar_label(ax.barh(at, lengths, height, label=f"{r.threads} threads"), fmt="%.2f", padding=2, fontsize=7)
        ax.set(title=f"VGG-16's convolutions, {net}", xlabel="images per second")
        ax.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
        ax.margins(x=0.12)
        ax.invert_yaxis()
        ax.legend(fontsize=8)
    harness.save(fig, output)


def main():
    args = harness.arguments(harness.parser(__doc__.partition("\n")[0], "vgg"))
    facts = harness.about((torch, peers.onnxruntime, openvino))
    print(harness.listed(facts))
    for name, reason in harness.skipped.items():
        print(f"skipped: {name} ({reason})")
    wrong = []
    results, shares = run(args, harness.Machine(), wrong)
    header = ["", "threads", "", "ms", "+-", "images/s", "GFLOP/s", "of peak", "times the speed of the fastest peer"]
    largest = max(share for some in shares.values() for share in some.values())
    text = f"{harness.table(header, rows(results))}\n\nLargest difference of results: {largest:.1g} of the tolerance"
    print(f"\n{text}\n")
    Path(f"{args.output}.md").write_text(f"{harness.listed(facts)}\n\n{text}\n")
    harness.write_json(args.output, about=facts, results=results, differences=shares, wrong=wrong)
    plot(results, args.output)
    if wrong:
        sys.exit("wrong results: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
