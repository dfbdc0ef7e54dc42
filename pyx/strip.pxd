# The strip: the part of one image that a task needs, padded and split by stride once, so that what a tap reads for
# consecutive output pixels is a contiguous run. Layout [channel][x segment][row][pitch].
#
# Along one axis, output o of tap i reads source index start[i] + o * step. Taps whose runs overlap share a segment; runs
# of different residues modulo the step never do. With exact columns every tap along x has a segment of its own, as wide
# as the output: rows then follow each other without a gap and vectors cross from one to the next.
from simd cimport real, LANES, load, store, splat, even


cdef enum:
    STRIP_BYTES = 1 << 19       # what a task reads again and again: half of a 1 MB L2


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef struct Axis:
    Py_ssize_t taps
    Py_ssize_t step             # source elements between neighbouring outputs
    Py_ssize_t size             # of the source
    Py_ssize_t extent           # outputs
    Py_ssize_t *start           # [taps] source index that output 0 reads, ascending
    Py_ssize_t *index           # [taps] the tap's place in the weight
    Py_ssize_t *segment         # [taps] the segment that holds its run
    Py_ssize_t *offset          # [taps] where in the segment the run begins
    Py_ssize_t *run             # [taps] of the column tile
    Py_ssize_t segments
    Py_ssize_t *segment_start   # [segments] source index of the first element
    Py_ssize_t *segment_length  # [segments]


cdef inline void plan_segments(Axis *axis, Py_ssize_t extent, bint share) noexcept nogil:
    """Lay out the segments for runs of `extent` outputs."""
    cdef Py_ssize_t i, j, gap, found
    axis.segments = 0
    for i in range(axis.taps):
        found = axis.segments
        if share:
            for j in range(axis.segments):
                gap = axis.start[i] - axis.segment_start[j]
                if gap % axis.step == 0 and gap // axis.step <= axis.segment_length[j]:
                    found = j
        if found == axis.segments:
            axis.segment_start[found] = axis.start[i]
            axis.segments += 1
        axis.segment[i] = found
        axis.offset[i] = (axis.start[i] - axis.segment_start[found]) // axis.step
        axis.segment_length[found] = axis.offset[i] + extent


cdef inline Py_ssize_t plan_runs(Axis *axis, Py_ssize_t longest, Py_ssize_t *counts) noexcept nogil:
    """Group taps that read neighbouring elements of a segment into runs of at most `longest`.

    run[i] taps begin with tap i, none if it lies inside a run; counts[n] becomes the number of runs of n taps. Return the
    distance in the weight between neighbours of a run, which is the same for all of them.
    """
    cdef Py_ssize_t i, j, position, length, distance = 0
    for i in range(longest + 1):
        counts[i] = 0
    for i in range(axis.taps):
        position = 0            # in an unlimited run; offsets ascend within a segment
        for j in range(i - 1, -1, -1):
            if axis.segment[j] == axis.segment[i] and axis.offset[i] - axis.offset[j] == position + 1:
                position += 1
        length = 1
        for j in range(i + 1, axis.taps):
            if axis.segment[j] == axis.segment[i] and axis.offset[j] - axis.offset[i] == length:
                if length == 1:
                    distance = axis.index[j] - axis.index[i]
                length += 1
        axis.run[i] = min(length, longest) if position % longest == 0 else 0
        counts[axis.run[i]] += 1
    return distance


cdef inline Py_ssize_t total_length(const Axis *axis) noexcept nogil:
    cdef Py_ssize_t j, total = 0
    for j in range(axis.segments):
        total += axis.segment_length[j]
    return total


cdef inline Py_ssize_t segment_base(const Axis *axis, Py_ssize_t segment) noexcept nogil:
    """Rows before the segment when the segments lie one after the other."""
    cdef Py_ssize_t j, base = 0
    for j in range(segment):
        base += axis.segment_length[j]
    return base


cdef inline Py_ssize_t longest_segment(const Axis *axis) noexcept nogil:
    cdef Py_ssize_t j, longest = 0
    for j in range(axis.segments):
        longest = max(longest, axis.segment_length[j])
    return longest


