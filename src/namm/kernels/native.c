/* The inner loops of attention and its observation on a CPU: softmax with the mean over a query group, the moving
   average of spectrogram magnitudes, and attention of single queries to heads of unequal length. Plain C with GCC/Clang
   vector extensions; compiled by native.py.
   Arrays are float32 unless called half, which is bfloat16; strides are in elements. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
#endif

#define LANES 8
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
static inline vec splat(float x) { return (vec){x, x, x, x, x, x, x, x}; }
typedef uint16_t hvec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
static inline vec widen(const uint16_t *p) { return (vec)(__builtin_convertvector(*(const hvec *)p, ivec) << 16); }
static inline float widen_one(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline vec choose(ivec mask, vec a, vec b) {
    return (vec)(((ivec)a & mask) | ((ivec)b & ~mask));
}

/* exp(x) for x <= 0, relative error below 2e-7: 2^n * p(r), |r| <= ln(2)/2 (Cephes expf coefficients). */
static inline vec vexp(vec x) {
    x = choose(x > splat(-87.0f), x, splat(-87.0f));
    vec shifted = x * 1.44269504088896341f + 12582912.0f;   /* round to nearest by adding 1.5 * 2^23 */
    ivec n = (ivec)shifted - 0x4B400000;
    vec r = x - (shifted - 12582912.0f) * 0.693359375f;
    r = r + (shifted - 12582912.0f) * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vec)((ivec)p + (n << 23));
}

/* Softmax in place of one row of `count` logits; returns its log-sum-exp. */
static float softmax_row(float *row, int64_t count) {
    int64_t j = 0, whole = count / LANES * LANES;
    float top = -INFINITY, sum = 0.0f;
    vec tops = splat(-INFINITY), sums = splat(0.0f);
    ivec strange = (ivec)splat(0.0f);                       /* lanes that saw a NaN */
    int broken = 0;
    for (; j < whole; j += LANES) { vec v = load(row + j); tops = choose(v > tops, v, tops); strange |= v != v; }
    for (int l = 0; l < LANES; l++) { top = tops[l] > top ? tops[l] : top; broken |= strange[l]; }
    for (j = whole; j < count; j++) { top = row[j] > top ? row[j] : top; broken |= row[j] != row[j]; }
    if (broken || top == INFINITY) {                        /* as softmax has it: the whole row is NaN */
        for (j = 0; j < count; j++) row[j] = NAN;
        return NAN;
    }
    for (j = 0; j < whole; j += LANES) {
        vec v = load(row + j);
        vec e = choose(v > splat(-INFINITY), vexp(v - top), splat(0.0f));
        store(row + j, e);
        sums += e;
    }
    for (int l = 0; l < LANES; l++) sum += sums[l];
    for (j = whole; j < count; j++) { row[j] = expf(row[j] - top); sum += row[j]; }
    float scale = 1.0f / sum;
    for (j = 0; j < whole; j += LANES) store(row + j, load(row + j) * scale);
    for (j = whole; j < count; j++) row[j] *= scale;
    return top + logf(sum);
}

/* What is left of a softmax with the log-sum-exp `value` beside one more logit. */
static inline float against(float value, float rival) { return 1.0f / (1.0f + expf(rival - value)); }

/* logits [heads, group, queries, slots] -> probabilities in place; query i sees causal_from + i + 1 slots.
   mean [heads, queries, slots] may be NULL; lse [heads, group, queries] may be NULL. rival [heads, group, queries], if not
   NULL, is one more logit of each query: it takes its share of what the mean is of. */
void softmax_and_mean(float *logits, int64_t heads, int64_t group, int64_t queries, int64_t slots,
                      int64_t causal_from, float *mean, int64_t mean_head, float *lse, int64_t lse_head,
                      int64_t lse_group, const float *rival, int threads) {
    float share = 1.0f / (float)group;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t i = 0; i < queries; i++) {
            int64_t count = causal_from + i + 1 < slots ? causal_from + i + 1 : slots;
            float *out = mean ? mean + h * mean_head + i * slots : 0;
            for (int64_t g = 0; g < group; g++) {
                float *row = logits + ((h * group + g) * queries + i) * slots;
                float value = softmax_row(row, count);
                memset(row + count, 0, (size_t)(slots - count) * sizeof(float));
                if (lse) lse[h * lse_head + g * lse_group + i] = value;
                if (!out) continue;
                float part = rival ? share * against(value, rival[(h * group + g) * queries + i]) : share;
                int64_t j = 0;
                if (g == 0) for (; j < slots; j++) out[j] = row[j] * part;
                else for (; j < slots; j++) out[j] += row[j] * part;
            }
        }
    }
}

