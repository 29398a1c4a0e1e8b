#include "towers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void towers_start(Towers *towers, const Manifest *manifest, const WeightCache *cache, int threads, Processor processor) {
    memset(towers, 0, sizeof *towers);
    towers->manifest = manifest, towers->cache = cache, towers->threads = threads, towers->processor = processor;
}

void towers_free(Towers *towers) {
    for (size_t i = 0; i < towers->media; i++) free(towers->medium[i].embeddings);
    for (size_t i = 0; i < towers->tokens; i++) free(towers->token[i].embedding);
    memset(towers, 0, sizeof *towers);
}

static const TowerRecord *record_of(const Towers *towers, TowerName name) {
    return name == VISION ? &towers->manifest->vision : &towers->manifest->audio;
}

/* ---- one loaded tower ---------------------------------------------------------------------------------------- */

typedef struct {
    TowerName name;
    void *environment;
    Graph encoder, adapter;
} Tower;

static void close_tower(Tower *tower) {
    graph_close(&tower->adapter);
    graph_close(&tower->encoder);
    litert_stop(tower->environment);
    memset(tower, 0, sizeof *tower);
}

/* The encoders' results are wrong in float16 (docs/gpu.md). */
static bool open_encoder(Tower *tower, Towers *towers, const FileRecord *encoder) {
    PackedWeights packed;
    if (towers->processor != ON_CPU)
        return graph_open_on_gpu(&tower->encoder, tower->environment, manifest_path(towers->manifest, encoder->name),
                                 ON_GPU_FLOAT32);
    bool is_open = open_with_weights(&tower->encoder, tower->environment, towers->manifest, encoder, towers->threads,
                                     towers->cache, &packed);
    snprintf(towers->cache_fault, sizeof towers->cache_fault, "%s", packed.fault);
    return is_open;
}

static bool open_adapter(Tower *tower, const Towers *towers, const FileRecord *adapter) {
    const char *path = manifest_path(towers->manifest, adapter->name);
    return towers->processor == ON_CPU ? graph_open(&tower->adapter, tower->environment, path, towers->threads, ":memory")
                                       : graph_open_on_gpu(&tower->adapter, tower->environment, path, towers->processor);
}

/* Open a tower's adapter and, with `all`, its encoder, in an environment of its own: closing it frees everything. */
static bool open_tower(Tower *tower, Towers *towers, TowerName name, bool all) {
    const Manifest *manifest = towers->manifest;
    const char *word = name == VISION ? "vision" : "audio";
    memset(tower, 0, sizeof *tower);
    tower->name = name;
    if (!record_of(towers, name)->is_there)
        return refuse(BUNDLE, manifest->folder, NULL, text("no group %s", word), "a bundle with that group");
    char adapter_name[32], encoder_name[32];
    snprintf(adapter_name, sizeof adapter_name, "%s_adapter.tflite", word);
    snprintf(encoder_name, sizeof encoder_name, "%s_encoder.tflite", word);
    const FileRecord *adapter = manifest_file(manifest, adapter_name), *encoder = manifest_file(manifest, encoder_name);
    const FileRecord *records[2] = {adapter, encoder};
    bool is_open = adapter && encoder && manifest_check(manifest, records, all ? 2 : 1) &&
                   litert_start(&tower->environment, towers->processor) &&
                   (!all || open_encoder(tower, towers, encoder)) && open_adapter(tower, towers, adapter);
    if (is_open) towers->loads[name]++;
    else close_tower(tower);
    return is_open;
}

/* Named buffers of one call. */
typedef struct {
    const char *in_name[2], *out_name[2];
    Buffer *in[2], *out[2];
} Binding;

static Buffer *find_bound(void *context, const char *name, bool is_input) {
    Binding *binding = context;
    for (int i = 0; i < 2; i++) {
        const char *known = is_input ? binding->in_name[i] : binding->out_name[i];
        if (known && strcmp(known, name) == 0) return is_input ? binding->in[i] : binding->out[i];
    }
    return NULL;
}

