# The gradient of the weight. The forward pass summed weight[f, tap] * x[pixel of tap] into out[f, pixel]; so now
#
#     grad_weight[f, tap] = sum over images and pixels of x[pixel of tap] * grad_out[f, pixel]
#
# through the same tile, in one of two ways, whichever transposes less:
#
# - Rows are taps, read from the strip of x; steps are output pixels; lanes are output channels, read from a copy of grad_out
#   transposed to [pixel][channel] in panels. The sums grow in scratch as [tap][channel] and are transposed at the end.
# - Swapped: rows are output channels, read from grad_out where it lies; lanes are taps, whose panels [pixel][tap] are made of
#   the strip. The sums grow in the gradient itself.
#
# A 1x1 kernel of stride 1 has no strip: it reads x where it lies. Where the output channels of a group leave most lanes empty,
# dot.pxd's tile has pixels in the lanes instead, or plane.pxi's for the windows that it has, and reads grad_out where it lies.
#
# The images' strips ("units") are cut into `splits` runs and the input channels, or the panels of taps, into `chunks`; a task is
# one of each for one group. Both counts follow from shapes alone, and a task adds its units in order, so the result does not depend on
# the number of threads. With more than one split, each has a partial gradient of its own, added in order at the end.
# Scratch of a thread: a strip of one chunk, the panels, the sums. Reference: cyconv/_reference.py.


cdef enum:
    PANEL_VECTORS = 2
    CHUNK_CHANNELS = 64         # grad_out is transposed once for so many input channels, or more
    CHUNK_BYTES = 1 << 18       # whose sums take so much
    MIN_TASKS = 8
    MAX_STEPS = 2048            # pixels summed in one chain, for accuracy; the chains' sums are added up


cdef struct WeightPass:
    const real *source
    const real *grad_out
    real *grad_weight           # one, or `splits` partial ones, each of weight_size elements
    Py_ssize_t weight_size
    Py_ssize_t images, groups, rows, channels    # rows: output channels of a group, channels: input channels of a group
    Axis y, x
    # the plan
    Py_ssize_t strips, pitch, plane, strip_rows, chunks, chunk_channels, splits, tasks
    Py_ssize_t pieces           # what chunks consist of: input channels, or if swapped blocks of PANEL_VECTORS of taps
    Py_ssize_t vectors          # in the panels: of output channels, or if swapped of a chunk's taps
    Py_ssize_t *step_a          # [pixels of a strip]
    Py_ssize_t *step_b
    Py_ssize_t *tap             # [taps] offset in the strip's channel
    bint dot                    # lanes are pixels
    bint square                 # dot.pxd's place is taken by plane.pxi
    Py_ssize_t run_step         # between the taps of a run in the weight
    bint in_place               # the source itself serves as strip
    bint swapped                # rows are output channels, read from grad_out where it lies; lanes are taps
    int run                     # taps along x that are neighbours in the strip, where loads are what limits the tile: 3, 5, 7; else 1


cdef inline Py_ssize_t panel_elements(const WeightPass *p) noexcept nogil:
    return 0 if p.dot else p.strip_rows * p.x.extent * ceil_div(p.vectors, PANEL_VECTORS) * PANEL_VECTORS * LANES


cdef inline Py_ssize_t weight_strip_elements(const WeightPass *p) noexcept nogil:
    return 0 if p.in_place or p.square else p.chunk_channels * p.x.segments * p.plane


cdef inline Py_ssize_t sum_elements(const WeightPass *p) noexcept nogil:
    return 0 if p.swapped or p.square else p.chunk_channels * p.y.taps * p.x.taps * (p.rows if p.dot else p.vectors * LANES)


cdef void plan_weight_strips(WeightPass *p, Py_ssize_t strips) noexcept nogil:
    p.strips = strips
    p.strip_rows = ceil_div(p.y.extent, strips)
    plan_segments(&p.y, p.strip_rows)
    p.plane = p.y.size * p.x.size if p.in_place else padded_plane(total_length(&p.y) * p.pitch)


cdef inline bint fits(const Axis *axis) noexcept nogil:
    """Whether there is one tap, which reads the source as it lies."""
    return axis.taps * axis.step == 1 and axis.start[0] == 0 and axis.extent == axis.size


cdef inline void set_chunks(WeightPass *p) noexcept nogil:
    p.chunk_channels = ceil_div(p.pieces, p.chunks)
    if p.swapped:
        p.vectors = p.chunk_channels * PANEL_VECTORS
        p.chunk_channels = min(p.channels, ceil_div(p.vectors * LANES, p.y.taps * p.x.taps) + 1)


