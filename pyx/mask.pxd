# The declarations of mask.h.
from simd cimport real, vec

cdef extern from "mask.h" nogil:
    ctypedef int mask
    mask greater(vec a, vec b) noexcept
    mask equal(vec a, vec b) noexcept
    mask is_nan(vec a) noexcept
    mask either(mask m, mask n) noexcept
    mask both(mask m, mask n) noexcept
    vec pick(mask m, vec a, vec b) noexcept
    bint any(mask m) noexcept
    unsigned long long bits_of(mask m) noexcept
    int first_bit(unsigned long long bits) noexcept
    vec larger(vec a, vec b) noexcept
    vec first_of(vec v, int n, vec rest) noexcept
    vec load_first(const real *p, int n, vec rest) noexcept
    void store_first(real *p, vec v, int n) noexcept
    void split3(vec *v) noexcept
    void join3(vec *v) noexcept
    void prefetch(const real *p) noexcept
    vec load_first_or_zero(const real *p, int n) noexcept
    ctypedef int place
    place places(Py_ssize_t n) noexcept
    vec load_at(const real *p, place n) noexcept
    ctypedef int lane_set
    lane_set lanes_within(Py_ssize_t first, Py_ssize_t last) noexcept
    vec load_set(const real *p, lane_set set) noexcept
    vec keep(vec v, lane_set set) noexcept
    enum: CAN_SLIDE
    vec slide_by(int n, vec a, vec b) noexcept
    void forget(const real **pointers, int n) noexcept
    Py_ssize_t opaque(Py_ssize_t n) noexcept