static bool run_bound(Graph *graph, const char *key, Binding *binding) {
    Call call = {0};
    const Signature *signature = graph_signature(graph, key);
    size_t inputs = (binding->in_name[0] != NULL) + (binding->in_name[1] != NULL);
    size_t outputs = (binding->out_name[0] != NULL) + (binding->out_name[1] != NULL);
    if (!signature) return false;
    if (signature->inputs != inputs || signature->outputs != outputs)
        return refuse(BUNDLE, graph->path, text("signature %s", key),
                      text("%zu inputs and %zu outputs", signature->inputs, signature->outputs),
                      text("%zu and %zu", inputs, outputs));
    bool is_done = call_make(&call, graph, signature, find_bound, binding) && call_run(&call);
    call_free(&call);
    return is_done;
}

static bool make_buffer(Tower *tower, Buffer *buffer, int element, int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
    TensorType type = {element, (uint32_t)rank, {(int32_t)a, (int32_t)b, (int32_t)c, (int32_t)d, 0, 0, 0, 0}, {0}};
    return buffer_make(buffer, tower->environment, &type);
}

/* The first `count` floats of a buffer; NULL with an error recorded. Free them. */
static float *copy_floats(const Buffer *buffer, size_t count) {
    float *copy = allocate(count, sizeof *copy);
    const float *from = copy ? buffer_lock(buffer, TO_READ) : NULL;
    if (from) memcpy(copy, from, count * sizeof *copy);
    if (from && buffer_unlock(buffer)) return copy;
    free(copy);
    return NULL;
}

/* ---- tokens of a tower's own table --------------------------------------------------------------------------- */

static const float *known_token(const Towers *towers, int64_t id) {
    for (size_t i = 0; i < towers->tokens; i++)
        if (towers->token[i].id == id) return towers->token[i].embedding;
    return NULL;
}

static bool look_up(Tower *tower, Towers *towers, int64_t id) {
    Buffer ids = {0}, embeddings = {0};
    size_t hidden = (size_t)towers->manifest->text.hidden_size;
    if (known_token(towers, id)) return true;
    if (towers->tokens == MOST_TOKEN_ROWS)
        return refuse(MACHINE, NULL, "tokens of towers", text("over %d different ones", MOST_TOKEN_ROWS), NULL);
    Binding binding = {{"ids", NULL}, {"embeddings", NULL}, {&ids, NULL}, {&embeddings, NULL}};
    int32_t *to;
    bool is_done = make_buffer(tower, &ids, INT32, 2, 1, 1, 0, 0) &&
                   make_buffer(tower, &embeddings, FLOAT32, 3, 1, 1, (int64_t)hidden, 0) &&
                   (to = buffer_lock(&ids, TO_WRITE)) && (*to = (int32_t)id, buffer_unlock(&ids)) &&
                   run_bound(&tower->adapter, "embed_1", &binding);
    float *row = is_done ? copy_floats(&embeddings, hidden) : NULL;
    if (row) towers->token[towers->tokens++] = (TokenRow){id, row};
    buffer_free(&ids);
    buffer_free(&embeddings);
    return row != NULL;
}

/* Keep the markers around a medium, which nearly every prompt needs, so that the tower is not loaded again for them. */
static bool look_up_markers(Tower *tower, Towers *towers) {
    const TowerRecord *record = record_of(towers, tower->name);
    int64_t ids[3] = {record->begin_token, record->end_token, record->padding_token};
    for (int i = 0; i < (tower->name == AUDIO ? 3 : 2); i++)
        if (towers_owner(towers, ids[i]) == record && !look_up(tower, towers, ids[i])) return false;
    return true;
}

const TowerRecord *towers_owner(const Towers *towers, int64_t id) {
    for (int name = VISION; name <= AUDIO; name++) {
        const TowerRecord *record = record_of(towers, (TowerName)name);
        if (record->is_there && id >= record->table_first && id < record->table_first + record->table_count) return record;
    }
    return NULL;
}