cdef void plan_weight(WeightPass *p) noexcept nogil:
    cdef Py_ssize_t units, row_costs, taps = p.y.taps * p.x.taps, pixels = p.images * p.y.extent * p.x.extent
    p.vectors = ceil_div(p.rows, LANES)
    p.dot = p.rows * 2 <= LANES or p.rows <= 2
    plan_segments(&p.x, p.x.extent)
    plan_copy(&p.x)
    p.pitch = longest_segment(&p.x)
    plan_segments(&p.y, 1)
    p.square = p.dot and is_square(&p.y, &p.x)
    p.run = 1
    if p.vectors == 1 and p.x.step == 1 and p.x.taps in (3, 5, 7) and p.x.taps <= MR and follow_each_other(&p.x):
        p.run = <int>p.x.taps
    p.in_place = not p.dot and fits(&p.y) and fits(&p.x)
    p.chunk_channels = CHUNK_BYTES // (taps * p.vectors * LANES * <Py_ssize_t>sizeof(real))
    p.chunks = ceil_div(p.channels, max(<Py_ssize_t>CHUNK_CHANNELS, p.chunk_channels))
    # What is transposed: all that the taps read, or grad_out for each chunk, and the sums. The tile of rows that lie anywhere
    # is slower too, by as much as a transposition for 128 output channels (AMD Zen 5).
    row_costs = p.chunks * pixels + p.channels * taps * (1 + (0 if p.in_place else pixels // 128))
    p.swapped = not p.dot and 2 * p.channels * taps > LANES and p.channels * taps * pixels < p.rows * row_costs
    p.pieces = p.channels
    if p.swapped:
        p.run = 1
        p.pieces = ceil_div(p.channels * taps, PANEL_VECTORS * LANES)
        pixels = min(p.y.extent * p.x.extent, <Py_ssize_t>MAX_STEPS)
        p.chunks = ceil_div(p.pieces, ceil_div(STRIP_BYTES // 2, PANEL_VECTORS * LANES * pixels * <Py_ssize_t>sizeof(real)))
    set_chunks(p)
    plan_weight_strips(p, 1)
    while (p.strips < p.y.extent
            and (p.strip_rows * p.x.extent > MAX_STEPS
                 or (panel_elements(p) + weight_strip_elements(p)) * <Py_ssize_t>sizeof(real) > STRIP_BYTES
                 or p.swapped and p.images * p.strips * p.groups * p.pieces < MIN_TASKS)):
        plan_weight_strips(p, p.strips + 1)
    units = p.images * p.strips
    p.splits = max(1, min(units, ceil_div(MIN_TASKS, p.groups * p.chunks)))
    p.chunks = min(p.pieces, max(p.chunks, ceil_div(MIN_TASKS, p.groups * p.splits)))
    set_chunks(p)
    p.tasks = p.splits * p.groups * p.chunks


cdef void fill_weight_tables(WeightPass *p, Py_ssize_t *tables) noexcept nogil:
    """`tables` holds 2 * pixels of a strip + taps of y * taps of x."""
    cdef Py_ssize_t counts[DOT_TAPS + 1]
    cdef Py_ssize_t i, j, k = 0
    p.step_a = tables
    p.step_b = tables + p.strip_rows * p.x.extent
    p.tap = p.step_b + p.strip_rows * p.x.extent
    for i in range(0 if p.dot else p.strip_rows):
        for j in range(p.x.extent):
            p.step_a[k] = k if p.swapped else i * p.pitch + j
            p.step_b[k] = k * PANEL_VECTORS * LANES
            k += 1
    p.run_step = plan_runs(&p.y, DOT_TAPS, counts)
    for i in range(p.y.taps):
        for j in range(p.x.taps):
            p.tap[i * p.x.taps + j] = (p.x.segment[j] * p.plane + p.x.offset[j] + p.pitch *
                                       (p.y.offset[i] + segment_base(&p.y, p.y.segment[i])))


cdef void add_dots(const WeightPass *p, real *sums, const real *strip, const real *grad_out, Py_ssize_t channels,
                   Py_ssize_t strip_rows) noexcept nogil:
    """Add one unit's products to the sums [output channel][input channel][tap] with the tile of dot.pxd."""
    cdef Dot t
    cdef real part[DOT_TAPS]
    cdef real *sums_fc
    cdef Py_ssize_t f, c, i, j, k
    t.height = strip_rows
    t.width = p.x.extent
    t.pitch = p.pitch
    for f in range(p.rows):
        t.grad_out = grad_out + f * p.y.extent * p.x.extent
        for c in range(channels):
            sums_fc = sums + (f * channels + c) * p.y.taps * p.x.taps
            for i in range(p.y.taps):
                if p.y.run[i] == 0:
                    continue
                for j in range(p.x.taps):
                    t.b = strip + c * p.x.segments * p.plane + p.tap[i * p.x.taps + j]
                    for k in range(p.y.run[i]):
                        part[k] = 0
                    dot_taps(<int>p.y.run[i], &t, part)
                    for k in range(p.y.run[i]):
                        sums_fc[p.y.index[i] + k * p.run_step + j] += part[k]


cdef void fill_panels(real *panels, const real *planes, Py_ssize_t plane, Py_ssize_t channels, Py_ssize_t pixels) noexcept nogil:
    """panels[block][pixel][lane] = planes[block * PANEL_VECTORS * LANES + lane][pixel], zero past the last channel."""
    cdef Py_ssize_t first = 0, n
    while first < channels:
        n = min(channels - first, <Py_ssize_t>PANEL_VECTORS * LANES)
        if n < PANEL_VECTORS * LANES:
            memset(panels, 0, pixels * PANEL_VECTORS * LANES * sizeof(real))
        transpose(panels, PANEL_VECTORS * LANES, planes + first * plane, plane, n, pixels)
        panels += pixels * PANEL_VECTORS * LANES
        first += n


cdef inline const real *tap_row(const WeightPass *p, const real *strip, Py_ssize_t i) noexcept nogil:
    """What tap i of all channels reads."""
    cdef Py_ssize_t taps = p.y.taps * p.x.taps, c = i // taps
    return strip + c * p.x.segments * p.plane + p.tap[i - c * taps]


cdef void fill_taps(const WeightPass *p, real *panels, const real *strip, Py_ssize_t first, Py_ssize_t taps,
                    Py_ssize_t pixels) noexcept nogil:
    """panels[block][pixel][lane] = what tap first + block * PANEL_VECTORS * LANES + lane reads, or the last tap."""
    cdef vec square[LANES]
    cdef const real *row[LANES]
    cdef Py_ssize_t v, i, y, x
    cdef real *to
    for v in range(ceil_div(taps, LANES)):
        to = panels + (v // PANEL_VECTORS * pixels * PANEL_VECTORS + v % PANEL_VECTORS) * LANES
        for i in range(LANES):
            row[i] = tap_row(p, strip, first + min(v * LANES + i, taps - 1))
        for y in range(pixels // p.x.extent):
            for x from 0 <= x < p.x.extent by LANES:    # what is loaded past the row is not stored
                for i in range(LANES):
                    square[i] = load(row[i] + y * p.pitch + x)
                transpose_vectors(square)
                for i in range(min(<Py_ssize_t>LANES, p.x.extent - x)):
                    store(to, square[i])
                    to += PANEL_VECTORS * LANES


cdef void add_unit(const WeightPass *p, Tile *t, real *out, const real *a, const real *panels, Py_ssize_t rows, Py_ssize_t columns,
                   Py_ssize_t pixels) noexcept nogil:
    """Add one unit's products out[row, column], where rows are read from `a` and columns from the panels."""
    cdef Py_ssize_t runs = rows // p.run, vectors = ceil_div(columns, LANES)
    cdef Py_ssize_t blocks = ceil_div(runs, MR // p.run)
    cdef Py_ssize_t lanes[PANEL_VECTORS]
    cdef Py_ssize_t block, v = 0, first
    cdef int j, n, m
    t.steps = pixels
    t.a = a
    while v < vectors:
        n = <int>min(<Py_ssize_t>PANEL_VECTORS, vectors - v)
        t.b = panels + v * LANES * pixels
        for j in range(n):
            lanes[j] = min(<Py_ssize_t>LANES, columns - (v + j) * LANES)
        for block in range(blocks):
            first = block * runs // blocks
            m = <int>((block + 1) * runs // blocks - first)
            t.out = out + first * p.run * t.out_row + v * LANES
            if p.in_place or p.swapped:
                t.a = a + first * t.row_step
                if lanes[n - 1] < LANES:
                    run_partial(t, m, n, False, lanes)
                else:
                    run_tile(m, n, t)
                continue
            for j in range(m):
                t.row[j] = tap_row(p, a, (first + j) * p.run) - a
            run_runs(p.run, m, n, t)
        v += n


cdef void run_weight_task(const WeightPass *p, Py_ssize_t task, bint first, real *sums, real *strip, real *panels) noexcept nogil:
    """`first` of a thread: later ones find the strips' padding and, of the same split in one unit, the panels."""
    cdef bint clear = first
    cdef Py_ssize_t chunk = task % p.chunks
    cdef Py_ssize_t group = task // p.chunks % p.groups
    cdef Py_ssize_t split = task // p.chunks // p.groups
    cdef Py_ssize_t c0 = chunk * p.pieces // p.chunks
    cdef Py_ssize_t channels = (chunk + 1) * p.pieces // p.chunks - c0
    cdef Py_ssize_t units = p.images * p.strips
    cdef Py_ssize_t taps = p.y.taps * p.x.taps
    cdef Py_ssize_t source_plane = p.y.size * p.x.size
    cdef Py_ssize_t out_plane = p.y.extent * p.x.extent
    cdef Py_ssize_t unit, n, s, y0, pixels
    cdef const real *grad_out
    cdef const real *source
    cdef Py_ssize_t tap = 0, columns = 0
    cdef real *grad_weight = p.grad_weight + split * p.weight_size + group * p.rows * p.channels * taps
    cdef Tile t
    cdef Py_ssize_t j
    if p.swapped:
        tap, columns = c0 * PANEL_VECTORS * LANES, channels * PANEL_VECTORS * LANES
        columns = min(columns, p.channels * taps - tap)
        c0 = tap // taps
        channels = ceil_div(tap + columns, taps) - c0
    grad_weight += tap if p.swapped else c0 * taps
    t.step_a = p.step_a
    t.step_b = p.step_b
    t.row_step = out_plane
    t.out_row = p.channels * taps if p.swapped else p.vectors * LANES
    t.bias = NULL
    t.relu = False
    for j in range(PANEL_VECTORS):
        t.pixel[j] = t.out_pixel[j] = j * LANES
    for unit in range(split * units // p.splits, (split + 1) * units // p.splits):
        n = unit // p.strips
        s = unit - n * p.strips
        y0 = s * p.y.extent // p.strips
        pixels = ((s + 1) * p.y.extent // p.strips - y0) * p.x.extent
        source = p.source + ((n * p.groups + group) * p.channels + c0) * source_plane
        if not p.in_place:
            copy_strip(strip, source, channels, source_plane, clear or p.strips > 1 or p.chunks > 1, &p.y, &p.x, y0, p.plane, p.pitch)
        grad_out = p.grad_out + (n * p.groups + group) * p.rows * out_plane + y0 * p.x.extent
        t.accumulate = unit > split * units // p.splits
        clear = False
        if p.dot:
            if not t.accumulate:
                memset(sums, 0, p.rows * channels * taps * sizeof(real))
            add_dots(p, sums, strip, grad_out, channels, pixels // p.x.extent)
        else:
            if p.in_place:
                strip = <real *>source + y0 * p.x.size
            if p.swapped and p.in_place:
                fill_panels(panels, strip, source_plane, channels, pixels)
            elif p.swapped:
                fill_taps(p, panels, strip, tap - c0 * taps, columns, pixels)
            elif first or chunk == 0 or units > p.splits:   # else the task before has left the same panels
                fill_panels(panels, grad_out, out_plane, p.rows, pixels)
            if p.swapped:
                add_unit(p, &t, grad_weight, grad_out, panels, p.rows, columns, pixels)
            else:
                add_unit(p, &t, sums, strip, panels, channels * taps, t.out_row, pixels)
    if p.dot:
        for j in range(p.rows):
            copy_run(grad_weight + j * p.channels * taps, sums + j * channels * taps, channels * taps)
    elif not p.swapped:
        transpose(grad_weight, p.channels * taps, sums, p.vectors * LANES, channels * taps, p.rows)


cdef void run_weight_planes(const WeightPass *p, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The tasks first..last with the tile of plane.pxi."""
    cdef Py_ssize_t units = p.images * p.strips, taps = p.y.taps * p.x.taps
    cdef Py_ssize_t task, group, split, unit, first_unit, n, s, y0, f, c, c0, plane
    cdef Plane t
    set_plane(&t, &p.y, &p.x)
    for task in range(first, last):
        group = task // p.chunks if p.chunks > 1 else task
        c0 = task - group * p.chunks
        split = group // p.groups if p.splits > 1 else 0
        group -= split * p.groups
        first_unit = portion(split, units, p.splits)
        for unit in range(first_unit, portion(split + 1, units, p.splits)):
            n = unit // p.strips if p.strips > 1 else unit
            s = unit - n * p.strips
            y0 = portion(s, p.y.extent, p.strips)
            set_rows(&t, &p.y, y0, portion(s + 1, p.y.extent, p.strips) - y0)
            n = n * p.groups + group
            for f in range(p.rows):
                t.grad_out = p.grad_out + ((n * p.rows + f) * p.y.extent + y0) * p.x.extent
                for c in range(portion(c0, p.channels, p.chunks), portion(c0 + 1, p.channels, p.chunks)):
                    t.source = p.source + (n * p.channels + c) * t.height * t.width
                    plane = split * p.weight_size + ((group * p.rows + f) * p.channels + c) * taps
                    dot_square(p.y.taps, p.y.step, &t, unit > first_unit, p.grad_weight + plane)


cdef void add_partial(const WeightPass *p, real *total) noexcept nogil:
    """total = the splits' partial gradients, added in order."""
    cdef Py_ssize_t i, split
    for i in range(p.weight_size):
        total[i] = p.grad_weight[i]
    for split in range(1, p.splits):
        for i in range(p.weight_size):
            total[i] += p.grad_weight[split * p.weight_size + i]
