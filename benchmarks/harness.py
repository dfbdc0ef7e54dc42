"""What the benchmarks share: a clean environment, interleaved timing, the machine's limits, results and their tables.

Import it before NumPy matters and call `arguments` first: it may start the process again with another environment.
"""

import argparse
import datetime
import json
import math
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

# These override what OpenBLAS (in NumPy and SciPy) chooses for the processor.
MISLEADING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
# CYCONV_ISA and, so that the race stays even, what oneDNN (torch, OpenVINO), ATen and MKL take for the same.
PEER_ISA = {
    "avx512": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "baseline": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
PAUSE = 0.03  # seconds before a burst: the threads of OpenMP, TBB and ONNX Runtime stop spinning in less
LEAST = 0.002  # seconds that a burst lasts at least
OURS = "cyconv"

skipped = {}  # peer or contender: why it does not take part


def parser(description, output):
    """Return an argument parser with the options that every benchmark has."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--threads", type=int, nargs="+", help="default: 1 and one for each core; with --quick the latter")
    p.add_argument("--layers", nargs="+", default=[], help="only those whose name or group contains one of these words")
    p.add_argument(
        "--isa", choices=PEER_ISA, help="instruction set of cyconv and, where they can be told, of its peers"
    )
    p.add_argument("--rounds", type=int, help="bursts of each contender, of which the median counts")
    p.add_argument("--quick", action="store_true", help="a rough answer within two minutes")
    p.add_argument(
        "--output", default=output, help="results are written to OUTPUT.json and so on (default: %(default)s)"
    )
    return p


def arguments(p):
    """Return the parsed arguments, in a process whose environment is fit for measuring: started again if need be."""
    args = p.parse_args()
    if min(args.threads or [1]) < 1 or (args.rounds or 1) < 1:
        p.error("--threads and --rounds take numbers from 1 on")
    if not Path(args.output).absolute().parent.is_dir():
        p.error(f"--output {args.output}: there is no such directory")
    isa = args.isa or os.environ.get("CYCONV_ISA")
    wanted = dict.fromkeys(MISLEADING) | ({"CYCONV_ISA": isa} | PEER_ISA.get(isa, {}) if isa else {})
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        for name in wanted:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in wanted.items() if value})
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    cores = len(os.sched_getaffinity(0))
    args.threads = args.threads or ([cores] if args.quick else sorted({1, cores}))
    args.rounds = args.rounds or (3 if args.quick else 9)
    args.deadline = time.monotonic() + (85 if args.quick else math.inf)
    return args


def optional(name):
    """Return the module, or None and remember that it is missing."""
    try:
        return import_module(name)
    except ImportError:
        skipped[name.partition(".")[0]] = "not installed"
        return None


class Progress:
    """A bar on the last line of a terminal; lines are printed above it."""

    def __init__(self, total):
        self.total, self.done, self.text, self.start = total, 0, "", time.monotonic()

    def _draw(self):
        if sys.stderr.isatty():
            filled = 30 * self.done // max(1, self.total)
            left = (time.monotonic() - self.start) / max(1, self.done) * (self.total - self.done)
            bar = f"[{'#' * filled:30}] {self.done}/{self.total}, {left:.0f} s left  {self.text}"
            print("\r\x1b[K" + bar[:110], end="", file=sys.stderr, flush=True)

    def print(self, line=""):
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(line, flush=True)
        self._draw()

    def step(self, text=""):
        self.done, self.text = self.done + 1, text
        if self.done == self.total and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            self._draw()


def burst(call, n):
    """Seconds per call over n calls, after some that wake the threads and fill the caches."""
    for _ in range(1 + n // 4):
        call()
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


def repeats(call):
    """How many calls last LEAST seconds."""
    time.sleep(PAUSE)
    n, seconds = 1, burst(call, 1)
    while n * seconds < LEAST:
        n = max(n + 1, math.ceil(1.1 * LEAST / seconds))
        seconds = burst(call, n)
    return n


def race(contenders, rounds, between=lambda: None):
    """Time calls in turn; return {name: [seconds per call, one for each round]}.

    `contenders` is {name: call}. Each round runs one burst of each, after a pause and beginning with another one each
    time, so that a disturbance hits all of them alike; then it calls `between`.
    """
    n = {name: repeats(call) for name, call in contenders.items()}
    names, seconds = list(contenders), {name: [] for name in contenders}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(PAUSE)
            seconds[name].append(burst(contenders[name], n[name]))
        between()
    return seconds


def by(results, key):
    """Group results by key(result), in order of appearance."""
    groups = {}
    for r in results:
        groups.setdefault(key(r), []).append(r)
    return groups


class Machine:
    """The limits of the machine: multiply-adds in registers, and copies of several sizes."""

    COPIES = tuple(2**i * 10**6 for i in range(0, 9, 2))  # bytes read and written, by all threads together

    def __init__(self):
        self.pools, self.copies = {}, {}

    def _at_once(self, threads, work):
        """Run work(i) on each thread; each measures its own rate, the sum is returned."""
        if threads not in self.pools:
            self.pools[threads] = ThreadPoolExecutor(threads)
        return sum(self.pools[threads].map(work, range(threads)))

    def peak(self, dtype, threads, seconds=0.004):
        """Floating-point operations a second of independent multiply-adds, in cyconv's instruction set."""
        from cyconv import _dispatch

        fma = _dispatch.kernels("conv", np.dtype(dtype)).fma_peak

        def rate(_):
            steps = 10**4
            start = time.perf_counter()
            done = fma(steps)
            steps = max(1, int(steps * seconds / (time.perf_counter() - start)))
            start = time.perf_counter()
            done = fma(steps)
            return done / (time.perf_counter() - start)

        time.sleep(PAUSE)
        return self._at_once(threads, rate)

    def measure_copies(self, threads, rounds=5):
        """Bytes a second, read and written, of copies of each of the sizes COPIES."""
        arrays = {size: [np.ones((2, size // 2 // threads), np.uint8) for _ in range(threads)] for size in self.COPIES}
        speeds = {size: [] for size in self.COPIES}
        for _ in range(rounds):
            for size in self.COPIES:

                def rate(i, size=size):
                    source, target = arrays[size][i]
                    return 2 * source.nbytes / burst(lambda: np.copyto(target, source), max(1, 2 * 10**8 // size))

                time.sleep(PAUSE)
                speeds[size].append(self._at_once(threads, rate))
        self.copies[threads] = {size: float(np.median(values)) for size, values in speeds.items()}

    def copy(self, size, threads):
        """Bytes a second of a copy that reads and writes `size` bytes, between the measured sizes."""
        if threads not in self.copies:
            self.measure_copies(threads)
        sizes, speeds = zip(*self.copies[threads].items(), strict=True)
        return float(np.interp(math.log(size), np.log(sizes), speeds))


@dataclass
class Result:
    """One race: what was computed, the work it is, and the seconds that each contender took in each round."""

    name: str
    group: str
    kind: str  # "forward", "grad x", ...
    dtype: str
    threads: int
    flops: float
    bytes: float  # inputs and outputs, each once
    seconds: dict
    peak: float = math.nan  # floating-point operations a second, measured between the rounds
    copy: float = math.nan  # bytes a second for a copy of as many bytes

    def median(self, name=OURS):
        return float(np.median(self.seconds[name]))

    def spread(self, name=OURS):
        """Half of the distance between the quartiles, of the median."""
        low, high = np.percentile(self.seconds[name], (25, 75))
        return float(high - low) / 2 / self.median(name)

    def fastest(self):
        """Name of the fastest peer, or None."""
        return min((name for name in self.seconds if name != OURS), key=self.median, default=None)

    def ratio(self, peer=None):
        """How many times faster than a peer, the fastest by default."""
        peer = peer or self.fastest()
        return self.median(peer) / self.median() if peer in self.seconds else math.nan

    def rate(self, name=OURS):
        """Floating-point operations a second."""
        return self.flops / self.median(name)

    def limit(self):
        """Seconds that the machine needs at least: for the arithmetic at its peak, or for a copy of as many bytes."""
        return float(np.fmax(self.flops / self.peak, self.bytes / self.copy))


def geometric_mean(values):
    values = [v for v in values if not math.isnan(v)]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def about(modules=()):
    """Date, processor, versions and instruction set: what a result means nothing without."""
    import cyconv
    from cyconv import _dispatch

    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    versions = {module.__name__: module.__version__ for module in (cyconv, np, *modules) if module}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": (model or [platform.machine()])[0],
        "cores": len(os.sched_getaffinity(0)),
        "instruction set": _dispatch.isa(),
        "compiler": _dispatch.config()["compiler"],
        "python": platform.python_version(),
        **versions,
    }


def listed(facts):
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def table(header, rows):
    """Return a table in Markdown, its columns aligned."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def write_json(output, **data):
    """Write OUTPUT.json; results are given as dicts or dataclasses."""
    path = Path(f"{output}.json")
    path.write_text(json.dumps(data | {"skipped": skipped}, indent=1, default=asdict) + "\n")
    print(f"written: {path}")


def figure(*size):
    """Return a matplotlib figure, or None without matplotlib."""
    module = optional("matplotlib.figure")
    return module and module.Figure(figsize=size, layout="constrained")


def save(fig, output):
    for suffix in ("svg", "png"):
        fig.savefig(f"{output}.{suffix}", dpi=100)
    print(f"written: {output}.svg, {output}.png")
