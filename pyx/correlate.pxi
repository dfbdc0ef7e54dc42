# The dense pass: forward, or one row of phases of the gradient of x. For every image and group
#
#     out[m, oy, ox] = sum over r, ky, kx of a[m * row_step + r * channel_step + tap] * source[r, y(oy, ky), x(ox, kx)]
#
# with y and x as the axes say and zero outside the source. The forward pass has one phase; the gradient of x has one for
# each column modulo the stride, whose outputs are interleaved at the end.
#
# Tasks are (image, group, strip, block of rows m). Every output element belongs to one task and is summed in the order of
# the step tables, whatever the strips and the threads are. Scratch of a thread: the strips of all phases and, for the gradient
# of x with a stride, the results of all phases, what a row block needs of `a` where it is packed, and the masks of a tile.
# Reference: cyconv/_reference.py.

cdef enum:
    COLUMN_MAX_ROWS = 1         # output channels of a group up to which the column tile is the faster one
    MAX_WEIGHT_IN_PLACE = 1 << 20   # bytes; 64 and 256 KB are no faster (race.py, Zen 5)
    TAIL_STEPS = 64             # for which a pixel of the tail pays
    BLOCK_STEPS = 600           # summed at once, so that a row block's part of `a` stays in cache; twice as many in a single strip


cdef struct Phase:
    Axis x
    bint exact                  # vectors cross from row to row
    bint masked                 # lanes that leave their row are cleared
    Py_ssize_t room             # for them before and after the strip
    Py_ssize_t edges            # where, for each tap, the columns that stay are marked in the scratch
    Py_ssize_t masks, mask_pitch    # and the lanes of each vector of a strip
    Py_ssize_t pitch, plane
    Py_ssize_t strip            # where its strip begins in the scratch
    Py_ssize_t steps
    Py_ssize_t *step_a
    Py_ssize_t *step_b
    Py_ssize_t *step_mask


cdef struct Pass:
    const real *a
    const real *source
    real *out
    const real *bias            # or NULL
    bint relu
    Py_ssize_t images, groups
    Py_ssize_t rows             # output channels of a group
    Py_ssize_t channels         # source channels of a group
    Py_ssize_t a_group, row_step, channel_step
    Axis y
    Phase *phases
    Py_ssize_t phase_count
    Py_ssize_t out_plane, out_y     # strides of out; phase p's output q lies in column p + q * phase_count
    # the plan
    bint in_place               # the source itself serves as strip
    bint column                 # the column tile
    bint planes                 # all of it is done by plane.pxi
    bint pair                   # and that is two phases at once
    bint staged                 # results are computed in scratch, then spread over the rows of out
    Py_ssize_t strips, strip_rows, row_blocks, tasks
    Py_ssize_t result_plane     # of one phase and row
    Py_ssize_t results          # where they begin in the scratch
    bint packed                 # what a row block needs of `a` is copied together
    Py_ssize_t panel            # where it begins in the scratch
    Py_ssize_t panel_row, panel_channel     # its strides, in place of row_step and channel_step
    Py_ssize_t tail             # the last pixels, which steps in the lanes take
    Py_ssize_t columns          # where what they read begins in the scratch
    Py_ssize_t column_pitch     # between two of them
    Py_ssize_t scratch          # elements
    Py_ssize_t channel_blocks   # summed one after the other, so that their strips are longer
    Py_ssize_t block_channels
    Py_ssize_t column_steps[COLUMN_TAPS + 1]    # for each channel and x tap, steps with so many taps
    Py_ssize_t a_row            # between the taps of a column


cdef inline Py_ssize_t portion(Py_ssize_t i, Py_ssize_t n, Py_ssize_t parts) noexcept nogil:
    """Where part i of n things begins. Divisions are a good part of a small plane's time."""
    return i * n // parts if parts > 1 else i * n


