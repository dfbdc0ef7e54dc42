# The transforms of F(4x4, 3x3) with the points 0, +-a, +-b and infinity, a = 5/8 and b = 3/2. Along one axis
#
#     y = A^T ((G g) * (B^T d))        4 outputs y, 3 taps g, 6 inputs d
#
# and in two dimensions the same along the columns and along the rows: 36 products for 16 outputs. The rows of the points
# +a and -a share their even and odd parts, those of +b and -b too. Lanes are tiles; of the weight, output channels.

cdef inline void input_row(const vec *d, real *to, Py_ssize_t plane) noexcept nogil:
    """to[j * plane] = row j of B^T, times d."""
    cdef real a = 0.625, b = 1.5
    cdef vec even_part = d[4] - splat(b * b) * d[2]
    cdef vec odd_part = d[3] - splat(b * b) * d[1]
    store(to, d[4] - splat(a * a + b * b) * d[2] + splat(a * a * b * b) * d[0])
    store(to + plane, even_part + splat(a) * odd_part)
    store(to + 2 * plane, even_part - splat(a) * odd_part)
    even_part = d[4] - splat(a * a) * d[2]
    odd_part = d[3] - splat(a * a) * d[1]
    store(to + 3 * plane, even_part + splat(b) * odd_part)
    store(to + 4 * plane, even_part - splat(b) * odd_part)
    store(to + 5 * plane, d[5] - splat(a * a + b * b) * d[3] + splat(a * a * b * b) * d[1])


