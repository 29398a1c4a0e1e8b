/* The vision and audio towers: loaded for one image, sound or token, and closed again; their results are kept. */
#ifndef TOWERS_H
#define TOWERS_H

#include "litert.h"
#include "manifest.h"
#include "weights.h"

enum { MOST_MEDIA = 64, MOST_TOKEN_ROWS = 256, MOST_KEY = 129 };

typedef enum { VISION, AUDIO } TowerName;

/* Embeddings f32[rows][hidden_size] of an image or a sound. */
typedef struct {
    char key[MOST_KEY];
    TowerName tower;
    int64_t rows;
    float *embeddings;
} Medium;

/* The embedding f32[hidden_size] of a token of a tower's own table. */
typedef struct {
    int64_t id;
    float *embedding;
} TokenRow;

/* A medium in a list of tokens: its first row is at index `at`, which is negative if rows before were processed. */
typedef struct {
    const char *key;
    int64_t at;
} MediaUse;

typedef struct {
    const Manifest *manifest;
    const WeightCache *cache;
    int threads;
    Processor processor;
    Medium medium[MOST_MEDIA];
    size_t media;
    TokenRow token[MOST_TOKEN_ROWS];
    size_t tokens;
    uint64_t loads[2]; /* how often each tower was loaded */
    char cache_fault[sizeof(Fault)]; /* why the last tower's weights could not be kept, or empty */
} Towers;

void towers_start(Towers *towers, const Manifest *manifest, const WeightCache *cache, int threads, Processor processor);
void towers_free(Towers *towers);

/* Embed an image, RGB levels 0 to 255 of image_size rows and columns. */
bool towers_embed_image(Towers *towers, const char *key, const uint8_t *levels, size_t bytes);
/* Embed a sound: mel frames f32[frames][mel_bins], and for each frame whether there is sound. */
bool towers_embed_sound(Towers *towers, const char *key, const float *mel, const uint8_t *mask, int64_t frames);
bool towers_forget(Towers *towers, const char *key);
const Medium *towers_medium(const Towers *towers, const char *key);
/* The record of the tower whose table has this id; NULL if none has. */
const TowerRecord *towers_owner(const Towers *towers, int64_t id);
/* The embedding of a token of a tower's table. */
const float *towers_token(Towers *towers, int64_t id);

#endif
