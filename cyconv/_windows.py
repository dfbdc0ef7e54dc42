"""What the kernels are told about the windows of a pooling: struct Pool of pyx/window.pxi, a header and tables.

Output o of an axis has the taps k < window at positions o*stride - before + k*dilation. An axis with window 0 is
adaptive: output o covers the positions floor(o*size/out) up to ceil((o+1)*size/out).

Along w the kernels work on lines: a row, padded and split by stride. Column c lies in phase c % stride at place
c // stride, so that a tap of consecutive outputs is a contiguous run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.int64]

LANES = 16  # elements of the widest vector: lines are multiples of it
MAX_PHASES = 64
MAX_PLACE = 1 << 24  # reals below are exact
MAX_LINES = 1 << 20  # bytes of lines under a window
MAX_ROUTED = 36  # taps up to which gradients are routed by vectors, not scattered
LINES = 1 << 14  # bytes of lines that are filled at a time: they stay in L1
SEARCHED_LINES = 1 << 17  # the same of lines that are searched: they stay in L2
SEARCHED = 8  # rows of windows that are searched at a time


class Axis(NamedTuple):
    """One axis, d, h or w."""

    size: int
    out: int
    window: int
    stride: int
    before: int
    after: int
    dilation: int

    def spans(self) -> Array:
        """For each window its first position in the array, how many taps lie there, and which tap the first is."""
        m, o = self.size, np.arange(self.out)
        if self.window == 0:
            begin = o * m // self.out
            return np.stack([begin, -(-(o + 1) * m // self.out) - begin, 0 * o], 1)
        start = o * self.stride - self.before
        first = np.maximum(0, -(start // self.dilation))
        end = np.minimum(self.window, np.maximum(0, -((start - m) // self.dilation)))
        return np.stack([start + first * self.dilation, np.maximum(0, end - first), first], 1)

    def cells(self, include_pad: bool) -> Array:
        """How many cells of each window an average counts."""
        if not include_pad or self.window == 0:
            return self.spans()[:, 1]
        end = self.size + self.after + self.before - np.arange(self.out) * self.stride
        return np.minimum(self.window, -(-end // self.dilation))

    def reached(self) -> tuple[Array, Array]:
        """For each position the first and the last window that reads it; `out` and -1 for none."""
        first, last = np.full(self.size, self.out), np.full(self.size, -1)
        begin, taps, _ = self.spans().T
        for k in range(int(taps.max(initial=0))):
            o = np.flatnonzero(taps > k)
            at = begin[o] + k * self.dilation
            np.minimum.at(first, at, o)
            np.maximum.at(last, at, o)
        return first, last

    @property
    def most(self) -> int:
        """The most taps that lie in the array."""
        return min(self.window, self.size) if self.window else self.size // self.out + 2

    @property
    def extent(self) -> int:
        """Positions from the first of them to the last."""
        return (self.most - 1) * self.dilation + 1

    @property
    def whole(self) -> bool:
        return self.out == 1 and self.before == 0 and self.window in (0, self.size) and self.dilation == 1


def _up(n: int, to: int = LANES) -> int:
    return -(-n // to) * to


def tables(
    d: Axis, h: Axis, w: Axis, dtype: np.dtype[np.floating], backward: bool, include_pad: bool, divisor: int
) -> bytes:
    """Return the bytes that the kernels read; divisors are those of averages, reciprocals in the backward pass."""
    item = dtype.itemsize
    # Lines: not for adaptive windows, nor for those that are far apart or mostly padding.
    last = (w.window - 1) * w.dilation - w.before  # of the taps of output 0
    wide = max((w.out - 1) * w.stride + last + 1, w.size)
    phases = w.stride if w.window and w.stride <= MAX_PHASES and w.before + wide <= 2 * w.size + 1024 else 0
    base = pitch = ahead = 0
    outputs = w.out
    if phases:
        base, ahead = _up(w.before // phases + 1), _up(max(0, last // phases + 1) + 1)
        pitch = _up(base + wide // phases + 3 * LANES)
        outputs = max(w.out, w.size // phases + w.before // phases + 2)
    outputs = _up(ahead + outputs + 3 * LANES)
    line = phases * pitch
    shared = h.extent >= h.stride  # lines lie in the order of the rows, otherwise of the taps

    def lines(count: int) -> int:
        """Lines under so many rows of windows."""
        return d.most * ((count - 1) * h.stride + h.extent if shared else h.most * count)

    together = SEARCHED
    while together > 1 and lines(together) * (line + 2 * outputs) * item > SEARCHED_LINES:
        together -= 1
    reach = max(d.window, d.most) * d.dilation * h.size + max(h.window, h.most) * h.dilation
    searched = phases > 0 and reach * w.size < MAX_PLACE and lines(1) * (line + 2 * outputs) * item <= MAX_LINES
    apart = d.out == 1 or (d.window > 0 and d.stride >= d.extent)
    whole = d.whole and h.whole and w.whole
    (first_d, last_d), (first_h, last_h) = (a.reached() if backward else (np.zeros(0, int),) * 2 for a in (d, h))
    header = [
        *(number for a in (d, h, w) for number in (a.size, a.out, a.window, a.stride, a.before, a.dilation)),
        d.most * h.most,
        phases,
        pitch,
        base,
        ahead,
        outputs,
        max(1, min(16, LINES // (line * item))) if phases else 1,
        together if searched else SEARCHED,
        lines(together) if searched else 0,
        1 << (min(h.size, h.extent + (h.window == 0)) - 1).bit_length() if apart else 1,
        whole,
        phases in (2, 3) and w.window == phases and w.dilation == 1 and w.before == 0 and phases * w.out <= w.size,
        d.size == d.out == 1 and h.window > 0 and h.before == 0 and h.out * h.stride == h.size and h.extent <= h.stride,
        shared,
        apart,
        d.size == 1 and h.window > 0 and h.stride >= h.extent,
        bool((last_d < 0).any() or (last_h < 0).any()),
        searched,
        not searched or d.most * h.most * w.window > MAX_ROUTED,
    ]
    k = np.arange(w.window if phases else 0)
    behind, phase = np.divmod(k * w.dilation - w.before, phases or 1)
    order = np.argsort(phase, kind="stable")
    integers: list[npt.ArrayLike] = [
        header, d.spans().ravel(), h.spans().ravel(), first_d, first_h, last_h,
        phase * pitch + base + behind, behind[order], np.searchsorted(phase[order], np.arange(phases + 1)),
    ]  # fmt: skip
    counts = [np.ones(a.out) if divisor else a.cells(include_pad).astype(float) for a in (d, h, w)]
    product = divisor or math.prod(int(c[0]) for c in counts)
    same = all((c == c[0]).all() for c in counts)
    if divisor:
        counts[2] *= divisor
    scale = 1 / product if same and product > 0 and not product & (product - 1) else 0  # exact
    with np.errstate(divide="ignore"):
        cells = [1 / c if backward else c for c in counts]
    reals: list[npt.ArrayLike] = [order, *cells, np.ones(LANES), [scale]]
    return b"".join([np.concatenate(integers).astype(np.intp).tobytes(), np.concatenate(reals).astype(dtype).tobytes()])
