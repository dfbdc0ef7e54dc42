# The declarations of mask.h.
from simd cimport real, vec

cdef extern from "mask.h" nogil:
    ctypedef int mask
    mask greater(vec a, vec b) noexcept
    mask equal(vec a, vec b) noexcept
    mask is_nan(vec a) noexcept
    vec pick(mask m, vec a, vec b) noexcept
    bint any(mask m) noexcept
    vec larger(vec a, vec b) noexcept
    vec vmax(vec a, vec b) noexcept
    real scalar_max(real a, real b) noexcept
    vec load_first(const real *p, int n, vec rest) noexcept
    void store_first(real *p, vec v, int n) noexcept
    vec load_first_or_zero(const real *p, int n) noexcept
