"""Maximum and average pooling and their gradients over planes of D x H x W cells; 1-D and 2-D have D = 1 (H = 1).

    out[p, o] = max or sum / cells over the taps k of x[p, o*stride - before + k*dilation], along each axis

Taps outside the plane take no part. cyconv/pool.py has checked the arguments; arrays are flat views of C-contiguous ones. A
prange runs over parts of the output (of the gradient of x in the backward passes); a part owns its rows, or planes, and the
order in which an element is summed does not depend on the parts. Scratch is a few lines for each thread.
cyconv/_reference_pool.py is the plain version.
"""
from cython.parallel cimport prange, threadid

from cyconv._runtime cimport ready, useful_threads
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from simd cimport real, LANES, vec, load, store, splat, even, odd, zip_low, zip_high
from mask cimport mask, greater, equal, is_nan, either, both, pick, any, larger, vmax, scalar_max, first_of, load_first, \
    store_first, split3, join3, prefetch, places, load_at, first_lane
from scratch cimport take, address

cdef enum:
    ELEMENTS_PER_THREAD = 1 << 15   # of input and output for which another thread is worth its start
    ELEMENTS_UNDER_GIL = 1 << 12    # that take no longer than to let other Python threads run
    PARTS_PER_THREAD = 4            # a thread that is held up leaves its parts to the others


# What is computed, as cyconv/pool.py numbers it.
cdef enum:
    MAX_FORWARD
    AVERAGE_FORWARD
    INDICES             # and maxima
    MAX_BACKWARD
    AVERAGE_BACKWARD
    SCATTER             # add elements to where their indices say
    ASSIGN              # put them there


cdef struct Work:
    int kind
    const real *x
    const real *grad_out
    const int64_t *indices
    int64_t *indices_out
    real *out           # the result: maxima, averages or the gradient of x
    bint outside        # an index lies outside its plane

include "window.pxi"


# The memory of a thread.
cdef struct Scratch:
    real *lines
    real *flat              # a row, or a line, element by element; sums of double_taps
    real *values            # [p.lines] lines of outputs for the rows under windows: maxima along w, and their taps
    real *taps
    real *best              # [p.together] lines of outputs: maxima, the distance of their row from the start of the window,
    real *row
    real *tap               # and their tap along w; -1 for none, and around the outputs
    real *grad              # [p.together] lines of outputs: gradients, 0 around them
    real *sums              # what a row of windows gives to each column, and to which row
    real *places
    real *zeros             # a row with room for whole vectors, and so is the next
    real *kept              # [p.kept] rows of the gradient of x that are not complete
    int64_t *index          # [p.together] rows of outputs
    Py_ssize_t rows         # under a window
    real *start             # [rows] their distance from the start of the window
    Py_ssize_t *from_x      # [rows] where they are read

include "pool_lines.pxi"
include "pool_forward.pxi"
include "pool_search.pxi"
include "pool_backward.pxi"


cdef Py_ssize_t divide(const Pool *p, const Work *w, Scratch *s, char *memory) noexcept nogil:
    """Divide the memory of a thread, and fill what does not change. Returns how many bytes that are; without memory that is
    all."""
    cdef Py_ssize_t i, forward = w.kind <= AVERAGE_FORWARD, lines = p.block if forward else p.lines
    cdef Py_ssize_t outputs = 0 if forward else p.outputs, rows = 0 if forward else p.rows
    cdef Py_ssize_t flat = (max(max(p.w.size, p.line), p.w.out) + 4 * LANES + 15) // 16 * 16
    memset(s, 0, sizeof(Scratch))
    s.lines = <real *>memory
    s.flat = s.lines + lines * p.line
    s.values = s.flat + flat
    s.taps = s.values + (flat if not forward and p.phases > 3 else 0) + p.lines * outputs
    s.best = s.taps + p.lines * outputs
    s.row = s.best + p.together * outputs
    s.tap = s.row + p.together * outputs
    s.grad = s.tap + p.together * outputs
    s.sums = s.grad + p.together * outputs
    s.places = s.sums + flat * (not forward)
    s.zeros = s.places + flat * (not forward)
    s.kept = s.zeros + row_room(p) * (not forward)
    s.index = <int64_t *>(s.kept + row_room(p) * (0 if forward else p.kept))
    s.from_x = <Py_ssize_t *>(s.index + (0 if forward else p.together * p.w.out))
    s.start = <real *>(s.from_x + rows)
    if memory != NULL:
        for i in range(lines * p.line):
            s.lines[i] = 0 if w.kind == AVERAGE_FORWARD else -INFINITY
        for i in range(p.together * outputs):
            s.tap[i] = -1
            s.row[i] = s.grad[i] = 0
        for i in range(row_room(p) * (not forward)):
            s.zeros[i] = 0
        s.row += p.ahead
        s.tap += p.ahead
        s.grad += p.ahead
    return (<char *>(s.start + rows) - memory + 127) // 64 * 64


