/* Per-layer embeddings: rows of shards (docs/formats/ple_shard.md), read as tokens need them. */
#ifndef PLE_H
#define PLE_H

#include "manifest.h"

typedef struct {
    char path[768];
    int file;
    uint64_t first, rows;
} Shard;

typedef struct {
    size_t shards;
    Shard *shard;
    uint64_t vocab_size;
    uint32_t version;
    uint32_t layers, width, bits, scale_bytes, row_bytes; /* scale_bytes: of one scale */
    uint8_t *row;             /* the row being read */
    uint64_t rows_read, bytes_read; /* statistics */
} PleTable;

/* Open the shards of a bundle, whose first chunks must have been compared with the manifest. */
bool ple_open(PleTable *table, const Manifest *manifest);
void ple_close(PleTable *table);
/* Tell the kernel of all rows of a prompt: it reads them while the first tokens are computed. */
void ple_prefetch(const PleTable *table, const int32_t *ids, size_t count);
/* The row of one token, f32[layers][width], scaled by sqrt(width); ids outside the table read row 0. */
bool ple_read(PleTable *table, int64_t id, float *to);

bool is_shard_name(const char *name);

#endif