cdef inline vec cell(const real *d, Py_ssize_t plane, Py_ssize_t row, const int i, const int j) noexcept nogil:
    """Row i, column j of LANES tiles; d is [i modulo 4][j][tile] and a row of tiles has `row` of them."""
    return load(d + (i % 4 * 6 + j) * plane + i // 4 * row)


cdef inline void input_end(const real *d, Py_ssize_t plane, Py_ssize_t row, const int i, real *to, Py_ssize_t to_plane) noexcept nogil:
    """The row of the point 0 (i = 0) or infinity (i = 1)."""
    cdef real a = 0.625, b = 1.5
    cdef vec column[6]
    cdef int j
    for j in range(6):
        column[j] = (cell(d, plane, row, i + 4, j) - splat(a * a + b * b) * cell(d, plane, row, i + 2, j)
                     + splat(a * a * b * b) * cell(d, plane, row, i, j))
    input_row(column, to, to_plane)


cdef inline void input_pair(const real *d, Py_ssize_t plane, Py_ssize_t row, const real point, const real other, real *to,
                            Py_ssize_t to_plane) noexcept nogil:
    """The rows of +point and -point."""
    cdef vec plus[6]
    cdef vec minus[6]
    cdef vec odd_part
    cdef int j
    for j in range(6):
        plus[j] = cell(d, plane, row, 4, j) - splat(other * other) * cell(d, plane, row, 2, j)
        odd_part = cell(d, plane, row, 3, j) - splat(other * other) * cell(d, plane, row, 1, j)
        minus[j] = plus[j] - splat(point) * odd_part
        plus[j] = plus[j] + splat(point) * odd_part
    input_row(plus, to, to_plane)
    input_row(minus, to + 6 * to_plane, to_plane)


cdef inline void transform_input(const real *d, Py_ssize_t plane, Py_ssize_t row, real *to, Py_ssize_t to_plane) noexcept nogil:
    """to[(6 * i + j) * to_plane] = (B^T d B)[i][j], a row or two at a time to stay within the registers."""
    input_end(d, plane, row, 0, to, to_plane)
    input_pair(d, plane, row, 0.625, 1.5, to + 6 * to_plane, to_plane)
    input_pair(d, plane, row, 1.5, 0.625, to + 18 * to_plane, to_plane)
    input_end(d, plane, row, 1, to + 30 * to_plane, to_plane)


cdef inline void output_column(const vec *m, vec *y, const int step) noexcept nogil:
    """y[i * step] = row i of A^T, times m."""
    cdef real a = 0.625, b = 1.5
    cdef vec even_a = m[1] + m[2]
    cdef vec odd_a = m[1] - m[2]
    cdef vec even_b = m[3] + m[4]
    cdef vec odd_b = m[3] - m[4]
    y[0] = m[0] + even_a + even_b
    y[step] = splat(a) * odd_a + splat(b) * odd_b
    y[2 * step] = splat(a * a) * even_a + splat(b * b) * even_b
    y[3 * step] = splat(a * a * a) * odd_a + (splat(b * b * b) * odd_b + m[5])


cdef inline void transform_output(const real *m, Py_ssize_t plane, real *to, Py_ssize_t line) noexcept nogil:
    """to[i * line + 4 * tile + j] = (A^T m A)[i][j]."""
    cdef vec y[24]
    cdef vec part[6]
    cdef vec p02, p13
    cdef int i, j
    for j in range(6):
        for i in range(6):
            part[i] = load(m + (6 * i + j) * plane)
        output_column(part, y + j, 6)
    for i in range(4):
        output_column(y + 6 * i, part, 1)
        p02 = zip_low(part[0], part[2])
        p13 = zip_low(part[1], part[3])
        store(to + i * line, zip_low(p02, p13))
        store(to + i * line + LANES, zip_high(p02, p13))
        p02 = zip_high(part[0], part[2])
        p13 = zip_high(part[1], part[3])
        store(to + i * line + 2 * LANES, zip_low(p02, p13))
        store(to + i * line + 3 * LANES, zip_high(p02, p13))


cdef inline void weight_column(vec g0, vec g1, vec g2, vec *u, const int step) noexcept nogil:
    """u[i * step] = row i of G, times g."""
    cdef double a = 0.625, b = 1.5
    cdef vec even_part = splat(1 / (2 * a * a * (a * a - b * b))) * g0 + splat(1 / (2 * (a * a - b * b))) * g2
    cdef vec odd_part = splat(1 / (2 * a * (a * a - b * b))) * g1
    u[0] = splat(1 / (a * a * b * b)) * g0
    u[step] = even_part + odd_part
    u[2 * step] = even_part - odd_part
    even_part = splat(1 / (2 * b * b * (b * b - a * a))) * g0 + splat(1 / (2 * (b * b - a * a))) * g2
    odd_part = splat(1 / (2 * b * (b * b - a * a))) * g1
    u[3 * step] = even_part + odd_part
    u[4 * step] = even_part - odd_part
    u[5 * step] = g2


cdef inline void transpose_taps(const real *weight, Py_ssize_t row_step, int rows, vec *taps) noexcept nogil:
    """taps[t][lane] = weight[lane * row_step + t], t < 9, lane < rows."""
    cdef vec a[LANES]
    cdef vec b[LANES]
    cdef int first = 0, i, size
    while first < 9:
        first = max(0, min(first, 9 - LANES))
        for i in range(LANES):
            a[i] = load_first_or_zero(weight + min(i, rows - 1) * row_step + first, min(LANES, 9))
        size = 1
        while size < LANES:
            for i in range(LANES // 2):
                b[2 * i] = zip_low(a[i], a[i + LANES // 2])
                b[2 * i + 1] = zip_high(a[i], a[i + LANES // 2])
            for i in range(LANES):
                a[i] = b[i]
            size *= 2
        for i in range(min(LANES, 9)):
            taps[first + i] = a[i]
        first += LANES


cdef void transform_kernels(const real *weight, Py_ssize_t row_step, int rows, bint rotated, real *to,
                            Py_ssize_t plane) noexcept nogil:
    """to[(6 * i + j) * plane] = (G g G^T)[i][j] of `rows` <= LANES kernels g; writes whole vectors."""
    cdef vec g[9]
    cdef vec u[18]
    cdef vec row[6]
    cdef int i, j
    transpose_taps(weight, row_step, rows, g)
    for j in range(3):
        if rotated:
            weight_column(g[8 - j], g[5 - j], g[2 - j], u + j, 3)
        else:
            weight_column(g[j], g[3 + j], g[6 + j], u + j, 3)
    for i in range(6):
        weight_column(u[3 * i], u[3 * i + 1], u[3 * i + 2], row, 1)
        for j in range(6):
            store(to + (6 * i + j) * plane, row[j])
