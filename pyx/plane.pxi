# Windows of 3x3, 5x5 and 7x7 over single planes, where nothing is shared between channels: strides 1 and 2, forward, the
# gradient of x and that of the weight. There is no strip: a plane is read where it lies, lanes outside are masked, rows outside
# left out. A block of a few vectors side by side goes down the plane, so that each row of the plane is read once:
#
#     out[y, x] += taps[ky, kx] * plane[y*stride - top + ky, x*stride - left + kx]       lanes are neighbouring x
#
# What belongs to the rows of the output that see a row of the plane stays in registers, in `lines` that move up by one.
#
# The gradient of x with stride 2 is a row of two phases, each of which is a sum over a small window of the same plane of
# grad_out, as tall for both and of so many taps for the even and for the odd columns of x, which are stored together.

cdef enum:
    MAX_SIZE = 7
    MAX_BLOCK = 4               # vectors
    MAX_LINES = 21              # vectors of sums, or (dot) of products, that stay in registers
    MAX_DOTS = 2 * MAX_SIZE     # taps whose products are summed at once
    PLANE_AHEAD = 1 << 11       # bytes that are prefetched ahead of what is read; 2, 4, 8 KB are much the same, none is slower


cdef struct Plane:
    const real *source          # height x width
    Py_ssize_t height, width
    Py_ssize_t top, left
    Py_ssize_t out_height, out_width
    real taps[MAX_SIZE * MAX_SIZE]
    real odd_taps[MAX_SIZE * MAX_SIZE]      # of a pair, whose other taps are those of the even columns
    real start                  # what the sum starts from
    bint relu
    real *out
    Py_ssize_t out_y
    const real *grad_out        # of the weight's gradient: out_height x out_width


cdef struct Shape:              # constants where it is inlined
    bint dot                    # the lines are those of grad_out, the sums those of the taps
    int height
    int width                   # of the window, of the wider one of a pair, or (dot) columns of the window summed at once
    int even_width, odd_width   # of a pair; otherwise even_width is the width
    int stride
    int lines                   # rows of the output that see a row of the plane
    int vectors                 # of a block
    bint inside                 # nothing outside the rows is read


cdef inline int per_line(const Shape *s) noexcept nogil:
    return s.vectors * (2 if s.odd_width else 1)


cdef inline bint holds_constants(const Shape *s) noexcept nogil:
    """Whether the taps and the start are kept as vectors: measured, as the compiler may have no register for some of them."""
    return not s.dot and s.odd_width == 0 and s.height * s.width <= 9 and (s.vectors < 4 if REGISTERS == 32 else s.stride == 1)


# Columns are read `group` at a time: with AVX-512 all of them, as a load that crosses a cache line is slower than a shift.
cdef inline int group_size(const Shape *s) noexcept nogil:
    return s.width if CAN_SLIDE else s.stride


cdef inline int load_count(const Shape *s) noexcept nogil:
    return s.stride * s.vectors + (1 if CAN_SLIDE and s.width > 1 else 0)


