#include "step.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The mask's value for a position that must not be attended to. */
#define BLOCKED (-0.7f * FLT_MAX)

static TensorType tensor_type(int element, int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
    return (TensorType){element, (uint32_t)rank, {(int32_t)a, (int32_t)b, (int32_t)c, (int32_t)d, 0, 0, 0, 0}, {0}};
}

/* Memory for a tensor of the decoder's signature, where the processor that runs it wants it. */
static bool make_buffer(Session *session, Buffer *buffer, const Signature *signature, bool is_input, const char *name,
                        TensorType type) {
    return is_on_gpu(&session->decoder)
               ? buffer_make_for(buffer, session->environment, &session->decoder, signature, is_input, name, &type)
               : buffer_make(buffer, session->environment, &type);
}

static int64_t bucket_positions(const TextRecord *record, const Width *width, size_t bucket) {
    if (bucket == MOST_BUCKETS) return record->context;
    return width->tokens == 1 ? record->bucket[bucket] : record->prefill_bucket[bucket];
}

static const Signature *step_signature(Session *session, const Width *width, size_t bucket, Graph *decoder) {
    const char *prefix = session->manifest.size[session->size].prefix;
    char within[32] = "", step[32] = "decode";
    if (bucket != MOST_BUCKETS)
        snprintf(within, sizeof within, "in_%lld_", (long long)bucket_positions(&session->manifest.text, width, bucket));
    if (width->tokens != 1) snprintf(step, sizeof step, "prefill_%lld", (long long)width->tokens);
    return graph_signature(decoder, text("%s%s%s", prefix, within, step));
}

/* The width's signature for the whole context, which says where a GPU wants the memory that all buckets share. */
static bool find_whole_signature(Session *session, const Width *width, const Signature **signature) {
    *signature = is_on_gpu(&session->decoder) ? step_signature(session, width, MOST_BUCKETS, &session->decoder) : NULL;
    return *signature || !is_on_gpu(&session->decoder);
}

bool make_caches(Session *session) {
    const TextRecord *record = &session->manifest.text;
    const Signature *decode;
    if (!find_whole_signature(session, &session->width[0], &decode)) return false;
    session->cache = allocate(2 * record->caches, sizeof *session->cache);
    bool is_made = session->cache != NULL;
    for (size_t i = 0; i < record->caches && is_made; i++) {
        const CacheRecord *cache = &record->cache[i];
        TensorType key = tensor_type(FLOAT32, 4, 1, cache->heads, cache->rows, cache->head_dim);
        TensorType value = tensor_type(FLOAT32, 4, 1, cache->heads, cache->head_dim, cache->rows);
        is_made = make_buffer(session, &session->cache[2 * i], decode, true, cache->key, key) &&
                  make_buffer(session, &session->cache[2 * i + 1], decode, true, cache->value, value);
    }
    TensorType logits = tensor_type(FLOAT32, 3, 1, 1, record->vocab_size, 0);
    TensorType activations = tensor_type(FLOAT32, 3, 1, 1, record->hidden_size, 0);
    return is_made && make_buffer(session, &session->logits, decode, false, "logits", logits) &&
           (!record->draft_tokens || make_buffer(session, &session->activations, decode, false, "activations", activations));
}

void free_caches(Session *session) {
    for (size_t i = 0; session->cache && i < 2 * session->manifest.text.caches; i++) buffer_free(&session->cache[i]);
    free(session->cache);
    buffer_free(&session->logits);
    buffer_free(&session->activations);
}

void free_width(Width *width) {
    call_free(&width->embed);
    for (int i = 0; i < MOST_SIZES; i++)
        for (int k = 0; k <= MOST_BUCKETS; k++) call_free(&width->step[i][k]);
    for (int k = 0; k <= MOST_BUCKETS; k++) buffer_free(&width->mask[k]);
    buffer_free(&width->ids);
    buffer_free(&width->embeddings);
    buffer_free(&width->per_layer);
    buffer_free(&width->positions);
}

/* ---- one step ------------------------------------------------------------------------------------------------ */

