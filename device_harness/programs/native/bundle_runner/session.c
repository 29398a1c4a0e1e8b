#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "background.h"
#include "step.h"

/* The fixed cost of a signature, in positions (toolkit/runtime/prefill.py). */
enum { READING = 36 };

/* ---- opening ------------------------------------------------------------------------------------------------- */

/* LiteRT trusts its files, so each is compared with the manifest before it is opened. */
static bool check_decoder(const Manifest *manifest) {
    const FileRecord *records[] = {manifest_file(manifest, "text_decoder.tflite")};
    return records[0] && manifest_check(manifest, records, 1);
}

/* Compare the other files of the language model, while LiteRT opens the decoder. */
static bool check_others(void *context) {
    const Manifest *manifest = context;
    const FileRecord **records = allocate(manifest->files + 1, sizeof *records);
    size_t count = 0;
    bool is_right = records && (records[count++] = manifest_file(manifest, "embedder.tflite"));
    for (size_t i = 0; is_right && i < manifest->files; i++)
        if (is_shard_name(manifest->file[i].name)) records[count++] = &manifest->file[i];
    is_right = is_right && manifest_check(manifest, records, count);
    free(records);
    return is_right;
}

static bool open_decoder(Session *session) {
    const Manifest *manifest = &session->manifest;
    const FileRecord *record = manifest_file(manifest, "text_decoder.tflite");
    const SessionOptions *options = &session->options;
    return litert_start(&session->environment, options->processor) &&
           (options->processor == ON_CPU
                ? open_with_weights(&session->decoder, session->environment, manifest, record, options->threads,
                                    &options->cache, &session->weights)
                : graph_open_on_gpu(&session->decoder, session->environment, manifest_path(manifest, record->name),
                                    options->processor));
}

static bool open_embedder(Session *session) {
    const char *path = manifest_path(&session->manifest, "embedder.tflite");
    return graph_open(&session->embedder, session->environment, path, 1, NULL);
}

bool session_open(Session *session, const SessionOptions *options, const char *size) {
    memset(session, 0, sizeof *session);
    session->options = *options;
    session->is_open = true;
    Background others = {0};
    bool is_open = manifest_read(&session->manifest, options->bundle) && check_decoder(&session->manifest);
    int found = is_open && size ? manifest_size(&session->manifest, size) : (int)session->manifest.default_size;
    is_open = is_open && found >= 0;
    session->size = is_open ? (size_t)found : 0;
    session->width[0].tokens = 1;
    for (size_t i = 0; is_open && i < session->manifest.text.widths; i++)
        session->width[i + 1].tokens = session->manifest.text.width[i];
    if (is_open) background_begin(&others, check_others, &session->manifest);
    is_open = is_open && open_decoder(session);
    is_open = background_end(&others) && is_open && open_embedder(session) &&
              ple_open(&session->ple, &session->manifest) && make_caches(session);
    if (!is_open) {
        session_close(session);
        return false;
    }
    towers_start(&session->towers, &session->manifest, &session->options.cache, options->threads, options->processor);
    session->decoder_pages = find_pages(session->decoder.path);
    session->embedder_pages = find_pages(session->embedder.path);
    expect_random_page_reads(&session->embedder_pages);
    /* With packed weights, the file's own pages would only take memory. */
    drop_pages(&session->decoder_pages);
    return true;
}

void session_close(Session *session) {
    if (!session->is_open) return;
    for (int i = 0; i <= MOST_WIDTHS; i++) free_width(&session->width[i]);
    free_caches(session);
    towers_free(&session->towers);
    free(session->rows);
    graph_close(&session->embedder);
    graph_close(&session->decoder);
    litert_stop(session->environment);
    ple_close(&session->ple);
    manifest_free(&session->manifest);
    memset(session, 0, sizeof *session);
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

bool session_is_stopped(const Session *session) { return session->options.is_stopped && session->options.is_stopped(); }

static bool run_all(Session *session, const int32_t *ids, size_t count, bool *was_stopped) {
    while (count) {
        Width *width = choose_width(session, (int64_t)count, session->manifest.text.context - session->position);
        size_t taken = count < (size_t)width->tokens ? count : (size_t)width->tokens;
        if (!run_step(session, width, ids, taken)) return false;
        ids += taken, count -= taken;
        *was_stopped = count && session_is_stopped(session);
        if (*was_stopped) break;
    }
    return true;
}

bool session_prefill(Session *session, const int32_t *ids, size_t count, const MediaUse *uses, size_t use_count,
                     bool *was_stopped) {
    *was_stopped = false;
    if (!session_takes(session, ids, count) || !place_rows(session, ids, count, uses, use_count)) return false;
    ple_prefetch(&session->ple, ids, count);
    return run_all(session, ids, count, was_stopped) && finish_steps(session);
}

bool session_decode(Session *session, int32_t id, const MediaUse *uses, size_t use_count) {
    return session_takes(session, &id, 1) && place_rows(session, &id, 1, uses, use_count) &&
           run_step(session, &session->width[0], &id, 1);
}

const float *session_logits(Session *session) { return buffer_lock(&session->logits, TO_READ); }

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
    const char *weights = *session->weights.path ? session->weights.path : ":memory";
    if (is_on_gpu(&session->decoder))
        return refuse(USAGE, NULL, "profile", "the bundle runs on the GPU, which takes every node", "one that runs on the CPU");
    bool is_run = graph_open_profiled(decoder, session->environment, session->decoder.path, session->options.threads, weights);
    for (size_t i = 0; is_run && i <= session->manifest.text.widths; i++)
        is_run = run_copy(session, &session->width[i], decoder);
    session->position = session->written = 0; /* the caches now hold what these runs wrote */
    return is_run;
}