cdef inline void read_group(const int first, const Shape *s, const real *p, const mask *sets, vec *v) noexcept nogil:
    """The elements for the columns from `first` on; with stride 2 those of even and odd place by turns."""
    cdef vec a, b
    cdef int i, n = load_count(s)
    for i in range(n):
        if s.inside or 0 < i < s.stride * (s.vectors - 1):
            v[i] = held(load(p + first + i * LANES))
        else:
            v[i] = load_set(p + first + i * LANES, sets[first // group_size(s) * n + i])
    for i in range(n if s.stride == 2 else 0):
        if i % 2 == 0:
            a = v[i]
            b = v[min(i + 1, n - 1)]
            v[i] = even(a, b)
            v[i + 1] = odd(a, b)


cdef inline vec constant(const int i, const Shape *s, const vec *constants, const real *p) noexcept nogil:
    return constants[i] if holds_constants(s) else splat(p[0])


cdef inline void add_column(const int k, const int r, const Shape *s, const Plane *t, const real *p, const mask *sets, vec *v,
                            const vec *constants, vec *lines, vec *sums) noexcept nogil:
    """What column k of a row of the plane, the r-th of those of a row of the output, gives to the sums."""
    cdef vec column[MAX_BLOCK]
    cdef vec tap
    cdef int within = k % group_size(s), i, j, ky
    if k >= s.width:
        return
    if within == 0:
        read_group(k, s, p, sets, v)
    for j in range(s.vectors):
        i = j * s.stride + within % s.stride
        column[j] = slide_by(within // s.stride, v[i], v[i + s.stride]) if within >= s.stride else v[i]
    for i in range(s.lines):
        ky = (s.lines - 1 - i) * s.stride + r
        if ky >= s.height:
            continue
        if s.dot:
            for j in range(s.vectors):
                sums[ky * s.width + k] = sums[ky * s.width + k] + lines[i * s.vectors + j] * column[j]
            continue
        if k < s.even_width:
            tap = constant(ky * s.even_width + k, s, constants, &t.taps[ky * s.even_width + k])
            for j in range(s.vectors):
                sums[i * per_line(s) + j] = sums[i * per_line(s) + j] + tap * column[j]
        if k >= s.width - s.odd_width:
            tap = splat(t.odd_taps[ky * s.odd_width + k - (s.width - s.odd_width)])
            for j in range(s.vectors, 2 * s.vectors):
                sums[i * per_line(s) + j] = sums[i * per_line(s) + j] + tap * column[j - s.vectors]


cdef inline void add_row(const int r, const Shape *s, const Plane *t, Py_ssize_t row, const real *p, const mask *sets,
                         const vec *constants, vec *lines, vec *sums) noexcept nogil:
    cdef vec v[2 * MAX_BLOCK + 2]
    if 0 <= row < t.height:
        add_column(0, r, s, t, p, sets, v, constants, lines, sums)
        add_column(1, r, s, t, p, sets, v, constants, lines, sums)
        add_column(2, r, s, t, p, sets, v, constants, lines, sums)
        add_column(3, r, s, t, p, sets, v, constants, lines, sums)
        add_column(4, r, s, t, p, sets, v, constants, lines, sums)
        add_column(5, r, s, t, p, sets, v, constants, lines, sums)
        add_column(6, r, s, t, p, sets, v, constants, lines, sums)


cdef inline void store_line(const Shape *s, bint relu, real *out, Py_ssize_t left, vec *line) noexcept nogil:
    """Store a row of the output, of which `left` elements are left: of the last vector, or pair, perhaps less than all."""
    cdef vec v[2 * MAX_BLOCK]
    cdef int i, n = per_line(s)
    for i in range(s.vectors):
        if s.odd_width:
            v[2 * i] = zip_low(line[i], line[s.vectors + i])
            v[2 * i + 1] = zip_high(line[i], line[s.vectors + i])
        else:
            v[i] = line[i]
    if relu:
        for i in range(n):
            v[i] = vrelu(v[i])
    for i in range(n - n // s.vectors):
        store(out + i * LANES, v[i])
    for i in range(n - n // s.vectors, n):
        put(out + i * LANES, v[i], left - i * LANES, NULL)


cdef inline void block(const Shape *s, const Plane *t, Py_ssize_t x, Py_ssize_t left, vec *totals) noexcept nogil:
    """All rows of the block from x on; or (dot) add to the totals of `width` columns of taps, of which the first begins at -left."""
    cdef vec lines[MAX_LINES]
    cdef vec products[MAX_DOTS]     # which stay in registers, as the totals, of which there is the address, would not
    cdef mask sets[MAX_SIZE * (2 * MAX_BLOCK + 1)]
    cdef Py_ssize_t skipped = 0 if s.dot else max(<Py_ssize_t>0, min(t.top // s.stride, <Py_ssize_t>s.lines - 1))   # that see nothing yet
    cdef Py_ssize_t at = x * s.stride - left, row = skipped * s.stride - t.top, y, out_x = 2 * x if s.odd_width else x
    cdef Py_ssize_t height = t.out_height, out_width = t.out_width, width = t.width      # stores might alias t
    cdef const real *p = t.source + row * width + at
    cdef const real *grad_out = t.grad_out + out_x
    cdef real *out = t.out + out_x
    cdef bint relu = t.relu
    cdef vec constants[10]
    cdef int i, n = load_count(s), count = s.lines * per_line(s)
    for i in range((s.width + group_size(s) - 1) // group_size(s) * n):
        y = at + i // n * group_size(s) + i % n * LANES
        sets[i] = lanes_within(-y, width - y)
    for i in range(9 if holds_constants(s) else 0):
        constants[i] = splat(t.taps[i])
    constants[9] = splat(t.start)
    for i in range(count):
        lines[i] = constants[9]
    for i in range(s.height * s.width if s.dot else 0):
        products[i] = splat(0)
    for y in range(1 - s.lines + skipped, height):      # the row of the output that is finished then
        for i in range(count - per_line(s), count):
            lines[i] = constant(9, s, constants, &t.start)
        if s.dot and y + s.lines <= height:
            for i in range(s.vectors - 1):
                lines[count - s.vectors + i] = load(grad_out + i * LANES)
            i = s.vectors - 1
            lines[count - 1] = load_first_or_zero(grad_out + i * LANES, <int>min(out_width - x - i * LANES, <Py_ssize_t>LANES))
            for i in range(s.vectors):
                prefetch(grad_out + PLANE_AHEAD // <Py_ssize_t>sizeof(real) + i * LANES)
            grad_out += out_width
        for i in range(s.stride * s.vectors):
            prefetch(p + PLANE_AHEAD // <Py_ssize_t>sizeof(real) + i * LANES)
        add_row(0, s, t, row, p, sets, constants, lines, &products[0] if s.dot else &lines[0])
        if s.stride == 2:
            add_row(1, s, t, row + 1, p + width, sets, constants, lines, &products[0] if s.dot else &lines[0])
        row += s.stride
        p += s.stride * width
        if y >= 0 and not s.dot:
            store_line(s, relu, out, out_width - out_x, lines)
            out += t.out_y
        for i in range(count - per_line(s)):
            lines[i] = lines[i + per_line(s)]
        for i in range(s.height * s.width if s.dot else 0):
            products[i] = held(products[i])     # else some of them would be stored and loaded for each row
    for i in range(s.height * s.width if s.dot else 0):
        totals[i] = totals[i] + products[i]


cdef inline bint sees_inside(const int n, const int width, const int stride, Py_ssize_t plane_width, Py_ssize_t at) noexcept nogil:
    """Whether what is read for n vectors of windows from column `at` on lies in the row; not asked where masks are for free."""
    return not HAS_MASKS and at >= 0 and at + width - 1 + stride * n * LANES <= plane_width


cdef inline void window_block(const int n, const int height, const int even_width, const int odd_width, const int stride,
                              const Plane *t, Py_ssize_t x) noexcept nogil:
    cdef int width = max(even_width, odd_width), lines = (height + stride - 1) // stride
    cdef Shape s = Shape(False, height, width, even_width, odd_width, stride, lines, n, False)
    cdef Shape inside = Shape(False, height, width, even_width, odd_width, stride, lines, n, True)
    if sees_inside(n, width, stride, t.width, x * stride - t.left):
        block(&inside, t, x, t.left, NULL)
    else:
        block(&s, t, x, t.left, NULL)


cdef inline int block_size(const int most, const int width, const int stride, Py_ssize_t plane_width, Py_ssize_t at,
                           Py_ssize_t columns) noexcept nogil:
    """How many vectors the block has whose first window begins at column `at` of the plane, where so many are left."""
    cdef Py_ssize_t vectors = ceil_div(columns, LANES)
    cdef int n = <int>ceil_div(vectors, ceil_div(vectors, most))
    # Of several vectors only the first and the last may read what lies outside.
    return n if at + LANES >= 0 and at + width - 1 + stride * (n - 1) * LANES <= plane_width else 1


cdef inline void windows(const int height, const int even_width, const int odd_width, const int stride, const Plane *t) noexcept nogil:
    """All windows over the plane, or all pairs of them."""
    cdef int n, lines = (height + stride - 1) // stride * (2 if odd_width else 1)
    cdef int most = min(<int>MAX_BLOCK, (<int>MAX_LINES if REGISTERS == 32 else 10) // lines)
    cdef Py_ssize_t x = 0, columns = (t.out_width + 1) // 2 if odd_width else t.out_width
    while x < columns:
        n = block_size(most, max(even_width, odd_width), stride, t.width, x * stride - t.left, columns - x)
        if n == 1: window_block(1, height, even_width, odd_width, stride, t, x)
        elif most >= 2 and n == 2: window_block(2, height, even_width, odd_width, stride, t, x)
        elif most >= 3 and n == 3: window_block(3, height, even_width, odd_width, stride, t, x)
        elif most >= 4 and n == 4: window_block(4, height, even_width, odd_width, stride, t, x)
        x += n * LANES


cdef inline void pair(const int even_taps, const int odd_taps, Py_ssize_t height, const Plane *t) noexcept nogil:
    if height == even_taps:
        windows(even_taps, even_taps, odd_taps, 1, t)
    else:
        windows(odd_taps, even_taps, odd_taps, 1, t)


cdef void run_pair(Py_ssize_t height, Py_ssize_t even_taps, Py_ssize_t odd_taps, const Plane *t) noexcept nogil:
    if even_taps == 1: pair(1, 2, height, t)
    elif even_taps == 2 and odd_taps == 1: pair(2, 1, height, t)
    elif even_taps == 2: pair(2, 3, height, t)
    elif even_taps == 3 and odd_taps == 2: pair(3, 2, height, t)
    elif even_taps == 3: pair(3, 4, height, t)
    else: pair(4, 3, height, t)


cdef inline bint has_square(Py_ssize_t size, Py_ssize_t stride) noexcept nogil:
    return (size == 3 or size == 5 or size == 7) and (stride == 1 or stride == 2)


cdef inline bint has_pair(Py_ssize_t height, Py_ssize_t even_taps, Py_ssize_t odd_taps) noexcept nogil:
    """The phases of a window of 3x3, 5x5 or 7x7."""
    return (has_square(even_taps + odd_taps, 2) and -1 <= even_taps - odd_taps <= 1
            and (height == even_taps or height == odd_taps))


# The gradient of the weight: sums over grad_out[y, x] times what tap (ky, kx) reads for it. Rows and lanes past the output are
# zeros in grad_out but may be anything in the plane: an inf or NaN there makes a NaN where there is none.
cdef inline void dot_columns(const int first, const int n, const int size, const int stride, const Plane *t,
                             real *sums) noexcept nogil:
    """sums[ky, kx] of `n` columns of the window."""
    cdef int lines = (size + stride - 1) // stride, most = 2 if REGISTERS == 32 and size == 3 else 1, vectors, i, k
    cdef Shape one = Shape(True, size, n, n, 0, stride, lines, 1, False)
    cdef Shape inside = Shape(True, size, n, n, 0, stride, lines, 1, True)
    cdef Shape two = Shape(True, size, n, n, 0, stride, lines, 2, False)
    cdef vec acc[MAX_DOTS]
    cdef vec parts[MAX_DOTS + LANES]
    cdef real total[MAX_DOTS + LANES]
    cdef Py_ssize_t x = 0, left = t.left - first
    for i in range(n * size):
        acc[i] = splat(0)
    while x < t.out_width:
        vectors = block_size(most, n, stride, t.width, x * stride - left, t.out_width - x)
        if most == 2 and vectors == 2:
            block(&two, t, x, left, acc)
        elif sees_inside(1, n, stride, t.width, x * stride - left):
            block(&inside, t, x, left, acc)
        else:
            block(&one, t, x, left, acc)
        x = opaque(x + vectors * LANES)
    for i in range(n * size):
        parts[i] = acc[i]       # which stay in registers, as nobody asks for their address
    for i in range(n * size, n * size + LANES):
        parts[i] = splat(0)
    for i from 0 <= i < n * size by LANES:
        store(total + i, lane_sums(parts + i))
    for i in range(size):
        for k in range(n):
            sums[i * size + first + k] = total[i * n + k]


cdef inline void dot_group(const int i, const int size, const int stride, const Plane *t, real *sums) noexcept nogil:
    """The i-th group of columns: as many as there are registers for the sums of."""
    cdef int n = 3 if size == 3 else 2 if size == 5 or REGISTERS == 32 else 1
    if i * n < size:
        dot_columns(i * n, min(n, size - i * n), size, stride, t, sums)


cdef inline void dot_plane(const int size, const int stride, const Plane *t, real *sums) noexcept nogil:
    dot_group(0, size, stride, t, sums)
    dot_group(1, size, stride, t, sums)
    dot_group(2, size, stride, t, sums)
    dot_group(3, size, stride, t, sums)
    dot_group(4, size, stride, t, sums)
    dot_group(5, size, stride, t, sums)
    dot_group(6, size, stride, t, sums)


cdef inline void square(const int size, const int stride, const Plane *t, real *sums) noexcept nogil:
    if sums == NULL:
        windows(size, size, 0, stride, t)
    else:
        dot_plane(size, stride, t, sums)


cdef void run_square(Py_ssize_t size, Py_ssize_t stride, const Plane *t, real *sums) noexcept nogil:
    """All windows over the plane, or the sums of all taps."""
    if stride == 1:
        if size == 3: square(3, 1, t, sums)
        elif size == 5: square(5, 1, t, sums)
        else: square(7, 1, t, sums)
    elif size == 3: square(3, 2, t, sums)
    elif size == 5: square(5, 2, t, sums)
    else: square(7, 2, t, sums)


cdef real dot_tap(const Plane *t, Py_ssize_t stride, Py_ssize_t ky, Py_ssize_t kx) noexcept nogil:
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


cdef void dot_square(Py_ssize_t size, Py_ssize_t stride, const Plane *t, bint accumulate, real *sums) noexcept nogil:
    """The sums of all taps, or (accumulate) add them."""
    cdef real part[MAX_SIZE * MAX_SIZE]
    cdef real total = 0
    cdef Py_ssize_t i
    run_square(size, stride, t, part)
    for i in range(size * size):
        total += part[i]
    for i in range(size * size if total != total else 0):
        part[i] = dot_tap(t, stride, i // size, i % size)
    for i in range(size * size):
        sums[i] = part[i] + sums[i] if accumulate else part[i]
