"""What the processor and this build can do; keys of calls. Compiled for the baseline: safe to import anywhere."""

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define HAVE_OPENMP 1
    #else
    #define HAVE_OPENMP 0
    static int omp_get_max_threads(void) { return 1; }
    #endif
    #if defined(__x86_64__) && defined(CPU_LEVELS)
    /* __builtin_cpu_supports also checks that the operating system saves the registers. */
    static int supports_avx2(void) { return __builtin_cpu_supports("x86-64-v3") != 0; }
    static int supports_avx512(void) { return __builtin_cpu_supports("x86-64-v4") != 0; }
    #elif defined(__x86_64__) /* older compilers do not know the levels by name */
    #define HAS(feature) (__builtin_cpu_supports(feature) != 0)
    static int supports_avx2(void) { return HAS("avx2") && HAS("fma") && HAS("bmi") && HAS("bmi2"); }
    static int supports_avx512(void) {
        return supports_avx2() && HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") && HAS("avx512dq") && HAS("avx512vl");
    }
    #else
    static int supports_avx2(void) { return 0; }
    static int supports_avx512(void) { return 0; }
    #endif
    """
    bint HAVE_OPENMP
    const char *BUILD_FLAGS
    const char *__VERSION__
    int omp_get_max_threads()
    bint supports_avx2()
    bint supports_avx512()

cdef extern from "team.h":
    void spread_team(int count) noexcept nogil

openmp = bool(HAVE_OPENMP)
compiler = (<bytes>__VERSION__).decode()
flags = (<bytes>BUILD_FLAGS).decode()


def supported_instruction_sets():
    """Names of the instruction sets that this processor and its operating system support, best first."""
    return tuple(name for name, supported in
                 (("avx512", supports_avx512()), ("avx2", supports_avx2()), ("baseline", True)) if supported)


def max_threads():
    """OpenMP's limit for the calling thread, as OMP_NUM_THREADS or threadpoolctl left it; 1 without OpenMP."""
    return omp_get_max_threads()


cdef bint exact(value, int depth):
    """Whether `value` is an int, a str or a tuple of such values."""
    if type(value) is not tuple:
        return type(value) is int or type(value) is str
    for v in <tuple>value:
        if depth == 0 or not exact(v, depth - 1):
            return False
    return True


def key(isa, kind, x, weight, tuple parameters not None):
    """What a call depends on besides the contents of its arrays, to look up what is known of such calls.

    None unless both arrays are of type `kind` and one dtype, and all parameters of types that are told apart: of
    1 == 1.0 == True only the first is a stride. Written in C since it is a good part of a small call.
    """
    if type(x) is not kind or type(weight) is not kind:
        return None
    dtype = x.dtype
    if dtype is not weight.dtype or not exact(parameters, 3):
        return None
    return isa, x.shape, weight.shape, dtype, parameters


cdef int ready(int threads) noexcept nogil:
    """Make the team of a prange ready to be woken; return its size."""
    if threads > 1:
        spread_team(threads)
    return threads
