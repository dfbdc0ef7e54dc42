# Square windows over single planes, where nothing is shared between channels: 3x3, 5x5 and 7x7, strides 1 and 2. Rows of
# the output are the rows of the tile, so that each loaded vector serves up to `size` of them, and size and stride are
# constants. Strips are as copy_strip makes them, with segment i % stride and offset i // stride for tap i of both axes,
# and aligned rows:
#
#     out[y, x] += taps[ky][kx] * b[ky % stride * y_segment + (y + ky // stride) * pitch + kx % stride * x_segment + x + kx // stride]
from libc.stdlib cimport abs
from simd cimport real, vec, LANES, load, store, splat, vrelu, lane_sum, zip_low, zip_high
from mask cimport load_first_or_zero, store_first, place, places, load_at, fence

cdef enum:
    MAX_SIZE = 7
    SQUARE_ROWS = 8             # 4 with stride 2


cdef struct Square:
    const real *b
    Py_ssize_t y_segment, x_segment, pitch
    Py_ssize_t height, width    # of the output
    real taps[MAX_SIZE * MAX_SIZE]
    real start                  # what the sum starts from
    bint relu
    real *out
    Py_ssize_t out_y
    const real *odd_b           # of a pair: the strip and the taps of the odd columns
    real odd_taps[MAX_SIZE * MAX_SIZE]
    const real *grad_out        # of the weight's gradient


