# The transforms of F(m, r) along one axis: m outputs y from r taps g and n = m + r - 1 inputs d, with n products,
#
#     y = A^T ((G g) * (B^T d))
#
# and along both axes the same first along the columns, then along the rows. The points are 0, infinity and, for n = 6,
# +-5/8 and +-3/2, for n = 4, +-1; n = 1 is an axis on which the kernel has one tap, whatever r is. The rows of the points
# +p and -p share their even and odd parts. Sizes are constants at every call. Lanes are tiles; of the weight, channels.

cdef inline void input_axis(const int n, const vec *d, vec *v, const int step) noexcept nogil:
    """v[i * step] = row i of B^T, times d."""
    cdef real a = 0.625, b = 1.5
    cdef vec even_part, odd_part
    if n == 1:
        v[0] = d[0]
    elif n == 4:
        v[0] = d[2] - d[0]
        v[step] = d[2] + d[1]
        v[2 * step] = d[2] - d[1]
        v[3 * step] = d[3] - d[1]
    else:
        even_part = d[4] - splat(b * b) * d[2]
        odd_part = d[3] - splat(b * b) * d[1]
        v[0] = d[4] - splat(a * a + b * b) * d[2] + splat(a * a * b * b) * d[0]
        v[step] = even_part + splat(a) * odd_part
        v[2 * step] = even_part - splat(a) * odd_part
        even_part = d[4] - splat(a * a) * d[2]
        odd_part = d[3] - splat(a * a) * d[1]
        v[3 * step] = even_part + splat(b) * odd_part
        v[4 * step] = even_part - splat(b) * odd_part
        v[5 * step] = d[5] - splat(a * a + b * b) * d[3] + splat(a * a * b * b) * d[1]


cdef inline void output_axis(const int n, const int r, const vec *m, vec *y, const int step) noexcept nogil:
    """y[i * step] = row i of A^T, times m."""
    cdef real a = 0.625, b = 1.5
    cdef vec even_a, odd_a, even_b, odd_b
    if n == 1:
        y[0] = m[0]
    elif n == 4:
        y[0] = m[0] + (m[1] + m[2])
        y[step] = (m[1] - m[2]) + m[3]
    else:
        even_a = m[1] + m[2]
        odd_a = m[1] - m[2]
        even_b = m[3] + m[4]
        odd_b = m[3] - m[4]
        y[0] = m[0] + even_a + even_b
        y[step] = splat(a) * odd_a + (splat(b) * odd_b + m[5] if r == 5 else splat(b) * odd_b)
        if r <= 4:
            y[2 * step] = splat(a * a) * even_a + (splat(b * b) * even_b + m[5] if r == 4 else splat(b * b) * even_b)
        if r == 3:
            y[3 * step] = splat(a * a * a) * odd_a + (splat(b * b * b) * odd_b + m[5])


cdef inline void weight_pair(double p, double q, const int r, const vec *g, vec *u, const int step) noexcept nogil:
    """The rows of G of the points +p and -p, where q is the product of p - s and p + s for the other pair +-s, or 1."""
    cdef vec even_part = splat(1 / (2 * p * p * q)) * g[0] + splat(1 / (2 * q)) * g[2]
    cdef vec odd_part = splat(1 / (2 * p * q)) * g[1]
    if r == 5:
        even_part = even_part + splat(p * p / (2 * q)) * g[4]
    if r >= 4:
        odd_part = odd_part + splat(p / (2 * q)) * g[3]
    u[0] = even_part + odd_part
    u[step] = even_part - odd_part


cdef inline void weight_axis(const int n, const int r, const vec *g, vec *u, const int step) noexcept nogil:
    """u[i * step] = row i of G, times g."""
    cdef double a = 0.625, b = 1.5
    if n == 1:
        u[0] = g[0]
    elif n == 4:
        u[0] = -g[0]
        weight_pair(1, 1, r, g, u + step, step)
        u[3 * step] = g[r - 1]
    else:
        u[0] = splat(1 / (a * a * b * b)) * g[0]
        weight_pair(a, a * a - b * b, r, g, u + step, step)
        weight_pair(b, b * b - a * a, r, g, u + 3 * step, step)
        u[5 * step] = g[r - 1]


cdef inline int outputs(const int n, const int r) noexcept nogil:
    return n - r + 1 if n > 1 else 1