/* The same of half logits times `scale`, which stay as they are, in tiles [heads, tiles, group, queries, width]; the last
   tile ends at the last slot and overlaps the one before. scratch [threads, slots]. */
void softmax_and_mean_half(const uint16_t *logits, int64_t width, int64_t heads, int64_t group, int64_t queries, int64_t slots,
                           int64_t causal_from, float scale, float *mean, int64_t mean_head, float *lse,
                           int64_t lse_head, int64_t lse_group, const float *rival, float *scratch, int threads) {
    float share = 1.0f / (float)group;
    int64_t tiles = (slots + width - 1) / width;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t i = 0; i < queries; i++) {
            int64_t count = causal_from + i + 1 < slots ? causal_from + i + 1 : slots;
            float *out = mean + h * mean_head + i * slots, *row = scratch + omp_get_thread_num() * slots;
            memset(out, 0, (size_t)slots * sizeof(float));
            for (int64_t g = 0; g < group; g++) {
                for (int64_t tile = 0; tile < tiles; tile++) {
                    int64_t first = tile * width < slots - width ? tile * width : slots - width, j = 0;
                    const uint16_t *half = logits + (((h * tiles + tile) * group + g) * queries + i) * width;
                    for (; j + LANES <= width; j += LANES) store(row + first + j, widen(half + j) * scale);
                    for (; j < width; j++) row[first + j] = widen_one(half[j]) * scale;
                }
                float value = softmax_row(row, count);
                float part = rival ? share * against(value, rival[(h * group + g) * queries + i]) : share;
                lse[h * lse_head + g * lse_group + i] = value;
                for (int64_t j = 0; j < count; j++) out[j] += row[j] * part;
            }
        }
    }
}

static inline vec load_as(const char *row, int64_t i, int half) {
    return half ? widen((const uint16_t *)row + i) : load((const float *)row + i);
}
static inline float one_as(const char *row, int64_t i, int half) {
    return half ? widen_one(((const uint16_t *)row)[i]) : ((const float *)row)[i];
}

#define PART 128   /* slots that a thread takes at a time */
#define WIDE 16    /* numbers of a value that it takes at a time */

/* Attention of one query of each head in a group to the slots of their kv head. keys and values: addresses of
   [count, dim] and [count, value_dim], float32 or half, one for each kv head; query [heads, group, dim];
   out [heads, group, value_dim]; weight [heads, group, longest], scratch. */
void attend_one(const int64_t *keys, const int64_t *values, const int64_t *counts, int64_t heads, int64_t group,
                int64_t dim, int64_t value_dim, const float *query, float scale, float *out, float *weight,
                int64_t longest, int half, int threads) {
    int64_t parts = (longest + PART - 1) / PART, wides = (value_dim + WIDE - 1) / WIDE, bytes = half ? 2 : 4;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t part = 0; part < parts; part++) {
                int64_t stop = (part + 1) * PART < counts[h] ? (part + 1) * PART : counts[h];
                for (int64_t j = part * PART; j < stop; j++) {
                    const char *key = (const char *)keys[h] + j * dim * bytes;
                    for (int64_t g = 0; g < group; g++) {
                        const float *q = query + (h * group + g) * dim;
                        vec sums = splat(0.0f);
                        float sum = 0.0f;
                        int64_t d = 0;
                        for (; d + LANES <= dim; d += LANES) sums += load(q + d) * load_as(key, d, half);
                        for (int l = 0; l < LANES; l++) sum += sums[l];
                        for (; d < dim; d++) sum += q[d] * one_as(key, d, half);
                        weight[(h * group + g) * longest + j] = sum * scale;
                    }
                }
            }
        }