const float *towers_token(Towers *towers, int64_t id) {
    const float *row = known_token(towers, id);
    if (row) return row;
    Tower tower;
    TowerName name = towers_owner(towers, id) == &towers->manifest->vision ? VISION : AUDIO;
    if (!open_tower(&tower, towers, name, false)) return NULL;
    bool is_done = look_up(&tower, towers, id);
    close_tower(&tower);
    return is_done ? known_token(towers, id) : NULL;
}

/* ---- images and sounds --------------------------------------------------------------------------------------- */

static Medium *find_medium(const Towers *towers, const char *key) {
    for (size_t i = 0; i < towers->media; i++)
        if (strcmp(towers->medium[i].key, key) == 0) return (Medium *)&towers->medium[i];
    return NULL;
}

const Medium *towers_medium(const Towers *towers, const char *key) {
    Medium *found = find_medium(towers, key);
    if (!found) refuse(USAGE, NULL, text("medium %.128s", key), "no such image or sound", "one that was embedded before");
    return found;
}

bool towers_forget(Towers *towers, const char *key) {
    Medium *found = find_medium(towers, key);
    if (!found) return refuse(USAGE, NULL, text("medium %.128s", key), "no such image or sound", NULL);
    free(found->embeddings);
    *found = towers->medium[--towers->media];
    return true;
}

static bool has_room(const Towers *towers, const char *key) {
    if (find_medium(towers, key)) return refuse(USAGE, NULL, text("medium %.128s", key), "the key is in use", "another key");
    return towers->media < MOST_MEDIA || refuse(USAGE, NULL, "media", text("%d are held", MOST_MEDIA), "forget one first");
}

static void keep_medium(Towers *towers, const char *key, TowerName name, int64_t rows, float *embeddings) {
    Medium *medium = &towers->medium[towers->media++];
    snprintf(medium->key, sizeof medium->key, "%s", key);
    medium->tower = name, medium->rows = rows, medium->embeddings = embeddings;
}

static bool run_vision(Tower *tower, Towers *towers, const uint8_t *levels, float **found) {
    const TowerRecord *record = &towers->manifest->vision;
    int64_t side = record->image_size, rows = record->soft_tokens, hidden = towers->manifest->text.hidden_size;
    Buffer images = {0}, features = {0}, embeddings = {0};
    Binding encode = {{"images", NULL}, {"features", NULL}, {&images, NULL}, {&features, NULL}};
    Binding adapt = {{"features", NULL}, {"embeddings", NULL}, {&features, NULL}, {&embeddings, NULL}};
    float *to;
    bool is_done = make_buffer(tower, &images, FLOAT32, 4, 1, side, side, 3) &&
                   make_buffer(tower, &features, FLOAT32, 3, 1, rows, record->feature_size, 0) &&
                   make_buffer(tower, &embeddings, FLOAT32, 3, 1, rows + 1, hidden, 0) && (to = buffer_lock(&images, TO_WRITE));
    /* Rounded as transformers does (toolkit/media/pixels.py). */
    for (int64_t i = 0; is_done && i < side * side * 3; i++) to[i] = (float)((double)levels[i] * (1.0 / 255));
    is_done = is_done && buffer_unlock(&images) && run_bound(&tower->encoder, "encode", &encode) &&
              run_bound(&tower->adapter, "adapt", &adapt);
    *found = is_done ? copy_floats(&embeddings, (size_t)(rows * hidden)) : NULL;
    buffer_free(&images);
    buffer_free(&features);
    buffer_free(&embeddings);
    return *found != NULL;
}

