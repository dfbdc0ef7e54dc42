# The strip: the part of one image that a task needs, padded and split by stride once, so that what a tap reads for
# consecutive output pixels is a contiguous run. Layout [channel][x segment][row][pitch].
#
# Along one axis, output o of tap i reads source index start[i] + o * step. Taps whose runs overlap share a segment; runs
# of different residues modulo the step never do. With exact columns a segment along x is as wide as the output: rows then
# follow each other without a gap and vectors cross from one to the next. With mask registers taps share a segment that has
# all that they read of the source; the lanes that would read another row are cleared. Without, each tap has its own.
from simd cimport real, vec, LANES, HAS_MASKS, load, store, splat, even, odd
from mask cimport load_first_or_zero, store_first, prefetch


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
    Py_ssize_t *first           # [segments] the elements first..last lie inside the source
    Py_ssize_t *last
    Py_ssize_t pair             # step 2: the segment whose elements follow those of the other one, one by one; else -1


cdef inline void plan_segments(Axis *axis, Py_ssize_t extent) noexcept nogil:
    """Lay out the segments for runs of `extent` outputs."""
    cdef Py_ssize_t i, j, gap, found
    axis.segments = 0
    for i in range(axis.taps):
        found = axis.segments
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


cdef inline Py_ssize_t plan_exact(Axis *axis) noexcept nogil:
    """Lay out segments as wide as the output; return the largest offset, which may be one to the left.

    From offset o a tap reads the outputs 0 <= o + output < extent of its segment; the others would read padding.
    """
    cdef Py_ssize_t i, j, start, last, farthest = 0, width = axis.extent * axis.step
    axis.segments = 0
    for i in range(axis.taps):
        start = axis.start[i]
        if HAS_MASKS and start < 0:
            start += ceil_div(-start, axis.step) * axis.step
        last = min(axis.start[i] + width - axis.step, axis.size - 1)
        axis.segment[i] = axis.segments
        for j in range(axis.segments if HAS_MASKS else 0):
            if (start - axis.segment_start[j]) % axis.step == 0 and axis.segment_start[j] <= start and last < axis.segment_start[j] + width:
                axis.segment[i] = j
        if axis.segment[i] == axis.segments:
            axis.segment_start[axis.segments] = start
            axis.segment_length[axis.segments] = axis.extent
            axis.segments += 1
        axis.offset[i] = (axis.start[i] - axis.segment_start[axis.segment[i]]) // axis.step
        farthest = max(farthest, max(axis.offset[i], -axis.offset[i]))
    return farthest


cdef inline void plan_copy(Axis *x) noexcept nogil:
    """What copy_strip wants to know of the segments along x."""
    cdef Py_ssize_t i, start, n
    for i in range(x.segments):
        start = x.segment_start[i]
        n = x.segment_length[i]
        x.first[i] = min(n, ceil_div(-start, x.step)) if start < 0 else 0
        x.last[i] = max(x.first[i], min(n, ceil_div(x.size - start, x.step))) if start < x.size else x.first[i]
    x.pair = -1
    for i in range(2 if x.step == 2 and x.segments == 2 else 0):
        n = x.last[i] - x.first[i]
        if (x.segment_start[1 - i] + 2 * x.first[1 - i] + 1 == x.segment_start[i] + 2 * x.first[i]
                and 0 < n <= x.last[1 - i] - x.first[1 - i] <= n + 1):
            x.pair = i


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


cdef inline void zero_segment(real *to, const Axis *y, const Axis *x, Py_ssize_t segment, Py_ssize_t first_output,
                              Py_ssize_t plane, Py_ssize_t pitch) noexcept nogil:
    """What lies outside the source of one segment along x, of all rows of one channel."""
    cdef Py_ssize_t first = x.first[segment], last = x.last[segment], i, _j, row
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


cdef inline void copy_rows(real *to, Py_ssize_t pitch, const real *source, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t n,
                           Py_ssize_t ahead) noexcept nogil:
    """Copy rows of n contiguous elements."""
    cdef Py_ssize_t _i, k
    if n <= LANES:
        for _i in range(rows):
            prefetch(source + ahead)
            store_first(to, load_first_or_zero(source, <int>n), <int>n)
            source += row
            to += pitch
        return
    for _i in range(rows):
        for k from 0 <= k < n by 64 // <int>sizeof(real):
            prefetch(source + ahead + k)
        copy_run(to, source, n)
        source += row
        to += pitch


cdef inline void copy_segment(real *to, const real *source, Py_ssize_t ahead, const Axis *y, const Axis *x, Py_ssize_t segment,
                              Py_ssize_t first_output, Py_ssize_t plane, Py_ssize_t pitch) noexcept nogil:
    """What the source has of one segment along x, of all rows of one channel; of a pair both if it is the first of them.

    The row that lies `ahead` is prefetched: processors do not foresee the jump to the next channel.
    """
    cdef Py_ssize_t first = x.first[segment], n = x.last[segment] - first, pair_n = 0, i, j, k, row, begin, end
    cdef real *pair_to = to
    if x.pair >= 0:             # and segment is the other one
        pair_to += x.pair * plane + x.first[x.pair]
        pair_n = x.last[x.pair] - x.first[x.pair]
    to += segment * plane + first
    source += x.segment_start[segment] + first * x.step
    for i in range(y.segments):
        row = y.segment_start[i] + first_output * y.step
        begin = ceil_div(-row, y.step) if row < 0 else 0
        end = min(y.segment_length[i], ceil_div(y.size - row, y.step)) if row < y.size else 0
        if x.step == 1:
            copy_rows(to + begin * pitch, pitch, source + (row + begin * y.step) * x.size, y.step * x.size, end - begin, n, ahead)
        for j in range(begin, end if x.step > 1 else begin):
            if x.step == 2:
                for k from 0 <= k < 2 * n by 64 // <int>sizeof(real):
                    prefetch(source + (row + j * y.step) * x.size + ahead + k)
                copy_split(to + j * pitch, n, pair_to + j * pitch, pair_n, source + (row + j * y.step) * x.size)
            else:
                for k in range(n):
                    to[j * pitch + k] = source[(row + j * y.step) * x.size + k * x.step]
        to += y.segment_length[i] * pitch
        pair_to += y.segment_length[i] * pitch


cdef inline void copy_strip(real *strip, const real *source, Py_ssize_t channels, Py_ssize_t source_plane, bint clear,
                            const Axis *y, const Axis *x, Py_ssize_t first_output, Py_ssize_t plane, Py_ssize_t pitch) noexcept nogil:
    """Copy what the outputs of rows first_output... read of `channels` channels into the strip.

    Padding is written only if `clear`: it is the same for all strips that begin at the same row.
    """
    cdef Py_ssize_t c, j
    for c in range(channels):
        for j in range(x.segments):
            if clear:
                zero_segment(strip, y, x, j, first_output, plane, pitch)
            if j != x.pair:
                copy_segment(strip, source, source_plane if j == 0 and c + 1 < channels else 0, y, x, j, first_output, plane, pitch)
        strip += x.segments * plane
        source += source_plane
