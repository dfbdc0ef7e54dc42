# The tile of the weight's gradient for few output channels. Where the column tile has one weight for many pixels, here
# one grad_out row times `taps` rows of the strip gives a sum for each tap, lanes are neighbouring pixels:
#
#     acc[t] += grad_out[y * width + x] * b[(y + t) * pitch + x]       t < taps, y < height, x < width
#
# Each acc is a few vectors in turn (`ways`), to hide the latency of the FMA; their lanes are added at the end.
from simd cimport real, vec, LANES, load, splat, lane_sum
from mask cimport load_first_or_zero

cdef enum:
    DOT_ROWS = 8
    DOT_TAPS = 7
    DOT_WAYS = 4


cdef struct Dot:
    const real *grad_out
    const real *b
    Py_ssize_t height, width, pitch


cdef inline vec load_lanes(const bint partial, const real *p, int n) noexcept nogil:
    return load_first_or_zero(p, n) if partial else load(p)


cdef inline void dot_vector(const int rows, const int taps, const int ways, const bint partial, const real *grad_out,
                            Py_ssize_t width, const real *b, Py_ssize_t pitch, int lanes,
                            vec (*acc)[DOT_TAPS]) noexcept nogil:
    """One vector of `rows` rows of grad_out; of a partial one only the first lanes count, and only they are read."""
    cdef vec vector[DOT_ROWS + DOT_TAPS]
    cdef vec grad
    cdef int i, j
    for j in range(taps - 1):
        vector[j] = load_lanes(partial, b + j * pitch, lanes)
    for i in range(rows):
        vector[i + taps - 1] = load_lanes(partial, b + (i + taps - 1) * pitch, lanes)
        grad = load_lanes(partial, grad_out + i * width, lanes)
        for j in range(taps):
            acc[i % ways][j] = acc[i % ways][j] + grad * vector[i + j]


cdef inline void dot_rows(const int rows, const int taps, const int ways, const Dot *t, Py_ssize_t y,
                          vec (*acc)[DOT_TAPS]) noexcept nogil:
    cdef const real *grad_out = t.grad_out + y * t.width
    cdef const real *b = t.b + y * t.pitch
    cdef Py_ssize_t x = 0
    while x + LANES <= t.width:
        dot_vector(rows, taps, ways, False, grad_out + x, t.width, b + x, t.pitch, LANES, acc)
        x += LANES
    if x < t.width:
        dot_vector(rows, taps, ways, True, grad_out + x, t.width, b + x, t.pitch, <int>(t.width - x), acc)


cdef inline void dot(const int taps, const int ways, const Dot *t, real *sums) noexcept nogil:
    """Add the sums of `taps` taps."""
    cdef vec acc[DOT_WAYS][DOT_TAPS]
    cdef vec total
    cdef Py_ssize_t y = 0
    cdef int i, j
    for i in range(ways):
        for j in range(taps):
            acc[i][j] = splat(0)
    while y + DOT_ROWS <= t.height:
        dot_rows(DOT_ROWS, taps, ways, t, y, acc)
        y += DOT_ROWS
    while y < t.height:
        dot_rows(1, taps, ways, t, y, acc)
        y += 1
    for j in range(taps):
        total = acc[0][j]
        for i in range(1, ways):
            total = total + acc[i][j]
        sums[j] += lane_sum(total)


cdef inline void dot_taps(int taps, const Dot *t, real *sums) noexcept nogil:
    if taps == 1: dot(1, 4, t, sums)
    elif taps == 2: dot(2, 4, t, sums)
    elif taps == 3: dot(3, 4, t, sums)
    elif taps == 4: dot(4, 2, t, sums)
    elif taps == 5: dot(5, 2, t, sums)
    elif taps == 6: dot(6, 2, t, sums)
    elif taps == 7: dot(7, 1, t, sums)
