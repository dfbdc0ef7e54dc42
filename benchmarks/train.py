"""Time whole training steps (forward, loss, backward, update) of small networks in cyconv and in torch.

Both start from the same weights and must agree on the first losses. Writes OUTPUT.json and OUTPUT.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
from cases import select
from harness import OURS, Result

import cyconv
from cyconv import nn

torch = harness.optional("torch")
RATE, CLASSES, STEPS = 1e-3, 10, 3  # STEPS are compared before any is timed
WANTED = {"LeNet": 2}  # times the speed of torch's faster layout


class Residual(nn.Layer):
    """max(body(x) + shortcut(x), 0); the shortcut is x itself if there is none."""

    def __init__(self, *body, shortcut=None):
        self.parts = {"body": nn.Sequential(*body)} | ({"shortcut": shortcut} if shortcut else {})

    def _forward(self, x):
        out = self.parts["body"](x)
        out += self.parts["shortcut"](x) if "shortcut" in self.parts else x
        np.maximum(out, 0, out=out)
        return out, out

    def _backward(self, grad_out, out, wrt_x):
        grad_out = grad_out * (out > 0)
        grad_x = self.parts["body"].backward(grad_out)
        grad_x += self.parts["shortcut"].backward(grad_out) if "shortcut" in self.parts else grad_out
        return grad_x

    def _joined(self, method):
        return {f"{part}.{k}": a for part, layer in self.parts.items() for k, a in getattr(layer, method)().items()}

    def parameters(self):
        return self._joined("parameters")

    def gradients(self):
        return self._joined("gradients")


@dataclass(frozen=True)
class Net:
    """A network in both libraries, on `batch` images of shape `image`; its parameters have the same order in both."""

    group: str
    batch: int
    image: tuple[int, int, int]

    @property
    def name(self):
        return f"{self.group}, {self.batch} images of {'x'.join(map(str, self.image))}"

    def cyconv(self):
        rng = np.random.default_rng(0)
        channels = self.image[0]

        def conv(f, k, c, **rest):
            return nn.Conv2D(f, k, in_channels=c, seed=rng, **rest)

        if self.group == "LeNet":
            return nn.Sequential(
                conv(6, 5, channels, padding=2, activation="relu"),
                nn.MaxPool2D(2),
                conv(16, 5, 6, activation="relu"),
                nn.MaxPool2D(2),
                nn.Flatten(),
                nn.Dense(120, in_features=400, activation="relu", seed=rng),
                nn.Dense(84, in_features=120, activation="relu", seed=rng),
                nn.Dense(CLASSES, in_features=84, seed=rng),
            )

        def block(c, f, stride):
            shortcut = conv(f, 1, c, stride=stride) if stride > 1 else None
            body = conv(f, 3, c, stride=stride, padding=1, activation="relu"), conv(f, 3, f, padding=1)
            return Residual(*body, shortcut=shortcut)

        return nn.Sequential(
            conv(32, 3, channels, padding=1, activation="relu"),
            block(32, 32, 1),
            block(32, 64, 2),
            block(64, 128, 2),
            nn.GlobalAvgPool2D(),
            nn.Flatten(),
            nn.Dense(CLASSES, in_features=128, seed=rng),
        )

    def torch(self):
        t, channels = torch.nn, self.image[0]

        def rectified(layer):
            return layer, t.ReLU(inplace=True)

        if self.group == "LeNet":
            return t.Sequential(
                *rectified(t.Conv2d(channels, 6, 5, padding=2)),
                t.MaxPool2d(2),
                *rectified(t.Conv2d(6, 16, 5)),
                t.MaxPool2d(2),
                t.Flatten(),
                *rectified(t.Linear(400, 120)),
                *rectified(t.Linear(120, 84)),
                t.Linear(84, CLASSES),
            )

        class Block(t.Module):
            def __init__(self, c, f, stride):
                super().__init__()
                convs = t.Conv2d(c, f, 3, stride, 1), t.Conv2d(f, f, 3, padding=1)
                self.body = t.Sequential(*rectified(convs[0]), convs[1])
                self.shortcut = t.Conv2d(c, f, 1, stride) if stride > 1 else t.Identity()

            def forward(self, x):
                return t.functional.relu(self.body(x) + self.shortcut(x), inplace=True)

        return t.Sequential(
            *rectified(t.Conv2d(channels, 32, 3, padding=1)),
            Block(32, 32, 1),
            Block(32, 64, 2),
            Block(64, 128, 2),
            t.AdaptiveAvgPool2d(1),
            t.Flatten(),
            t.Linear(128, CLASSES),
        )


NETS = [Net("LeNet", 64, (1, 28, 28)), Net("LeNet", 256, (1, 28, 28)), Net("ResNet-like", 64, (3, 32, 32))]


def cyconv_step(net, images, labels):
    """Return a function that makes one training step and returns the loss before it."""
    model = net.cyconv()
    loss, sgd = nn.SoftmaxCrossEntropy(), nn.SGD(model, RATE)

    def step():
        value = loss(model(images), labels)
        model.backward(loss.backward(), wrt_x=False)
        sgd.step()
        return value

    return step


def torch_step(net, images, labels, layout):
    model = net.torch()
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), net.cyconv().parameters().values(), strict=True):
            parameter.copy_(torch.from_numpy(array))
    model = model.to(memory_format=layout)
    images, labels = torch.from_numpy(images).contiguous(memory_format=layout), torch.from_numpy(labels)
    loss, sgd = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), RATE, fused=True)

    def step():
        sgd.zero_grad()
        value = loss(model(images), labels)
        value.backward()
        sgd.step()
        return value.item()

    return step


def contenders(net, threads):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(net.batch, *net.image)).astype(np.float32)
    labels = rng.integers(0, CLASSES, net.batch)
    cyconv.set_num_threads(threads)
    steps = {OURS: cyconv_step(net, images, labels)}
    if torch:
        torch.set_num_threads(threads)
        steps["torch"] = torch_step(net, images, labels, torch.contiguous_format)
        steps["torch channels-last"] = torch_step(net, images, labels, torch.channels_last)
    losses = {name: [step() for _ in range(STEPS)] for name, step in steps.items()}
    for name, values in losses.items():
        if not np.allclose(values, losses[OURS], rtol=1e-4):
            sys.exit(f"{net.name}: the losses of {name} {values} differ from those of cyconv {losses[OURS]}")
    return steps


def main():
    args = harness.arguments(harness.parser(__doc__.partition("\n")[0], "train"))
    facts = harness.about([torch])
    print(harness.listed(facts))
    nets = select(NETS, args.layers)
    progress, results = harness.Progress(len(nets) * len(args.threads)), []
    for net in nets:
        for threads in args.threads:
            seconds = harness.race(contenders(net, threads), args.rounds)
            r = Result(net.name, net.group, "step", "float32", threads, np.nan, np.nan, seconds)
            results.append(r)
            rates = ", ".join(f"{name} {net.batch / r.median(name):,.0f}" for name in seconds)
            progress.print(
                f"{net.name}, {threads} threads: images per second {rates} | {r.ratio():.2f} x {r.fastest()}"
            )
            progress.step(net.name)
    batches = {net.name: net.batch for net in nets}
    peers = [name for name in results[0].seconds if name != OURS]
    rows = [
        [
            r.name,
            r.threads,
            *(f"{batches[r.name] / r.median(name):,.0f}" for name in (OURS, *peers)),
            f"{r.ratio():.2f}",
        ]
        for r in results
    ]
    text = harness.table(["training step", "threads", *(f"{name}, images/s" for name in (OURS, *peers)), "ratio"], rows)
    below = [
        f"{r.name}, {r.threads} threads: {r.ratio():.2f} < {WANTED[r.group]} x {r.fastest()}"
        for r in results
        if r.ratio() < WANTED.get(r.group, 0)
    ]
    text += "\n\nBelow the threshold: " + ("; ".join(below) or "none")
    print(f"\n{text}\n")
    Path(f"{args.output}.md").write_text(f"{harness.listed(facts)}\n\n{text}\n")
    harness.write_json(args.output, about=facts, results=results)


if __name__ == "__main__":
    main()
