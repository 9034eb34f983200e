/* One pass over the weights for all averages, in one parallel region. See native.py for the arguments.

   The lerp form is that of torch.lerp: a + w (t - a) for w < 1/2, t - (t - a)(1 - w) from there on, and a copy for
   w = 1, so that nothing of the old content can leak into a first change. */
#include <stdint.h>
#include <string.h>

enum { TILE = 16384 }; /* weights that stay in the second cache while every average uses them; longer streams */
enum { FLOAT32 = 0, BFLOAT16 = 1 };

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

/* Kahan's summation of the lerp form; c holds what rounding took away. */
static void compensated(float *restrict a, float *restrict c, const float *restrict t, float w, int64_t n) {
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

void emabench_move(int64_t pieces, const int64_t *sizes, const int32_t *owner, const int32_t *type,
                   const int64_t *theta, const int64_t *shadows, const int64_t *compensation,
                   int64_t moves, const int32_t *which, const float *alpha, int64_t tensors, int32_t threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t p = 0; p < pieces; p++) {
        float wide[TILE];
        for (int64_t at = 0; at < sizes[p]; at += TILE) {
            const int64_t n = sizes[p] - at < TILE ? sizes[p] - at : TILE;
            const float *t = (const float *)theta[p] + at;
            if (type[p] == BFLOAT16) {
                const uint16_t *half = (const uint16_t *)theta[p] + at;
                for (int64_t i = 0; i < n; i++) {
                    const uint32_t bits = (uint32_t)half[i] << 16;
                    memcpy(wide + i, &bits, sizeof bits);
                }
                t = wide;
            }
            int64_t m = 0;
            for (; m + 4 <= moves; m += 4) {
                float *a[4];
                float w[4];
                int plain = 1;
                for (int k = 0; k < 4; k++) {
                    const int64_t row = (int64_t)which[m + k] * pieces + p;
                    a[k] = (float *)shadows[row] + at;
                    w[k] = alpha[(m + k) * tensors + owner[p]];
                    plain = plain && !compensation[row] && w[k] < 0.5f;
                }
                if (!plain) break;
                lerp4(a[0], a[1], a[2], a[3], t, w, n);
            }
            for (; m < moves; m++) {
                const int64_t row = (int64_t)which[m] * pieces + p;
                const float w = alpha[m * tensors + owner[p]];
                if (compensation[row]) compensated((float *)shadows[row] + at, (float *)compensation[row] + at, t, w, n);
                else lerp((float *)shadows[row] + at, t, w, n);
            }
        }
    }
}

/* Whether every weight is finite: no exponent is all ones. */
int32_t emabench_finite(int64_t pieces, const int64_t *sizes, const int32_t *type, const int64_t *theta,
                        int32_t threads) {
    int32_t bad = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : bad)
    for (int64_t p = 0; p < pieces; p++) {
        uint32_t piece_bad = 0;
        if (type[p] == BFLOAT16) {
            const uint16_t *x = (const uint16_t *)theta[p];
            for (int64_t i = 0; i < sizes[p]; i++) piece_bad |= (x[i] & 0x7f80u) == 0x7f80u;
        } else {
            const uint32_t *x = (const uint32_t *)theta[p];
            for (int64_t i = 0; i < sizes[p]; i++) piece_bad |= (x[i] & 0x7f800000u) == 0x7f800000u;
        }
        bad |= (int32_t)piece_bad;
    }
    return !bad;
}