static bool make_width(Session *session, Width *width) {
    const TextRecord *record = &session->manifest.text;
    int64_t n = width->tokens;
    TensorType ids = tensor_type(INT32, 2, 1, n, 0, 0), positions = tensor_type(INT32, 1, n, 0, 0, 0);
    TensorType embeddings = tensor_type(FLOAT32, 3, 1, n, record->hidden_size, 0);
    TensorType per_layer = tensor_type(FLOAT32, 4, 1, n, record->num_layers, record->ple_size);
    const Signature *whole;
    if (width->is_made) return true;
    width->is_made = find_whole_signature(session, width, &whole) &&
                     buffer_make(&width->ids, session->environment, &ids) &&
                     make_buffer(session, &width->positions, whole, true, "input_pos", positions) &&
                     make_buffer(session, &width->embeddings, whole, true, "embeddings", embeddings) &&
                     make_buffer(session, &width->per_layer, whole, true, "per_layer_embeddings", per_layer);
    return width->is_made;
}

static Buffer *find_embedder_buffer(void *context, const char *name, bool is_input) {
    Width *width = context;
    if (is_input) return strcmp(name, "ids") == 0 ? &width->ids : NULL;
    return strcmp(name, "embeddings") == 0 ? &width->embeddings : NULL;
}

typedef struct {
    Session *session;
    Width *width;
    size_t bucket;
} DecoderBuffers;

static Buffer *find_decoder_buffer(void *context, const char *name, bool is_input) {
    DecoderBuffers *buffers = context;
    const TextRecord *record = &buffers->session->manifest.text;
    for (size_t i = 0; i < record->caches; i++) {
        if (strcmp(record->cache[i].key, name) == 0) return &buffers->session->cache[2 * i];
        if (strcmp(record->cache[i].value, name) == 0) return &buffers->session->cache[2 * i + 1];
    }
    if (!is_input && buffers->width->tokens > 1) return NULL;
    if (!is_input && strcmp(name, "logits") == 0) return &buffers->session->logits;
    if (!is_input) return record->draft_tokens && strcmp(name, "activations") == 0 ? &buffers->session->activations : NULL;
    if (strcmp(name, "embeddings") == 0) return &buffers->width->embeddings;
    if (strcmp(name, "per_layer_embeddings") == 0) return &buffers->width->per_layer;
    if (strcmp(name, "input_pos") == 0) return &buffers->width->positions;
    if (strcmp(name, "mask") == 0) return &buffers->width->mask[buffers->bucket];
    return NULL;
}

/* As many tensors as the format has; they all have different names, so that none is missing. */
static bool has_tensors(const Graph *graph, const Signature *signature, size_t inputs, size_t outputs) {
    return (signature->inputs == inputs && signature->outputs == outputs) ||
           refuse(BUNDLE, graph->path, text("signature %s", signature->key),
                  text("%zu inputs and %zu outputs", signature->inputs, signature->outputs),
                  text("%zu and %zu", inputs, outputs));
}

static bool make_embed(Session *session, Width *width) {
    const Signature *signature = graph_signature(&session->embedder, text("embed_%lld", (long long)width->tokens));
    return signature && has_tensors(&session->embedder, signature, 1, 1) &&
           call_make(&width->embed, &session->embedder, signature, find_embedder_buffer, width);
}

static size_t bucket_count(const TextRecord *record, const Width *width) {
    return width->tokens == 1 ? record->buckets : record->prefill_buckets;
}

/* The index of the smallest bucket with a signature that holds the next positions. */
static size_t choose_bucket(const Session *session, const Width *width) {
    const TextRecord *record = &session->manifest.text;
    for (size_t i = 0; i < bucket_count(record, width); i++)
        if (session->position + width->tokens <= bucket_positions(record, width, i)) return i;
    return MOST_BUCKETS;
}

static bool make_step(Session *session, Width *width, size_t bucket, Graph *decoder, Call *call) {
    const TextRecord *record = &session->manifest.text;
    TensorType mask = tensor_type(FLOAT32, 4, 1, 1, width->tokens, bucket_positions(record, width, bucket));
    const Signature *signature = step_signature(session, width, bucket, decoder);
    if (!signature) return false;
    if (!width->mask[bucket].handle && !make_buffer(session, &width->mask[bucket], signature, true, "mask", mask))
        return false;
    size_t caches = 2 * record->caches, others = width->tokens > 1 ? 0 : record->draft_tokens ? 2 : 1;
    DecoderBuffers buffers = {session, width, bucket};
    return has_tensors(decoder, signature, 4 + caches, caches + others) &&
           call_make(call, decoder, signature, find_decoder_buffer, &buffers);
}

