# The gradient of the weight. The forward pass summed weight[f, tap] * x[pixel of tap] into out[f, pixel]; so now
#
#     grad_weight[f, tap] = sum over images and pixels of x[pixel of tap] * grad_out[f, pixel]
#
# through the same tile: rows are taps, read from the strip of x; steps are output pixels; lanes are output channels, read
# from a copy of grad_out transposed to [pixel][channel] in panels. The sums grow in scratch as [tap][channel] and are
# transposed at the end. A 1x1 kernel of stride 1 reads x where it lies, or, if x has fewer channels, transposes x and
# reads grad_out where it lies. Where the output channels of a group leave most lanes empty, dot.pxd's tile has pixels in the
# lanes instead, or plane.pxi's for the windows that it has, and reads grad_out where it lies.
#
# The images' strips ("units") are cut into `splits` runs and the input channels into `chunks`; a task is one of each for
# one group. Both counts follow from shapes alone, and a task adds its units in order, so the result does not depend on
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
    Py_ssize_t strips, pitch, plane, strip_rows, vectors, chunks, chunk_channels, splits, tasks
    Py_ssize_t *step_a          # [pixels of a strip]
    Py_ssize_t *step_b
    Py_ssize_t *tap             # [taps] offset in the strip's channel
    bint dot                    # lanes are pixels
    bint square                 # dot.pxd's place is taken by plane.pxi
    Py_ssize_t run_step         # between the taps of a run in the weight
    bint in_place               # the source itself serves as strip
    bint swapped                # source and grad_out have changed places, so that the smaller one is transposed
    int run                     # taps along x that are neighbours in the strip, where loads are what limits the tile: 3, 5, 7; else 1


cdef inline Py_ssize_t panel_elements(const WeightPass *p) noexcept nogil:
    return 0 if p.dot else p.strip_rows * p.x.extent * ceil_div(p.vectors, PANEL_VECTORS) * PANEL_VECTORS * LANES


cdef inline Py_ssize_t weight_strip_elements(const WeightPass *p) noexcept nogil:
    return 0 if p.in_place or p.square else p.chunk_channels * p.x.segments * p.plane


cdef inline Py_ssize_t sum_elements(const WeightPass *p) noexcept nogil:
    return p.chunk_channels * p.y.taps * p.x.taps * (p.rows if p.dot else p.vectors * LANES)


cdef void plan_weight_strips(WeightPass *p, Py_ssize_t strips) noexcept nogil:
    p.strips = strips
    p.strip_rows = ceil_div(p.y.extent, strips)
    plan_segments(&p.y, p.strip_rows)
    p.plane = p.y.size * p.x.size if p.in_place else padded_plane(total_length(&p.y) * p.pitch)


cdef inline bint fits(const Axis *axis) noexcept nogil:
    """Whether there is one tap, which reads the source as it lies."""
    return axis.taps * axis.step == 1 and axis.start[0] == 0 and axis.extent == axis.size


cdef void plan_weight(WeightPass *p) noexcept nogil:
    cdef Py_ssize_t units
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
    p.swapped = p.in_place and 2 * p.channels > LANES and p.channels < p.rows
    if p.swapped:
        p.source, p.grad_out = p.grad_out, p.source
        p.rows, p.channels = p.channels, p.rows
        p.vectors = ceil_div(p.rows, LANES)
    p.chunk_channels = CHUNK_BYTES // (p.y.taps * p.x.taps * p.vectors * LANES * <Py_ssize_t>sizeof(real))
    p.chunks = ceil_div(p.channels, max(<Py_ssize_t>CHUNK_CHANNELS, p.chunk_channels))
    p.chunk_channels = ceil_div(p.channels, p.chunks)
    plan_weight_strips(p, 1)
    while (p.strips < p.y.extent
            and (p.strip_rows * p.x.extent > MAX_STEPS
                 or (panel_elements(p) + weight_strip_elements(p)) * <Py_ssize_t>sizeof(real) > STRIP_BYTES)):
        plan_weight_strips(p, p.strips + 1)
    units = p.images * p.strips
    p.splits = max(1, min(units, ceil_div(MIN_TASKS, p.groups * p.chunks)))
    p.chunks = min(p.channels, max(p.chunks, ceil_div(MIN_TASKS, p.groups * p.splits)))
    p.chunk_channels = ceil_div(p.channels, p.chunks)
    p.tasks = p.splits * p.groups * p.chunks