cdef void plan_strips(Pass *p, Py_ssize_t strips) noexcept nogil:
    cdef Phase *phase
    cdef Py_ssize_t i
    p.strips = strips
    p.strip_rows = ceil_div(p.y.extent, strips)
    p.scratch = 0
    plan_segments(&p.y, p.strip_rows)
    for i in range(p.phase_count):
        phase = p.phases + i
        phase.plane = p.y.size * phase.x.size if p.in_place else padded_plane(total_length(&p.y) * phase.pitch)
        phase.edges = p.scratch
        p.scratch += padded_plane(phase.x.taps * (phase.x.extent + LANES)) if phase.masked else 0
        phase.masks = p.scratch
        phase.mask_pitch = ceil_div(p.strip_rows * phase.x.extent, LANES)
        p.scratch += padded_plane(phase.x.taps * phase.mask_pitch) if phase.masked else 0
        # Room for a vector that begins at the last element, and for what a mask clears.
        phase.strip = p.scratch + phase.room
        p.scratch += 2 * phase.room + LANES
        p.scratch += phase.x.segments * p.block_channels * (p.strip_rows * phase.x.size if p.in_place else phase.plane)
    p.panel = p.scratch
    if p.packed:
        if p.row_step > p.channel_step:
            p.panel_row = padded_plane(p.block_channels * p.channel_step)
            p.panel_channel = p.channel_step
            p.scratch += MR * p.panel_row
        else:
            p.panel_row = p.row_step
            p.panel_channel = MR * p.row_step
            p.scratch += padded_plane(p.block_channels * p.panel_channel)
    p.columns = p.scratch
    p.column_pitch = ceil_div(p.block_channels * p.channel_step, LANES) * LANES
    p.scratch += p.column_pitch * p.tail
    p.results = p.scratch
    if p.staged:
        p.result_plane = p.strip_rows * p.phases[0].x.extent + LANES
        p.scratch += min(p.rows, <Py_ssize_t>MR) * p.phase_count * p.result_plane


cdef void plan_channels(Pass *p, Py_ssize_t steps) noexcept nogil:
    """Plan one strip for each block of input channels, which has at most so many steps."""
    p.channel_blocks = 1
    # In place the last vector overlaps the one before it, whose sums must not be added to twice; with a tail there is none.
    if not (p.column or p.staged or p.in_place and not p.tail):
        p.channel_blocks = max(1, min(p.channels, ceil_div(p.channels * p.y.taps * p.phases[0].x.taps, steps)))
    p.block_channels = ceil_div(p.channels, p.channel_blocks)
    plan_strips(p, 1)


cdef Py_ssize_t tiles(const Pass *p, Py_ssize_t strips) noexcept nogil:
    """Tiles of two vectors that so many strips take, with exact columns; a single vector costs as much as two."""
    cdef Py_ssize_t i, n = 0
    for i in range(strips):
        n += ceil_div((portion(i + 1, p.y.extent, strips) - portion(i, p.y.extent, strips)) * p.phases[0].x.extent, 2 * LANES)
    return n


cdef inline bint exceeds_cache(const Pass *p) noexcept nogil:
    """Whether the strips do; what lies behind them in the scratch hardly depends on their number."""
    return p.panel * <Py_ssize_t>sizeof(real) > STRIP_BYTES


cdef void fill_steps(Pass *p, Phase *phase, Py_ssize_t taps_of_step) noexcept nogil:
    """Append to the phase's tables: every tap, or (taps_of_step > 0) the columns of so many taps."""
    cdef Py_ssize_t c, i, j, row
    cdef Py_ssize_t channel_step = p.panel_channel if p.packed else p.channel_step
    for c in range(p.block_channels):
        for i in range(p.y.taps):
            if taps_of_step and p.y.run[i] != taps_of_step:
                continue
            row = segment_base(&p.y, p.y.segment[i]) + p.y.offset[i]
            for j in range(phase.x.taps):
                phase.step_a[phase.steps] = c * channel_step + p.y.index[i] + phase.x.index[j]
                phase.step_b[phase.steps] = ((c * phase.x.segments + phase.x.segment[j]) * phase.plane
                                             + row * phase.pitch + phase.x.offset[j])
                phase.step_mask[phase.steps] = j * phase.mask_pitch
                phase.steps += 1


cdef bint lies_in_place(const Pass *p) noexcept nogil:
    """Whether the pass is a 1x1 kernel over the unpadded source; phases without taps do not matter."""
    cdef const Phase *phase
    cdef Py_ssize_t i
    if p.y.taps * p.y.step != 1 or p.y.start[0] != 0 or p.y.extent != p.y.size or p.y.extent * p.phases[0].x.size < LANES:
        return False
    for i in range(p.phase_count):
        phase = p.phases + i
        if phase.x.taps == 0 and p.staged:
            continue
        if phase.x.taps * phase.x.step != 1 or phase.x.start[0] != 0 or phase.x.extent != phase.x.size:
            return False
    return True