cdef inline void split(const int m, vec *a) noexcept nogil:
    """The inverse of interleave for m = 1, 2, 4."""
    cdef vec b[4]
    cdef int i, size = 1
    while size < m:
        for i in range(m // 2):
            b[i] = even(a[2 * i], a[2 * i + 1])
            b[i + m // 2] = odd(a[2 * i], a[2 * i + 1])
        for i in range(m):
            a[i] = b[i]
        size *= 2


cdef inline void split_row(const int n, const int r, const real *row, Py_ssize_t tiles, real *to, Py_ssize_t plane) noexcept nogil:
    """to[j * plane + t] = row[m * t + j] for j < n, t < tiles; reads and writes whole vectors."""
    cdef Py_ssize_t t = (ceil_div(tiles, LANES) - 1) * LANES
    cdef vec part[6]
    cdef vec after[6]           # those of the next tiles
    cdef int j, m = outputs(n, r)
    for j in range(n - m):
        after[j] = splat(row[m * (t + LANES) + j])
    while t >= 0:
        for j in range(m):
            part[j] = load(row + m * t + j * LANES)
        split(m, part)
        for j in range(n - m):
            part[m + j] = slide(part[j], after[j])
        for j in range(n):
            store(to + j * plane + t, part[j])
            after[j] = part[j]
        t -= LANES


cdef inline void transform_input(const int ny, const int nx, const int r, const real *d, Py_ssize_t plane, Py_ssize_t row,
                                 real *to, Py_ssize_t to_plane) noexcept nogil:
    """to[(nx * i + j) * to_plane] = (B^T d B)[i][j]; d is [i modulo m][j][tile] and a row of tiles has `row` of them."""
    cdef vec columns[36]
    cdef vec part[6]
    cdef int i, j, m = outputs(ny, r)
    for j in range(nx):
        for i in range(ny):
            part[i] = load(d + (i % m * nx + j) * plane + i // m * row)
        input_axis(ny, part, columns + j, nx)
    for i in range(ny):
        input_axis(nx, columns + nx * i, part, 1)
        for j in range(nx):
            store(to + (nx * i + j) * to_plane, part[j])


cdef inline void transform_output(const int ny, const int nx, const int r, const real *m, Py_ssize_t plane, real *to,
                                  Py_ssize_t line) noexcept nogil:
    """to[i * line + outputs(nx, r) * tile + j] = (A^T m A)[i][j]."""
    cdef vec y[24]
    cdef vec part[6]
    cdef int i, j
    for j in range(nx):
        for i in range(ny):
            part[i] = load(m + (nx * i + j) * plane)
        output_axis(ny, r, part, y + j, nx)
    for i in range(outputs(ny, r)):
        output_axis(nx, r, y + nx * i, part, 1)
        interleave(outputs(nx, r), part)
        for j in range(outputs(nx, r)):
            store(to + i * line + j * LANES, part[j])


cdef inline void load_lines(const real *weight, Py_ssize_t step, Py_ssize_t lanes, Py_ssize_t n, real *to) noexcept nogil:
    """to[i * LANES + j] = weight[j * step + i] for i < n and j < lanes; writes whole vectors."""
    cdef vec square[LANES]
    cdef const real *weight_j
    cdef Py_ssize_t i = 0
    cdef int j
    while i < n:
        for j in range(LANES):
            weight_j = weight + min(j, lanes - 1) * step + i
            square[j] = load(weight_j) if n - i >= LANES else load_first_or_zero(weight_j, <int>(n - i))
            prefetch(weight_j + 9 * LANES)
        transpose_vectors(square)
        for j in range(LANES):
            store(to + (i + j) * LANES, square[j])
        i += LANES


cdef inline void load_kernels(const int taps, const real *weight, Py_ssize_t lanes, Py_ssize_t ahead, real *to) noexcept nogil:
    """to[i * LANES + j] = weight[j * taps + i] for i < taps and j < lanes: splits in threes, once or twice."""
    cdef vec a[9]
    cdef vec b[9]
    cdef Py_ssize_t n = taps * lanes
    cdef int i, size = 1
    for i in range(taps):
        a[i] = load_first_or_zero(weight + i * LANES, <int>max(<Py_ssize_t>0, min(n - i * LANES, <Py_ssize_t>LANES)))
        prefetch(weight + ahead + i * LANES)
    while size < taps:
        for i in range(taps // 3):
            split_by(3, a + 3 * i)
        for i in range(taps):
            b[i % 3 * (taps // 3) + i // 3] = a[i]
        for i in range(taps):
            a[i] = b[i]
        size *= 3
    for i in range(taps):
        store(to + i * LANES, a[i])


cdef inline void transform_kernels(const int ny, const int nx, const int r, const real *g, Py_ssize_t row, bint rotated, real *to,
                                   Py_ssize_t plane) noexcept nogil:
    """to[(nx * i + j) * plane] = (G g G^T)[i][j] of LANES kernels, whose rows of taps [tap][lane] begin every `row` elements."""
    cdef int ry = r if ny > 1 else 1, rx = r if nx > 1 else 1
    cdef vec u[30]
    cdef vec part[6]
    cdef int i, j
    for j in range(rx):
        for i in range(ry):
            part[i] = load(g + ((ry - 1 - i) * row + (rx - 1 - j) * LANES if rotated else i * row + j * LANES))
        weight_axis(ny, r, part, u + j, rx)
    for i in range(ny):
        weight_axis(nx, r, u + rx * i, part, 1)
        for j in range(nx):
            store(to + (nx * i + j) * plane, part[j])
