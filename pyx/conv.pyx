"""Two-dimensional cross-correlation and its gradients over NCHW arrays: entry points and plans.

    out[n, f, oy, ox] = bias[f] + sum over c, ky, kx of weight[f, c, ky, kx] * x[n, c, oy*sh + ky*dh - ph, ox*sw + kx*dw - pw]

Arguments have been checked by cyconv/conv.py; arrays are C-contiguous and not empty, `geometry` is a packed Geometry,
`threads` a function that returns how many threads the call may use. A prange runs over as many contiguous
shares of the tasks as there are threads; a share owns the output elements of its tasks. pyx/README.md is the map,
cyconv/_reference.py the plain version.
"""
from cython.parallel cimport prange

from cyconv._runtime cimport ready, useful_threads
from libc.string cimport memset
from mask cimport mask, greater, is_nan, any, lanes_within, load_set, load_first_or_zero, store_first, fetch, put, prefetch, slide_by, \
    CAN_SLIDE, opaque, held
from simd cimport REGISTERS, real, vec, LANES, HAS_MASKS, TAIL_PIXELS, TAIL_ROWS, MR, MR3, load, store, splat, vrelu, lane_sum, \
    lane_sums, zip_low, zip_high, even, odd, transpose, transpose_vectors
from scratch cimport take, address
from strip cimport Axis, plan_segments, plan_exact, plan_copy, segment_base, total_length, longest_segment, copy_strip, copy_run, \
    padded_plane, plan_runs, ceil_div, STRIP_BYTES
from dot cimport Dot, dot_taps, DOT_TAPS
from tile cimport Tile, Column, tile_rows, tail_pixels, column_taps, tile_runs, fitting_vectors, STRIDED, MASKED, MAX_VECTORS, COLUMN_TAPS


cdef void run_tile(int rows, int vectors, const Tile *t) noexcept nogil:
    tile_rows(rows, vectors, STRIDED, t)


cdef void run_masked_tile(int rows, int vectors, const Tile *t) noexcept nogil:
    if HAS_MASKS:
        tile_rows(rows, vectors, MASKED, t)


cdef void run_runs(int run, int runs, int vectors, const Tile *t) noexcept nogil:
    """The tile of one vector and so many runs of neighbouring rows; or, where run is 1, of vectors and rows that lie anywhere."""
    if run == 3: tile_runs(3, runs, t)
    elif run == 5: tile_runs(5, runs, t)
    elif MR >= 7 and run == 7: tile_runs(7, runs, t)
    else: tile_rows(runs, vectors, 1, t)


cdef void run_tail(int pixels, const Tile *t, Py_ssize_t rows, const real *columns, Py_ssize_t pitch) noexcept nogil:
    tail_pixels(pixels, t, rows, columns, pitch)


cdef void run_column(int taps, const Column *t) noexcept nogil:
    column_taps(taps, t)


include "plane.pxi"
include "correlate.pxi"
include "weight.pxi"


cdef enum:
    WORK_PER_THREAD = 1 << 18   # multiply-adds for which another thread is worth its start (Zen 5: 2 us against 1)
    WORK_UNDER_GIL = 1 << 14    # multiply-adds and results that take no longer than to let other Python threads run
    SMALL_TABLES = 512          # sizes and offsets that lie on the stack
    AXIS_ARRAYS = 9


cdef struct Geometry:           # as cyconv/conv.py packs it
    Py_ssize_t images, groups
    Py_ssize_t rows, channels   # output and input channels of a group
    Py_ssize_t kh, kw, height, width, out_height, out_width, sh, sw, ph, pw, dh, dw


cdef inline int allowed(double work, object threads) except -1:
    """How many threads the call may use, which is asked for only if the work is worth two."""
    return 1 if work < 2 * WORK_PER_THREAD else threads()


cdef inline Py_ssize_t lines(Py_ssize_t elements) noexcept nogil:
    """The number of elements rounded up to whole cache lines, and one more."""
    return (ceil_div(elements * <Py_ssize_t>sizeof(real), 64) + 1) * 64 // <Py_ssize_t>sizeof(real)


