/* A conversation with a bundle: the graphs of its language model, the caches, and the position in them. */
#ifndef SESSION_H
#define SESSION_H

#include "ple.h"
#include "towers.h"
#include "weights.h"

typedef struct {
    char bundle[512];
    int threads;
    Processor processor; /* of the decoder and the towers; the embedder's rows are looked up by the CPU */
    WeightCache cache;
    bool (*is_stopped)(void); /* asked between steps whether to end there; NULL: never */
} SessionOptions;

/* The input buffers for steps of one width, and the calls that use them. */
typedef struct {
    int64_t tokens;
    bool is_made;
    Buffer ids, embeddings, per_layer, positions;
    Buffer mask[MOST_BUCKETS + 1]; /* by context bucket; the last is the whole context */
    Call embed;
    Call step[MOST_SIZES][MOST_BUCKETS + 1];
} Width;

typedef struct {
    bool is_open;
    SessionOptions options;
    Manifest manifest;
    void *environment;
    Graph decoder, embedder;
    PackedWeights weights;
    FilePages decoder_pages, embedder_pages;
    PleTable ple;
    Width width[MOST_WIDTHS + 1]; /* the first is decode */
    Buffer *cache;                /* keys and values of each cache in turn */
    Buffer logits, activations;   /* of decode; a bundle without draft_tokens has no activations */
    Towers towers;
    size_t size;
    int64_t position, written;
    const float **rows; /* rows of towers for the positions from `rows_first` on, NULL where the embedder's are used */
    int64_t rows_first, rows_count;
} Session;

bool session_open(Session *session, const SessionOptions *options, const char *size);
void session_close(Session *session);

/* Process tokens without computing logits. `uses`: where media stand among them; `was_stopped`: whether it ended early. */
bool session_prefill(Session *session, const int32_t *ids, size_t count, const MediaUse *uses, size_t use_count,
                     bool *was_stopped);
/* Process one token; `session_logits` are then those of the next. */
bool session_decode(Session *session, int32_t id, const MediaUse *uses, size_t use_count);
/* The logits, f32[vocab_size], until `session_end_logits`; NULL with an error recorded. */
const float *session_logits(Session *session);
bool session_end_logits(Session *session);

/* Open the decoder once more, with LiteRT's profiler, and run each signature of the size for the whole context once.
 * The conversation is empty afterwards. Close the graph, after an error too. */
bool session_profile(Session *session, Graph *decoder);

/* Whether a command of several steps is to end here. */
bool session_is_stopped(const Session *session);

/* Remove the tokens from a position on. USAGE if the caches no longer hold what precedes it. */
bool session_truncate(Session *session, int64_t position);
bool session_use_size(Session *session, const char *name);
/* Whether `count` more tokens fit and their ids are valid. */
bool session_takes(const Session *session, const int32_t *ids, size_t count);

#endif
