"""Maximum and average pooling and their gradients over planes of D x H x W cells; 1-D and 2-D have D = 1 (H = 1).

    out[p, o] = max or sum / cells over the taps k of x[p, o*stride - before + k*dilation], along each axis

Taps outside the plane take no part. Arguments have been checked by cyconv/pool.py; arrays are flat views of C-contiguous
ones, the geometry is the packed Axis structs of window.pxi. A prange runs over parts of the output (of the gradient of x in
the backward passes); a part owns its rows, and the order in which an element is summed does not depend on the parts. Scratch
is a line or a ring of strips for each thread. cyconv/_reference.py is the plain version.
"""
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from simd cimport real, LANES, vec, load, store, splat, even, odd, zip_low, zip_high
from mask cimport mask, greater, is_nan, pick, any, larger, vmax, scalar_max, load_first, store_first
from scratch cimport take, address

include "window.pxi"
include "pool_forward.pxi"
include "pool_argmax.pxi"
include "pool_backward.pxi"

cdef enum:
    ELEMENTS_PER_THREAD = 1 << 15   # input read or written for which another thread is worth its start
    PARTS_PER_THREAD = 4            # a thread that is held up leaves its parts to the others


cdef inline int useful_threads(const Pool *p, int threads) noexcept nogil:
    return <int>max(1, min(<Py_ssize_t>threads, p.planes * max(p.in_plane, p.out_plane) // ELEMENTS_PER_THREAD))


cdef bytearray take_lines(const Pool *p, list scratch, Py_ssize_t elements, int threads):
    """Tables and `elements` for each thread."""
    return take(scratch, table_bytes(p) + <double>threads * whole_lines(elements) * sizeof(real))


cdef inline real *lines_of(const Pool *p, void *arena, Py_ssize_t elements, int thread) noexcept nogil:
    return <real *>(<char *>arena + table_bytes(p)) + thread * whole_lines(elements)


cdef forward(int op, Pool *p, const real *x, real *out, int64_t *indices, int threads, list scratch):
    cdef Py_ssize_t part, parts, elements
    cdef bytearray block
    cdef void *arena
    plan_lines(p)
    if indices != NULL:
        plan_ring(p)
    elements = line_elements(p) if indices == NULL else ring_elements(p)
    threads = useful_threads(p, threads)
    block = take_lines(p, scratch, elements, threads)
    arena = address(block)
    with nogil:
        fill_tables(p, <char *>arena)
        if op == SUM:
            fill_cells(p)
        parts = min(p.planes * p.d.out * p.h.out, threads * PARTS_PER_THREAD) if threads > 1 else 1
        if threads == 1:
            forward_task(op, p, x, out, indices, 0, 1, lines_of(p, arena, elements, 0))
        else:
            for part in prange(parts, num_threads=threads, schedule="dynamic"):
                forward_task(op, p, x, out, indices, part, parts, lines_of(p, arena, elements, threadid()))
    scratch.append(block)


cdef void forward_task(int op, const Pool *p, const real *x, real *out, int64_t *indices, Py_ssize_t part, Py_ssize_t parts,
                       real *memory) noexcept nogil:
    if indices != NULL:
        indices_part(p, x, out, indices, part, parts, memory)
    else:
        forward_part(op, p, x, out, part, parts, memory)


def max_forward(const real[::1] x, real[::1] out, int64_t[::1] indices, bytes geometry, Py_ssize_t planes, int threads,
                list scratch):
    """Maxima, and their indices in the plane unless `indices` is None."""
    cdef Pool p
    read_geometry(&p, geometry, planes)
    forward(MAX, &p, &x[0], &out[0], NULL if indices is None else &indices[0], threads, scratch)


def average_forward(const real[::1] x, real[::1] out, bytes geometry, Py_ssize_t planes, bint include_pad, double divisor,
                    int threads, list scratch):
    """Averages; a divisor other than 0 replaces the number of cells."""
    cdef Pool p
    read_geometry(&p, geometry, planes)
    p.include_pad = include_pad
    p.divisor = divisor
    forward(SUM, &p, &x[0], &out[0], NULL, threads, scratch)


def max_backward(const real[::1] grad_out, const real[::1] x, const int64_t[::1] indices, real[::1] grad_x, bytes geometry,
                 Py_ssize_t planes, int threads, list scratch):
    """Gradient of x from x or, unless None, from the indices. Returns False if one of them is outside: nothing is done."""
    cdef Pool p
    cdef Py_ssize_t task, parts, elements = 0
    cdef bytearray block
    cdef void *arena
    cdef const real *source = NULL
    cdef const int64_t *places = NULL
    read_geometry(&p, geometry, planes)
    if indices is None:
        source = &x[0]
        plan_lines(&p)
        plan_ring(&p)
        elements = ring_elements(&p)
    else:
        places = &indices[0]
        if outside(places, planes * p.out_plane, p.in_plane, -1):
            return False
    threads = useful_threads(&p, threads)
    block = take_lines(&p, scratch, elements, threads)
    arena = address(block)
    with nogil:
        fill_tables(&p, <char *>arena)
        parts = 1
        if threads > 1 and planes < threads * PARTS_PER_THREAD:
            parts = min(p.d.size * p.h.size, ceil_div(threads * PARTS_PER_THREAD, planes))
        if threads == 1:
            for task in range(planes):
                max_backward_task(&p, &grad_out[0], source, places, &grad_x[0], task, 0, 1, lines_of(&p, arena, elements, 0))
        else:
            for task in prange(planes * parts, num_threads=threads, schedule="dynamic"):
                max_backward_task(&p, &grad_out[0], source, places, &grad_x[0], task // parts, task % parts, parts,
                                  lines_of(&p, arena, elements, threadid()))
    scratch.append(block)
    return True


cdef void max_backward_task(const Pool *p, const real *grad_out, const real *x, const int64_t *indices, real *grad_x,
                            Py_ssize_t plane, Py_ssize_t part, Py_ssize_t parts, real *memory) noexcept nogil:
    if indices != NULL:
        scatter_part(p, grad_out, indices, grad_x, plane, part, parts)
    else:
        max_backward_part(p, grad_out, x, grad_x, plane, part, parts, memory)


def average_backward(const real[::1] grad_out, real[::1] grad_x, bytes geometry, Py_ssize_t planes, bint include_pad,
                     double divisor, int threads, list scratch):
    """Gradient of x."""
    cdef Pool p
    cdef Py_ssize_t part, parts, elements
    cdef bytearray block
    cdef void *arena
    read_geometry(&p, geometry, planes)
    p.include_pad = include_pad
    p.divisor = divisor
    plan_lines(&p)
    elements = average_elements(&p)
    threads = useful_threads(&p, threads)
    block = take_lines(&p, scratch, elements, threads)
    arena = address(block)
    with nogil:
        fill_tables(&p, <char *>arena)
        fill_cells(&p)
        plan_average_backward(&p)
        parts = min(planes * p.d.size * p.h.size, threads * PARTS_PER_THREAD) if threads > 1 else 1
        if threads == 1:
            average_backward_part(&p, &grad_out[0], &grad_x[0], 0, 1, lines_of(&p, arena, elements, 0))
        else:
            for part in prange(parts, num_threads=threads, schedule="dynamic"):
                average_backward_part(&p, &grad_out[0], &grad_x[0], part, parts, lines_of(&p, arena, elements, threadid()))
    scratch.append(block)