cdef inline Py_ssize_t *carve_axis(Axis *axis, Py_ssize_t *memory, Py_ssize_t taps) noexcept nogil:
    """Give the axis its arrays; return what follows them."""
    axis.start = memory
    axis.index = memory + taps
    axis.segment = memory + 2 * taps
    axis.offset = memory + 3 * taps
    axis.segment_start = memory + 4 * taps
    axis.segment_length = memory + 5 * taps
    axis.run = memory + 6 * taps
    axis.first = memory + 7 * taps
    axis.last = memory + 8 * taps
    return memory + AXIS_ARRAYS * taps


cdef void forward_axis(Axis *axis, Py_ssize_t kernel, Py_ssize_t tap_step, Py_ssize_t stride, Py_ssize_t pad,
                       Py_ssize_t dilation, Py_ssize_t size, Py_ssize_t extent) noexcept nogil:
    cdef Py_ssize_t k
    axis.taps = kernel
    axis.step = stride
    axis.size = size
    axis.extent = extent
    for k in range(kernel):
        axis.start[k] = k * dilation - pad
        axis.index[k] = k * tap_step


cdef void phase_axis(Axis *axis, Py_ssize_t phase, Py_ssize_t kernel, Py_ssize_t tap_step, Py_ssize_t stride,
                     Py_ssize_t pad, Py_ssize_t dilation, Py_ssize_t size, Py_ssize_t extent) noexcept nogil:
    """The taps that reach the positions phase, phase + stride, ... of x.

    In the forward pass output o read x[o*stride + k*dilation - pad]; so now position phase + q*stride of x receives from
    o = q + (phase + pad - k*dilation) / stride, for every k that makes this whole.
    """
    cdef Py_ssize_t k
    axis.taps = 0
    axis.step = 1
    axis.size = size
    axis.extent = ceil_div(extent - phase, stride)
    for k in range(kernel - 1, -1, -1):
        if (phase + pad - k * dilation) % stride == 0:
            axis.start[axis.taps] = (phase + pad - k * dilation) // stride
            axis.index[axis.taps] = k * tap_step
            axis.taps += 1


