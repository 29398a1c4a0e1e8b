#include "session.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The mask's value for a position that must not be attended to. */
#define BLOCKED (-0.7f * FLT_MAX)
/* The fixed cost of a signature, in positions (toolkit/runtime/prefill.py). */
enum { READING = 36 };

static TensorType tensor_type(int element, int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
    return (TensorType){element, (uint32_t)rank, {(int32_t)a, (int32_t)b, (int32_t)c, (int32_t)d, 0, 0, 0, 0}, {0}};
}

/* ---- opening ------------------------------------------------------------------------------------------------- */

static bool check_files(Session *session) {
    const Manifest *manifest = &session->manifest;
    const FileRecord **records = allocate(manifest->files + 2, sizeof *records);
    size_t count = 0;
    if (!records) return false;
    records[count++] = manifest_file(manifest, "text_decoder.tflite");
    records[count++] = manifest_file(manifest, "embedder.tflite");
    bool is_right = records[0] && records[1];
    for (size_t i = 0; i < manifest->files; i++)
        if (is_shard_name(manifest->file[i].name)) records[count++] = &manifest->file[i];
    is_right = is_right && manifest_check(manifest, records, count);
    free(records);
    return is_right;
}

static bool make_caches(Session *session) {
    const TextRecord *record = &session->manifest.text;
    session->cache = allocate(2 * record->caches, sizeof *session->cache);
    bool is_made = session->cache != NULL;
    for (size_t i = 0; i < record->caches && is_made; i++) {
        const CacheRecord *cache = &record->cache[i];
        TensorType key = tensor_type(FLOAT32, 4, 1, cache->heads, cache->rows, cache->head_dim);
        TensorType value = tensor_type(FLOAT32, 4, 1, cache->heads, cache->head_dim, cache->rows);
        is_made = buffer_make(&session->cache[2 * i], session->environment, &key) &&
                  buffer_make(&session->cache[2 * i + 1], session->environment, &value);
    }
    TensorType logits = tensor_type(FLOAT32, 3, 1, 1, record->vocab_size, 0);
    TensorType activations = tensor_type(FLOAT32, 3, 1, 1, record->hidden_size, 0);
    return is_made && buffer_make(&session->logits, session->environment, &logits) &&
           (!record->draft_tokens || buffer_make(&session->activations, session->environment, &activations));
}

static bool open_graphs(Session *session) {
    const Manifest *manifest = &session->manifest;
    const FileRecord *record = manifest_file(manifest, "text_decoder.tflite");
    return litert_start(&session->environment) &&
           open_with_weights(&session->decoder, session->environment, manifest, record, session->options.threads,
                             &session->options.cache, session->weight_file, &session->built_weights) &&
           graph_open(&session->embedder, session->environment, manifest_path(manifest, "embedder.tflite"), 1, NULL);
}

bool session_open(Session *session, const SessionOptions *options, const char *size) {
    memset(session, 0, sizeof *session);
    session->options = *options;
    session->is_open = true;
    bool is_open = manifest_read(&session->manifest, options->bundle) && check_files(session) &&
                   ple_open(&session->ple, &session->manifest);
    int found = is_open && size ? manifest_size(&session->manifest, size) : (int)session->manifest.default_size;
    is_open = is_open && found >= 0 && open_graphs(session) && make_caches(session);
    if (!is_open) {
        session_close(session);
        return false;
    }
    session->size = (size_t)found;
    const TextRecord *record = &session->manifest.text;
    session->width[0].tokens = 1;
    for (size_t i = 0; i < record->widths; i++) session->width[i + 1].tokens = record->width[i];
    towers_start(&session->towers, &session->manifest, &session->options.cache, options->threads);
    session->decoder_pages = find_pages(session->decoder.path);
    session->embedder_pages = find_pages(session->embedder.path);
    expect_random_page_reads(&session->embedder_pages);
    /* With packed weights, the file's own pages would only take memory. */
    drop_pages(&session->decoder_pages);
    return true;
}

static void free_width(Width *width) {
    call_free(&width->embed);
    for (int i = 0; i < MOST_SIZES; i++)
        for (int k = 0; k <= MOST_BUCKETS; k++) call_free(&width->step[i][k]);
    for (int k = 0; k <= MOST_BUCKETS; k++) buffer_free(&width->mask[k]);
    buffer_free(&width->ids);
    buffer_free(&width->embeddings);
    buffer_free(&width->per_layer);
    buffer_free(&width->positions);
}

