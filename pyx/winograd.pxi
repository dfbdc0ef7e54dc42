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


cdef inline void transform_input(const real *d, Py_ssize_t plane, Py_ssize_t row, real *to, Py_ssize_t to_plane) noexcept nogil:
    """to[(6 * i + j) * to_plane] = (B^T d B)[i][j]; d is [i modulo 4][j][tile] and a row of tiles has `row` of them."""
    cdef real columns[36 * LANES]
    cdef vec part[6]
    cdef int i, j
    for j in range(6):
        for i in range(6):
            part[i] = load(d + (i % 4 * 6 + j) * plane + i // 4 * row)
        input_row(part, columns + j * LANES, 6 * LANES)
    for i in range(6):
        for j in range(6):
            part[j] = load(columns + (6 * i + j) * LANES)
        input_row(part, to + 6 * i * to_plane, to_plane)


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


cdef void transform_kernels(const real *weight, Py_ssize_t row_step, int rows, bint rotated, real *to,
                            Py_ssize_t plane) noexcept nogil:
    """to[(6 * i + j) * plane] = (G g G^T)[i][j] of `rows` <= LANES kernels g; writes whole vectors."""
    cdef vec g[9]
    cdef vec u[18]
    cdef vec row[6]
    cdef vec square[LANES]
    cdef int i, j, tap = 0
    while tap < 9:              # the last taps overlap those before them
        tap = max(0, min(tap, 9 - LANES))
        for i in range(LANES):
            square[i] = load_first_or_zero(weight + min(i, rows - 1) * row_step + tap, min(LANES, 9))
        transpose_vectors(square)
        for i in range(min(LANES, 9)):
            g[tap + i] = square[i]
        tap += LANES
    for j in range(3):
        if rotated:
            weight_column(g[8 - j], g[5 - j], g[2 - j], u + j, 3)
        else:
            weight_column(g[j], g[3 + j], g[6 + j], u + j, 3)
    for i in range(6):
        weight_column(u[3 * i], u[3 * i + 1], u[3 * i + 2], row, 1)
        for j in range(6):
            store(to + (6 * i + j) * plane, row[j])