cdef void run_share(const Pass *p, int part, int parts, real *strip) noexcept nogil:
    run_tasks(p, p.tasks * part // parts, p.tasks * (part + 1) // parts, strip)


cdef bint nan_in_corners(const Pass *p) noexcept nogil:
    """Whether the first or the last output pixel of a channel and phase is NaN in the first image.

    The strip's zeros stand for taps that are not there, and a weight that is inf or NaN makes NaN of them. A tap that is
    ever in the padding is there in one of these two pixels, so finite corners say that no weight did so anywhere.
    Planes leave out the rows outside, and with them taps of the corners: there all weights are looked at.
    """
    cdef vec zeros = splat(0)
    cdef Py_ssize_t _m, i, last
    cdef const real *out = p.out
    if p.planes:
        for i from 0 <= i < p.groups * p.a_group by LANES:
            zeros = zeros + splat(0) * fetch(p.a + i, p.groups * p.a_group - i, 0)
        return any(is_nan(zeros))
    for _m in range(p.groups * p.rows):
        for i in range(p.phase_count):
            last = (p.y.extent - 1) * p.out_y + (p.phases[i].x.extent - 1) * p.phase_count + i
            if out[i] != out[i] or out[last] != out[last]:
                return True
        out += p.out_plane
    return False


cdef bint run_pass(Pass *p, Py_ssize_t *tables, object threads, list scratch) except -1:
    """Plan the pass, take its strips and run it; return nan_in_corners."""
    cdef double work = 0
    cdef Py_ssize_t i, size
    cdef int part, parts, most
    cdef bytearray block
    cdef real *strips
    for i in range(p.phase_count):
        work += <double>p.phases[i].x.taps * p.phases[i].x.extent
    work *= <double>p.images * p.groups * p.rows * p.channels * p.y.taps * p.y.extent
    most = allowed(work, threads)
    plan_pass(p, tables, useful_threads(work, WORK_PER_THREAD, most, most))
    parts = useful_threads(work, WORK_PER_THREAD, p.tasks, most)
    size = lines(p.scratch)
    block = take(scratch, <double>size * sizeof(real) * parts)
    strips = <real *>address(block)
    if work + <double>p.images * p.groups * p.rows * p.out_plane < WORK_UNDER_GIL:
        run_share(p, 0, 1, strips)
    elif parts == 1:
        with nogil:
            run_share(p, 0, 1, strips)
    else:
        for part in prange(parts, num_threads=ready(parts), schedule="static", nogil=True):
            run_share(p, part, parts, strips + part * size)
    scratch.append(block)
    return nan_in_corners(p)


cdef Py_ssize_t *carve_pass(Pass *p, void *memory, Py_ssize_t kh, Py_ssize_t kw) noexcept:
    """Give the pass its phases and axes in pass_bytes of memory; return what follows them: room for the step tables."""
    cdef Py_ssize_t i
    cdef Py_ssize_t *rest
    p.phases = <Phase *>memory
    rest = carve_axis(&p.y, <Py_ssize_t *>(p.phases + p.phase_count), kh)
    for i in range(p.phase_count):
        rest = carve_axis(&p.phases[i].x, rest, kw)
    return rest


cdef inline double pass_bytes(const Pass *p, Py_ssize_t kh, Py_ssize_t kw) noexcept:
    return (<double>p.phase_count * sizeof(Phase) + (3. * p.channels * kh * kw + AXIS_ARRAYS * (kh + <double>p.phase_count * kw))
            * sizeof(Py_ssize_t))


def forward(object[const real, ndim=4, mode="c"] x not None, object[const real, ndim=4, mode="c"] weight not None,
            object[const real, ndim=1, mode="c"] bias, object[real, ndim=4, mode="c"] out not None,
            bytes geometry not None, bint relu, object threads, list scratch):
    """out = cross-correlation of x and weight, plus bias; relu clips it at zero. Return nan_in_corners."""
    cdef const Geometry *g = <const Geometry *><const char *>geometry
    cdef bint suspect
    cdef Py_ssize_t small[SMALL_TABLES]
    cdef Py_ssize_t *rest
    cdef bytearray block
    cdef Pass p
    p.images = g.images
    p.groups = g.groups
    p.rows = g.rows
    p.channels = g.channels
    p.channel_step = g.kh * g.kw
    p.row_step = p.channels * g.kh * g.kw
    p.a_group = p.rows * p.row_step
    p.a = &weight[0, 0, 0, 0]
    p.source = &x[0, 0, 0, 0]
    p.bias = &bias[0] if bias is not None else NULL
    p.relu = relu
    p.out = &out[0, 0, 0, 0]
    p.out_plane = g.out_height * g.out_width
    p.out_y = g.out_width
    p.phase_count = 1
    block = take(scratch, pass_bytes(&p, g.kh, g.kw)) if pass_bytes(&p, g.kh, g.kw) > sizeof(small) else None
    rest = carve_pass(&p, <void *>&small[0] if block is None else address(block), g.kh, g.kw)
    forward_axis(&p.y, g.kh, g.kw, g.sh, g.ph, g.dh, g.height, g.out_height)
    forward_axis(&p.phases[0].x, g.kw, 1, g.sw, g.pw, g.dw, g.width, g.out_width)
    suspect = run_pass(&p, rest, threads, scratch)
    if block is not None:
        scratch.append(block)
    return suspect


def grad_x(object[const real, ndim=4, mode="c"] grad_out not None, object[const real, ndim=4, mode="c"] weight not None,
           object[real, ndim=4, mode="c"] grad_x not None, bytes geometry not None, object threads, list scratch):
    """The gradient of x: for each row modulo the stride one pass over grad_out, with a phase for each column modulo it.

    The forward pass added weight[f, c, ky, kx] * x[c, y, x] to out[f, oy, ox]; so now the same weight, read with rows and
    steps exchanged, times grad_out[f, oy, ox] is added to grad_x[c, y, x]. Return nan_in_corners of any phase.
    """
    cdef const Geometry *g = <const Geometry *><const char *>geometry
    cdef bint suspect = False
    cdef Py_ssize_t y, x
    cdef Py_ssize_t small[SMALL_TABLES]
    cdef Py_ssize_t *rest
    cdef bytearray block
    cdef Pass p
    p.images = g.images
    p.groups = g.groups
    p.rows = g.channels
    p.channels = g.rows
    p.channel_step = p.rows * g.kh * g.kw
    p.row_step = g.kh * g.kw
    p.a_group = p.channels * p.channel_step
    p.a = &weight[0, 0, 0, 0]
    p.source = &grad_out[0, 0, 0, 0]
    p.bias = NULL
    p.relu = False
    p.out_plane = g.height * g.width
    p.out_y = g.sh * g.width
    p.phase_count = min(g.sw, g.width)
    block = take(scratch, pass_bytes(&p, g.kh, g.kw)) if pass_bytes(&p, g.kh, g.kw) > sizeof(small) else None
    for y in range(min(g.sh, g.height)):
        rest = carve_pass(&p, <void *>&small[0] if block is None else address(block), g.kh, g.kw)
        phase_axis(&p.y, y, g.kh, g.kw, g.sh, g.ph, g.dh, g.out_height, g.height)
        for x in range(p.phase_count):
            phase_axis(&p.phases[x].x, x, g.kw, 1, g.sw, g.pw, g.dw, g.out_width, g.width)
        p.out = &grad_x[0, 0, 0, 0] + y * g.width
        suspect |= run_pass(&p, rest, threads, scratch)
    if block is not None:
        scratch.append(block)
    return suspect


cdef void run_weight_share(const WeightPass *p, int part, int parts, real *memory) noexcept nogil:
    cdef Py_ssize_t task, first = p.tasks * part // parts
    cdef Py_ssize_t strip = lines(sum_elements(p))
    cdef Py_ssize_t panels = strip + lines(weight_strip_elements(p))
    if p.square:
        run_weight_planes(p, first, p.tasks * (part + 1) // parts)
        return
    for task in range(first, p.tasks * (part + 1) // parts):
        run_weight_task(p, task, task == first, memory, memory + strip, memory + panels)


def grad_weight(object[const real, ndim=4, mode="c"] x not None, object[const real, ndim=4, mode="c"] grad_out not None,
                object[real, ndim=4, mode="c"] grad_weight not None, bytes geometry not None, object threads, list scratch):
    """The gradient of the weight. Return whether a corner tap's is NaN, as an inf in grad_out times padding makes it."""
    cdef const Geometry *g = <const Geometry *><const char *>geometry
    cdef Py_ssize_t _f, taps = g.kh * g.kw
    cdef Py_ssize_t size, part_size, pixels = g.out_height * g.out_width
    cdef Py_ssize_t small[SMALL_TABLES]
    cdef Py_ssize_t *rest
    cdef real *memory
    cdef real *to = &grad_weight[0, 0, 0, 0]
    cdef bytearray tables, block
    cdef int part, parts
    cdef double work, table_bytes = (<double>AXIS_ARRAYS * (g.kh + g.kw) + 2. * pixels + <double>taps) * sizeof(Py_ssize_t)
    cdef WeightPass p
    p.images = g.images
    p.groups = g.groups
    p.rows = g.rows
    p.channels = g.channels
    p.weight_size = p.groups * p.rows * p.channels * taps
    p.source = &x[0, 0, 0, 0]
    p.grad_out = &grad_out[0, 0, 0, 0]
    tables = take(scratch, table_bytes) if table_bytes > sizeof(small) else None
    rest = carve_axis(&p.y, &small[0] if tables is None else <Py_ssize_t *>address(tables), g.kh)
    rest = carve_axis(&p.x, rest, g.kw)
    forward_axis(&p.y, g.kh, g.kw, g.sh, g.ph, g.dh, g.height, g.out_height)
    forward_axis(&p.x, g.kw, 1, g.sw, g.pw, g.dw, g.width, g.out_width)
    plan_weight(&p)
    fill_weight_tables(&p, rest)
    work = <double>p.images * p.weight_size * pixels
    parts = useful_threads(work, WORK_PER_THREAD, p.tasks, allowed(work, threads))
    size = lines(p.splits * p.weight_size) if p.splits > 1 else 0
    part_size = lines(sum_elements(&p)) + lines(weight_strip_elements(&p)) + lines(panel_elements(&p))
    block = take(scratch, (<double>size + <double>part_size * parts) * sizeof(real))
    memory = <real *>address(block)
    p.grad_weight = memory if p.splits > 1 else to
    with nogil:
        if parts == 1:
            run_weight_share(&p, 0, 1, memory + size)
        else:
            for part in prange(parts, num_threads=ready(parts), schedule="static"):
                run_weight_share(&p, part, parts, memory + size + part * part_size)
        if p.splits > 1:
            add_partial(&p, to)
    scratch.append(block)
    if tables is not None:
        scratch.append(tables)
    for _f in range(p.groups * p.rows):
        if to[0] != to[0] or to[taps - 1] != to[taps - 1]:
            return True
        to += p.channels * taps
    return False


cdef real channel_sum(const real *plane, const Geometry *g) noexcept nogil:
    """The sum over images and pixels of one channel: NV vectors of partial sums for each image, then over images."""
    cdef Py_ssize_t pixels = g.out_height * g.out_width
    cdef Py_ssize_t _n, i, j
    cdef vec sums[4]
    cdef real total = 0, image
    for _n in range(g.images):
        for j in range(4):
            sums[j] = splat(0)
        i = 0
        while i + 4 * LANES <= pixels:
            for j in range(4):
                sums[j] = sums[j] + load(plane + i + j * LANES)
            i += 4 * LANES
        image = lane_sum((sums[0] + sums[1]) + (sums[2] + sums[3]))
        for i in range(i, pixels):
            image += plane[i]
        total += image
        plane += g.groups * g.rows * pixels
    return total


def grad_bias(object[const real, ndim=4, mode="c"] grad_out not None, object[real, ndim=1, mode="c"] grad_bias not None,
              bytes geometry not None, object threads):
    """The gradient of the bias: the sum of grad_out over images and pixels."""
    cdef const Geometry *g = <const Geometry *><const char *>geometry
    cdef const real *source = &grad_out[0, 0, 0, 0]
    cdef real *to = &grad_bias[0]
    cdef Py_ssize_t f, rows = g.groups * g.rows, pixels = g.out_height * g.out_width
    cdef double work = <double>g.images * rows * pixels
    cdef int parts = useful_threads(work, WORK_PER_THREAD, rows, allowed(work, threads))
    with nogil:
        if parts == 1:
            for f in range(rows):
                to[f] = channel_sum(source + f * pixels, g)
        else:
            for f in prange(rows, num_threads=ready(parts), schedule="static"):
                to[f] = channel_sum(source + f * pixels, g)


def fma_peak(Py_ssize_t steps):
    """Only multiply-adds in registers; returns the number of floating-point operations. Benchmarks time it: the peak."""
    cdef int rows = 6 if REGISTERS == 32 else 5, columns = 4 if REGISTERS == 32 else 2, i, j
    cdef vec acc[6][4]
    cdef vec a = splat(<real>0.5), b = splat(1)
    cdef Py_ssize_t _step
    with nogil:
        for i in range(rows):
            for j in range(columns):
                acc[i][j] = splat(<real>(3 + i * columns + j))  # all different, and not 2 = 2 * a + b: nothing to save
        for _step in range(steps):
            for i in range(rows):
                for j in range(columns):
                    acc[i][j] = acc[i][j] * a + b
        for i in range(rows):
            for j in range(columns):
                b = b + acc[i][j]
    return 2.0 * steps * rows * columns * LANES + 0 * lane_sum(b)  # the sum is used, so it must be computed
