/* The vector type of one build: `real` is float or double (REAL and REAL_BYTES, from setup.py); its width follows the
 * instruction set that the compiler was told to use. The rest of the C is in mask.h and team.h. */
#ifndef CYCONV_SIMD_H
#define CYCONV_SIMD_H

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else /* SSE2, NEON, and whatever the compiler lowers 16-byte vectors to */
#define VECTOR_BYTES 16
#endif
#define LANE_COUNT (VECTOR_BYTES / REAL_BYTES)

typedef REAL real;
/* aligned(sizeof(real)): loads and stores may be unaligned; may_alias: made from pointers to real. */
typedef real vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

enum { LANES = LANE_COUNT, HAS_MASKS = VECTOR_BYTES == 64, TAIL_PIXELS = LANE_COUNT > 4 ? LANE_COUNT / 4 : 1 };

/* Vector registers, and the most rows of the register tile, also of that of three vectors if there is one; rows of the tail. */
#if VECTOR_BYTES == 64
enum { REGISTERS = 32, MR = 14, MR3 = 9, TAIL_ROWS = 5 };
#elif defined(__aarch64__)
enum { REGISTERS = 32, MR = 12, MR3 = 9, TAIL_ROWS = 5 };
#else
enum { REGISTERS = 16, MR = 6, MR3 = 6, TAIL_ROWS = 4 };
#endif

static inline vec load(const real *p) { return *(const vec *)p; }
static inline void store(real *p, vec v) { *(vec *)p = v; }
static inline vec splat(real s) { return s - (vec){0}; } /* s + 0 would turn -0 into 0, so it is not folded away */
/* max(v, 0) that keeps NaN; the comparison gives a vector of integers, all ones where true. */
static inline vec vrelu(vec v) { return (vec)((__typeof__(v < v))v & ~(v < 0)); }

/* F(i, r) of all lanes i, for the numbers of a shuffle: those of b follow those of a. */
#if LANE_COUNT == 16
#define EACH(F, r) \
    F(0, r), F(1, r), F(2, r), F(3, r), F(4, r), F(5, r), F(6, r), F(7, r), F(8, r), F(9, r), F(10, r), F(11, r), F(12, r), F(13, r), \
        F(14, r), F(15, r)
#elif LANE_COUNT == 8
#define EACH(F, r) F(0, r), F(1, r), F(2, r), F(3, r), F(4, r), F(5, r), F(6, r), F(7, r)
#elif LANE_COUNT == 4
#define EACH(F, r) F(0, r), F(1, r), F(2, r), F(3, r)
#else
#define EACH(F, r) F(0, r), F(1, r)
#endif
#define NEXT(i, r) (i) + (r)
#define STEP(i, r) 2 * (i) + (r)
#define ZIP(i, r) (i) / 2 + (i) % 2 * LANES + (r)
#if REAL_BYTES == 4
typedef int integers __attribute__((vector_size(VECTOR_BYTES)));
#else
typedef long long integers __attribute__((vector_size(VECTOR_BYTES)));
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (integers){__VA_ARGS__})
#endif
static inline vec zip_low(vec a, vec b) { return SHUFFLE(a, b, EACH(ZIP, 0)); } /* a0 b0 a1 b1 ... */
static inline vec zip_high(vec a, vec b) { return SHUFFLE(a, b, EACH(ZIP, LANES / 2)); } /* the same of the upper halves */
static inline vec even(vec a, vec b) { return SHUFFLE(a, b, EACH(STEP, 0)); } /* a0 a2 ... b0 b2 ... */
static inline vec odd(vec a, vec b) { return SHUFFLE(a, b, EACH(STEP, 1)); }
static inline vec slide(vec a, vec b) { return SHUFFLE(a, b, EACH(NEXT, 1)); } /* a1 a2 ... b0 */
static inline vec slide_back(vec a, vec b) { return SHUFFLE(a, b, EACH(NEXT, LANES - 1)); } /* the last of a, b0 b1 ... */

/* The sum of the lanes, as a tree. */
static inline real lane_sum(vec v) {
    for (int n = 1; n < LANES; n *= 2) v = even(v, v) + odd(v, v);
    return v[0];
}

#endif
