# The register tile, the one inner loop of every dense convolution pass:
#
#     acc[i][j] += a[row[i] + step_a[k]] * b[pixel[j] + step_b[k]]      i < rows, j < vectors, k < steps
#
# `a` is read one scalar at a time and broadcast, `b` one vector at a time. `rows` and `vectors` are constants at every
# call of tile(), so the compiler unrolls both loops and acc never leaves the registers.
#
# Preconditions: every b[pixel[j] + step_b[k]] starts LANES readable elements, and every out[i * out_row + out_pixel[j]]
# starts LANES writable ones that nobody else writes.
from simd cimport real, vec, LANES, MR, NV, load, store, splat, vrelu


cdef struct Tile:
    const real *a
    const real *b
    const Py_ssize_t *step_a
    const Py_ssize_t *step_b
    Py_ssize_t steps
    Py_ssize_t row[MR]
    Py_ssize_t pixel[NV]
    const real *bias            # one scalar for each row, or NULL
    bint accumulate             # start from what `out` holds
    bint relu
    real *out
    Py_ssize_t out_row
    Py_ssize_t out_pixel[NV]


cdef inline void tile(const int rows, const int vectors, const Tile *t) noexcept nogil:
    cdef vec acc[MR][NV]
    cdef vec scalar
    cdef vec vector[NV]
    cdef const real *a_k
    cdef const real *b_k
    cdef real *out_i
    cdef Py_ssize_t k
    cdef int i, j
    for i in range(rows):
        for j in range(vectors):
            if t.accumulate:
                acc[i][j] = load(t.out + i * t.out_row + t.out_pixel[j])
            else:
                acc[i][j] = splat(t.bias[i] if t.bias != NULL else 0)
    for k in range(t.steps):
        a_k = t.a + t.step_a[k]
        b_k = t.b + t.step_b[k]
        for j in range(vectors):
            vector[j] = load(b_k + t.pixel[j])
        for i in range(rows):
            scalar = splat(a_k[t.row[i]])
            for j in range(vectors):
                acc[i][j] = acc[i][j] + scalar * vector[j]
    for i in range(rows):
        out_i = t.out + i * t.out_row
        for j in range(vectors):
            store(out_i + t.out_pixel[j], vrelu(acc[i][j]) if t.relu else acc[i][j])


cdef inline void tile_rows(int rows, const int vectors, const Tile *t) noexcept nogil:
    # MR is a constant: instances that this instruction set has no registers for are not compiled.
    if rows == 1: tile(1, vectors, t)
    elif rows == 2: tile(2, vectors, t)
    elif rows == 3: tile(3, vectors, t)
    elif rows == 4: tile(4, vectors, t)
    elif rows == 5: tile(5, vectors, t)
    elif rows == 6: tile(6, vectors, t)
    elif MR >= 7 and rows == 7: tile(7, vectors, t)
    elif MR >= 8 and rows == 8: tile(8, vectors, t)
    elif MR >= 9 and rows == 9: tile(9, vectors, t)
    elif MR >= 10 and rows == 10: tile(10, vectors, t)
    elif MR >= 11 and rows == 11: tile(11, vectors, t)
    elif MR >= 12 and rows == 12: tile(12, vectors, t)
    elif MR >= 13 and rows == 13: tile(13, vectors, t)
    elif MR >= 14 and rows == 14: tile(14, vectors, t)
