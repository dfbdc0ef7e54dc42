# Windows of 3x3, 5x5 and 7x7 over single planes, where nothing is shared between channels: strides 1 and 2, forward, the
# gradient of x and that of the weight. There is no strip: a plane is read where it lies; lanes outside are masked or cleared.
# Several rows of the output are computed together, so that what is read of a row of the plane serves all windows over it:
#
#     out[y, x] += taps[ky, kx] * plane[y*stride - top + ky, x*stride - left + kx]       lanes are neighbouring x
from libc.stdlib cimport abs
from simd cimport real, vec, LANES, load, store, splat, vrelu, lane_sums, zip_low, zip_high, even, odd
from mask cimport mask, lanes_within, load_set, keep, load_first_or_zero, store_first, prefetch, slide_by, CAN_SLIDE, forget, opaque

cdef enum:
    MAX_SIZE = 7
    PLANE_ROWS = 8              # of the output; with stride 2, and at the end, 4
    SOURCE_ROWS = PLANE_ROWS + MAX_SIZE - 1
    MAX_COLUMNS = 3             # of the window at a time: 3 of 3, otherwise 2


cdef struct Plane:
    const real *source          # height x width
    const real *begin           # the array that it is part of
    const real *end
    Py_ssize_t height, width
    Py_ssize_t top, left
    Py_ssize_t before, after    # elements outside a row that whole vectors may read
    const real *zeros           # instead of a row outside, with as much around it
    bint whole                  # to read whole vectors pays
    Py_ssize_t out_height, out_width
    real taps[MAX_SIZE * MAX_SIZE]
    real start                  # what the sum starts from
    bint relu
    real *out
    Py_ssize_t out_y
    Py_ssize_t odd_left         # of a pair: where the odd columns read, and their taps
    real odd_taps[MAX_SIZE * MAX_SIZE]
    const real *grad_out        # of the weight's gradient: out_height x out_width


cdef inline bint find_rows(const int rows, const Plane *t, Py_ssize_t first, const real **row) noexcept nogil:
    """Where `rows` rows of the plane lie, from `first` on. Returns whether whole vectors may be read of them."""
    cdef const real *at = t.source + first * t.width
    cdef Py_ssize_t width = t.width
    cdef int j
    for j in range(rows):
        row[j] = at
        at += width
    if first < 0 or first + rows > t.height:
        for j in range(rows):
            if not 0 <= first + j < t.height:
                row[j] = t.zeros
    return (t.whole and t.source - t.begin >= t.before - max(<Py_ssize_t>0, first) * width
            and t.end - t.source >= min(first + rows, t.height) * width + t.after)


# Columns first... of a window, `n` of them, for LANES outputs: vector k of a row holds the elements that they multiply.
# With stride 1 a load for each, or two and their shifts (a load of 64 bytes that crosses a line is slow); with stride 2 two
# loads for each two. Whole vectors are loaded if they lie in the array, even where they leave the row: with AVX-512 what does
# not count is cleared afterwards, because masked loads of what is not in the cache take twice as long (Zen 5), though a bit
# less of what is; elsewhere vectors that leave the row are loaded in part.
cdef inline Py_ssize_t column_at(const int k, const int n, const int stride) noexcept nogil:
    if stride == 2:
        return k // 2 * 2 + k % 2 * LANES
    return k * LANES if CAN_SLIDE and n > 1 else k


