#include "sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"

/* ---- NumPy's generator --------------------------------------------------------------------------------------- */

enum { POOL = 4 };

/* numpy.random.SeedSequence: mixes the seed's words into a pool, from which the generator's state is made. */
static uint32_t hash_word(uint32_t value, uint32_t *constant) {
    value ^= *constant;
    *constant *= 0x931e8875u;
    value *= *constant;
    return value ^ value >> 16;
}

static uint32_t mix_words(uint32_t one, uint32_t other) {
    uint32_t mixed = 0xca01f9ddu * one - 0x4973f715u * other;
    return mixed ^ mixed >> 16;
}

static void fill_state(uint64_t seed, uint64_t state[4]) {
    uint32_t pool[POOL], words[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, constant = 0x43b0d7e5u, out[8];
    for (int i = 0; i < POOL; i++) pool[i] = hash_word(i < 2 ? words[i] : 0, &constant);
    for (int from = 0; from < POOL; from++)
        for (int to = 0; to < POOL; to++)
            if (from != to) pool[to] = mix_words(pool[to], hash_word(pool[from], &constant));
    constant = 0x8b51f9ddu;
    for (int i = 0; i < 8; i++) {
        uint32_t value = pool[i % POOL] ^ constant;
        constant *= 0x58f38dedu;
        value *= constant;
        out[i] = value ^ value >> 16;
    }
    for (int i = 0; i < 4; i++) state[i] = (uint64_t)out[2 * i + 1] << 32 | out[2 * i];
}

static void step(Random *random) {
    const unsigned __int128 multiplier = (unsigned __int128)0x2360ED051FC65DA4u << 64 | 0x4385DF649FCCF645u;
    random->state = random->state * multiplier + random->increment;
}

void random_seed(Random *random, uint64_t seed) {
    uint64_t state[4];
    fill_state(seed, state);
    memset(random, 0, sizeof *random);
    random->increment = ((unsigned __int128)state[2] << 64 | state[3]) << 1 | 1;
    step(random);
    random->state += (unsigned __int128)state[0] << 64 | state[1];
    step(random);
}

static uint64_t next_word(Random *random) {
    step(random);
    uint64_t high = (uint64_t)(random->state >> 64), mixed = high ^ (uint64_t)random->state;
    unsigned turn = (unsigned)(high >> 58);
    return mixed >> turn | mixed << (-turn & 63);
}

static uint32_t next_half(Random *random) {
    random->has_half = !random->has_half;
    if (!random->has_half) return random->half;
    uint64_t word = next_word(random);
    random->half = (uint32_t)(word >> 32);
    return (uint32_t)word;
}

double random_fraction(Random *random) { return (double)(next_word(random) >> 11) * (1.0 / 9007199254740992.0); }

uint32_t random_below(Random *random, uint32_t most) {
    if (most < 2) return 0;
    uint64_t product = (uint64_t)next_half(random) * most;
    if ((uint32_t)product < most) {
        uint32_t threshold = (uint32_t)(-most) % most;
        while ((uint32_t)product < threshold) product = (uint64_t)next_half(random) * most;
    }
    return (uint32_t)(product >> 32);
}

/* ---- drawing ------------------------------------------------------------------------------------------------- */

/* With top_p alone, look among this many tokens first: sorting a whole vocabulary at each step takes longer. */
enum { NUCLEUS_GUESS = 1024 };

int64_t most_likely(const float *logits, size_t count) {
    size_t best = 0;
    for (size_t i = 0; i < count; i++) {
        if (logits[i] != logits[i]) {
            best = i;
            break;
        }
        if (logits[i] > logits[best]) best = i;
    }
    if (count && __builtin_isfinite(logits[best])) return (int64_t)best;
    refuse(MACHINE, NULL, text("logit of token %zu", best), "no finite number", NULL);
    return -1;
}

void penalise(const float *logits, size_t count, const bool *seen, double penalty, float *out) {
    float factor = (float)penalty;
    for (size_t i = 0; i < count; i++)
        out[i] = !seen[i] ? logits[i] : logits[i] < 0 ? logits[i] * factor : logits[i] / factor;
}

/* Whether token `one` comes after `other`: it is less likely, or as likely with a higher id. */
static bool is_after(const float *logits, uint32_t one, uint32_t other) {
    return logits[one] < logits[other] || (logits[one] == logits[other] && one > other);
}

/* Restore a heap whose root is the last of all in order. */
static void sift_down(const float *logits, uint32_t *heap, size_t count, size_t at) {
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) return;
        if (child + 1 < count && is_after(logits, heap[child + 1], heap[child])) child++;
        if (!is_after(logits, heap[child], heap[at])) return;
        uint32_t moved = heap[at];
        heap[at] = heap[child], heap[child] = moved, at = child;
    }
}

