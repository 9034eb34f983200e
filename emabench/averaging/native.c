/* One pass over the weights for all averages: average += alpha (theta - average). See native.py for the arguments.

   The lerp form is that of torch.lerp: a + w (t - a) for w < 1/2, t - (t - a)(1 - w) from 1/2 on, and a copy for
   w = 1, so that nothing of the old value can leak into a first update.

   A pass that finds NaN or infinity among the weights leaves the averages as they were. Large passes move the
   averages in place, look at the weights as they go, and write an undo log. The new average z and the weight t
   tell the old average y almost exactly: r = z - w / (1 - w) (t - z) is y itself or its neighbour, so two bits an
   element say which (0: y = r - 1 ulp, 1: y = r, 2: y = r + 1 ulp). The few others (3) are kept as they were. The
   log is a sixteenth of an average, and costs no second pass over the weights. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { BLOCK = 4096 }; /* weights that stay in the first cache while every average uses them */
enum { FLOAT32 = 0, BFLOAT16 = 1 };
enum { UNKNOWN = 0, FINITE = 1, NOT_FINITE = 2 };

#define INLINE static inline __attribute__((always_inline))
#define WITH_LOG_BELOW 0.25f /* above it too many averages are far from what their log gives */
#define MIN(a, b) ((a) < (b) ? (a) : (b))

struct table {
    int64_t pieces, tensors;
    const int64_t *sizes;         /* [pieces] weights in each */
    const int32_t *owner, *type;  /* [pieces] index of the tensor; FLOAT32 or BFLOAT16 weights */
    const int64_t *theta;         /* [pieces] addresses of the weights */
    const int64_t *shadows, *compensation; /* [sets, pieces] addresses of the averages, and of what compensation carries or 0 */
    const int64_t *first;         /* [pieces] how many weights of the model come before each */
    int64_t half;                 /* averages are bfloat16, rounded stochastically */
    uint8_t *marks;               /* [moves, marks_row] two bits an element; 0: there is no log */
    float *odd;                   /* [moves, odd_row] old averages that marks do not tell */
    int64_t marks_row, odd_row;
    const int64_t *marks_at, *odd_at; /* [pieces + 1] where the log of each piece begins */
    int64_t *done, *taken;        /* [pieces] weights moved, [moves, pieces] entries of odd that are used */
};

struct pass {
    const struct table *t;
    int64_t moves;
    const int32_t *which;  /* [moves] the set that each moves */
    const int32_t *source; /* [moves] the set that it moves towards, moved before it; -1: the weights */
    const float *alpha;    /* [moves, tensors] */
    const uint32_t *seed;  /* [moves] of stochastic rounding */
    int logged;
    atomic_long next;
    atomic_int state;
};

INLINE uint32_t not_finite(float x) { /* its top bit: whether the exponent is all ones */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7fffffffu) + 0x00800000u;
}

/* ---- moving without a log ---------------------------------------------------------------------------------- */
static void lerp(float *restrict a, const float *restrict t, float w, int64_t n) {
    if (w == 1.0f) {
        memcpy(a, t, (size_t)n * sizeof(float));
    } else if (w < 0.5f) {
        for (int64_t i = 0; i < n; i++) a[i] += w * (t[i] - a[i]);
    } else {
        const float rest = 1.0f - w;
        for (int64_t i = 0; i < n; i++) a[i] = t[i] - (t[i] - a[i]) * rest;
    }
}

/* Four averages in one stream over the weights: more of the memory is asked for at a time. All w < 1/2. */
static void lerp4(float *restrict a, float *restrict b, float *restrict c, float *restrict d, const float *restrict t,
                  const float *restrict w, int64_t n) {
    const float wa = w[0], wb = w[1], wc = w[2], wd = w[3];
    for (int64_t i = 0; i < n; i++) {
        const float x = t[i];
        a[i] += wa * (x - a[i]);
        b[i] += wb * (x - b[i]);
        c[i] += wc * (x - c[i]);
        d[i] += wd * (x - d[i]);
    }
}

/* Kahan's summation of the lerp form; c holds what rounding took away. */
static void lerp_compensated(float *restrict a, float *restrict c, const float *restrict t, float w, int64_t n) {
    if (w == 1.0f) {
        memcpy(a, t, (size_t)n * sizeof(float));
        memset(c, 0, (size_t)n * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const float y = w * (t[i] - a[i]) - c[i];
        const float new = a[i] + y;
        c[i] = (new - a[i]) - y;
        a[i] = new;
    }
}

static void widen(float *restrict wide, const uint16_t *restrict half, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(wide + i, &bits, sizeof bits);
    }
}