#pragma omp for collapse(2)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t g = 0; g < group; g++) softmax_row(weight + (h * group + g) * longest, counts[h]);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t wide = 0; wide < wides; wide++) {
                int64_t first = wide * WIDE, width = value_dim - first < WIDE ? value_dim - first : WIDE;
                for (int64_t g = 0; g < group; g++) {
                    const float *p = weight + (h * group + g) * longest;
                    const char *value = (const char *)values[h] + first * bytes;
                    float *to = out + (h * group + g) * value_dim + first;
                    if (width == WIDE) {
                        vec a = splat(0.0f), b = splat(0.0f);
                        for (int64_t j = 0; j < counts[h]; j++, value += value_dim * bytes) {
                            a += load_as(value, 0, half) * p[j];
                            b += load_as(value, LANES, half) * p[j];
                        }
                        store(to, a);
                        store(to + LANES, b);
                        continue;
                    }
                    for (int64_t d = 0; d < width; d++) to[d] = 0.0f;
                    for (int64_t j = 0; j < counts[h]; j++, value += value_dim * bytes)
                        for (int64_t d = 0; d < width; d++) to[d] += one_as(value, d, half) * p[j];
                }
            }
        }
    }
}

/* cos and sin of 2 pi i / 32, and the Hann window, filled by the caller. */
typedef struct { float cosine[32], sine[32], window[32]; } tables;

/* Magnitudes of the 17 bins of 32 windowed samples, LANES columns at once. The transform is folded twice by its
   symmetries in t -> 32 - t and t -> 16 - t, which leaves a quarter of the products. The Hann window is 0 at t = 0. */
static inline void magnitudes(const float *x, int64_t stride, const tables *c, vec out[17]) {
    vec p[16], m[16], even[8], odd[8], ieven[8], iodd[8];
    for (int t = 1; t < 16; t++) {
        vec a = load(x + t * stride), b = load(x + (32 - t) * stride);
        p[t] = (a + b) * c->window[t];
        m[t] = (a - b) * c->window[t];
    }
    vec middle = load(x + 16 * stride);
    for (int t = 1; t < 8; t++) {
        even[t] = p[t] + p[16 - t];
        odd[t] = p[t] - p[16 - t];
        ieven[t] = m[t] - m[16 - t];
        iodd[t] = m[t] + m[16 - t];
    }
    for (int k = 0; k <= 16; k += 2) {
        vec re = middle + p[8] * c->cosine[k * 8 & 31], im = splat(0.0f);
        for (int t = 1; t < 8; t++) re += even[t] * c->cosine[k * t & 31];
        for (int t = 1; t < 8; t++) im += ieven[t] * c->sine[k * t & 31];
        out[k] = re * re + im * im;
    }
    for (int k = 1; k < 16; k += 2) {
        vec re = -middle, im = m[8] * c->sine[k * 8 & 31];
        for (int t = 1; t < 8; t++) re += odd[t] * c->cosine[k * t & 31];
        for (int t = 1; t < 8; t++) im += iodd[t] * c->sine[k * t & 31];
        out[k] = re * re + im * im;
    }
}

/* state [heads, 17, slots] <- decayed state + sum over frames of weight[f] * magnitude[f];
   attention [heads, 16 + 16 * frames, slots]. */
void spectrogram(const float *state, int64_t state_head, int64_t state_bin, float *next, const float *attention,
                 int64_t attention_head, int64_t heads, int64_t frames, int64_t slots, const float *weight,
                 float decay, const tables *c, int threads) {
    int64_t tiles = (slots + LANES - 1) / LANES;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t j = tile * LANES, width = slots - j < LANES ? slots - j : LANES;
            const float *x = attention + h * attention_head + j;
            float edge[32 * LANES];
            vec sum[17], bin[17];
            for (int k = 0; k < 17; k++) sum[k] = splat(0.0f);
            for (int64_t f = 0; f < frames; f++) {
                if (width == LANES) {
                    magnitudes(x + 16 * f * slots, slots, c, bin);
                } else {
                    memset(edge, 0, sizeof edge);
                    for (int t = 0; t < 32; t++)
                        memcpy(edge + t * LANES, x + (16 * f + t) * slots, (size_t)width * sizeof(float));
                    magnitudes(edge, LANES, c, bin);
                }
                for (int k = 0; k < 17; k++) {
                    for (int l = 0; l < LANES; l++) bin[k][l] = sqrtf(bin[k][l]);
                    sum[k] += bin[k] * weight[f];
                }
            }
            for (int k = 0; k < 17; k++) {
                const float *old = state + h * state_head + k * state_bin + j;
                float *new = next + (h * 17 + k) * slots + j;
                for (int64_t l = 0; l < width; l++) new[l] = old[l] * decay + sum[k][l];
            }
        }
    }
}
