#include "manifest_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_VOCAB = 1 << 24, MOST_WIDTH = 1 << 16, MOST_DIMENSION = 1 << 20 };

bool wrong(const JsonSource *source, const char *place, const char *found, const char *wanted) {
    return refuse(BUNDLE, source->file, place, found, wanted);
}

bool is_name(const char *word) {
    size_t length = strlen(word);
    if (!length || length > 128 || strchr("._-", word[0])) return false;
    for (const char *at = word; *at; at++)
        if (!((*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9') ||
              strchr("._-", *at)))
            return false;
    return true;
}

static bool read_name(const JsonSource *source, const JsonValue *object, const char *place, const char *key,
                      char to[129]) {
    const char *found;
    if (!json_string(source, object, place, key, 128, &found)) return false;
    if (!is_name(found)) return wrong(source, text("%s %s", place, key), text("%.100s", found), "a name");
    snprintf(to, 129, "%s", found);
    return true;
}

static bool read_list(const JsonSource *source, const JsonValue *object, const char *place, const char *key,
                      int64_t least, int64_t most, size_t room, int64_t *to, size_t *count) {
    int64_t *found;
    if (!json_integers(source, object, place, key, least, most, room, true, &found, count)) return false;
    memcpy(to, found, *count * sizeof *to);
    free(found);
    return true;
}

static bool read_cache(const JsonSource *source, const JsonValue *value, const TextRecord *record, CacheRecord *cache) {
    static const char place[] = "groups text runtime kv_caches";
    int64_t *shape;
    size_t rank;
    if (!json_is_record(source, value, place, "key value shape window", "") ||
        !read_name(source, value, place, "key", cache->key) || !read_name(source, value, place, "value", cache->value) ||
        !json_integers(source, value, place, "shape", 1, MOST_DIMENSION, 4, false, &shape, &rank))
        return false;
    bool is_right = rank == 4 && shape[0] == 1;
    if (is_right) cache->heads = shape[1], cache->rows = shape[2], cache->head_dim = shape[3];
    free(shape);
    const JsonValue *window = json_member(source->json, value, "window");
    if (window->kind != JSON_NULL &&
        !json_integer(source, value, place, "window", 1, MOST_DIMENSION, &cache->window))
        return false;
    int64_t most_width = record->widths ? record->width[record->widths - 1] : 1;
    int64_t least = cache->window ? cache->window + most_width : record->context;
    if (least > record->context) least = record->context;
    is_right = is_right && cache->rows >= least && cache->rows <= record->context;
    return is_right || wrong(source, text("%s %s shape", place, cache->key), "another one",
                             text("[1, kv_heads, %lld to %lld, head_dim]", (long long)least, (long long)record->context));
}

static bool read_caches(const JsonSource *source, const JsonValue *runtime, TextRecord *record) {
    const JsonValue *list = json_member(source->json, runtime, "kv_caches");
    if (list->kind != JSON_ARRAY || !list->count || list->count > record->num_layers)
        return wrong(source, "groups text runtime kv_caches", text("%u entries", list->count),
                     text("1 to %lld", (long long)record->num_layers));
    record->cache = allocate(list->count, sizeof *record->cache);
    if (!record->cache) return false;
    const JsonValue *item = json_first(source->json, list);
    for (; item; item = json_next(source->json, item)) {
        CacheRecord *cache = &record->cache[record->caches++];
        if (!read_cache(source, item, record, cache)) return false;
        for (const CacheRecord *other = record->cache; other <= cache; other++)
            if (strcmp(other->key, cache->value) == 0 ||
                (other < cache && (strcmp(other->key, cache->key) == 0 || strcmp(other->value, cache->key) == 0 ||
                                   strcmp(other->value, cache->value) == 0)))
                return wrong(source, "groups text runtime kv_caches", text("%s twice", cache->key), "each name once");
    }
    return true;
}

/* The buckets of prefills are some of all, and hold the widest prefill. */
static bool has_right_buckets(const JsonSource *source, const TextRecord *record) {
    for (size_t i = 0; i < record->prefill_buckets; i++) {
        bool is_right = !record->widths || record->prefill_bucket[i] >= record->width[record->widths - 1], is_known = false;
        for (size_t k = 0; k < record->buckets; k++) is_known |= record->bucket[k] == record->prefill_bucket[i];
        if (!is_right || !is_known)
            return wrong(source, "groups text runtime prefill_buckets", text("%lld", (long long)record->prefill_bucket[i]),
                         "context buckets that hold the largest prefill");
    }
    return true;
}

#define TEXT_KEYS                                                                                            \
    "vocab_size ple_vocab_size hidden_size ple_size num_layers context prefill_sizes context_buckets "       \
    "prefill_buckets final_logit_softcap bos_token_id pad_token_id stop_token_ids kv_caches"

bool read_text(const JsonSource *source, const JsonValue *runtime, TextRecord *record) {
    static const char place[] = "groups text runtime";
    int64_t unused;
    if (!json_is_record(source, runtime, place, TEXT_KEYS, "text_vocab_size sampling draft_tokens") ||
        !json_integer(source, runtime, place, "vocab_size", 1, MOST_VOCAB, &record->vocab_size) ||
        !json_integer(source, runtime, place, "ple_vocab_size", 1, record->vocab_size, &record->ple_vocab_size) ||
        !json_integer(source, runtime, place, "hidden_size", 1, MOST_WIDTH, &record->hidden_size) ||
        !json_integer(source, runtime, place, "ple_size", 1, MOST_WIDTH, &record->ple_size) ||
        !json_integer(source, runtime, place, "num_layers", 1, MOST_CACHES, &record->num_layers) ||
        !json_integer(source, runtime, place, "context", 1, MOST_DIMENSION, &record->context) ||
        !json_integer(source, runtime, place, "bos_token_id", 0, record->vocab_size - 1, &unused) ||
        !json_integer(source, runtime, place, "pad_token_id", 0, record->vocab_size - 1, &unused))
        return false;
    record->text_ids = record->ple_vocab_size;
    if (json_member(source->json, runtime, "text_vocab_size") &&
        !json_integer(source, runtime, place, "text_vocab_size", 1, record->vocab_size, &record->text_ids))
        return false;
    if (json_member(source->json, runtime, "draft_tokens") &&
        !json_integer(source, runtime, place, "draft_tokens", 1, MOST_DRAFT_TOKENS, &record->draft_tokens))
        return false;
    int64_t context = record->context, last = record->vocab_size - 1;
    return read_list(source, runtime, place, "prefill_sizes", 2, context, MOST_WIDTHS, record->width, &record->widths) &&
           read_list(source, runtime, place, "context_buckets", 2, context - 1, MOST_BUCKETS, record->bucket,
                     &record->buckets) &&
           read_list(source, runtime, place, "prefill_buckets", 2, context - 1, MOST_BUCKETS, record->prefill_bucket,
                     &record->prefill_buckets) &&
           read_list(source, runtime, place, "stop_token_ids", 0, last, MOST_STOPS, record->stop, &record->stops) &&
           has_right_buckets(source, record) && read_caches(source, runtime, record);
}

#define TOWER_KEYS "vocab_offset vocab_size begin_token_id soft_token_id end_token_id soft_tokens feature_size "

bool read_tower(const JsonSource *source, const JsonValue *runtime, bool is_vision, int64_t vocab_size,
                       TowerRecord *tower) {
    const char *place = is_vision ? "groups vision runtime" : "groups audio runtime";
    int64_t last = vocab_size - 1;
    if (!json_is_record(source, runtime, place,
                        is_vision ? TOWER_KEYS "image_size"
                                  : TOWER_KEYS "frame_lengths mel_bins frames_per_token padding_token_id", "") ||
        !json_integer(source, runtime, place, "vocab_offset", 0, last, &tower->table_first) ||
        !json_integer(source, runtime, place, "vocab_size", 1, vocab_size - tower->table_first, &tower->table_count) ||
        !json_integer(source, runtime, place, "begin_token_id", 0, last, &tower->begin_token) ||
        !json_integer(source, runtime, place, "soft_token_id", 0, last, &tower->soft_token) ||
        !json_integer(source, runtime, place, "end_token_id", tower->table_first,
                      tower->table_first + tower->table_count - 1, &tower->end_token) ||
        !json_integer(source, runtime, place, "soft_tokens", 1, MOST_DIMENSION, &tower->soft_tokens) ||
        !json_integer(source, runtime, place, "feature_size", 1, MOST_WIDTH, &tower->feature_size))
        return false;
    tower->is_there = true;
    if (is_vision) return json_integer(source, runtime, place, "image_size", 1, 1 << 14, &tower->image_size);
    return json_integer(source, runtime, place, "mel_bins", 1, MOST_WIDTH, &tower->mel_bins) &&
           json_integer(source, runtime, place, "frames_per_token", 1, 1 << 12, &tower->frames_per_token) &&
           json_integer(source, runtime, place, "padding_token_id", tower->table_first,
                        tower->table_first + tower->table_count - 1, &tower->padding_token) &&
           read_list(source, runtime, place, "frame_lengths", 1, tower->soft_tokens * tower->frames_per_token,
                     MOST_LENGTHS, tower->length, &tower->lengths) &&
           (tower->lengths || wrong(source, place, "no frame_lengths", "at least one"));
}