/* The lerp form into bfloat16, rounded by 16 random bits of each element: see stochastic.py. */
static void lerp_stochastic(uint16_t *restrict a, const float *restrict t, float w, int64_t n, int64_t first,
                            uint32_t seed) {
    const float rest = 1.0f - w;
    if (w == 0.0f) return;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)a[i] << 16, x = ((uint32_t)first + (uint32_t)i) * 0x9E3779B9u + seed;
        float y;
        memcpy(&y, &bits, sizeof y);
        const float low = y + w * (t[i] - y), high = t[i] - (t[i] - y) * rest;
        y = w == 1.0f ? t[i] : w < 0.5f ? low : high;
        memcpy(&bits, &y, sizeof bits);
        x = (x ^ x >> 16) * 0x7FEB352Du;
        x = (x ^ x >> 15) * 0x846CA68Bu;
        x = (x ^ x >> 16) & 0xFFFFu;
        a[i] = (uint16_t)((bits + ((bits & 0x7f800000u) == 0x7f800000u ? 0 : x)) >> 16);
    }
}

/* ---- moving with a log ------------------------------------------------------------------------------------- */
struct trail {
    uint8_t *marks;
    float *odd;
    int64_t taken;
};

#if defined(__AVX512F__)
#define LANES 16
typedef __m512 vector;
typedef __m512i integers;
#define V(name) _mm512_##name
INLINE integers look_at(integers seen, vector t) {
    const integers magnitude = _mm512_and_si512(_mm512_castps_si512(t), _mm512_set1_epi32(0x7fffffff));
    return _mm512_or_si512(seen, _mm512_add_epi32(magnitude, _mm512_set1_epi32(0x00800000)));
}
/* r of the head of this file. Explicitly fused or not, it is the same wherever it is computed. */
INLINE vector extrapolated(vector z, vector t, vector c) { return _mm512_fnmadd_ps(c, _mm512_sub_ps(t, z), z); }
INLINE void mark(struct trail *l, int64_t chunk, vector y, vector r) {
    const __m512i up = _mm512_add_epi32(_mm512_castps_si512(y), _mm512_set1_epi32(1));
    const __m512i e = _mm512_sub_epi32(up, _mm512_castps_si512(r));
    __mmask16 low = _mm512_test_epi32_mask(e, _mm512_set1_epi32(1));
    __mmask16 high = _mm512_test_epi32_mask(e, _mm512_set1_epi32(2));
    const __mmask16 odd = _mm512_cmpgt_epu32_mask(e, _mm512_set1_epi32(2));
    if (__builtin_expect(odd != 0, 0)) {
        _mm512_storeu_ps(l->odd + l->taken, _mm512_maskz_compress_ps(odd, y));
        l->taken += __builtin_popcount(odd);
        low |= odd, high |= odd;
    }
    memcpy(l->marks + 4 * chunk, &low, 2);
    memcpy(l->marks + 4 * chunk + 2, &high, 2);
}
#elif defined(__AVX2__)
#define LANES 8
typedef __m256 vector;
typedef __m256i integers;
#define V(name) _mm256_##name
INLINE integers look_at(integers seen, vector t) {
    const integers magnitude = _mm256_and_si256(_mm256_castps_si256(t), _mm256_set1_epi32(0x7fffffff));
    return _mm256_or_si256(seen, _mm256_add_epi32(magnitude, _mm256_set1_epi32(0x00800000)));
}
INLINE vector extrapolated(vector z, vector t, vector c) {
    return _mm256_sub_ps(z, _mm256_mul_ps(c, _mm256_sub_ps(t, z)));
}
INLINE void mark(struct trail *l, int64_t chunk, vector y, vector r) {
    const __m256i three = _mm256_set1_epi32(3), up = _mm256_add_epi32(_mm256_castps_si256(y), _mm256_set1_epi32(1));
    const __m256i e = _mm256_min_epu32(_mm256_sub_epi32(up, _mm256_castps_si256(r)), three);
    const int low = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32(e, 31)));
    const int high = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32(e, 30)));
    if (__builtin_expect((low & high) != 0, 0)) {
        float old[8];
        _mm256_storeu_ps(old, y);
        for (int i = 0; i < 8; i++)
            if (low & high & 1 << i) l->odd[l->taken++] = old[i];
    }
    l->marks[2 * chunk] = (uint8_t)low;
    l->marks[2 * chunk + 1] = (uint8_t)high;
}
#endif