cdef inline void columns_within(const bint whole, const int first, const int n, const int stride, Py_ssize_t x, Py_ssize_t width,
                                mask *sets) noexcept nogil:
    """Which lanes count of rows of `width` elements, from element x on: of column k, or (not whole) of the k-th load."""
    cdef Py_ssize_t at
    cdef int k
    if whole:
        for k in range(n):
            at = x + first + k
            sets[k] = lanes_within((stride - 1 - at) >> (stride - 1), (width - at + stride - 1) >> (stride - 1))
        return
    for k in range((n + 1) // 2 * 2 if stride == 2 else 2 if CAN_SLIDE and n > 1 else n):
        at = x + first + column_at(k, n, stride)
        sets[k] = lanes_within(-at, width - at)


cdef inline vec read(const bint whole, const real *p, mask set) noexcept nogil:
    return load(p) if whole else load_set(p, set)


cdef inline void read_columns(const bint whole, const int first, const int n, const int stride, const real *p,
                              const mask *sets, vec *v) noexcept nogil:
    cdef vec a, b
    cdef int k
    if stride == 2:
        for k in range((n + 1) // 2):
            a = read(whole, p + first + 2 * k, sets[2 * k])
            b = read(whole, p + first + 2 * k + LANES, sets[2 * k + 1])
            v[2 * k] = even(a, b)
            v[2 * k + 1] = odd(a, b)
    elif CAN_SLIDE and n > 1:
        a = read(whole, p + first, sets[0])
        b = read(whole, p + first + LANES, sets[1])
        for k in range(n):
            v[k] = slide_by(k, a, b)
    else:
        for k in range(n):
            v[k] = read(whole, p + first + k, sets[k])
    for k in range(n if whole and CAN_SLIDE else 0):
        v[k] = keep(v[k], sets[k])


cdef inline void add_row(const int j, const bint dot, const bint whole, const int first, const int n, const int height,
                         const int stride, const int rows, const real **row, Py_ssize_t x, const mask *sets,
                         const vec *factor, vec *acc) noexcept nogil:
    """What row j of the plane gives to the sums of `rows` rows of the output, or (dot) to those of the taps."""
    cdef vec v[MAX_COLUMNS + 1]
    cdef int i, k
    if j >= (rows - 1) * stride + height:
        return
    read_columns(whole, first, n, stride, row[j] + x, sets, v)
    for i in range(rows):
        if 0 <= j - i * stride < height:
            for k in range(n):
                if dot:
                    acc[(j - i * stride) * n + k] = acc[(j - i * stride) * n + k] + factor[i] * v[k]
                else:
                    acc[i] = acc[i] + factor[(j - i * stride) * n + k] * v[k]


cdef inline void add_all_rows(const bint dot, const bint whole, const int first, const int n, const int height,
                              const int stride, const int rows, const real **row, Py_ssize_t x, const mask *sets,
                              const vec *factor, vec *acc) noexcept nogil:
    add_row(0, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(1, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(2, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(3, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(4, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(5, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(6, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(7, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(8, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(9, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(10, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(11, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(12, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)
    add_row(13, dot, whole, first, n, height, stride, rows, row, x, sets, factor, acc)


cdef inline void add_rows(const bint dot, const int first, const int n, const int height, const int stride, const int rows,
                          bint whole, const real **row, Py_ssize_t x, Py_ssize_t width, const vec *factor, vec *acc) noexcept nogil:
    cdef mask sets[MAX_COLUMNS + 1]
    if not CAN_SLIDE:           # masks are not for free there; twice the code is not worth it for `dot`
        whole = not dot and x + first >= 0 and x + first + stride * LANES + n <= width
    if whole:
        columns_within(CAN_SLIDE, first, n, stride, x, width, sets)
        add_all_rows(dot, True, first, n, height, stride, rows, row, x, sets, factor, acc)
    else:
        columns_within(False, first, n, stride, x, width, sets)
        add_all_rows(dot, False, first, n, height, stride, rows, row, x, sets, factor, acc)


cdef inline void add_columns(const int first, const int n, const int height, const int width, const int stride, const int rows,
                             bint whole, const real **row, Py_ssize_t x, Py_ssize_t plane_width, const real *taps, vec *acc) noexcept nogil:
    """Add `n` columns of a window of height x width taps."""
    cdef vec factor[MAX_SIZE * MAX_COLUMNS]
    cdef int ky, k
    for ky in range(height):
        for k in range(n):
            factor[ky * n + k] = splat(taps[ky * width + first + k])
    add_rows(False, first, n, height, stride, rows, whole, row, x, plane_width, factor, acc)


cdef inline void add_group(const int i, const int height, const int width, const int stride, const int rows, bint whole,
                           const real **row, Py_ssize_t x, Py_ssize_t plane_width, const real *taps, vec *acc) noexcept nogil:
    """Add the i-th group of columns: as many as registers hold the taps of, in pairs if two are read at once."""
    cdef int n = width if width <= 3 else 2 if CAN_SLIDE or stride == 2 else 1
    if i * n < width:
        add_columns(i * n, min(n, width - i * n), height, width, stride, rows, whole, row, x, plane_width, taps, acc)


cdef inline void add_window(const int height, const int width, const int stride, const int rows, bint whole,
                            const real **row, Py_ssize_t x, Py_ssize_t plane_width, const real *taps, vec *acc) noexcept nogil:
    add_group(0, height, width, stride, rows, whole, row, x, plane_width, taps, acc)
    add_group(1, height, width, stride, rows, whole, row, x, plane_width, taps, acc)
    add_group(2, height, width, stride, rows, whole, row, x, plane_width, taps, acc)
    add_group(3, height, width, stride, rows, whole, row, x, plane_width, taps, acc)
    add_group(4, height, width, stride, rows, whole, row, x, plane_width, taps, acc)
    add_group(5, height, width, stride, rows, whole, row, x, plane_width, taps, acc)
    add_group(6, height, width, stride, rows, whole, row, x, plane_width, taps, acc)


cdef inline void square_rows(const int size, const int stride, const int rows, const Plane *t, Py_ssize_t y) noexcept nogil:
    cdef const real *row[SOURCE_ROWS]
    cdef vec acc[PLANE_ROWS]
    cdef real *out[PLANE_ROWS]
    cdef real nowhere[LANES]
    cdef Py_ssize_t x = 0, out_width = t.out_width, left = t.left, width = t.width     # stores might alias t
    cdef Py_ssize_t ahead = t.height * width
    cdef bint relu = t.relu, whole
    cdef int i, lanes
    whole = find_rows((rows - 1) * stride + size, t, y * stride - t.top, row)
    for i in range(rows):
        out[i] = t.out + (y + i) * t.out_y if y + i < t.out_height else nowhere
    while x < out_width:
        forget(row, SOURCE_ROWS)
        forget(<const real **>out, PLANE_ROWS)
        for i in range(rows * stride):
            prefetch(row[i] + x * stride + ahead)
        lanes = <int>min(out_width - x, <Py_ssize_t>LANES)
        for i in range(rows):
            acc[i] = splat(t.start)
        add_window(size, size, stride, rows, whole, row, x * stride - left, width, t.taps, acc)
        for i in range(rows):
            if relu:
                acc[i] = vrelu(acc[i])
            if lanes == LANES:
                store(out[i] + x, acc[i])
            else:
                store_first(out[i] + x, acc[i], lanes)
        x += LANES


cdef inline void square_plane(const int size, const int stride, const Plane *t) noexcept nogil:
    cdef Py_ssize_t y = 0       # the last rows may be computed twice, or rows of a vector that lie nowhere
    while y + 4 < t.out_height and (t.out_height >= PLANE_ROWS or t.out_width <= LANES) and stride == 1:
        square_rows(size, stride, PLANE_ROWS, t, max(<Py_ssize_t>0, min(y, t.out_height - PLANE_ROWS)))
        y += PLANE_ROWS
    while y < t.out_height and t.out_height >= 4:
        square_rows(size, stride, 4, t, min(y, t.out_height - 4))
        y += 4
    while y < t.out_height:
        square_rows(size, stride, 1, t, y)
        y += 1


cdef inline bint has_square(Py_ssize_t size, Py_ssize_t stride) noexcept nogil:
    return (size == 3 or size == 5 or size == 7) and (stride == 1 or stride == 2)


# The gradient of x with stride 2: one row of phases, each of which is a sum over a small window of the same plane of
# grad_out, as tall for both and of so many taps for the even and for the odd columns of x. out_width is that of x.
cdef inline void pair_rows(const int height, const int even_taps, const int odd_taps, const int rows, const Plane *t,
                           Py_ssize_t y) noexcept nogil:
    cdef const real *row[SOURCE_ROWS]
    cdef vec even_acc[PLANE_ROWS]
    cdef vec odd_acc[PLANE_ROWS]
    cdef real *out[PLANE_ROWS]
    cdef Py_ssize_t x = 0, out_width = t.out_width, width = t.width     # stores might alias t
    cdef bint whole
    cdef int i, lanes
    whole = find_rows(rows - 1 + height, t, y - t.top, row)
    out[0] = t.out + y * t.out_y
    for i in range(1, rows):
        out[i] = out[i - 1] + t.out_y
    while 2 * x < out_width:
        forget(row, SOURCE_ROWS)
        forget(<const real **>out, PLANE_ROWS)
        lanes = <int>min(out_width - 2 * x, <Py_ssize_t>2 * LANES)
        for i in range(rows):
            even_acc[i] = odd_acc[i] = splat(0)
        add_window(height, even_taps, 1, rows, whole, row, x - t.left, width, t.taps, even_acc)
        add_window(height, odd_taps, 1, rows, whole, row, x - t.odd_left, width, t.odd_taps, odd_acc)
        for i in range(rows):
            if lanes == 2 * LANES:
                store(out[i] + 2 * x, zip_low(even_acc[i], odd_acc[i]))
                store(out[i] + 2 * x + LANES, zip_high(even_acc[i], odd_acc[i]))
            else:
                store_first(out[i] + 2 * x, zip_low(even_acc[i], odd_acc[i]), min(lanes, <int>LANES))
                store_first(out[i] + 2 * x + LANES, zip_high(even_acc[i], odd_acc[i]), max(lanes - <int>LANES, 0))
        x += LANES


cdef inline void pair_plane(const int height, const int even_taps, const int odd_taps, const Plane *t) noexcept nogil:
    cdef Py_ssize_t y = 0
    while y < t.out_height and t.out_height >= 4:       # the last rows may be computed twice
        pair_rows(height, even_taps, odd_taps, 4, t, min(y, t.out_height - 4))
        y += 4
    while y < t.out_height:
        pair_rows(height, even_taps, odd_taps, 1, t, y)
        y += 1


cdef inline void pair_taps(const int even_taps, const int odd_taps, int height, const Plane *t) noexcept nogil:
    if height * 2 < even_taps + odd_taps:
        pair_plane((even_taps + odd_taps) // 2, even_taps, odd_taps, t)
    else:
        pair_plane((even_taps + odd_taps) // 2 + 1, even_taps, odd_taps, t)


cdef inline bint has_pair(Py_ssize_t height, Py_ssize_t even_taps, Py_ssize_t odd_taps) noexcept nogil:
    """The phases of a window of 3x3, 5x5 or 7x7."""
    return (has_square(even_taps + odd_taps, 2) and abs(<int>(even_taps - odd_taps)) == 1
            and (height == even_taps or height == odd_taps))


cdef inline void run_pair_sizes(int height, int even_taps, int odd_taps, const Plane *t) noexcept nogil:
    if even_taps == 1: pair_taps(1, 2, height, t)
    elif even_taps == 2 and odd_taps == 1: pair_taps(2, 1, height, t)
    elif even_taps == 2: pair_taps(2, 3, height, t)
    elif even_taps == 3 and odd_taps == 2: pair_taps(3, 2, height, t)
    elif even_taps == 3: pair_taps(3, 4, height, t)
    else: pair_taps(4, 3, height, t)


# The gradient of the weight: sums over grad_out[y, x] times what tap (ky, kx) reads for it. Rows and lanes past the output are
# zeros in grad_out but may be anything in the plane: an inf or NaN there makes a NaN where there is none.
cdef inline void dot_columns(const int first, const int n, const int size, const int stride, const Plane *t,
                             real *sums) noexcept nogil:
    """Add the sums of `n` columns of the window to sums[ky, kx]."""
    cdef const real *row[SOURCE_ROWS]
    cdef const real *grad_row[PLANE_ROWS]
    cdef vec grad[PLANE_ROWS]
    cdef vec acc[MAX_COLUMNS * MAX_SIZE]
    cdef vec parts[MAX_COLUMNS * MAX_SIZE + LANES]
    cdef real total[MAX_COLUMNS * MAX_SIZE + LANES]
    cdef Py_ssize_t y = 0, x, left = t.left, width = t.width, out_width = t.out_width, out_height = t.out_height
    cdef int rows = PLANE_ROWS // 2 if stride == 2 or not CAN_SLIDE else PLANE_ROWS, i, k, lanes
    cdef bint whole
    for i in range(n * size):
        acc[i] = splat(0)
    while y < out_height:
        whole = find_rows((rows - 1) * stride + size, t, y * stride - t.top, row)
        for i in range(rows):
            grad_row[i] = t.grad_out + (y + i) * out_width if y + i < out_height else t.zeros
        x = 0
        while x < out_width:
            lanes = <int>min(out_width - x, <Py_ssize_t>LANES)
            for i in range(rows):
                grad[i] = load(grad_row[i] + x) if lanes == LANES else load_first_or_zero(grad_row[i] + x, lanes)
            add_rows(True, first, n, size, stride, rows, whole, row, x * stride - left, width, grad, acc)
            x = opaque(x + LANES)
        y += rows
    for i in range(n * size):
        parts[i] = acc[i]       # which stay in registers, as nobody asks for their address
    for i in range(n * size, n * size + LANES):
        parts[i] = splat(0)
    for i from 0 <= i < n * size by LANES:
        store(total + i, lane_sums(parts + i))
    for i in range(size):
        for k in range(n):
            sums[i * size + first + k] += total[i * n + k]


cdef inline void dot_square(const int size, const int stride, const Plane *t, real *sums) noexcept nogil:
    dot_columns(0, 3 if size == 3 else 2, size, stride, t, sums)
    if size > 3: dot_columns(2, 2, size, stride, t, sums)
    if size > 3: dot_columns(4, 1 if size == 5 else 2, size, stride, t, sums)
    if size > 5: dot_columns(6, 1, size, stride, t, sums)


cdef inline void square_or_dot(const bint dot, const int size, const int stride, const Plane *t, real *sums) noexcept nogil:
    if dot:
        dot_square(size, stride, t, sums)
    else:
        square_plane(size, stride, t)


cdef inline void square_sizes(const bint dot, int size, int stride, const Plane *t, real *sums) noexcept nogil:
    """All windows over the plane, or (dot) the sums of all taps, which are added to `sums`."""
    if stride == 1:
        if size == 3: square_or_dot(dot, 3, 1, t, sums)
        elif size == 5: square_or_dot(dot, 5, 1, t, sums)
        else: square_or_dot(dot, 7, 1, t, sums)
    else:
        if size == 3: square_or_dot(dot, 3, 2, t, sums)
        elif size == 5: square_or_dot(dot, 5, 2, t, sums)
        else: square_or_dot(dot, 7, 2, t, sums)


cdef inline real dot_tap(const Plane *t, Py_ssize_t stride, Py_ssize_t ky, Py_ssize_t kx) noexcept nogil:
    """The sum for one tap, of what is inside alone."""
    cdef Py_ssize_t y, x, row, column
    cdef real total = 0
    for y in range(t.out_height):
        row = y * stride - t.top + ky
        for x in range(t.out_width if 0 <= row < t.height else 0):
            column = x * stride - t.left + kx
            if 0 <= column < t.width:
                total += t.grad_out[y * t.out_width + x] * t.source[row * t.width + column]
    return total


cdef inline void add_dot_square(int size, int stride, const Plane *t, real *sums) noexcept nogil:
    """Add the sums of all taps."""
    cdef real part[MAX_SIZE * MAX_SIZE]
    cdef real total = 0
    cdef int i
    for i in range(size * size):
        part[i] = 0
    square_sizes(True, size, stride, t, part)
    for i in range(size * size):
        total += part[i]
    if total != total:
        for i in range(size * size):
            part[i] = dot_tap(t, stride, i // size, i % size)
    for i in range(size * size):
        sums[i] += part[i]
