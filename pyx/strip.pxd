# The strip: the part of one image that a task needs, padded and split by stride once, so that what a tap reads for
# consecutive output pixels is a contiguous run. Layout [channel][x segment][row][pitch].
#
# Along one axis, output o of tap i reads source index start[i] + o * step. Taps whose runs overlap share a segment; runs
# of different residues modulo the step never do. With exact columns every tap along x has a segment of its own, as wide
# as the output: rows then follow each other without a gap and vectors cross from one to the next.
from simd cimport real, vec, LANES, load, store, splat, even, odd
from mask cimport load_first_or_zero, store_first


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
        store_first(to, load_first_or_zero(source, <int>n), <int>n)
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


cdef inline void zero_margin(real *to, Py_ssize_t n) noexcept nogil:
    """Zero n elements and no more."""
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        store(to + i, splat(0))
        i += LANES
    if i < n:
        store_first(to + i, splat(0), <int>(n - i))


cdef inline void copy_split(real *low, Py_ssize_t n_low, real *high, Py_ssize_t n_high, const real *source) noexcept nogil:
    """low[i] = source[2 * i] for i < n_low, high[i] = source[2 * i + 1] for i < n_high, which is n_low, one less, or 0."""
    cdef Py_ssize_t i = 0, n = n_high if n_high else n_low - 1      # whole pairs
    cdef Py_ssize_t elements = max(2 * n_low - 1, 2 * n_high)
    cdef vec a, b
    while i < n and n >= LANES:
        i = min(i, n - LANES)
        a = load(source + 2 * i)
        b = load(source + 2 * i + LANES)
        store(low + i, even(a, b))
        if n_high:
            store(high + i, odd(a, b))
        i += LANES
    if n >= LANES:
        if n_low > n:
            low[n] = source[2 * n]
    elif elements > 0:
        a = load_first_or_zero(source, <int>min(elements, <Py_ssize_t>LANES))
        b = load_first_or_zero(source + LANES, <int>max(elements - LANES, <Py_ssize_t>0))
        store_first(low, even(a, b), <int>n_low)
        store_first(high, odd(a, b), <int>n_high)


cdef inline void first_and_last(const Axis *x, Py_ssize_t segment, Py_ssize_t *first, Py_ssize_t *last) noexcept nogil:
    """The elements of a segment that lie inside the source."""
    cdef Py_ssize_t start = x.segment_start[segment], n = x.segment_length[segment]
    first[0] = min(n, ceil_div(-start, x.step)) if start < 0 else 0
    last[0] = max(first[0], min(n, ceil_div(x.size - start, x.step))) if start < x.size else first[0]


cdef inline void zero_segment(real *to, const Axis *y, const Axis *x, Py_ssize_t segment, Py_ssize_t first_output,
                              Py_ssize_t plane, Py_ssize_t pitch) noexcept nogil:
    """What lies outside the source of one segment along x, of all rows of one channel."""
    cdef Py_ssize_t first, last, i, _j, row
    first_and_last(x, segment, &first, &last)
    to += segment * plane
    for i in range(y.segments):
        row = y.segment_start[i] + first_output * y.step
        for _j in range(y.segment_length[i]):
            if 0 <= row < y.size:
                zero_margin(to, first)
                zero_margin(to + last, pitch - last)
            else:
                zero_margin(to, pitch)
            row += y.step
            to += pitch


cdef inline void copy_segment(real *to, const real *source, const Axis *y, const Axis *x, Py_ssize_t segment, Py_ssize_t with_next,
                              Py_ssize_t first_output, Py_ssize_t plane, Py_ssize_t pitch) noexcept nogil:
    """What the source has of one segment along x, of all rows of one channel; `with_next` also that of the segment so far
    behind, whose elements follow those of this one in a source of step 2, one by one."""
    cdef Py_ssize_t first, last, next_first = 0, next_last = 0, i, _j, k, row
    first_and_last(x, segment, &first, &last)
    if with_next:
        first_and_last(x, segment + with_next, &next_first, &next_last)
    to += segment * plane
    source += x.segment_start[segment] + first * x.step
    for i in range(y.segments):
        row = y.segment_start[i] + first_output * y.step
        for _j in range(y.segment_length[i]):
            if 0 <= row < y.size:
                if x.step == 1:
                    copy_run(to + first, source + row * x.size, last - first)
                elif x.step == 2:
                    copy_split(to + first, last - first, to + with_next * plane + next_first, next_last - next_first,
                               source + row * x.size)
                else:
                    for k in range(first, last):
                        to[k] = source[row * x.size + (k - first) * x.step]
            row += y.step
            to += pitch


cdef inline Py_ssize_t pair_of(const Axis *x, Py_ssize_t segment) noexcept nogil:
    """Where the segment is whose elements follow those of this one, one by one, in a source of step 2; 0 if nowhere."""
    cdef Py_ssize_t first, last, next_first, next_last, other = 1 - segment
    if x.step != 2 or x.segments != 2:
        return 0
    first_and_last(x, segment, &first, &last)
    first_and_last(x, other, &next_first, &next_last)
    if (x.segment_start[segment] + 2 * first + 1 == x.segment_start[other] + 2 * next_first
            and last - first - 1 <= next_last - next_first <= last - first and next_last > next_first):
        return other - segment
    return 0


cdef inline void copy_strip(real *strip, const real *source, Py_ssize_t channels, Py_ssize_t source_plane, bint clear,
                            const Axis *y, const Axis *x, Py_ssize_t first_output, Py_ssize_t plane, Py_ssize_t pitch) noexcept nogil:
    """Copy what the outputs of rows first_output... read of `channels` channels into the strip.

    Padding is written only if `clear`: it is the same for all strips that begin at the same row.
    """
    cdef Py_ssize_t _c, j
    cdef Py_ssize_t first = 0 if pair_of(x, 0) else 1
    cdef Py_ssize_t pair = pair_of(x, first)
    for _c in range(channels):
        if clear:
            for j in range(x.segments):
                zero_segment(strip, y, x, j, first_output, plane, pitch)
        if pair:
            copy_segment(strip, source, y, x, first, pair, first_output, plane, pitch)
        else:
            for j in range(x.segments):
                copy_segment(strip, source, y, x, j, 0, first_output, plane, pitch)
        strip += x.segments * plane
        source += source_plane