#if defined(LANES)
/* `count` averages (1 or 4, known when compiled) of n weights; whether all weights are finite. All w < 1/2. */
INLINE int lerp_logged(int count, float *const *average, const float *t, const float *w, int64_t n, struct trail *log) {
    struct trail l[4];
    float *a[4];
    vector share[4], back[4];
    for (int k = 0; k < count; k++) {
        l[k] = log[k], a[k] = average[k];
        share[k] = V(set1_ps)(w[k]), back[k] = V(set1_ps)(w[k] / (1.0f - w[k]));
    }
    uint32_t bad = 0, lanes[LANES];
    integers seen = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const vector x = V(loadu_ps)(t + i);
        seen = look_at(seen, x);
        for (int k = 0; k < count; k++) {
            const vector y = V(loadu_ps)(a[k] + i);
            const vector z = V(add_ps)(y, V(mul_ps)(share[k], V(sub_ps)(x, y)));
            mark(&l[k], i / LANES, y, extrapolated(z, x, back[k]));
            V(storeu_ps)(a[k] + i, z);
        }
    }
    for (; i < n; i++) {
        bad |= not_finite(t[i]);
        for (int k = 0; k < count; k++) {
            l[k].odd[l[k].taken++] = a[k][i];
            a[k][i] += w[k] * (t[i] - a[k][i]);
        }
    }
    memcpy(lanes, &seen, sizeof lanes);
    for (int k = 0; k < LANES; k++) bad |= lanes[k];
    for (int k = 0; k < count; k++) log[k].taken = l[k].taken;
    return !(bad >> 31);
}

/* The old averages from the new ones, the weights and the log. */
static void undo(float *a, const float *t, float w, int64_t n, struct trail *l) {
    const vector back = V(set1_ps)(w / (1.0f - w));
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        uint32_t bits[LANES];
        uint16_t low = 0, high = 0;
        V(storeu_ps)((float *)bits, extrapolated(V(loadu_ps)(a + i), V(loadu_ps)(t + i), back));
        memcpy(&low, l->marks + i / LANES * (LANES / 4), LANES / 8);
        memcpy(&high, l->marks + i / LANES * (LANES / 4) + LANES / 8, LANES / 8);
        for (int k = 0; k < LANES; k++) {
            const uint32_t e = (low >> k & 1u) | (high >> k & 1u) << 1;
            bits[k] += e - 1u;
            if (e == 3) memcpy(bits + k, l->odd + l->taken++, sizeof(float));
        }
        memcpy(a + i, bits, sizeof bits);
    }
    for (; i < n; i++) a[i] = l->odd[l->taken++];
}
#endif

#if defined(LANES)
const int32_t emabench_can_log = 1;
#else
const int32_t emabench_can_log = 0;
#endif

/* ---- one piece after another ------------------------------------------------------------------------------- */
/* n weights of piece p from `at` on, as float32: where they lie, or widened into `wide`. */
static const float *weights(const struct table *t, int64_t p, int64_t at, int64_t n, float *wide) {
    if (t->type[p] == FLOAT32) return (const float *)t->theta[p] + at;
    widen(wide, (const uint16_t *)t->theta[p] + at, n);
    return wide;
}