cdef inline void run_phases(int phases, Work *w, const Pool *p, Py_ssize_t first, Py_ssize_t last, char *memory) noexcept nogil:
    """Rows of the result, counted over all planes. `phases` is p.phases, 0 for more than 3."""
    cdef Scratch s
    cdef Py_ssize_t plane, rows = p.d.size * p.h.size
    divide(p, w, &s, memory)
    if w.kind == MAX_FORWARD:
        forward_part(FAST, phases, p, &s, w.x, w.out, first, last)
    elif w.kind == AVERAGE_FORWARD:
        forward_part(SUM, phases, p, &s, w.x, w.out, first, last)
    elif w.kind == INDICES:
        while first < last:
            first += find_indices(phases, p, &s, w.x, first, last, w.out + first * p.w.out, w.indices_out + first * p.w.out)
    else:
        while first < last:
            plane = first // rows
            backward_plane(phases, w, p, &s, plane, first - plane * rows, min(last - plane * rows, rows))
            first = min(last, (plane + 1) * rows)


cdef void run_1(Work *w, const Pool *p, Py_ssize_t a, Py_ssize_t b, char *memory) noexcept nogil: run_phases(1, w, p, a, b, memory)
cdef void run_2(Work *w, const Pool *p, Py_ssize_t a, Py_ssize_t b, char *memory) noexcept nogil: run_phases(2, w, p, a, b, memory)
cdef void run_3(Work *w, const Pool *p, Py_ssize_t a, Py_ssize_t b, char *memory) noexcept nogil: run_phases(3, w, p, a, b, memory)
cdef void run_n(Work *w, const Pool *p, Py_ssize_t a, Py_ssize_t b, char *memory) noexcept nogil: run_phases(0, w, p, a, b, memory)


cdef void run_part(Work *w, const Pool *p, Py_ssize_t first, Py_ssize_t last, char *memory) noexcept nogil:
    if w.kind >= SCATTER:
        if scatter_planes(w, p, first, last):
            w.outside = True        # by whichever thread: it is never set back
    elif p.whole and w.kind <= AVERAGE_FORWARD:
        whole_forward(w, p, first, last)
    elif p.whole and w.kind != INDICES:
        whole_backward(w, p, first, last)
    elif p.phases == 1:
        run_1(w, p, first, last, memory)
    elif p.phases == 2:
        run_2(w, p, first, last, memory)
    elif p.phases == 3:
        run_3(w, p, first, last, memory)
    else:
        run_n(w, p, first, last, memory)


def run(int kind, object[const real, ndim=1, mode="c"] x, object[const real, ndim=1, mode="c"] grad_out,
        object[const int64_t, ndim=1, mode="c"] indices, object[int64_t, ndim=1, mode="c"] indices_out,
        object[real, ndim=1, mode="c"] out not None, bytes tables not None, Py_ssize_t planes, object threads, list scratch):
    """One pass, of which `kind` needs some of the arrays. Returns whether an index lies outside its plane."""
    cdef Pool p
    cdef Work w
    cdef Scratch s
    cdef Py_ssize_t part, parts = 1, size, rows = planes
    cdef int most
    cdef double elements
    cdef bytearray block
    cdef char *arena
    unpack(&p, tables, kind == MAX_BACKWARD or kind == AVERAGE_BACKWARD)
    memset(&w, 0, sizeof(Work))
    w.kind = kind
    w.x = &x[0] if x is not None else NULL
    w.grad_out = &grad_out[0] if grad_out is not None else NULL
    w.indices = &indices[0] if indices is not None else NULL
    w.indices_out = &indices_out[0] if indices_out is not None else NULL
    w.out = &out[0]
    if kind < SCATTER and not (p.whole and kind != INDICES):
        rows *= p.d.out * p.h.out if kind <= INDICES else p.d.size * p.h.size
    elements = <double>planes * (p.in_plane + p.out_plane)
    most = 1 if elements < 2 * ELEMENTS_PER_THREAD else threads()
    most = useful_threads(elements, ELEMENTS_PER_THREAD, rows, most)
    if most > 1:
        parts = min(rows, most * PARTS_PER_THREAD)
    size = divide(&p, &w, &s, NULL)
    block = take(scratch, <double>most * size)
    arena = <char *>address(block)
    if elements < ELEMENTS_UNDER_GIL:
        run_part(&w, &p, 0, rows, arena)
    elif parts == 1:
        with nogil:
            run_part(&w, &p, 0, rows, arena)
    else:
        for part in prange(parts, num_threads=ready(most), schedule="dynamic", nogil=True):
            run_part(&w, &p, rows * part // parts, rows * (part + 1) // parts, arena + threadid() * size)
    scratch.append(block)
    return w.outside
