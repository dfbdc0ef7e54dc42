# The strip: the part of one image that a task needs, padded and split by stride once, so that what a tap reads for
# consecutive output pixels is a contiguous run. Layout [channel][x segment][row][pitch].
#
# Along one axis, output o of tap i reads source index start[i] + o * step. Taps whose runs overlap share a segment; runs
# of different residues modulo the step never do. With exact columns every tap along x has a segment of its own, as wide
# as the output: rows then follow each other without a gap and vectors cross from one to the next.
from libc.string cimport memset
from simd cimport real, LANES, load, store, even


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


cdef inline void copy_row(real *to, Py_ssize_t n, const real *row, Py_ssize_t start, Py_ssize_t step,
                          Py_ssize_t size) noexcept nogil:
    """to[i] = row[start + i * step] for i < n, zero where that lies outside 0..size."""
    cdef Py_ssize_t first, last, i
    first = min(n, ceil_div(-start, step)) if start < 0 else 0
    last = ceil_div(size - start, step) if start < size else 0
    last = max(first, min(n, last))
    for i in range(first):
        to[i] = 0
    if step == 1:
        copy_run(to + first, row + start + first, last - first)
    else:
        i = first
        if step == 2:
            while i + LANES <= last and start + 2 * (i + LANES) <= size:
                store(to + i, even(load(row + start + 2 * i), load(row + start + 2 * i + LANES)))
                i += LANES
        for i in range(i, last):
            to[i] = row[start + i * step]
    for i in range(last, n):
        to[i] = 0


cdef inline void copy_strip(real *strip, const real *source, Py_ssize_t channels, Py_ssize_t source_plane,
                            const Axis *y, const Axis *x, Py_ssize_t first_output, Py_ssize_t plane,
                            Py_ssize_t pitch) noexcept nogil:
    """Copy what the outputs of rows first_output... read of `channels` channels into the strip, padding included."""
    cdef Py_ssize_t c, i, j, r, row
    cdef real *to
    cdef const real *source_c
    for c in range(channels):
        source_c = source + c * source_plane
        for j in range(x.segments):
            to = strip + (c * x.segments + j) * plane
            for i in range(y.segments):
                row = y.segment_start[i] + first_output * y.step
                for r in range(y.segment_length[i]):
                    if 0 <= row < y.size:
                        copy_row(to, x.segment_length[j], source_c + row * x.size, x.segment_start[j], x.step, x.size)
                    else:
                        memset(to, 0, x.segment_length[j] * sizeof(real))
                    row += y.step
                    to += pitch