/* The `count` most likely of `all` tokens, in order, the most likely first. */
static void largest(const float *logits, size_t all, uint32_t *heap, size_t count) {
    for (size_t i = 0; i < count; i++) heap[i] = (uint32_t)i;
    for (size_t i = count / 2; i-- > 0;) sift_down(logits, heap, count, i);
    for (size_t i = count; i < all; i++)
        if (is_after(logits, heap[0], (uint32_t)i)) heap[0] = (uint32_t)i, sift_down(logits, heap, count, 0);
    for (size_t left = count; left > 1; left--) {
        uint32_t last = heap[0];
        heap[0] = heap[left - 1], heap[left - 1] = last;
        sift_down(logits, heap, left - 1, 0);
    }
}

static double weigh(float logit, float peak, double temperature) {
    return exp(((double)logit - (double)peak) / temperature);
}

/* Keep the fewest tokens whose weights reach top_p of the sum of all; returns how many, `sums` being their sums. 0 if
 * those of `ids` do not reach it. */
static size_t nucleus(const double *sums, size_t count, double mass) {
    size_t kept = 0;
    while (kept < count && sums[kept] < mass) kept++;
    return kept < count ? kept + 1 : 0;
}

static int64_t draw_limited(const float *logits, size_t all, float peak, const Sampling *sampling, Random *random,
                            uint32_t *ids, double *sums) {
    size_t limit = sampling->top_k && (uint64_t)sampling->top_k < all ? (size_t)sampling->top_k : all;
    bool is_guess = limit == all && sampling->top_p < 1;
    size_t count = is_guess && limit > NUCLEUS_GUESS ? NUCLEUS_GUESS : limit, kept;
    double total = 0;
    for (size_t i = 0; is_guess && i < all; i++) total += weigh(logits[i], peak, sampling->temperature);
    for (;;) {
        double sum = 0;
        largest(logits, all, ids, count);
        for (size_t i = 0; i < count; i++) sums[i] = sum += weigh(logits[ids[i]], peak, sampling->temperature);
        kept = sampling->top_p < 1 ? nucleus(sums, count, sampling->top_p * (is_guess ? total : sum)) : count;
        if (!kept && count == limit) kept = count;
        if (kept) break;
        count = count * 8 < limit ? count * 8 : limit;
    }
    while (kept > 1 && weigh(logits[ids[kept - 1]], peak, sampling->temperature) < sampling->min_p) kept--;
    double drawn = random_fraction(random) * sums[kept - 1];
    size_t at = 0;
    while (at + 1 < kept && sums[at] <= drawn) at++;
    return ids[at];
}

static int64_t draw_from_all(const float *logits, size_t all, float peak, const Sampling *sampling, Random *random) {
    double total = 0, sum = 0, weight;
    size_t last = 0;
    for (size_t i = 0; i < all; i++)
        if ((weight = weigh(logits[i], peak, sampling->temperature)) >= sampling->min_p) total += weight, last = i;
    double drawn = random_fraction(random) * total;
    for (size_t i = 0; i < last; i++) {
        if ((weight = weigh(logits[i], peak, sampling->temperature)) >= sampling->min_p) sum += weight;
        else continue;
        if (sum > drawn) return (int64_t)i;
    }
    return (int64_t)last;
}

int64_t draw_token(const float *logits, size_t count, const Sampling *sampling, Random *random) {
    int64_t best = most_likely(logits, count);
    if (best < 0 || sampling->temperature == 0) return best;
    float peak = logits[best];
    if (!sampling->top_k && sampling->top_p == 1) return draw_from_all(logits, count, peak, sampling, random);
    uint32_t *ids = allocate(count, sizeof *ids);
    double *sums = allocate(count, sizeof *sums);
    int64_t drawn = ids && sums ? draw_limited(logits, count, peak, sampling, random, ids, sums) : -1;
    free(ids);
    free(sums);
    return drawn;
}
