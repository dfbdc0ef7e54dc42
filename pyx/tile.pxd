# The two register tiles. `rows`, `vectors` and `taps` are constants at every call, so the compiler unrolls the loops over
# them and the accumulators never leave the registers.
from simd cimport real, vec, LANES, TAIL_PIXELS, TAIL_ROWS, MR, MR3, REGISTERS, load, store, splat, vrelu, lane_sums
from mask cimport mask, pick, load_first_or_zero, store_first

cdef enum:
    MAX_VECTORS = 8
    STRIDED = 0                 # kinds of tiles
    MASKED = -1
    COLUMN_ROWS = 8
    COLUMN_TAPS = 7


# The tile of every dense pass:
#
#     acc[i][j] += a[row[i] + step_a[k]] * b[pixel[j] + step_b[k]]      i < rows, j < vectors, k < steps
#
# `a` is read one scalar at a time and broadcast, `b` one vector at a time. Preconditions: LANES elements can be read at
# every b + pixel[j] + step_b[k] and written at every out + i * out_row + out_pixel[j], by nobody else at the same time.
# Kinds: strided, where row[i] is i * row_step; masked, which is strided, whose vectors follow each other from pixel[0] on and which takes
# only the lanes masks[step_mask[k] + j] of b, the others as zero; or n > 0, where rows come in runs of n neighbours and row[i // n] says
# where a run begins. A row of its own each is the slowest, as most of 14 addresses are reloaded at each step, and loads are what the
# loop is short of. With the intrinsic of a masked load the compiler would store the sums at each step.
cdef struct Tile:
    const real *a
    const real *b
    const Py_ssize_t *step_a
    const Py_ssize_t *step_b
    const Py_ssize_t *step_mask
    const mask *masks
    Py_ssize_t steps
    Py_ssize_t row_step
    Py_ssize_t row[MR]
    Py_ssize_t pixel[MAX_VECTORS]
    const real *bias            # one scalar for each row, or NULL
    bint accumulate             # add to what `out` holds
    bint relu
    real *out
    Py_ssize_t out_row
    Py_ssize_t out_pixel[MAX_VECTORS]