cdef Py_ssize_t even_strips(const Pass *p, Py_ssize_t blocks, Py_ssize_t most, int threads) noexcept nogil:
    """Strips that make enough tasks of so many blocks for every thread, evenly."""
    cdef Py_ssize_t strips = p.strips
    while strips < most and blocks * strips < 16 * threads and blocks * strips % threads != 0:
        strips += 1
    return strips


cdef void plan_pass(Pass *p, Py_ssize_t *tables, int threads) noexcept nogil:
    """Choose tile, strips and tasks, fill the step tables: 3 * channels * taps of y * taps of x of all phases."""
    cdef Phase *phase = p.phases
    cdef Py_ssize_t i, taps, strips, most, blocks, fit, pixels
    p.pair = is_pair(p)
    p.planes = p.pair or p.rows * p.channels * p.phase_count == 1 and is_square(&p.y, &phase.x)
    p.strips = 1
    if p.planes:
        p.scratch = 0
        p.strips = even_strips(p, p.images * p.groups, ceil_div(p.y.extent, MAX_SIZE), threads)
        p.tasks = p.images * p.groups * p.strips
        return
    plan_segments(&p.y, 1)
    for i in range(p.phase_count):
        plan_segments(&p.phases[i].x, 1)
    p.column = p.rows <= COLUMN_MAX_ROWS and p.y.taps > 1
    p.staged = p.out_y != phase.x.extent
    p.in_place = lies_in_place(p)
    if p.in_place and not p.staged:         # one column of pixels, so that a strip may begin anywhere
        p.y.extent = p.y.size = p.y.size * phase.x.size
        phase.x.extent = phase.x.size = p.out_y = 1
    for i in range(p.phase_count):
        phase = p.phases + i
        # Row by row costs the lanes past the row's end, exact columns a copy of the source for every tap along x without masks.
        phase.exact = not p.column and (
            phase.x.extent < LANES or ceil_div(phase.x.extent, LANES) * LANES * 16 > phase.x.extent * 17)
        phase.room = 0
        if phase.exact:
            phase.room = ceil_div(plan_exact(&phase.x), LANES) * LANES
        else:
            plan_segments(&phase.x, phase.x.extent)
        phase.masked = phase.room > 0
        phase.pitch = phase.x.extent if phase.exact else longest_segment(&phase.x)
        plan_copy(&phase.x)
    pixels = p.y.extent * phase.x.extent
    p.tail = pixels % LANES
    if (p.tail > TAIL_PIXELS or pixels < 2 * LANES or not phase.exact or p.row_step <= p.channel_step or p.rows < 2 * TAIL_ROWS
            or p.channels * p.channel_step < p.tail * TAIL_STEPS):
        p.tail = 0
    # Three vectors at once need fewer rows; a single one costs as much as two.
    p.row_blocks = ceil_div(p.rows, MR3 if p.tail and pixels // LANES in (3, 5) else MR)
    # Rows a multiple of 4096 bytes apart fall into one set of the L1 cache, which has fewer ways than the tile has rows. The
    # gradient of x reads its columns of a large weight from all over it; or, of a 1x1 kernel and with few rows, half a line of many.
    p.packed = not p.column and (p.row_step * <Py_ssize_t>sizeof(real) % 4096 == 0 if p.row_step > p.channel_step else
                                 p.a_group * <Py_ssize_t>sizeof(real) > MAX_WEIGHT_IN_PLACE
                                 or MR * p.row_step * <Py_ssize_t>sizeof(real) <= 32 and p.channels >= 256)
    plan_channels(p, 2 * BLOCK_STEPS)
    if exceeds_cache(p):
        plan_channels(p, BLOCK_STEPS)
    if p.tail and exceeds_cache(p):
        p.tail = 0              # more than one strip, whose pixels may depend on the number of threads
        plan_channels(p, BLOCK_STEPS)
        p.row_blocks = ceil_div(p.rows, MR)
    most = 1 if p.tail else p.y.extent
    if p.in_place and not p.tail:   # no strip may be shorter than a vector
        most //= ceil_div(LANES, p.phases[0].x.size) if p.staged else 4 * MAX_VECTORS * LANES
    while p.strips < most and exceeds_cache(p):
        fit = ceil_div(p.panel * <Py_ssize_t>sizeof(real), STRIP_BYTES)
        plan_strips(p, min(most, max(p.strips + 1, p.strips * fit // 2)))
    strips = p.strips
    for i in range(p.strips, min(most, p.strips + 3) + 1 if p.strips > 1 and phase.exact and not p.in_place else 0):
        if tiles(p, i) < tiles(p, strips):
            strips = i
    if strips != p.strips:
        plan_strips(p, strips)
    blocks = p.images * p.groups
    if p.row_blocks > 2 * threads and p.strips == 1:
        while blocks * p.row_blocks < 16 * threads and blocks * p.row_blocks % threads != 0:
            p.row_blocks += 1
    blocks *= p.row_blocks
    strips = even_strips(p, blocks, most, threads)
    if strips != p.strips:
        plan_strips(p, strips)
    p.tasks = blocks * p.strips
    if p.column:
        p.a_row = plan_runs(&p.y, COLUMN_TAPS, p.column_steps)
    for i in range(p.phase_count):
        phase = p.phases + i
        phase.steps = 0
        phase.step_a = tables
        phase.step_b = tables + p.channels * p.y.taps * phase.x.taps
        phase.step_mask = phase.step_b + p.channels * p.y.taps * phase.x.taps
        tables += 3 * p.channels * p.y.taps * phase.x.taps
        if p.column:
            for taps in range(COLUMN_TAPS, 0, -1):
                if p.column_steps[taps]:
                    fill_steps(p, phase, taps)
        else:
            fill_steps(p, phase, 0)


cdef void fill_masks(const Phase *phase, real *edges, mask *masks) noexcept nogil:
    """For each tap 1 in the columns, and those of the row that follows, for which it reads an element of the strip's row."""
    cdef Py_ssize_t i, x, v, step = LANES % phase.x.extent
    for i in range(phase.x.taps):
        for x in range(phase.x.extent + LANES):
            edges[x] = 0 <= x % phase.x.extent + phase.x.offset[i] < phase.x.extent
        x = 0
        for v in range(phase.mask_pitch):
            masks[v] = greater(load(edges + x), splat(0))
            x += step if x + step < phase.x.extent else step - phase.x.extent
        edges += phase.x.extent + LANES
        masks += phase.mask_pitch


cdef void run_block(const Pass *p, const Phase *phase, Tile *t, real *out, Py_ssize_t out_row, Py_ssize_t out_y,
                    Py_ssize_t rows, Py_ssize_t strip_rows, const mask *masks, const real *columns) noexcept nogil:
    """All pixels of the strip for one block of rows; out[row * out_row + oy * out_y + ox]."""
    cdef Py_ssize_t extent = phase.x.extent
    cdef Py_ssize_t pixels = strip_rows * extent - p.tail
    cdef Py_ssize_t row_vectors = ceil_div(extent, LANES)
    cdef Py_ssize_t vectors = ceil_div(pixels, LANES) if phase.exact else strip_rows * row_vectors
    cdef Py_ssize_t lanes[MAX_VECTORS]
    cdef Py_ssize_t v = 0, n, j, y, x, end
    cdef bint partial
    t.out = out
    t.out_row = out_row
    while v < vectors:
        n = fitting_vectors(rows, vectors - v)
        t.masks = masks + v
        partial = False
        for j in range(n):
            y = 0 if phase.exact else (v + j) // row_vectors
            x = (v + j - y * row_vectors) * LANES
            end = pixels if phase.exact else extent
            if p.in_place:      # nothing may be read past the end: the last vector overlaps the one before it
                x = max(0, min(x, end - LANES))     # end < LANES only in a phase without taps, which reads nothing
            lanes[j] = min(<Py_ssize_t>LANES, end - x)
            partial |= lanes[j] < LANES
            t.pixel[j] = y * phase.pitch + x
            t.out_pixel[j] = y * out_y + x
        if partial:
            run_partial(t, rows, n, phase.masked, lanes)
        else:
            run_any_tile(t, rows, n, phase.masked)
        v += n
    if p.tail:
        t.out += pixels
        run_tail(<int>p.tail, t, rows, columns, p.column_pitch)


cdef inline void run_any_tile(const Tile *t, Py_ssize_t rows, Py_ssize_t vectors, bint masked) noexcept nogil:
    if masked:
        run_masked_tile(<int>rows, <int>vectors, t)
    else:
        run_tile(<int>rows, <int>vectors, t)


cdef void run_partial(const Tile *t, Py_ssize_t rows, Py_ssize_t vectors, bint masked, const Py_ssize_t *lanes) noexcept nogil:
    """The same as run_any_tile, where only the first lanes[j] lanes of vector j are output pixels."""
    cdef real buffer[MR * MAX_VECTORS * LANES]
    cdef Tile whole = t[0]
    cdef Py_ssize_t i, j
    cdef real *out
    cdef vec v
    whole.accumulate = whole.relu = False
    whole.out = buffer
    whole.out_row = vectors * LANES
    for j in range(vectors):
        whole.out_pixel[j] = j * LANES
    run_any_tile(&whole, rows, vectors, masked)
    for i in range(rows):
        for j in range(vectors):
            out = t.out + i * t.out_row + t.out_pixel[j]
            v = load(buffer + (i * vectors + j) * LANES)
            if t.accumulate:
                v = load_first_or_zero(out, <int>lanes[j]) + v
            store_first(out, vrelu(v) if t.relu else v, <int>lanes[j])


cdef bint follow_each_other(const Axis *axis) noexcept nogil:
    """Whether neighbouring taps read neighbouring elements."""
    cdef Py_ssize_t i
    for i in range(1, axis.taps):
        if axis.start[i] != axis.start[0] + i:
            return False
    return True


cdef bint is_square(const Axis *y, const Axis *x) noexcept nogil:
    """Whether plane.pxi has the window."""
    return y.taps == x.taps and y.step == x.step and has_square(y.taps, y.step) and follow_each_other(y) and follow_each_other(x)


cdef bint is_pair(const Pass *p) noexcept nogil:
    """Whether plane.pxi has the two phases."""
    cdef const Axis *x = &p.phases[0].x
    cdef const Axis *odd_x = &p.phases[1].x
    return (p.phase_count == 2 and p.rows * p.channels == 1 and has_pair(p.y.taps, x.taps, odd_x.taps)
            and follow_each_other(&p.y) and follow_each_other(x) and follow_each_other(odd_x))


cdef void set_plane(Plane *t, const Axis *y, const Axis *x) noexcept nogil:
    """What the planes of an array have in common."""
    t.height = y.size
    t.width = x.size
    t.left = -x.start[0]
    t.out_width = x.extent
    t.start = 0
    t.relu = False


cdef inline void set_rows(Plane *t, const Axis *y, Py_ssize_t y0, Py_ssize_t rows) noexcept nogil:
    """The windows of `rows` rows of the output from y0 on."""
    t.top = -y.start[0] - y0 * y.step
    t.out_height = rows


cdef void find_taps(const Axis *y, const Axis *x, Py_ssize_t *index) noexcept nogil:
    """Where the taps of a channel lie in the weight."""
    cdef Py_ssize_t i, j
    for i in range(y.taps):
        for j in range(x.taps):
            index[i * x.taps + j] = y.index[i] + x.index[j]


cdef inline void gather(real *to, const real *a, const Py_ssize_t *index, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = a[index[i]]


cdef void run_planes(const Pass *p, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The tasks first..last, if each is a channel's strip."""
    cdef const Axis *x = &p.phases[0].x
    cdef const Axis *odd_x = &p.phases[p.phase_count - 1].x
    cdef Py_ssize_t index[MAX_SIZE * MAX_SIZE]
    cdef Py_ssize_t odd_index[MAX_SIZE * MAX_SIZE]
    cdef Py_ssize_t task, plane, group, y0
    cdef const real *a
    cdef Plane t
    find_taps(&p.y, x, index)
    find_taps(&p.y, odd_x, odd_index)
    set_plane(&t, &p.y, x)
    t.relu = p.relu
    t.out_y = p.out_y
    t.out_width += odd_x.extent if p.pair else 0
    for task in range(first, last):
        plane = task // p.strips if p.strips > 1 else task
        group = plane % p.groups if p.images > 1 else plane
        y0 = portion(task - plane * p.strips, p.y.extent, p.strips)
        set_rows(&t, &p.y, y0, portion(task - plane * p.strips + 1, p.y.extent, p.strips) - y0)
        t.source = p.source + plane * t.height * t.width
        t.out = p.out + plane * p.out_plane + y0 * p.out_y
        if p.bias != NULL:
            t.start = p.bias[group]
        a = p.a + group * p.a_group
        gather(t.taps, a, index, p.y.taps * x.taps)
        if p.pair:
            gather(t.odd_taps, a, odd_index, p.y.taps * odd_x.taps)
            run_pair(p.y.taps, x.taps, odd_x.taps, &t)
        else:
            run_square(p.y.taps, p.y.step, &t, NULL)


cdef void run_column_block(const Pass *p, const Phase *phase, const Tile *t, real *out, Py_ssize_t out_row,
                           Py_ssize_t out_y, Py_ssize_t rows, Py_ssize_t strip_rows) noexcept nogil:
    """The same with the column tile, for one number of taps after the other."""
    cdef Column column
    cdef Py_ssize_t m, taps, done
    column.b = t.b
    column.a_row = p.a_row
    column.pitch = phase.pitch
    column.height = strip_rows
    column.width = phase.x.extent
    column.out_y = out_y
    for m in range(rows):
        column.a = t.a + m * p.row_step
        column.out = out + m * out_row
        column.start = t.bias[m] if t.bias != NULL else 0
        column.accumulate = False
        done = 0
        for taps in range(COLUMN_TAPS, 0, -1):
            column.steps = p.column_steps[taps] * p.channels * phase.x.taps
            if column.steps or taps == 1 and not column.accumulate:
                column.step_a = phase.step_a + done
                column.step_b = phase.step_b + done
                done += column.steps
                column.relu = t.relu and done == phase.steps
                run_column(<int>taps, &column)
                column.accumulate = True


cdef void interleave(const Pass *p, real *out, const real *results, Py_ssize_t rows, Py_ssize_t strip_rows) noexcept nogil:
    """Write the results of all phases to their columns."""
    cdef Py_ssize_t m, y, i, q, n
    cdef const real *even_columns
    cdef const real *odd_columns
    cdef real *to
    for m in range(rows):
        for y in range(strip_rows):
            to = out + m * p.out_plane + y * p.out_y
            i = 0
            if p.phase_count == 2 and p.phases[1].x.extent >= LANES:
                n = p.phases[1].x.extent
                even_columns = results + 2 * m * p.result_plane + y * p.phases[0].x.extent
                odd_columns = results + (2 * m + 1) * p.result_plane + y * n
                q = 0
                while q < n:
                    q = min(q, n - LANES)
                    store(to + 2 * q, zip_low(load(even_columns + q), load(odd_columns + q)))
                    store(to + 2 * q + LANES, zip_high(load(even_columns + q), load(odd_columns + q)))
                    q += LANES
                if p.phases[0].x.extent > n:
                    to[2 * n] = even_columns[n]
                continue
            for i in range(p.phase_count):
                n = p.phases[i].x.extent
                for q in range(n):
                    to[i + q * p.phase_count] = results[(m * p.phase_count + i) * p.result_plane + y * n + q]


cdef void run_tasks(const Pass *p, Py_ssize_t first, Py_ssize_t last, real *scratch) noexcept nogil:
    """The tasks first..last, the row blocks of a strip together."""
    cdef Py_ssize_t strip, end, i
    cdef bint clear = True
    if p.planes:
        run_planes(p, first, last)
        return
    for i in range(p.phase_count):
        if p.phases[i].masked:
            fill_masks(p.phases + i, scratch + p.phases[i].edges, <mask *>(scratch + p.phases[i].masks))
    while first < last:
        strip = first // p.row_blocks if p.row_blocks > 1 else first
        end = min(last, (strip + 1) * p.row_blocks)
        run_strip(p, strip, first - strip * p.row_blocks, end - strip * p.row_blocks, clear, scratch)
        first = end
        clear = False


cdef void pack(const Pass *p, real *panel, const real *a, Py_ssize_t rows, Py_ssize_t channels) noexcept nogil:
    """Copy what a row block needs of `a`, in the pieces that lie together there."""
    cdef Py_ssize_t i
    if p.row_step > p.channel_step:
        for i in range(rows):
            copy_run(panel + i * p.panel_row, a + i * p.row_step, channels * p.channel_step)
    else:
        for i in range(channels):
            copy_run(panel + i * p.panel_channel, a + i * p.channel_step, rows * p.row_step)


cdef void fill_columns(const Pass *p, const real *strip, Py_ssize_t channels, const real *edges, real *columns) noexcept nogil:
    """What the pixels of the tail read, in the order of `a`."""
    cdef const Phase *phase = p.phases
    cdef Py_ssize_t steps = channels * p.channel_step, pixel = p.y.extent * phase.x.extent - p.tail, j, k
    memset(columns, 0, p.tail * p.column_pitch * sizeof(real))
    edges += pixel % phase.x.extent
    for k in range(steps):
        for j in range(p.tail):
            if not phase.masked or edges[phase.step_mask[k] // phase.mask_pitch * (phase.x.extent + LANES) + j] > 0:
                columns[j * p.column_pitch + phase.step_a[k]] = strip[phase.step_b[k] + pixel + j]


cdef void run_strip(const Pass *p, Py_ssize_t strip, Py_ssize_t first_block, Py_ssize_t last_block, bint clear,
                    real *scratch) noexcept nogil:
    """Row blocks first_block..last_block of one strip, counted over images, groups and their strips; `clear` for the first."""
    cdef Py_ssize_t image_group = strip // p.strips if p.strips > 1 else strip
    cdef Py_ssize_t group = image_group % p.groups
    cdef Py_ssize_t y0 = portion(strip - image_group * p.strips, p.y.extent, p.strips)
    cdef Py_ssize_t strip_rows = portion(strip - image_group * p.strips + 1, p.y.extent, p.strips) - y0
    cdef Py_ssize_t source_plane = p.y.size * p.phases[0].x.size
    cdef Py_ssize_t c0, channels, m0, rows, block, i
    cdef const real *source
    cdef real *out
    cdef const Phase *phase
    cdef Tile t
    t.row_step = p.panel_row if p.packed else p.row_step
    c0 = 0
    while c0 < p.channels:
        channels = min(p.block_channels, p.channels - c0)
        source = p.source + (image_group * p.channels + c0) * source_plane
        for i in range(0 if p.in_place else p.phase_count):
            phase = p.phases + i
            copy_strip(scratch + phase.strip, source, channels, source_plane, clear or p.strips > 1 or p.channel_blocks > 1, &p.y,
                       &phase.x, y0, phase.plane, phase.pitch)
        if p.tail:
            fill_columns(p, source if p.in_place else scratch + p.phases[0].strip, channels, scratch + p.phases[0].edges,
                         scratch + p.columns)
        t.accumulate = c0 > 0
        t.relu = p.relu and c0 + channels == p.channels
        for block in range(first_block, last_block):
            m0 = portion(block, p.rows, p.row_blocks)
            rows = portion(block + 1, p.rows, p.row_blocks) - m0
            t.a = p.a + group * p.a_group + m0 * p.row_step + c0 * p.channel_step
            if p.packed:
                pack(p, scratch + p.panel, t.a, rows, channels)
                t.a = scratch + p.panel
            t.bias = p.bias + group * p.rows + m0 if p.bias != NULL and c0 == 0 else NULL
            out = p.out + (image_group * p.rows + m0) * p.out_plane + y0 * p.out_y
            for i in range(p.phase_count):
                phase = p.phases + i
                t.step_a = phase.step_a
                t.step_b = phase.step_b
                t.step_mask = phase.step_mask
                t.steps = phase.steps if channels == p.block_channels else phase.steps // p.block_channels * channels
                t.b = source + y0 * phase.x.size if p.in_place else scratch + phase.strip
                if p.staged:
                    run_rows(p, phase, &t, scratch + p.results + i * p.result_plane, p.phase_count * p.result_plane,
                             phase.x.extent, rows, strip_rows, scratch)
                else:
                    run_rows(p, phase, &t, out, p.out_plane, p.out_y, rows, strip_rows, scratch)
            if p.staged:
                interleave(p, out, scratch + p.results, rows, strip_rows)
        c0 += channels


cdef inline void run_rows(const Pass *p, const Phase *phase, Tile *t, real *out, Py_ssize_t out_row, Py_ssize_t out_y,
                          Py_ssize_t rows, Py_ssize_t strip_rows, const real *scratch) noexcept nogil:
    if p.column:
        run_column_block(p, phase, t, out, out_row, out_y, rows, strip_rows)
    else:
        run_block(p, phase, t, out, out_row, out_y, rows, strip_rows, <const mask *>(scratch + phase.masks), scratch + p.columns)
