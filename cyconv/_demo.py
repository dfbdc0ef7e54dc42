"""The demonstration: a LeNet-style network learns handwritten digits, then two examples of the textbook chapter."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import conv2d, get_num_threads, nn
from .nn.storage import read_npz

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Integers = npt.NDArray[np.integer[Any]]

DIGITS = Path(__file__).parent / "data" / "digits.npz"
CREDIT = (
    "Optical Recognition of Handwritten Digits (test set: 1,797 images of 8x8), E. Alpaydin and C. Kaynak,\n"
    "UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0"
)
SEED = 0
BATCH = 32
RATE, MOMENTUM = 0.03, 0.9
HELD_OUT = 0.2  # of the images


class DemoError(Exception):
    """A wrong file or argument, in one line."""


def load_data(file: str | Path) -> tuple[Floats, Integers, int]:
    """Return images (N, C, H, W) scaled to -1..1, labels from 0 to classes - 1, and the number of classes."""
    try:
        arrays = read_npz(file)
        missing = {"images", "labels"} - arrays.keys()
        if missing:
            raise ValueError(f"{file} lacks {sorted(missing)}, it has {sorted(arrays)}")
        images, labels = arrays["images"], arrays["labels"]
        if images.dtype.kind not in "buif" or images.ndim not in (3, 4):
            raise ValueError(
                f"{file}: images must be numbers shaped (N, H, W) or (N, C, H, W), got {images.dtype} {images.shape}"
            )
        if len(images) < 10 or 0 in images.shape or min(images.shape[-2:]) < 4:
            raise ValueError(f"{file}: at least 10 images of at least 4x4 pixels are needed, got shape {images.shape}")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{file}: labels must be {len(images)} integers, one an image, got {labels.dtype} {labels.shape}"
            )
        if not np.isfinite(images).all():
            raise ValueError(f"{file}: images hold NaN or infinity")
        names, labels = np.unique(labels, return_inverse=True)
        if len(names) < 2:
            raise ValueError(f"{file}: labels must name at least two classes, all are {names[0]}")
        images = images.astype(np.float64)
        images /= np.abs(images).max() or 1
        return images.astype(np.float32).reshape(len(images), -1, *images.shape[-2:]), labels, len(names)
    except (OSError, ValueError, MemoryError) as error:
        raise DemoError(" ".join(str(error).split()) or f"{file} does not fit into memory") from error


def network(classes: int, rng: np.random.Generator) -> nn.Sequential:
    """Return LeNet with rectifiers and maximum pooling, narrowed to small images."""
    return nn.Sequential(
        nn.Conv2D(16, 3, padding=1, activation="relu", seed=rng),
        nn.MaxPool2D(2),
        nn.Conv2D(64, 3, padding=1, activation="relu", seed=rng),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dense(128, activation="relu", seed=rng),
        nn.Dense(classes, seed=rng),
    )


class Progress:
    """A bar if tqdm is installed, else a line for each epoch."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.done = epochs, 0
        try:
            self.bar = import_module("tqdm").tqdm(total=epochs, unit="epoch")
        except ImportError:
            self.bar = None

    def step(self, text: str) -> None:
        self.done += 1
        if self.bar is None:
            print(f"epoch {self.done:3}/{self.epochs}  {text}", flush=True)
            return
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        if self.done == self.epochs:
            self.bar.close()


def train(
    net: nn.Sequential, images: Floats, labels: Integers, held_out: Integers, epochs: int, rng: np.random.Generator
) -> tuple[list[tuple[float, float]], float]:
    """Train on all but the held-out images; return (loss, held-out accuracy) for each epoch, and images per second."""
    training = np.setdiff1d(np.arange(len(images)), held_out)
    loss, sgd = nn.SoftmaxCrossEntropy(), nn.SGD(net, RATE, MOMENTUM)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    # [n, :, 1, 1] is image n, other indices shift it by a pixel.
    shifted = np.lib.stride_tricks.sliding_window_view(padded, images.shape[-2:], axis=(2, 3))
    history, seconds, progress = [], 0.0, Progress(epochs)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        sgd.rate = RATE * (1 - epoch / epochs)
        order = rng.permutation(training)
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            # Half of the images are shifted by up to one pixel along each axis: more to learn from.
            y, x = 1 + rng.integers(-1, 2, (2, len(batch))) * rng.integers(0, 2, len(batch))
            total += len(batch) * loss(net(shifted[batch, :, y, x]), labels[batch])
            net.backward(loss.backward(), wrt_x=False)
            sgd.step()
        seconds += time.perf_counter() - start
        net.training = False
        accuracy = float(np.mean(net(images[held_out]).argmax(axis=1) == labels[held_out]))
        net.training = True
        history.append((total / len(training), accuracy))
        progress.step(f"loss {history[-1][0]:.4f}, held-out accuracy {accuracy:.1%}")
    return history, epochs * len(training) / seconds


def inference_rate(net: nn.Sequential, images: Floats) -> float:
    """Return images per second over at least 0.2 seconds."""
    net.training = False
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        net(images)
        done += len(images)
    return done / (time.perf_counter() - start)


