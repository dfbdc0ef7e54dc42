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
MAX_PHASES = 3
MAX_PLACE = 1 << 24  # reals below are exact
LINES = 1 << 14  # bytes of lines that are filled at a time: they stay in L1
STRIP = 1 << 18  # bytes of the lines of a strip: they stay in L2
# Windows and strides along h and w that pyx/pool_small.pxi knows.
SMALL = {(2, 2, 2, 2), (2, 2, 3, 3), (3, 3, 3, 3), (3, 2, 3, 2), (3, 1, 3, 1), (5, 1, 5, 1)}
SMALL_STRIP = 1 << 12  # elements of a strip of small windows, whose rows are read several times: they stay in L1


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

    @property
    def most(self) -> int:
        """The most taps that lie in the array."""
        return min(self.window, self.size) if self.window else self.size // self.out + 2

    @property
    def reach(self) -> int:
        """Positions from the first tap of a window to the last."""
        return min((self.window - 1) * self.dilation, self.size) if self.window else self.most

    def rows(self, count: int, backward: bool) -> int:
        """The most rows under `count` windows, or (backward) under all windows that reach `count` positions."""
        stride = self.stride if self.window else -(-self.size // self.out)
        return min(self.size, count + 2 * self.reach if backward else count * stride + self.reach)

    @property
    def tiles(self) -> bool:
        """Whether windows of 2 or 3 positions cover the array, or its start, without gap or overlap."""
        pitch = self.window == self.stride and self.dilation == 1
        return pitch and self.window in (2, 3) and self.before == 0 and self.out * self.stride <= self.size

    @property
    def whole(self) -> bool:
        return self.out == 1 and self.before == 0 and self.window in (0, self.size) and self.dilation == 1


def _up(n: int, to: int = LANES) -> int:
    return -(-n // to) * to


def tables(
    d: Axis, h: Axis, w: Axis, dtype: np.dtype[np.floating], backward: bool, include_pad: bool, divisor: int
) -> bytes:
    """Return the bytes that the kernels read; divisors are those of averages, reciprocals in the backward pass."""
    item, whole = dtype.itemsize, d.whole and h.whole and w.whole
    rows_apart = min((d.most - 1) * d.dilation * h.size + (h.most - 1) * h.dilation, d.size * h.size)
    if max(w.most, rows_apart) > MAX_PLACE and not whole:
        raise ValueError(f"windows of more than {MAX_PLACE} columns or rows of an image are not supported")
    # Lines: not for adaptive windows, nor for those that are far apart or mostly padding.
    last = (w.window - 1) * w.dilation - w.before  # of the taps of output 0
    wide = max((w.out - 1) * w.stride + last + 1, w.size)
    lined = w.window and w.stride <= MAX_PHASES and not whole
    phases = w.stride if lined and w.before + wide <= 2 * w.size + 1024 else 0
    base = pitch = ahead = 0
    if phases:
        base, pitch = _up(w.before // phases + 1), _up(wide // phases + 3 * LANES)
        pitch += base
        # The zeros before a line of outputs are also those after the one before it.
        after = (w.size - 1 + w.before) // phases + 1 - _up(w.out)
        ahead = _up(max(last // phases + 1, after, 0))
    outputs = ahead + _up(w.out)
    line = phases * pitch if phases else _up(w.size)
    # A strip is some rows of the result, or all rows of some planes: few enough for L2, but more than a window reaches.
    sizes = (d.size, h.size) if backward else (d.out, h.out)
    unit, count, reach = (1, sizes[1], h.reach) if sizes[0] == 1 else (sizes[1], sizes[0], d.reach)

    def lines(count: int) -> int:
        """The most rows under the windows of a strip."""
        return d.rows(-(-count // sizes[1]), backward) * h.rows(min(count, sizes[1]), backward)

    while count > reach + 1 and 3 * lines(count * unit) * outputs * item > STRIP:
        count = max(reach + 1, (count + 1) // 2)
    rows, small = d.most * h.most, 0
    plane = d[:3] == (1, 1, 1) and d.before == 0
    if phases and plane and h.dilation == w.dilation == 1 and (h.window, h.stride, w.window, w.stride) in SMALL:
        small = ((10 * h.window + h.stride) * 10 + w.window) * 10 + w.stride
        count = max(reach + 1, min(count, SMALL_STRIP // (w.size * (1 if backward else h.stride))))
    header = [
        *(number for a in (d, h, w) for number in (a.size, a.out, a.window, a.stride, a.before, a.dilation)),
        rows,
        phases,
        pitch,
        base,
        line,
        max(1, min(16, LINES // (line * item))) if phases else 1,
        outputs,
        ahead,
        count * unit,
        lines(count * unit),
        whole,
        w.tiles and phases > 0,
        d.size == d.out == 1 and h.window > 0 and h.before == 0 and h.out * h.stride == h.size and h.reach < h.stride,
        small,
        d.size * h.size * w.size,
        d.out * h.out * w.out,
    ]
    k = np.arange(w.window if phases else 0)
    behind, phase = np.divmod(k * w.dilation - w.before, phases or 1)
    order = np.argsort(phase, kind="stable")
    starts = np.searchsorted(phase[order], np.arange(phases + 1))
    integers: list[npt.ArrayLike] = [header, base + phase * pitch, behind, order, starts]
    counts = [np.ones(a.out) if divisor else a.cells(include_pad).astype(float) for a in (d, h, w)]
    product = divisor or math.prod(int(c[0]) for c in counts)
    same = all((c == c[0]).all() for c in counts)
    if divisor:
        counts[2] *= divisor
    scale = 1 / product if same and product > 0 and not product & (product - 1) else 0  # exact
    with np.errstate(divide="ignore"):
        cells = [1 / c if backward else c for c in counts]
    reals: list[npt.ArrayLike] = [[scale], *cells, np.ones(LANES)]
    return b"".join([np.concatenate(integers).astype(np.intp).tobytes(), np.concatenate(reals).astype(dtype).tobytes()])
