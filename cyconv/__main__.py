"""``python -m cyconv`` prints the configuration, ``python -m cyconv demo`` trains a network on handwritten digits."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from . import _demo, show_config

if TYPE_CHECKING:
    from collections.abc import Sequence


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 for a wrong argument or file."""
    parser = argparse.ArgumentParser("python -m cyconv", description="Print how cyconv was built and what it runs on.")
    demo = parser.add_subparsers(dest="command").add_parser(
        "demo", help="train a small network", description="Train a LeNet-style network, print its accuracy and speed."
    )
    demo.add_argument(
        "--data",
        metavar="FILE.npz",
        help="arrays 'images', numbers (N, H, W) or (N, C, H, W), and 'labels', N integers (default: shipped digits)",
    )
    demo.add_argument("--plot", metavar="FILE.png", help="draw loss, accuracy, filters, maps (needs matplotlib)")
    demo.add_argument("--epochs", type=positive, default=30, help="passes over the images (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.command is None:
        show_config()
        return 0
    try:
        _demo.run(args.data, args.plot, args.epochs)
    except _demo.DemoError as error:
        print(f"cyconv demo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