static int all_finite(const struct table *t, int64_t p) {
    uint32_t bad = 0;
    if (t->type[p] == BFLOAT16) {
        const uint16_t *x = (const uint16_t *)t->theta[p];
        for (int64_t i = 0; i < t->sizes[p]; i++) bad |= (x[i] & 0x7f80u) == 0x7f80u;
    } else {
        const uint32_t *x = (const uint32_t *)t->theta[p];
        for (int64_t i = 0; i < t->sizes[p]; i++) bad |= (x[i] & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

INLINE float *shadow(const struct pass *s, int64_t m, int64_t p, int64_t at) {
    return (float *)s->t->shadows[s->which[m] * s->t->pieces + p] + at;
}

INLINE const float *towards(const struct pass *s, int64_t m, int64_t p, int64_t at, const float *theta) {
    return s->source[m] < 0 ? theta : (const float *)s->t->shadows[s->source[m] * s->t->pieces + p] + at;
}

/* Whether four moves from m on are towards the weights: then they can be made in one stream. */
INLINE int four(const struct pass *s, int64_t m) {
    return m + 4 <= s->moves && (s->source[m] & s->source[m + 1] & s->source[m + 2] & s->source[m + 3]) == -1;
}

static void move_half(const struct pass *s, int64_t p, int64_t at, int64_t n, const float *theta) {
    const struct table *t = s->t;
    float wide[BLOCK];
    for (int64_t m = 0; m < s->moves; m++) {
        uint16_t *a = (uint16_t *)t->shadows[s->which[m] * t->pieces + p] + at;
        const float *x = theta;
        if (s->source[m] >= 0) {
            widen(wide, (const uint16_t *)t->shadows[s->source[m] * t->pieces + p] + at, n);
            x = wide;
        }
        lerp_stochastic(a, x, s->alpha[m * t->tensors + t->owner[p]], n, t->first[p] + at, s->seed[m]);
    }
}

static void move(const struct pass *s, int64_t p, int64_t at, int64_t n, const float *theta) {
    const struct table *t = s->t;
    int64_t m = 0;
    for (; four(s, m); m += 4) {
        float *a[4], w[4];
        int plain = 1;
        for (int k = 0; k < 4; k++) {
            a[k] = shadow(s, m + k, p, at);
            w[k] = s->alpha[(m + k) * t->tensors + t->owner[p]];
            plain = plain && !t->compensation[s->which[m + k] * t->pieces + p] && w[k] < 0.5f;
        }
        if (!plain) break;
        lerp4(a[0], a[1], a[2], a[3], theta, w, n);
    }
    for (; m < s->moves; m++) {
        const float w = s->alpha[m * t->tensors + t->owner[p]];
        float *compensation = (float *)t->compensation[s->which[m] * t->pieces + p];
        const float *x = towards(s, m, p, at, theta);
        if (compensation) lerp_compensated(shadow(s, m, p, at), compensation + at, x, w, n);
        else lerp(shadow(s, m, p, at), x, w, n);
    }
}

#if defined(LANES)
INLINE struct trail trail_of(const struct pass *s, int64_t m, int64_t p, int64_t at) {
    const struct table *t = s->t;
    return (struct trail){t->marks + m * t->marks_row + t->marks_at[p] + at / 4, t->odd + m * t->odd_row + t->odd_at[p],
                          t->taken[m * t->pieces + p]};
}

static int move_logged(struct pass *s, int64_t p, int64_t at, int64_t n, const float *theta) {
    const struct table *t = s->t;
    int clean = 1;
    for (int64_t m = 0; m < s->moves;) {
        const int count = four(s, m) ? 4 : 1;
        const float *x = towards(s, m, p, at, theta);
        struct trail l[4];
        float *a[4], w[4];
        for (int k = 0; k < count; k++) {
            l[k] = trail_of(s, m + k, p, at);
            a[k] = shadow(s, m + k, p, at);
            w[k] = s->alpha[(m + k) * t->tensors + t->owner[p]];
        }
        clean &= count == 4 ? lerp_logged(4, a, x, w, n, l) : lerp_logged(1, a, x, w, n, l);
        for (int k = 0; k < count; k++) t->taken[(m + k) * t->pieces + p] = l[k].taken;
        m += count;
    }
    t->done[p] = at + n;
    return clean;
}

/* Whether the log has room for n more weights of piece p in every move. */
static int room(const struct pass *s, int64_t p, int64_t n) {
    const struct table *t = s->t;
    for (int64_t m = 0; m < s->moves; m++)
        if (t->taken[m * t->pieces + p] + n + 16 > t->odd_at[p + 1] - t->odd_at[p]) return 0;
    return 1;
}
#endif

static void work(void *argument) {
    struct pass *s = argument;
    const struct table *t = s->t;
    float wide[BLOCK];
    for (;;) {
        const int64_t p = atomic_fetch_add(&s->next, 1);
        if (p >= t->pieces || atomic_load(&s->state) == NOT_FINITE) return;
        for (int64_t at = 0; at < t->sizes[p]; at += BLOCK) {
            const int64_t n = MIN(t->sizes[p] - at, BLOCK);
            const float *theta = weights(t, p, at, n, wide);
#if defined(LANES)
            if (s->logged && atomic_load_explicit(&s->state, memory_order_relaxed) != FINITE) {
                if (room(s, p, n)) {
                    if (move_logged(s, p, at, n, theta)) continue;
                    atomic_store(&s->state, NOT_FINITE);
                    return;
                }
                int clean = 1; /* the log is full: look at everything now, then nothing needs a log any more */
                for (int64_t q = 0; clean && q < t->pieces; q++) clean = all_finite(t, q);
                atomic_store(&s->state, clean ? FINITE : NOT_FINITE);
                if (!clean) return;
            }
#endif
            if (t->half) move_half(s, p, at, n, theta);
            else move(s, p, at, n, theta);
        }
    }
}

static void look(void *argument) {
    struct pass *s = argument;
    for (;;) {
        const int64_t p = atomic_fetch_add(&s->next, 1);
        if (p >= s->t->pieces || atomic_load(&s->state) == NOT_FINITE) return;
        if (!all_finite(s->t, p)) atomic_store(&s->state, NOT_FINITE);
    }
}

#if defined(LANES)
static void roll_back(void *argument) {
    struct pass *s = argument;
    const struct table *t = s->t;
    float wide[BLOCK];
    for (;;) {
        const int64_t p = atomic_fetch_add(&s->next, 1);
        if (p >= t->pieces) return;
        for (int64_t m = s->moves - 1; m >= 0; m--) { /* last first: a source is still what it was moved to */
            t->taken[m * t->pieces + p] = 0;
            for (int64_t at = 0; at < t->done[p]; at += BLOCK) {
                const int64_t n = MIN(t->done[p] - at, BLOCK);
                struct trail l = trail_of(s, m, p, at);
                const float *x = towards(s, m, p, at, weights(t, p, at, n, wide));
                undo(shadow(s, m, p, at), x, s->alpha[m * t->tensors + t->owner[p]], n, &l);
                t->taken[m * t->pieces + p] = l.taken;
            }
        }
    }
}
#endif

/* ---- threads ----------------------------------------------------------------------------------------------- */
typedef void (*start)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel of the OpenMP that torch uses */

struct call {
    void (*run)(void *);
    void *argument;
};

static void *in_thread(void *argument) {
    const struct call *c = argument;
    c->run(c->argument);
    return 0;
}

/* Run `f(s)` in so many threads at once. Torch's own threads, if they can be had: threads of another pool would
   have to share the cores with torch's, which spin for a while after each of its operations. */
static void in_threads(void (*f)(void *), struct pass *s, int32_t threads, start parallel) {
    atomic_store(&s->next, 0);
    if (threads <= 1) {
        f(s);
    } else if (parallel) {
        parallel(f, s, (unsigned)threads, 0);
    } else {
        struct call c = {f, s};
        pthread_t id[64];
        sigset_t all, before;
        int started = 0;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before); /* signals are the caller's */
        while (started < MIN(threads - 1, 64) && !pthread_create(&id[started], 0, in_thread, &c)) started++;
        pthread_sigmask(SIG_SETMASK, &before, 0);
        f(s);
        for (int i = 0; i < started; i++) pthread_join(id[i], 0);
    }
}

/* ---- what native.py calls ---------------------------------------------------------------------------------- */
/* Move the named sets. With `check`, nothing is moved and 0 is returned if a weight is not finite; else 1. */
int32_t emabench_update(const struct table *t, int64_t moves, const int32_t *which, const int32_t *source,
                        const float *alpha, const uint32_t *seed, int32_t check, int32_t threads, start parallel) {
    struct pass s = {.t = t, .moves = moves, .which = which, .source = source, .alpha = alpha, .seed = seed};
    if (check) {
        s.logged = emabench_can_log && t->marks && !t->half;
        for (int64_t m = 0; s.logged && m < moves; m++) {
            s.logged = t->pieces == 0 || !t->compensation[which[m] * t->pieces];
            for (int64_t i = 0; i < t->tensors; i++) s.logged &= alpha[m * t->tensors + i] < WITH_LOG_BELOW;
        }
        if (!s.logged) {
            in_threads(look, &s, threads, parallel);
            if (atomic_load(&s.state) == NOT_FINITE) return 0;
        }
    }
    if (s.logged) {
        memset(t->done, 0, (size_t)t->pieces * sizeof *t->done);
        memset(t->taken, 0, (size_t)(moves * t->pieces) * sizeof *t->taken);
    }
    in_threads(work, &s, threads, parallel);
    if (atomic_load(&s.state) != NOT_FINITE) return 1;
#if defined(LANES)
    in_threads(roll_back, &s, threads, parallel);
#endif
    return 0;
}
