/* A bundle's manifest.json (docs/formats/manifest.md): what the runner needs of it. */
#ifndef MANIFEST_H
#define MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "files.h"

enum { MOST_SIZES = 32, MOST_WIDTHS = 16, MOST_BUCKETS = 12, MOST_CACHES = 1024, MOST_STOPS = 256, MOST_LENGTHS = 32 };
enum { MOST_DRAFT_TOKENS = 255 };
enum { MOST_FILES = 4096, MOST_GROUPS = 64, MOST_GROUP_NAME = 129 };

typedef struct {
    char name[65], prefix[129];
} SizeRecord;

typedef struct {
    char key[129], value[129];
    int64_t heads, rows, head_dim, window; /* window 0: not a ring */
} CacheRecord;

typedef struct {
    char name[129];
    char group[MOST_GROUP_NAME]; /* empty: of no group */
    uint64_t bytes;
    Digest sha256, first, last; /* of the whole, and of the first and the last chunk */
} FileRecord;

typedef struct {
    int64_t vocab_size, ple_vocab_size, hidden_size, ple_size, num_layers, context, text_ids;
    int64_t draft_tokens; /* 0: none, and decode has no activations */
    size_t widths, buckets, prefill_buckets, stops, caches;
    int64_t width[MOST_WIDTHS], bucket[MOST_BUCKETS], prefill_bucket[MOST_BUCKETS], stop[MOST_STOPS];
    CacheRecord *cache;
} TextRecord;

/* The vision or audio tower. */
typedef struct {
    bool is_there;
    int64_t begin_token, soft_token, end_token, table_first, table_count, soft_tokens, feature_size;
    int64_t image_size;                              /* vision */
    int64_t mel_bins, frames_per_token, padding_token; /* audio */
    size_t lengths;
    int64_t length[MOST_LENGTHS];
} TowerRecord;

typedef struct {
    char folder[512];
    size_t sizes, default_size, files;
    SizeRecord size[MOST_SIZES];
    TextRecord text;
    TowerRecord vision, audio;
    FileRecord *file;
} Manifest;

/* Read FOLDER/manifest.json. BUNDLE if it is missing or breaks the format. */
bool manifest_read(Manifest *manifest, const char *folder);
void manifest_free(Manifest *manifest);

/* A file's record; NULL with BUNDLE recorded if the bundle has no such file. */
const FileRecord *manifest_file(const Manifest *manifest, const char *name);
/* The index of a size; -1 with USAGE recorded. */
int manifest_size(const Manifest *manifest, const char *name);
/* The path of a file of the bundle, valid as long as a result of `text` (fault.h). */
const char *manifest_path(const Manifest *manifest, const char *name);
/* Compare sizes, first chunks, and the last chunks of .tflite files with the manifest. */
bool manifest_check(const Manifest *manifest, const FileRecord *const records[], size_t count);

#endif