def shades(filters: Floats, columns: int = 8) -> str:
    """Draw filters (F, KH, KW) side by side, from ' ' (the smallest weight of each) to '@' (its largest)."""
    low, high = filters.min(axis=(1, 2), keepdims=True), filters.max(axis=(1, 2), keepdims=True)
    levels = np.rint((filters - low) / np.maximum(high - low, 1e-30) * 9).astype(int)
    rows = []
    for start in range(0, len(levels), columns):
        block = levels[start : start + columns]
        rows += ["   ".join("".join(2 * " .:-=+*#%@"[v] for v in row) for row in line) for line in block.swapaxes(0, 1)]
        rows.append("")
    return "\n".join(rows)


def chapter_image() -> Floats:
    """Return the textbook's image: 6x8, white with four black columns."""
    image = np.ones((1, 1, 6, 8), np.float32)
    image[..., 2:6] = 0
    return image


def learn_kernel(epochs: int = 10) -> tuple[list[float], Floats]:
    """Learn the edge detector [1, -1] from the image and its edges; return the losses and the kernel."""
    image = chapter_image()
    edges = conv2d(image, np.array([[[[1, -1]]]], np.float32))
    layer, loss = nn.Conv2D(1, (1, 2), bias=False, seed=SEED), nn.MSE("sum")
    sgd, losses = nn.SGD(layer, 3e-2), []
    for _ in range(epochs):
        losses.append(loss(layer(image), edges))
        layer.backward(loss.backward())
        sgd.step()
    return losses, layer.parameters()["weight"].ravel().astype(np.float32)


def draw(figure: Any, history: list[tuple[float, float]], filters: Floats, image: Floats, maps: Floats) -> None:
    """Draw the loss, the accuracy, the first layer's filters, an image and its feature maps."""
    curves, pictures = figure.subfigures(2, 1, height_ratios=[1, 1.4])
    left, right = curves.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    left.semilogy(epochs, [loss for loss, _ in history])
    left.set(title="training loss", xlabel="epoch")
    right.plot(epochs, [100 * accuracy for _, accuracy in history])
    right.set(title="held-out accuracy, %", xlabel="epoch")
    both = pictures.subfigures(1, 2)
    for part, title, arrays in (
        (both[0], "filters of the first layer", filters),
        (both[1], "an image and its feature maps", [image, *maps]),
    ):
        part.suptitle(title)
        side = int(np.ceil(np.sqrt(len(arrays))))
        for axes in part.subplots(side, side, squeeze=False).flat:
            axes.axis("off")
        for axes, array in zip(part.axes, arrays, strict=False):
            axes.imshow(array, cmap="gray")


def new_figure(file: str) -> Any:
    """Return an empty figure; refuse a file that could not be written before any time is spent."""
    try:
        figure = import_module("matplotlib.figure").Figure(figsize=(10, 9), layout="constrained")
    except ImportError as error:
        raise DemoError("--plot needs matplotlib: python -m pip install matplotlib") from error
    known = sorted(figure.canvas.get_supported_filetypes())
    if Path(file).suffix[1:].lower() not in known:
        raise DemoError(f"--plot {file}: the name must end in one of {', '.join(known)}")
    if not Path(file).absolute().parent.is_dir():
        raise DemoError(f"--plot {file}: there is no such directory")
    return figure


def run(data: str | None = None, plot: str | None = None, epochs: int = 30) -> None:
    """Run the demonstration and print its results."""
    start = time.perf_counter()
    figure = new_figure(plot) if plot else None
    images, labels, classes = load_data(DIGITS if data is None else data)
    rng = np.random.default_rng(SEED)
    held_out = rng.permutation(len(images))[: max(1, round(HELD_OUT * len(images)))]
    print(CREDIT if data is None else f"{data}: {len(images)} images {images.shape[1:]}, {classes} classes")
    print(f"{len(images) - len(held_out)} images to train on, {len(held_out)} held out, {get_num_threads()} threads\n")

    net = network(classes, rng)
    history, rate = train(net, images, labels, held_out, epochs, rng)
    print(f"\nheld-out accuracy  {history[-1][1]:.2%} after {epochs} epochs")
    print(f"training           {rate:,.0f} images/s")
    print(f"inference          {inference_rate(net, images[held_out]):,.0f} images/s\n")

    filters = net.parameters()["0.weight"].mean(axis=1)
    print(f"The {len(filters)} learned filters of the first layer, dark to bright:\n\n{shades(filters)}")

    image = chapter_image()
    edges = conv2d(image, np.array([[[[1, -1]]]], np.float32))[0, 0]
    print("The edges of the chapter's image: 1 from white to black, -1 from black to white\n")
    for white, row in zip(image[0, 0].astype(int), edges.astype(int), strict=True):
        print(" ".join(f"{v}" for v in white) + "   ->  " + " ".join(f"{v:2}" for v in row))
    losses, kernel = learn_kernel()
    print("\nThe kernel [1, -1] learned from image and edges, loss of each epoch:")
    print(" ".join(f"{loss:.3f}" for loss in losses) + f"   ->  [{kernel[0]:.3f}, {kernel[1]:.3f}]")

    if figure is not None and plot is not None:
        first = images[held_out[:1]]
        draw(figure, history, filters, first[0].mean(axis=0), net[0](first)[0])
        try:
            figure.savefig(plot, dpi=120)
        except OSError as error:
            raise DemoError(f"--plot {plot}: {error}") from error
        print(f"\nplot written to {plot}")
    print(f"\n{time.perf_counter() - start:.1f} s in all")