bool towers_embed_image(Towers *towers, const char *key, const uint8_t *levels, size_t bytes) {
    const TowerRecord *record = &towers->manifest->vision;
    Tower tower;
    float *embeddings = NULL;
    uint64_t wanted = record->is_there ? (uint64_t)record->image_size * (uint64_t)record->image_size * 3 : bytes;
    if (bytes != wanted)
        return refuse(USAGE, NULL, text("image %.128s", key), text("%zu bytes", bytes),
                      text("%llu, RGB of %lld rows and columns", (unsigned long long)wanted, (long long)record->image_size));
    if (!has_room(towers, key) || !open_tower(&tower, towers, VISION, true)) return false;
    bool is_done = run_vision(&tower, towers, levels, &embeddings) && look_up_markers(&tower, towers);
    close_tower(&tower);
    if (is_done) keep_medium(towers, key, VISION, record->soft_tokens, embeddings);
    else free(embeddings);
    return is_done;
}

static bool run_audio(Tower *tower, Towers *towers, const float *mel, const uint8_t *mask, int64_t frames, float **found) {
    const TowerRecord *record = &towers->manifest->audio;
    int64_t length = 0, bins = record->mel_bins, hidden = towers->manifest->text.hidden_size;
    for (size_t i = record->lengths; i-- > 0;)
        if (record->length[i] >= frames) length = record->length[i];
    int64_t features_count = (length + record->frames_per_token - 1) / record->frames_per_token;
    Buffer inputs = {0}, sound = {0}, features = {0}, heard = {0}, embeddings = {0};
    Binding encode = {{"src_inputs", "mask"}, {"features", "mask"}, {&inputs, &sound}, {&features, &heard}};
    Binding adapt = {{"features", "mask"}, {"embeddings", NULL}, {&features, &heard}, {&embeddings, NULL}};
    float *to = NULL;
    uint8_t *is_sound = NULL;
    bool is_done = make_buffer(tower, &inputs, FLOAT32, 3, 1, length, bins, 0) &&
                   make_buffer(tower, &sound, BOOLEAN, 2, 1, length, 0, 0) &&
                   make_buffer(tower, &features, FLOAT32, 3, 1, features_count, record->feature_size, 0) &&
                   make_buffer(tower, &heard, BOOLEAN, 2, 1, features_count, 0, 0) &&
                   make_buffer(tower, &embeddings, FLOAT32, 3, 1, record->soft_tokens, hidden, 0) &&
                   (to = buffer_lock(&inputs, TO_WRITE));
    if (is_done) memcpy(to, mel, (size_t)(frames * bins) * sizeof *to);
    is_done = is_done && buffer_unlock(&inputs) && (is_sound = buffer_lock(&sound, TO_WRITE));
    for (int64_t i = 0; is_done && i < frames; i++) is_sound[i] = mask[i] != 0;
    is_done = is_done && buffer_unlock(&sound) &&
              run_bound(&tower->encoder, text("encode_%lld", (long long)length), &encode) &&
              run_bound(&tower->adapter, text("adapt_%lld", (long long)length), &adapt);
    *found = is_done ? copy_floats(&embeddings, (size_t)(record->soft_tokens * hidden)) : NULL;
    buffer_free(&inputs);
    buffer_free(&sound);
    buffer_free(&features);
    buffer_free(&heard);
    buffer_free(&embeddings);
    return *found != NULL;
}

bool towers_embed_sound(Towers *towers, const char *key, const float *mel, const uint8_t *mask, int64_t frames) {
    const TowerRecord *record = &towers->manifest->audio;
    Tower tower;
    float *embeddings = NULL;
    if (record->is_there && (frames < 1 || frames > record->length[record->lengths - 1]))
        return refuse(USAGE, NULL, text("sound %.128s", key), text("%lld frames", (long long)frames),
                      text("1 to %lld", (long long)record->length[record->lengths - 1]));
    if (!has_room(towers, key) || !open_tower(&tower, towers, AUDIO, true)) return false;
    bool is_done = run_audio(&tower, towers, mel, mask, frames, &embeddings) && look_up_markers(&tower, towers);
    close_tower(&tower);
    if (is_done) keep_medium(towers, key, AUDIO, record->soft_tokens, embeddings);
    else free(embeddings);
    return is_done;
}