cdef inline void load_column(const int kx, const int ky, const int size, const int stride, const int rows, const bint partial,
                             const Square *t, const real *b, int lanes, vec *vector) noexcept nogil:
    """What column kx of the window reads for `rows` rows of the output in rows ky, ky + stride, ... of the window."""
    cdef place shift = places(kx // stride)
    cdef int j
    b += ky * t.y_segment + kx % stride * t.x_segment
    for j in range(rows + (size - 1 - ky) // stride):
        if partial:
            vector[j] = load_first_or_zero(b + j * t.pitch + kx // stride, lanes)
        elif kx < stride or size > 3:   # enough arithmetic to hide the crossing of cache lines
            vector[j] = load(b + j * t.pitch + kx // stride)
        else:
            vector[j] = load_at(b + j * t.pitch, shift)


cdef inline void add_column(const int kx, const int height, const int width, const int stride, const int rows, const Square *t,
                            const real *b, const real *taps, vec *acc) noexcept nogil:
    """Add column kx of a window of height x width taps."""
    cdef vec scalar[MAX_SIZE]
    cdef vec vector[SQUARE_ROWS + MAX_SIZE]
    cdef int ky, q, i, j
    if stride == 1:
        fence()
    for ky in range(height):
        scalar[ky] = splat(taps[ky * width + kx])
    for q in range(min(stride, height)):
        load_column(kx, q, height, stride, rows, False, t, b, LANES, vector)
        for i in range(rows):
            for j in range((height - 1 - q) // stride + 1):
                acc[i] = acc[i] + scalar[q + j * stride] * vector[i + j]


cdef inline void add_window(const int height, const int width, const int stride, const int rows, const Square *t, const real *b,
                            const real *taps, vec *acc) noexcept nogil:
    add_column(0, height, width, stride, rows, t, b, taps, acc)
    if width > 1: add_column(1, height, width, stride, rows, t, b, taps, acc)
    if width > 2: add_column(2, height, width, stride, rows, t, b, taps, acc)
    if width > 3: add_column(3, height, width, stride, rows, t, b, taps, acc)
    if width > 4: add_column(4, height, width, stride, rows, t, b, taps, acc)
    if width > 5: add_column(5, height, width, stride, rows, t, b, taps, acc)
    if width > 6: add_column(6, height, width, stride, rows, t, b, taps, acc)


cdef inline void square_rows(const int size, const int stride, const int rows, const Square *t, Py_ssize_t y) noexcept nogil:
    cdef vec acc[SQUARE_ROWS]
    cdef Py_ssize_t x = 0, out_y = t.out_y      # read once: stores might alias t
    cdef real *out = t.out + y * out_y
    cdef const real *b = t.b + y * t.pitch
    cdef bint relu = t.relu
    cdef int i, lanes
    while x < t.width:
        lanes = <int>min(t.width - x, <Py_ssize_t>LANES)
        for i in range(rows):
            acc[i] = splat(t.start)
        add_window(size, size, stride, rows, t, b + x, t.taps, acc)
        for i in range(rows):
            if relu:
                acc[i] = vrelu(acc[i])
            if lanes == LANES:
                store(out + i * out_y + x, acc[i])
            else:
                store_first(out + i * out_y + x, acc[i], lanes)
        x += LANES


cdef inline void square_plane(const int size, const int stride, const Square *t) noexcept nogil:
    cdef Py_ssize_t y = 0
    while y + SQUARE_ROWS // stride <= t.height:
        square_rows(size, stride, SQUARE_ROWS // stride, t, y)
        y += SQUARE_ROWS // stride
    while y < t.height and t.height >= 4:       # the last rows may be computed twice
        square_rows(size, stride, 4, t, min(y, t.height - 4))
        y += 4
    while y < t.height:
        square_rows(size, stride, 1, t, y)
        y += 1


cdef inline bint has_square(Py_ssize_t size, Py_ssize_t stride) noexcept nogil:
    return (size == 3 or size == 5 or size == 7) and (stride == 1 or stride == 2)


cdef inline void run_square_sizes(int size, int stride, const Square *t) noexcept nogil:
    if stride == 1:
        if size == 3: square_plane(3, 1, t)
        elif size == 5: square_plane(5, 1, t)
        else: square_plane(7, 1, t)
    else:
        if size == 3: square_plane(3, 2, t)
        elif size == 5: square_plane(5, 2, t)
        else: square_plane(7, 2, t)


# The gradient of x with stride 2: one row of phases, each of which is a sum over a small window of the same plane of
# grad_out, as tall for both and of so many taps for the even and for the odd columns of x. `width` is that of x.
cdef inline void pair_rows(const int height, const int even_taps, const int odd_taps, const int rows, const Square *t,
                           Py_ssize_t y) noexcept nogil:
    cdef vec even_acc[SQUARE_ROWS]
    cdef vec odd_acc[SQUARE_ROWS]
    cdef Py_ssize_t x = 0, out_y = t.out_y      # read once: stores might alias t
    cdef real *out = t.out + y * out_y
    cdef int i, lanes
    while 2 * x < t.width:
        lanes = <int>min(t.width - 2 * x, <Py_ssize_t>2 * LANES)
        for i in range(rows):
            even_acc[i] = odd_acc[i] = splat(0)
        add_window(height, even_taps, 1, rows, t, t.b + y * t.pitch + x, t.taps, even_acc)
        add_window(height, odd_taps, 1, rows, t, t.odd_b + y * t.pitch + x, t.odd_taps, odd_acc)
        for i in range(rows):
            if lanes == 2 * LANES:
                store(out + i * out_y + 2 * x, zip_low(even_acc[i], odd_acc[i]))
                store(out + i * out_y + 2 * x + LANES, zip_high(even_acc[i], odd_acc[i]))
            else:
                store_first(out + i * out_y + 2 * x, zip_low(even_acc[i], odd_acc[i]), min(lanes, <int>LANES))
                store_first(out + i * out_y + 2 * x + LANES, zip_high(even_acc[i], odd_acc[i]), max(lanes - <int>LANES, 0))
        x += LANES


cdef inline void pair_plane(const int height, const int even_taps, const int odd_taps, const Square *t) noexcept nogil:
    cdef Py_ssize_t y = 0
    while y < t.height and t.height >= 4:       # the last rows may be computed twice
        pair_rows(height, even_taps, odd_taps, 4, t, min(y, t.height - 4))
        y += 4
    while y < t.height:
        pair_rows(height, even_taps, odd_taps, 1, t, y)
        y += 1


cdef inline void pair_taps(const int even_taps, const int odd_taps, int height, const Square *t) noexcept nogil:
    if height * 2 < even_taps + odd_taps:
        pair_plane((even_taps + odd_taps) // 2, even_taps, odd_taps, t)
    else:
        pair_plane((even_taps + odd_taps) // 2 + 1, even_taps, odd_taps, t)


cdef inline bint has_pair(Py_ssize_t height, Py_ssize_t even_taps, Py_ssize_t odd_taps) noexcept nogil:
    """The phases of a window of 3x3, 5x5 or 7x7."""
    return (has_square(even_taps + odd_taps, 2) and abs(<int>(even_taps - odd_taps)) == 1
            and (height == even_taps or height == odd_taps))


cdef inline void run_pair_sizes(int height, int even_taps, int odd_taps, const Square *t) noexcept nogil:
    if even_taps == 1: pair_taps(1, 2, height, t)
    elif even_taps == 2 and odd_taps == 1: pair_taps(2, 1, height, t)
    elif even_taps == 2: pair_taps(2, 3, height, t)
    elif even_taps == 3 and odd_taps == 2: pair_taps(3, 2, height, t)
    elif even_taps == 3: pair_taps(3, 4, height, t)
    else: pair_taps(4, 3, height, t)


# The gradient of the weight: sums over the plane of grad_out[y, x] times what tap (ky, kx) reads for it; `columns` columns
# of the window at once, so that there are enough sums to hide the latency of the FMA.
cdef inline void dot_columns(const int kx, const int columns, const int size, const int stride, const int rows,
                             const bint partial, const Square *t, Py_ssize_t y, Py_ssize_t x, int lanes,
                             vec (*acc)[MAX_SIZE]) noexcept nogil:
    cdef vec grad[SQUARE_ROWS]
    cdef vec vector[SQUARE_ROWS + MAX_SIZE]
    cdef const real *grad_out = t.grad_out + y * t.width + x
    cdef int i, j, q, c
    for i in range(rows):
        grad[i] = load_first_or_zero(grad_out + i * t.width, lanes) if partial else load(grad_out + i * t.width)
    for c in range(columns):
        for q in range(stride):
            load_column(kx + c, q, size, stride, rows, partial, t, t.b + y * t.pitch + x, lanes, vector)
            for i in range(rows):
                for j in range((size - 1 - q) // stride + 1):
                    acc[c][q + j * stride] = acc[c][q + j * stride] + grad[i] * vector[i + j]


cdef inline void dot_row(const int kx, const int columns, const int size, const int stride, const int rows, const Square *t,
                         Py_ssize_t y, vec (*acc)[MAX_SIZE]) noexcept nogil:
    cdef Py_ssize_t x = 0
    while x + LANES <= t.width:
        dot_columns(kx, columns, size, stride, rows, False, t, y, x, LANES, acc)
        x += LANES
    if x < t.width:
        dot_columns(kx, columns, size, stride, rows, True, t, y, x, <int>(t.width - x), acc)


cdef inline void dot_plane(const int kx, const int columns, const int size, const int stride, const Square *t,
                           real *sums) noexcept nogil:
    """Add the sums of columns kx... of the window to sums[ky][kx]."""
    cdef vec acc[3][MAX_SIZE]
    cdef Py_ssize_t y = 0
    cdef int c, ky
    for c in range(columns):
        for ky in range(size):
            acc[c][ky] = splat(0)
    while y + 4 <= t.height:
        dot_row(kx, columns, size, stride, 4, t, y, acc)
        y += 4
    while y < t.height:
        dot_row(kx, columns, size, stride, 1, t, y, acc)
        y += 1
    for c in range(columns):
        for ky in range(size):
            sums[ky * size + kx + c] += lane_sum(acc[c][ky])


cdef inline void dot_square(const int size, const int stride, const Square *t, real *sums) noexcept nogil:
    if size == 3:
        dot_plane(0, 3, 3, stride, t, sums)
    elif size == 5:
        dot_plane(0, 2, 5, stride, t, sums)
        dot_plane(2, 2, 5, stride, t, sums)
        dot_plane(4, 1, 5, stride, t, sums)
    else:
        dot_plane(0, 1, 7, stride, t, sums)
        dot_plane(1, 1, 7, stride, t, sums)
        dot_plane(2, 1, 7, stride, t, sums)
        dot_plane(3, 1, 7, stride, t, sums)
        dot_plane(4, 1, 7, stride, t, sums)
        dot_plane(5, 1, 7, stride, t, sums)
        dot_plane(6, 1, 7, stride, t, sums)


cdef inline void dot_square_sizes(int size, int stride, const Square *t, real *sums) noexcept nogil:
    if stride == 1:
        if size == 3: dot_square(3, 1, t, sums)
        elif size == 5: dot_square(5, 1, t, sums)
        else: dot_square(7, 1, t, sums)
    else:
        if size == 3: dot_square(3, 2, t, sums)
        elif size == 5: dot_square(5, 2, t, sums)
        else: dot_square(7, 2, t, sums)
