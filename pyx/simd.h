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

/* zip_low(a, b) = a0 b0 a1 b1 ..., zip_high the same of the upper halves; even(a, b) = a0 a2 ... b0 b2 ..., odd likewise;
 * slide(a, b) = a1 a2 ... b0, slide_back(a, b) = the last of a, b0 b1 .... */
#if LANE_COUNT == 16
#define SLIDE 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
#define SLIDE_BACK 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANE_COUNT == 8
#define SLIDE 1, 2, 3, 4, 5, 6, 7, 8
#define SLIDE_BACK 7, 8, 9, 10, 11, 12, 13, 14
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#elif LANE_COUNT == 4
#define SLIDE 1, 2, 3, 4
#define SLIDE_BACK 3, 4, 5, 6
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#else
#define SLIDE 1, 2
#define SLIDE_BACK 1, 2
#define ZIP_LOW 0, 2
#define ZIP_HIGH 1, 3
#define EVEN 0, 2
#define ODD 1, 3
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#if REAL_BYTES == 4
typedef int lane_numbers __attribute__((vector_size(VECTOR_BYTES)));
#else
typedef long long lane_numbers __attribute__((vector_size(VECTOR_BYTES)));
#endif
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lane_numbers){__VA_ARGS__})
#endif
static inline vec zip_low(vec a, vec b) { return SHUFFLE(a, b, ZIP_LOW); }
static inline vec zip_high(vec a, vec b) { return SHUFFLE(a, b, ZIP_HIGH); }
static inline vec even(vec a, vec b) { return SHUFFLE(a, b, EVEN); }
static inline vec odd(vec a, vec b) { return SHUFFLE(a, b, ODD); }
static inline vec slide(vec a, vec b) { return SHUFFLE(a, b, SLIDE); }
static inline vec slide_back(vec a, vec b) { return SHUFFLE(a, b, SLIDE_BACK); }

/* The sum of the lanes, as a tree. */
static inline real lane_sum(vec v) {
    for (int n = 1; n < LANES; n *= 2) v = even(v, v) + odd(v, v);
    return v[0];
}

#endif