cdef void fill_weight_tables(WeightPass *p, Py_ssize_t *tables) noexcept nogil:
    """`tables` holds 2 * pixels of a strip + taps of y * taps of x."""
    cdef Py_ssize_t counts[DOT_TAPS + 1]
    cdef Py_ssize_t i, j, k = 0
    p.step_a = tables
    p.step_b = tables + p.strip_rows * p.x.extent
    p.tap = p.step_b + p.strip_rows * p.x.extent
    for i in range(p.strip_rows):
        for j in range(p.x.extent):
            p.step_a[k] = i * p.pitch + j
            p.step_b[k] = k * PANEL_VECTORS * LANES
            k += 1
    p.run_step = plan_runs(&p.y, DOT_TAPS, counts)
    for i in range(p.y.taps):
        for j in range(p.x.taps):
            p.tap[i * p.x.taps + j] = (p.x.segment[j] * p.plane + p.x.offset[j] + p.pitch *
                                       (p.y.offset[i] + segment_base(&p.y, p.y.segment[i])))


cdef void add_dots(const WeightPass *p, real *sums, const real *source, const real *strip, const real *grad_out,
                   Py_ssize_t channels, Py_ssize_t y0, Py_ssize_t strip_rows) noexcept nogil:
    """Add one unit's products to the sums [output channel][input channel][tap] with the tile of dot.pxd or plane.pxi."""
    cdef Dot t
    cdef Plane plane
    cdef real part[DOT_TAPS]
    cdef real *sums_fc
    cdef Py_ssize_t f, c, i, j, k
    t.height = strip_rows
    t.width = p.x.extent
    t.pitch = p.pitch
    set_plane(&plane, &p.y, &p.x)
    set_rows(&plane, &p.y, y0, strip_rows)
    for f in range(p.rows):
        plane.grad_out = t.grad_out = grad_out + f * p.y.extent * p.x.extent
        for c in range(channels):
            sums_fc = sums + (f * channels + c) * p.y.taps * p.x.taps
            if p.square:
                plane.source = source + c * plane.height * plane.width
                add_dot_square(p.y.taps, p.y.step, &plane, sums_fc)
                continue
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


cdef void fill_panels(const WeightPass *p, real *panels, const real *grad_out, Py_ssize_t pixels) noexcept nogil:
    """panels[block][pixel][lane] = grad_out[block * PANEL_VECTORS * LANES + lane][pixel], zero past the last channel."""
    cdef Py_ssize_t block = 0, rows, k, f
    cdef Py_ssize_t plane = p.y.extent * p.x.extent
    while block * PANEL_VECTORS < p.vectors:
        f = block * PANEL_VECTORS * LANES
        rows = min(p.rows - f, <Py_ssize_t>PANEL_VECTORS * LANES)
        if rows < PANEL_VECTORS * LANES:
            memset(panels, 0, pixels * PANEL_VECTORS * LANES * sizeof(real))
        transpose(panels, PANEL_VECTORS * LANES, grad_out + f * plane, plane, rows, pixels)
        panels += pixels * PANEL_VECTORS * LANES
        block += 1


