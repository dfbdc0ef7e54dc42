/* The vector type of one build: `real` is float or double (REAL, from setup.py); its width follows the
 * instruction set that the compiler was told to use. This header is all the C there is. */
#ifndef CYCONV_SIMD_H
#define CYCONV_SIMD_H

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else /* SSE2, NEON, and whatever the compiler lowers 16-byte vectors to */
#define VECTOR_BYTES 16
#endif

typedef REAL real;
/* aligned(sizeof(real)): loads and stores may be unaligned; may_alias: made from pointers to real. */
typedef real vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

enum { LANES = VECTOR_BYTES / sizeof(real) };

/* The register tile: at most MR rows of NV vectors (pyx/README.md has the measurements). */
#if VECTOR_BYTES == 64
enum { MR = 14, NV = 2 };
#elif VECTOR_BYTES == 32
enum { MR = 6, NV = 2 };
#elif defined(__aarch64__)
enum { MR = 8, NV = 3 };
#else
enum { MR = 6, NV = 2 };
#endif

static inline vec load(const real *p) { return *(const vec *)p; }
static inline void store(real *p, vec v) { *(vec *)p = v; }
static inline vec splat(real s) { return (vec){0} + s; }
/* max(v, 0) that keeps NaN; the comparison gives a vector of integers, all ones where true. */
static inline vec vrelu(vec v) { return (vec)((__typeof__(v < v))v & ~(v < 0)); }

#endif