void session_close(Session *session) {
    if (!session->is_open) return;
    for (int i = 0; i <= MOST_WIDTHS; i++) free_width(&session->width[i]);
    for (size_t i = 0; session->cache && i < 2 * session->manifest.text.caches; i++) buffer_free(&session->cache[i]);
    free(session->cache);
    buffer_free(&session->logits);
    buffer_free(&session->activations);
    towers_free(&session->towers);
    free(session->rows);
    graph_close(&session->embedder);
    graph_close(&session->decoder);
    litert_stop(session->environment);
    ple_close(&session->ple);
    manifest_free(&session->manifest);
    memset(session, 0, sizeof *session);
}

/* ---- one step ------------------------------------------------------------------------------------------------ */

static bool make_width(Session *session, Width *width) {
    const TextRecord *record = &session->manifest.text;
    int64_t n = width->tokens;
    TensorType ids = tensor_type(INT32, 2, 1, n, 0, 0), positions = tensor_type(INT32, 1, n, 0, 0, 0);
    TensorType embeddings = tensor_type(FLOAT32, 3, 1, n, record->hidden_size, 0);
    TensorType per_layer = tensor_type(FLOAT32, 4, 1, n, record->num_layers, record->ple_size);
    width->is_made = width->is_made || (buffer_make(&width->ids, session->environment, &ids) &&
                                        buffer_make(&width->positions, session->environment, &positions) &&
                                        buffer_make(&width->embeddings, session->environment, &embeddings) &&
                                        buffer_make(&width->per_layer, session->environment, &per_layer));
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

static int64_t bucket_positions(const TextRecord *record, const Width *width, size_t bucket) {
    if (bucket == MOST_BUCKETS) return record->context;
    return width->tokens == 1 ? record->bucket[bucket] : record->prefill_bucket[bucket];
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
    const char *prefix = session->manifest.size[session->size].prefix;
    int64_t positions = bucket_positions(record, width, bucket);
    char within[32] = "", step[32] = "decode";
    if (bucket != MOST_BUCKETS) snprintf(within, sizeof within, "in_%lld_", (long long)positions);
    if (width->tokens != 1) snprintf(step, sizeof step, "prefill_%lld", (long long)width->tokens);
    TensorType mask = tensor_type(FLOAT32, 4, 1, 1, width->tokens, positions);
    if (!width->mask[bucket].handle && !buffer_make(&width->mask[bucket], session->environment, &mask)) return false;
    const Signature *signature = graph_signature(decoder, text("%s%s%s", prefix, within, step));
    size_t caches = 2 * record->caches, others = width->tokens > 1 ? 0 : record->draft_tokens ? 2 : 1;
    DecoderBuffers buffers = {session, width, bucket};
    return signature && has_tensors(decoder, signature, 4 + caches, caches + others) &&
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
        if (!embeddings && !(embeddings = buffer_lock(&width->embeddings, true))) return false;
        memcpy(embeddings + i * hidden, row, hidden * sizeof *row);
    }
    return !embeddings || buffer_unlock(&width->embeddings);
}

static bool embed_tokens(Session *session, Width *width, const int32_t *ids, size_t count) {
    int32_t *to = buffer_lock(&width->ids, true);
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
    float *to = buffer_lock(&width->per_layer, true);
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
    int32_t *places = buffer_lock(&width->positions, true);
    if (!places) return false;
    for (size_t i = 0; i < (size_t)width->tokens; i++) places[i] = i < count ? (int32_t)session->position + (int32_t)i : 0;
    float *mask = buffer_unlock(&width->positions) ? buffer_lock(&width->mask[bucket], true) : NULL;
    if (!mask) return false;
    for (size_t i = 0; i < (size_t)width->tokens; i++) {
        size_t seen = i < count ? (size_t)session->position + i + 1 : 0;
        float *row = mask + i * positions;
        memset(row, 0, seen * sizeof *row);
        for (size_t k = seen; k < positions; k++) row[k] = BLOCKED;
    }
    return buffer_unlock(&width->mask[bucket]);
}

/* Run one signature: tokens at the next positions, and padding up to its width. */
static bool run_step(Session *session, Width *width, const int32_t *ids, size_t count) {
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

/* ---- prompts ------------------------------------------------------------------------------------------------- */

bool session_takes(const Session *session, const int32_t *ids, size_t count) {
    const TextRecord *record = &session->manifest.text;
    if (count > (size_t)(record->context - session->position))
        return refuse(USAGE, NULL, "conversation", text("%lld tokens", (long long)session->position + (long long)count),
                      text("at most %lld, the bundle's context", (long long)record->context));
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= record->vocab_size)
            return refuse(USAGE, NULL, "token id", text("%d", ids[i]), text("0 to %lld", (long long)record->vocab_size - 1));
    return true;
}