cdef void add_unit(const WeightPass *p, Tile *t, real *sums, const real *strip, const real *panels,
                   Py_ssize_t channels, Py_ssize_t pixels) noexcept nogil:
    """Add one unit's products to the sums of `channels` input channels."""
    cdef Py_ssize_t per_channel = p.y.taps * p.x.taps // p.run
    cdef Py_ssize_t runs = channels * per_channel
    cdef Py_ssize_t blocks = ceil_div(runs, MR // p.run)
    cdef Py_ssize_t block, v = 0, first, i
    cdef int j, rows, n
    t.steps = pixels
    t.out_row = p.vectors * LANES
    t.a = strip
    while v < p.vectors:
        n = <int>min(<Py_ssize_t>PANEL_VECTORS, p.vectors - v)
        t.b = panels + v * LANES * pixels
        for block in range(blocks):
            first = block * runs // blocks
            rows = <int>((block + 1) * runs // blocks - first)
            t.out = sums + first * p.run * t.out_row + v * LANES
            if p.in_place:
                t.a = strip + first * p.plane
                run_tile(rows, n, t)
                continue
            for j in range(rows):
                i = (first + j) // per_channel
                t.row[j] = i * p.x.segments * p.plane + p.tap[(first + j - i * per_channel) * p.run]
            run_runs(p.run, rows, n, t)
        v += n


cdef void run_weight_task(const WeightPass *p, Py_ssize_t task, bint first, real *sums, real *strip, real *panels) noexcept nogil:
    """`first` of a thread: later ones find the strips' padding and, of the same split in one unit, the panels."""
    cdef bint clear = first
    cdef Py_ssize_t chunk = task % p.chunks
    cdef Py_ssize_t group = task // p.chunks % p.groups
    cdef Py_ssize_t split = task // p.chunks // p.groups
    cdef Py_ssize_t c0 = chunk * p.channels // p.chunks
    cdef Py_ssize_t channels = (chunk + 1) * p.channels // p.chunks - c0
    cdef Py_ssize_t units = p.images * p.strips
    cdef Py_ssize_t taps = p.y.taps * p.x.taps
    cdef Py_ssize_t source_plane = p.y.size * p.x.size
    cdef Py_ssize_t out_plane = p.y.extent * p.x.extent
    cdef Py_ssize_t unit, n, s, y0, pixels
    cdef const real *grad_out
    cdef const real *source
    cdef Py_ssize_t first_weight = group * p.rows * p.channels + c0 * (p.rows if p.swapped else 1)
    cdef real *grad_weight = p.grad_weight + split * p.weight_size + first_weight * taps
    cdef Tile t
    cdef Py_ssize_t j
    t.step_a = p.step_a
    t.step_b = p.step_b
    t.row_step = p.plane
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
        if not (p.square or p.in_place):
            copy_strip(strip, source, channels, source_plane, clear or p.strips > 1 or p.chunks > 1, &p.y, &p.x, y0, p.plane, p.pitch)
        grad_out = p.grad_out + (n * p.groups + group) * p.rows * out_plane + y0 * p.x.extent
        t.accumulate = unit > split * units // p.splits
        clear = False
        if p.dot:
            if not t.accumulate:
                memset(sums, 0, p.rows * channels * taps * sizeof(real))
            add_dots(p, sums, source, strip, grad_out, channels, y0, pixels // p.x.extent)
        else:
            if first or chunk == 0 or units > p.splits:   # else the task before has left the same panels
                fill_panels(p, panels, grad_out, pixels)
            add_unit(p, &t, sums, source + y0 * p.x.size if p.in_place else strip, panels, channels, pixels)
    if p.swapped:
        for j in range(channels):
            copy_run(grad_weight + j * p.rows, sums + j * p.vectors * LANES, p.rows)
    elif p.dot:
        for j in range(p.rows):
            copy_run(grad_weight + j * p.channels * taps, sums + j * channels * taps, channels * taps)
    else:
        transpose(grad_weight, p.channels * taps, sums, p.vectors * LANES, channels * taps, p.rows)


cdef void add_partial(const WeightPass *p, real *total) noexcept nogil:
    """total = the splits' partial gradients, added in order."""
    cdef Py_ssize_t i, split
    for i in range(p.weight_size):
        total[i] = p.grad_weight[i]
    for split in range(1, p.splits):
        for i in range(p.weight_size):
            total[i] += p.grad_weight[split * p.weight_size + i]
