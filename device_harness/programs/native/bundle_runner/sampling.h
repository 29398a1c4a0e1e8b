/* Chooses the next token from logits, as toolkit/runtime/sampling.py does: the same seed draws the same tokens. */
#ifndef SAMPLING_H
#define SAMPLING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* NumPy's PCG64, as default_rng(seed) makes it. */
typedef struct {
    unsigned __int128 state, increment;
    bool has_half;
    uint32_t half;
} Random;

void random_seed(Random *random, uint64_t seed);
/* A number from 0 to 1, without 1: default_rng(seed).random(). */
double random_fraction(Random *random);
/* A whole number below `most`: default_rng(seed).integers(0, most). */
uint32_t random_below(Random *random, uint32_t most);

/* The limits apply in the order of the fields; a temperature of 0 is the most likely token. */
typedef struct {
    double temperature;
    int64_t top_k; /* 0: no limit */
    double top_p;
    double min_p; /* relative to the most likely token; 0: no limit */
} Sampling;

/* Write `count` logits to `out`, those of the tokens `seen` divided by the penalty, or multiplied by it if below 0. */
void penalise(const float *logits, size_t count, const bool *seen, double penalty, float *out);

/* The most likely of the first `count` tokens, and of equally likely ones the first; -1 with MACHINE recorded if its
 * logit is no finite number. */
int64_t most_likely(const float *logits, size_t count);
/* Draw one of the first `count` tokens; -1 with an error recorded. */
int64_t draw_token(const float *logits, size_t count, const Sampling *sampling, Random *random);

#endif