/* Replace the embedder's rows with those of towers. */
static bool place_tower_rows(Session *session, Width *width, size_t count) {
    size_t hidden = (size_t)session->manifest.text.hidden_size;
    float *embeddings = NULL;
    for (size_t i = 0; i < count && session->rows; i++) {
        int64_t index = session->position + (int64_t)i - session->rows_first;
        const float *row = index >= 0 && index < session->rows_count ? session->rows[index] : NULL;
        if (!row) continue;
        if (!embeddings && !(embeddings = buffer_lock(&width->embeddings, TO_CHANGE))) return false;
        memcpy(embeddings + i * hidden, row, hidden * sizeof *row);
    }
    return !embeddings || buffer_unlock(&width->embeddings);
}

static bool embed_tokens(Session *session, Width *width, const int32_t *ids, size_t count) {
    int32_t *to = buffer_lock(&width->ids, TO_WRITE);
    if (!to) return false;
    for (size_t i = 0; i < (size_t)width->tokens; i++) to[i] = i < count ? ids[i] : 0;
    if (!buffer_unlock(&width->ids) || !call_run(&width->embed)) return false;
    /* The kernel maps cached pages around each row that is read: after a long prompt, half of the table. */
    drop_pages(&session->embedder_pages);
    return place_tower_rows(session, width, count);
}

/* Rows of padding repeat those of the tokens. */
static bool look_up_per_layer(Session *session, Width *width, const int32_t *ids, size_t count) {
    size_t row = (size_t)(session->manifest.text.num_layers * session->manifest.text.ple_size);
    float *to = buffer_lock(&width->per_layer, TO_WRITE);
    if (!to) return false;
    bool is_read = true;
    for (size_t i = 0; i < (size_t)width->tokens && is_read; i++) {
        if (i < count) is_read = ple_read(&session->ple, ids[i], to + i * row);
        else memcpy(to + i * row, to + i % count * row, row * sizeof *to);
    }
    return buffer_unlock(&width->per_layer) && is_read;
}

/* Padding has position 0 and attends to nothing; its cache rows are overwritten before they are used. */
static bool write_positions(Session *session, Width *width, size_t bucket, size_t count) {
    size_t positions = (size_t)bucket_positions(&session->manifest.text, width, bucket);
    int32_t *places = buffer_lock(&width->positions, TO_WRITE);
    if (!places) return false;
    for (size_t i = 0; i < (size_t)width->tokens; i++) places[i] = i < count ? (int32_t)session->position + (int32_t)i : 0;
    float *mask = buffer_unlock(&width->positions) ? buffer_lock(&width->mask[bucket], TO_WRITE) : NULL;
    if (!mask) return false;
    for (size_t i = 0; i < (size_t)width->tokens; i++) {
        size_t seen = i < count ? (size_t)session->position + i + 1 : 0;
        float *row = mask + i * positions;
        memset(row, 0, seen * sizeof *row);
        for (size_t k = seen; k < positions; k++) row[k] = BLOCKED;
    }
    return buffer_unlock(&width->mask[bucket]);
}

bool run_step(Session *session, Width *width, const int32_t *ids, size_t count) {
    size_t bucket = choose_bucket(session, width);
    if (!make_width(session, width)) return false;
    if (!width->embed.in && !make_embed(session, width)) return false;
    Call *call = &width->step[session->size][bucket];
    bool is_first = !call->in;
    if (is_first && !make_step(session, width, bucket, &session->decoder, call)) return false;
    if (!embed_tokens(session, width, ids, count) || !look_up_per_layer(session, width, ids, count) ||
        !write_positions(session, width, bucket, count))
        return false;
    if (session->position + width->tokens > session->written) session->written = session->position + width->tokens;
    if (!call_run(call)) return false;
    session->position += (int64_t)count;
    if (is_first) drop_pages(&session->decoder_pages);
    return true;
}

bool finish_steps(Session *session) {
    const Buffer *smallest = NULL;
    for (size_t i = 0; is_on_gpu(&session->decoder) && i < 2 * session->manifest.text.caches; i++)
        if (!smallest || session->cache[i].bytes < smallest->bytes) smallest = &session->cache[i];
    /* A call on a GPU returns before it is done; reading what it wrote waits. */
    return !smallest || (buffer_lock(smallest, TO_READ) && buffer_unlock(smallest));
}

bool run_copy(Session *session, Width *width, Graph *decoder) {
    Call call = {0};
    bool is_run = make_width(session, width) && make_step(session, width, MOST_BUCKETS, decoder, &call) && call_run(&call);
    call_free(&call);
    return is_run;
}
