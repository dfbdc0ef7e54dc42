# The declarations of simd.h. To Cython a vec is a plain float: it writes `acc + a * b`, the C compiler makes vectors of it.
cdef extern from "simd.h" nogil:
    ctypedef float real
    ctypedef float vec
    enum: LANES
    enum: HAS_MASKS
    enum: TAIL_PIXELS
    enum: MR
    enum: TAIL_ROWS
    enum: MR3
    enum: REGISTERS
    vec load(const real *p) noexcept
    void store(real *p, vec v) noexcept
    vec splat(real s) noexcept
    vec vrelu(vec v) noexcept
    vec zip_low(vec a, vec b) noexcept
    vec zip_high(vec a, vec b) noexcept
    vec even(vec a, vec b) noexcept
    vec odd(vec a, vec b) noexcept
    vec slide(vec a, vec b) noexcept
    vec slide_back(vec a, vec b) noexcept
    real lane_sum(vec v) noexcept


cdef inline void interleave(const int n, vec *a) noexcept nogil:
    """Lay element j of a[i] at place n * j + i of all n vectors, a power of 2: log2(n) rounds of zipping i with i + n / 2."""
    cdef vec b[LANES + 2]       # n is LANES or at most 4
    cdef int i, size = 1
    while size < n:
        for i in range(n // 2):
            b[2 * i] = zip_low(a[i], a[i + n // 2])
            b[2 * i + 1] = zip_high(a[i], a[i + n // 2])
        for i in range(n):
            a[i] = b[i]
        size *= 2


cdef inline void transpose_vectors(vec *a) noexcept nogil:
    """Exchange rows and lanes of LANES vectors."""
    interleave(LANES, a)


cdef inline void transpose_square(real *to, Py_ssize_t to_row, const real *source, Py_ssize_t row) noexcept nogil:
    """to[j][i] = source[i][j] for LANES x LANES elements."""
    cdef vec a[LANES]
    cdef int i
    for i in range(LANES):
        a[i] = load(source + i * row)
    transpose_vectors(a)
    for i in range(LANES):
        store(to + i * to_row, a[i])


cdef inline void transpose(real *to, Py_ssize_t to_row, const real *source, Py_ssize_t row, Py_ssize_t rows,
                           Py_ssize_t columns) noexcept nogil:
    """to[j][i] = source[i][j] for i < rows, j < columns, along the rows of `to`."""
    cdef Py_ssize_t i, j = 0, k
    while j + LANES <= columns:
        i = 0
        while i + LANES <= rows:
            transpose_square(to + j * to_row + i, to_row, source + i * row + j, row)
            i += LANES
        for i in range(i, rows):
            for k in range(LANES):
                to[(j + k) * to_row + i] = source[i * row + j + k]
        j += LANES
    for j in range(j, columns):
        for i in range(rows):
            to[j * to_row + i] = source[i * row + j]


cdef inline void add_halves(const int n, vec *a) noexcept nogil:
    cdef int i
    for i in range(n):
        a[i] = zip_low(a[i], a[i + n]) + zip_high(a[i], a[i + n])


cdef inline vec lane_sums(vec *a) noexcept nogil:
    """The sums of the lanes of LANES vectors, which are overwritten."""
    if LANES > 8: add_halves(8, a)
    if LANES > 4: add_halves(4, a)
    if LANES > 2: add_halves(2, a)
    add_halves(1, a)
    return a[0]