cdef inline void tile(const int rows, const int vectors, const int kind, const Tile *t) noexcept nogil:
    cdef vec acc[MR][MAX_VECTORS]
    cdef vec scalar
    cdef vec vector[MAX_VECTORS]
    cdef const real *a
    cdef const real *b
    cdef const real *first = t.b + (t.pixel[0] if kind == MASKED else 0)
    cdef real *out = t.out      # read once: stores might alias t
    cdef Py_ssize_t out_row = t.out_row
    cdef Py_ssize_t out_pixel[MAX_VECTORS]
    cdef bint accumulate = t.accumulate
    cdef bint relu = t.relu
    cdef Py_ssize_t k, row_step = t.row_step
    cdef int i, j
    for j in range(vectors):
        out_pixel[j] = t.out_pixel[j]
    for i in range(rows):
        for j in range(vectors):
            acc[i][j] = splat(t.bias[i] if t.bias != NULL else 0)
    for k in range(t.steps):
        a = t.a + t.step_a[k]
        b = first + t.step_b[k]
        for j in range(vectors):
            if kind == MASKED:
                vector[j] = pick(t.masks[t.step_mask[k] + j], load(b + j * LANES), splat(0))
            else:
                vector[j] = load(b + t.pixel[j])
        for i in range(rows):
            scalar = splat(a[t.row[i // kind] + i % kind if kind > 0 else i * row_step])
            for j in range(vectors):
                acc[i][j] = acc[i][j] + scalar * vector[j]
    for i in range(rows):
        for j in range(vectors):
            if accumulate:
                acc[i][j] = load(out + i * out_row + out_pixel[j]) + acc[i][j]
            store(out + i * out_row + out_pixel[j], vrelu(acc[i][j]) if relu else acc[i][j])


# The fewer rows, the more vectors: at least 8 accumulators hide the latency of the FMA, and a broadcast serves all of
# them. The constants decide which instances are compiled at all.
cdef inline int most_vectors(Py_ssize_t rows) noexcept nogil:
    if REGISTERS == 32:
        return 8 if rows <= 3 else 4 if rows <= 6 else 3 if rows <= MR3 else 2
    return 4 if rows <= 3 else 2


cdef inline Py_ssize_t fitting_vectors(Py_ssize_t rows, Py_ssize_t left) noexcept nogil:
    """The widest instance for so many rows that does not exceed the vectors that are left."""
    cdef Py_ssize_t n = most_vectors(rows)
    if left == 2 or left == 4 and n == 3:
        return 2
    while n > left:
        n //= 2
    return n


cdef inline void tile_vectors(const int rows, int vectors, const int kind, const Tile *t) noexcept nogil:
    if vectors == 1: tile(rows, 1, kind, t)
    elif vectors == 2: tile(rows, 2, kind, t)
    elif most_vectors(rows) == 3 and vectors == 3: tile(rows, 3, kind, t)
    elif most_vectors(rows) >= 4 and vectors == 4: tile(rows, 4, kind, t)
    elif most_vectors(rows) >= 8 and vectors == 8: tile(rows, 8, kind, t)


cdef inline void tile_rows(int rows, int vectors, const int kind, const Tile *t) noexcept nogil:
    if rows == 1: tile_vectors(1, vectors, kind, t)
    elif rows == 2: tile_vectors(2, vectors, kind, t)
    elif rows == 3: tile_vectors(3, vectors, kind, t)
    elif rows == 4: tile_vectors(4, vectors, kind, t)
    elif rows == 5: tile_vectors(5, vectors, kind, t)
    elif rows == 6: tile_vectors(6, vectors, kind, t)
    elif MR >= 7 and rows == 7: tile_vectors(7, vectors, kind, t)
    elif MR >= 8 and rows == 8: tile_vectors(8, vectors, kind, t)
    elif MR >= 9 and rows == 9: tile_vectors(9, vectors, kind, t)
    elif MR >= 10 and rows == 10: tile_vectors(10, vectors, kind, t)
    elif MR >= 11 and rows == 11: tile_vectors(11, vectors, kind, t)
    elif MR >= 12 and rows == 12: tile_vectors(12, vectors, kind, t)
    elif MR >= 13 and rows == 13: tile_vectors(13, vectors, kind, t)
    elif MR >= 14 and rows == 14: tile_vectors(14, vectors, kind, t)


cdef inline void tile_runs(const int run, int runs, const Tile *t) noexcept nogil:
    if runs == 1: tile(run, 1, run, t)
    elif 2 * run <= MR and runs == 2: tile(2 * run, 1, run, t)
    elif 3 * run <= MR and runs == 3: tile(3 * run, 1, run, t)
    elif 4 * run <= MR and runs == 4: tile(4 * run, 1, run, t)


# The last pixels of a small map, where they would fill a quarter of a vector or less: steps are in the lanes instead. What a
# pixel reads at all steps has been copied together; the steps of a row of `a` lie together anyway.
#
#     out[i, j] += a[row[i] + k] * columns[j, k]      i < rows, j < pixels, k < steps
cdef inline void tail_steps(const int pixels, const bint whole, const Tile *t, Py_ssize_t first, const real *columns, Py_ssize_t pitch,
                            Py_ssize_t k, vec *acc) noexcept nogil:
    """Add LANES steps, or the last ones, of TAIL_ROWS rows."""
    cdef vec a[TAIL_ROWS]
    cdef vec column
    cdef int i, j
    for i in range(TAIL_ROWS):
        a[i] = (load(t.a + (first + i) * t.row_step + k) if whole else
                load_first_or_zero(t.a + (first + i) * t.row_step + k, <int>(t.steps - k)))
    for j in range(pixels):
        column = load(columns + j * pitch + k)
        for i in range(TAIL_ROWS):
            acc[i * pixels + j] = acc[i * pixels + j] + a[i] * column


cdef inline void tail(const int pixels, const Tile *t, Py_ssize_t rows, const real *columns, Py_ssize_t pitch) noexcept nogil:
    """There are at least TAIL_ROWS rows."""
    cdef vec acc[TAIL_ROWS * TAIL_PIXELS]
    cdef vec parts[TAIL_ROWS * TAIL_PIXELS + LANES]
    cdef real sums[TAIL_ROWS * TAIL_PIXELS + LANES]
    cdef real total
    cdef Py_ssize_t done = 0, first, k
    cdef int i, j
    while done < rows:
        first = min(done, rows - TAIL_ROWS)
        for i in range(TAIL_ROWS * pixels):
            acc[i] = splat(0)
        for k from 0 <= k <= t.steps - LANES by LANES:
            tail_steps(pixels, True, t, first, columns, pitch, k, acc)
        if t.steps % LANES:     # not in the loop: with partial loads in it the compiler would store the sums at each step
            tail_steps(pixels, False, t, first, columns, pitch, t.steps // LANES * LANES, acc)
        for i in range(TAIL_ROWS * pixels):
            parts[i] = acc[i]   # which stay in registers, as nobody asks for their address
        for i in range(TAIL_ROWS * pixels, TAIL_ROWS * pixels + LANES):
            parts[i] = splat(0)
        for i from 0 <= i < TAIL_ROWS * pixels by LANES:
            store(sums + i, lane_sums(parts + i))
        for i in range(<int>(done - first), TAIL_ROWS):
            for j in range(pixels):
                total = sums[i * pixels + j] + (t.bias[first + i] if t.bias != NULL else 0)
                if t.accumulate:
                    total += t.out[(first + i) * t.out_row + j]
                t.out[(first + i) * t.out_row + j] = 0 if t.relu and total < 0 else total
        done = first + TAIL_ROWS


cdef inline void tail_pixels(int pixels, const Tile *t, Py_ssize_t rows, const real *columns, Py_ssize_t pitch) noexcept nogil:
    if pixels == 1: tail(1, t, rows, columns, pitch)
    elif TAIL_PIXELS >= 2 and pixels == 2: tail(2, t, rows, columns, pitch)
    elif TAIL_PIXELS >= 4 and pixels == 3: tail(3, t, rows, columns, pitch)
    elif TAIL_PIXELS >= 4 and pixels == 4: tail(4, t, rows, columns, pitch)


# The tile of a single output channel, where a broadcast would serve one row only: the rows are output rows instead, and
# a step is a column of `taps` taps one source row apart, so that each loaded vector serves up to `taps` of them.
#
#     out[y, x] += a[step_a[k] + t * a_row] * b[step_b[k] + (y + t) * pitch + x]      y < height, x < width, t < taps, k < steps
cdef struct Column:
    const real *a
    const real *b
    const Py_ssize_t *step_a
    const Py_ssize_t *step_b
    Py_ssize_t steps
    Py_ssize_t a_row
    Py_ssize_t pitch
    Py_ssize_t height, width
    real start                  # what the sum starts from, if it does not
    bint accumulate             # start from what `out` holds
    bint relu
    real *out
    Py_ssize_t out_y


cdef inline void column(const int rows, const int taps, const Column *t, Py_ssize_t y, Py_ssize_t x) noexcept nogil:
    """`rows` rows of one vector; only lanes within the width are read from out and written."""
    cdef vec acc[COLUMN_ROWS]
    cdef vec scalar[COLUMN_TAPS]
    cdef vec vector[COLUMN_ROWS + COLUMN_TAPS]
    cdef const real *b = t.b + y * t.pitch + x
    cdef const real *b_k
    cdef Py_ssize_t pitch = t.pitch, out_y = t.out_y    # read once: stores might alias t
    cdef bint relu = t.relu
    cdef real *out = t.out + y * out_y + x
    cdef int lanes = <int>min(t.width - x, <Py_ssize_t>LANES)
    cdef Py_ssize_t k
    cdef int i, j
    for i in range(rows):
        acc[i] = load_first_or_zero(out + i * out_y, lanes) if t.accumulate else splat(t.start)
    for k in range(t.steps):
        b_k = b + t.step_b[k]
        for j in range(taps):
            scalar[j] = splat(t.a[t.step_a[k] + j * t.a_row])
        for j in range(taps - 1):
            vector[j] = load(b_k + j * pitch)
        for i in range(rows):
            vector[i + taps - 1] = load(b_k + (i + taps - 1) * pitch)
            for j in range(taps):
                acc[i] = acc[i] + scalar[j] * vector[i + j]
    for i in range(rows):
        if relu:
            acc[i] = vrelu(acc[i])
        if lanes == LANES:
            store(out + i * out_y, acc[i])
        else:
            store_first(out + i * out_y, acc[i], lanes)


cdef inline void columns(const int rows, const int taps, const Column *t, Py_ssize_t *y) noexcept nogil:
    """Whole blocks of `rows` rows from y on; y becomes the first row that is left."""
    cdef Py_ssize_t x
    while y[0] + rows <= t.height:
        x = 0
        while x < t.width:
            column(rows, taps, t, y[0], x)
            x += LANES
        y[0] += rows


cdef inline void all_columns(const int taps, const Column *t) noexcept nogil:
    cdef Py_ssize_t y = 0
    columns(COLUMN_ROWS, taps, t, &y)
    columns(4, taps, t, &y)
    columns(1, taps, t, &y)


cdef inline void column_taps(int taps, const Column *t) noexcept nogil:
    if taps == 1: all_columns(1, t)
    elif taps == 2: all_columns(2, t)
    elif taps == 3: all_columns(3, t)
    elif taps == 4: all_columns(4, t)
    elif taps == 5: all_columns(5, t)
    elif taps == 6: all_columns(6, t)
    elif taps == 7: all_columns(7, t)