cdef inline Py_ssize_t padded_plane(Py_ssize_t elements) noexcept nogil:
    """An odd number of cache lines, so that neighbouring planes do not fall into the same sets of the cache."""
    return (ceil_div(elements * <Py_ssize_t>sizeof(real), 64) | 1) * 64 // <Py_ssize_t>sizeof(real)


cdef inline void copy_run(real *to, const real *source, Py_ssize_t n) noexcept nogil:
    """Copy n contiguous elements; the ranges do not overlap."""
    cdef Py_ssize_t i = 0
    if n < LANES:
        for i in range(n):
            to[i] = source[i]
        return
    while i + LANES <= n:
        store(to + i, load(source + i))
        i += LANES
    if i < n:                   # the last vector overlaps the one before it
        store(to + n - LANES, load(source + n - LANES))


cdef inline void zero_run(real *to, Py_ssize_t n) noexcept nogil:
    """Zero n elements and up to LANES - 1 more."""
    cdef Py_ssize_t i = 0
    while i < n:
        store(to + i, splat(0))
        i += LANES


cdef inline void copy_row(real *to, Py_ssize_t n, Py_ssize_t first, Py_ssize_t last, const real *source,
                          const Py_ssize_t step, const real *end) noexcept nogil:
    """to[first + i] = source[i * step] up to `last`, the rest of the n elements zero.

    Up to LANES - 1 elements behind to + n are overwritten; nothing is read from `end` on.
    """
    cdef Py_ssize_t i = 0, length = last - first
    if first > 0:
        zero_run(to, first)
        to += first
    if step <= 2 and source + step * (length + LANES) <= end:
        while i < length:
            store(to + i, load(source + i) if step == 1 else even(load(source + 2 * i), load(source + 2 * i + LANES)))
            i += LANES
    elif step == 1:
        copy_run(to, source, length)
    else:
        for i in range(length):
            to[i] = source[i * step]
    if last < n:
        zero_run(to + length, n - last)


cdef inline void copy_rows(real *to, const real *source, const Axis *y, const Axis *x, Py_ssize_t j, const Py_ssize_t step,
                           Py_ssize_t first_output, Py_ssize_t pitch, const real *end) noexcept nogil:
    """Segment j along x of all rows of one channel; step is that of x, a constant if it is small."""
    cdef Py_ssize_t start = x.segment_start[j], n = x.segment_length[j]
    cdef Py_ssize_t first = min(n, ceil_div(-start, step)) if start < 0 else 0
    cdef Py_ssize_t last = max(first, min(n, ceil_div(x.size - start, step))) if start < x.size else first
    cdef Py_ssize_t i, _r, row
    source += start + first * step
    for i in range(y.segments):
        row = y.segment_start[i] + first_output * y.step
        for _r in range(y.segment_length[i]):
            if 0 <= row < y.size:
                copy_row(to, n, first, last, source + row * x.size, step, end)
            else:
                zero_run(to, n)
            row += y.step
            to += pitch


cdef inline void copy_strip(real *strip, const real *source, Py_ssize_t channels, Py_ssize_t source_plane,
                            const Axis *y, const Axis *x, Py_ssize_t first_output, Py_ssize_t plane, Py_ssize_t pitch,
                            const real *end) noexcept nogil:
    """Copy what the outputs of rows first_output... read of `channels` channels into the strip, padding included.

    Rows are written in ascending order, so that what one writes past its end is mended by the next; behind the strip lie
    LANES elements for the last one. `end` is the end of the array that source points into.
    """
    cdef Py_ssize_t _c, j
    for _c in range(channels):
        for j in range(x.segments):
            if x.step == 1:
                copy_rows(strip, source, y, x, j, 1, first_output, pitch, end)
            elif x.step == 2:
                copy_rows(strip, source, y, x, j, 2, first_output, pitch, end)
            else:
                copy_rows(strip, source, y, x, j, x.step, first_output, pitch, end)
            strip += plane
        source += source_plane