static bool place_medium(Session *session, const MediaUse *use, size_t count) {
    const Medium *medium = towers_medium(&session->towers, use->key);
    if (!medium) return false;
    if (use->at <= -medium->rows || use->at >= (int64_t)count)
        return refuse(USAGE, NULL, text("medium %s", use->key), text("index %lld", (long long)use->at),
                      text("%lld to %lld", 1 - (long long)medium->rows, (long long)count - 1));
    for (int64_t row = 0; row < medium->rows; row++)
        if (use->at + row >= 0 && use->at + row < (int64_t)count)
            session->rows[use->at + row] = medium->embeddings + row * session->manifest.text.hidden_size;
    return true;
}

/* Note the rows that come from towers: those of media, and of tokens in the towers' own tables. */
static bool place_rows(Session *session, const int32_t *ids, size_t count, const MediaUse *uses, size_t use_count) {
    bool is_needed = use_count > 0;
    for (size_t i = 0; i < count && !is_needed; i++) is_needed = towers_owner(&session->towers, ids[i]) != NULL;
    free(session->rows);
    session->rows = NULL;
    if (!is_needed) return true;
    session->rows = allocate(count, sizeof *session->rows);
    session->rows_first = session->position, session->rows_count = (int64_t)count;
    bool is_placed = session->rows != NULL;
    for (size_t i = 0; i < use_count && is_placed; i++) is_placed = place_medium(session, &uses[i], count);
    for (size_t i = 0; i < count && is_placed; i++)
        if (!session->rows[i] && towers_owner(&session->towers, ids[i]))
            is_placed = (session->rows[i] = towers_token(&session->towers, ids[i])) != NULL;
    return is_placed;
}

/* The widest signature that the tokens fill, or the narrowest that holds all of them if that is cheaper. */
static Width *choose_width(Session *session, int64_t tokens, int64_t room) {
    const TextRecord *record = &session->manifest.text;
    Width *filled = &session->width[0], *holding = NULL;
    for (size_t i = 1; i <= record->widths; i++) {
        Width *width = &session->width[i];
        if (width->tokens > room) break;
        if (width->tokens <= tokens) filled = width;
        if (width->tokens >= tokens && !holding) holding = width;
    }
    if (!holding) return filled;
    int64_t steps = (tokens + filled->tokens - 1) / filled->tokens;
    return holding->tokens + READING <= steps * (filled->tokens + READING) ? holding : filled;
}

static bool run_all(Session *session, const int32_t *ids, size_t count) {
    while (count) {
        Width *width = choose_width(session, (int64_t)count, session->manifest.text.context - session->position);
        size_t taken = count < (size_t)width->tokens ? count : (size_t)width->tokens;
        if (!run_step(session, width, ids, taken)) return false;
        ids += taken, count -= taken;
    }
    return true;
}

bool session_prefill(Session *session, const int32_t *ids, size_t count, const MediaUse *uses, size_t use_count) {
    if (!session_takes(session, ids, count) || !place_rows(session, ids, count, uses, use_count)) return false;
    ple_prefetch(&session->ple, ids, count);
    return run_all(session, ids, count);
}

bool session_decode(Session *session, int32_t id, const MediaUse *uses, size_t use_count) {
    return session_takes(session, &id, 1) && place_rows(session, &id, 1, uses, use_count) &&
           run_step(session, &session->width[0], &id, 1);
}

const float *session_logits(Session *session) { return buffer_lock(&session->logits, false); }

bool session_end_logits(Session *session) { return buffer_unlock(&session->logits); }

/* ---- position and size --------------------------------------------------------------------------------------- */

bool session_truncate(Session *session, int64_t position) {
    const TextRecord *record = &session->manifest.text;
    if (position < 0 || position > session->position)
        return refuse(USAGE, NULL, "position", text("%lld", (long long)position), text("0 to %lld", (long long)session->position));
    for (size_t i = 0; i < record->caches && position && position < session->position; i++) {
        const CacheRecord *cache = &record->cache[i];
        if (cache->window && session->written > cache->rows && position - cache->window + 1 < session->written - cache->rows)
            return refuse(USAGE, NULL, "position", text("%lld", (long long)position),
                          "0, or one within reach of the sliding windows' caches");
    }
    if (!position) session->written = 0;
    session->position = position;
    return true;
}

bool session_use_size(Session *session, const char *name) {
    int found = manifest_size(&session->manifest, name);
    if (found < 0) return false;
    session->size = (size_t)found;
    return true;
}

bool session_profile(Session *session, Graph *decoder) {
    const char *weights = *session->weight_file ? session->weight_file : ":memory";
    bool is_run = graph_open_profiled(decoder, session->environment, session->decoder.path, session->options.threads, weights);
    for (size_t i = 0; is_run && i <= session->manifest.text.widths; i++) {
        Width *width = &session->width[i];
        Call call = {0};
        is_run = make_width(session, width) && make_step(session, width, MOST_BUCKETS, decoder, &call) && call_run(&call);
        call_free(&call);
    }
    session->position = session->written = 0; /* the caches now hold what these runs wrote */
    return is_run;
}
