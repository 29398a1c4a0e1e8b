/* The commands about the bundle: open, close, size, truncate, stats, profile. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "line.h"
#include "memory.h"
#include "standard_input.h"

enum { MOST_THREADS = 64, USUAL_THREADS = 4 };
#define USUAL_CACHE_BYTES ((uint64_t)16 << 30)

static int usual_threads(void) {
    unsigned char cores[128] = {0};
    int count = 0;
    if (sched_getaffinity(0, sizeof cores, (cpu_set_t *)cores) < 0) return 1;
    for (size_t i = 0; i < sizeof cores; i++)
        for (int bit = 0; bit < 8; bit++) count += cores[i] >> bit & 1;
    return count < 1 ? 1 : count < USUAL_THREADS ? count : USUAL_THREADS;
}

static bool read_weight_cache(const Command *command, WeightCache *cache) {
    const JsonValue *value = member(command, "weight_cache");
    const char *folder, *runtime;
    int64_t limit = (int64_t)USUAL_CACHE_BYTES;
    cache->kind = CACHE_MEMORY;
    if (!value) return true;
    if (value->kind == JSON_STRING) {
        cache->kind = strcmp(value->string, "off") == 0 ? CACHE_OFF : CACHE_MEMORY;
        return cache->kind == CACHE_OFF || strcmp(value->string, "memory") == 0 ||
               refuse(USAGE, NULL, "weight_cache", text("%.100s", value->string), "off, memory, or a folder and a runtime");
    }
    if (!json_is_record(&command->source, value, "weight_cache", "folder runtime", "limit_bytes") ||
        !json_string(&command->source, value, "weight_cache", "folder", sizeof cache->folder - 1, &folder) ||
        !json_string(&command->source, value, "weight_cache", "runtime", sizeof cache->runtime - 1, &runtime) ||
        (json_member(command->source.json, value, "limit_bytes") &&
         !json_integer(&command->source, value, "weight_cache", "limit_bytes", 0, (int64_t)1 << 50, &limit)))
        return false;
    if (*folder != '/') return refuse(USAGE, folder, "weight_cache folder", "a relative path", "an absolute one");
    cache->kind = CACHE_FOLDER, cache->limit_bytes = (uint64_t)limit;
    snprintf(cache->folder, sizeof cache->folder, "%s", folder);
    snprintf(cache->runtime, sizeof cache->runtime, "%s", runtime);
    return true;
}

static bool read_processor(const Command *command, Processor *processor) {
    const char *backend = "cpu", *activations = "fp32";
    if ((member(command, "backend") && !json_string(&command->source, command->value, "open", "backend", 32, &backend)) ||
        (member(command, "activations") &&
         !json_string(&command->source, command->value, "open", "activations", 32, &activations)))
        return false;
    bool is_float16 = strcmp(activations, "fp16") == 0;
    if (!is_float16 && strcmp(activations, "fp32") != 0) return refuse(USAGE, NULL, "activations", activations, "fp32 or fp16");
    *processor = is_float16 ? ON_GPU_FLOAT16 : ON_GPU_FLOAT32;
    if (strcmp(backend, "gpu") == 0) return true;
    *processor = ON_CPU;
    if (strcmp(backend, "cpu") != 0) return refuse(USAGE, NULL, "backend", backend, "cpu or gpu");
    return !is_float16 || refuse(USAGE, NULL, "activations", "fp16 on the CPU", "fp32, or the backend gpu");
}

static void add_integers(const char *key, const int64_t *values, size_t count) {
    line_open(key, '[');
    for (size_t i = 0; i < count; i++) line_integer(NULL, values[i]);
    line_close(']');
}

static bool answer_open(Runner *runner, const Command *command) {
    const Session *session = &runner->session;
    const PackedWeights *weights = &session->weights;
    const char *in_memory = session->options.cache.kind == CACHE_OFF ? "off" : "memory";
    const TextRecord *record = &session->manifest.text;
    begin_answer(command);
    line_string("size", session->manifest.size[session->size].name);
    line_open("sizes", '[');
    for (size_t i = 0; i < session->manifest.sizes; i++) line_string(NULL, session->manifest.size[i].name);
    line_close(']');
    line_integer("context", record->context);
    line_integer("vocab_size", record->vocab_size);
    line_integer("text_ids", record->text_ids);
    line_integer("hidden_size", record->hidden_size);
    add_integers("stop_token_ids", record->stop, record->stops);
    line_string("backend", session->options.processor == ON_CPU ? "cpu" : "gpu");
    line_integer("threads", session->options.threads);
    line_string("weight_cache", weights->is_built ? "built" : *weights->path ? "kept" : in_memory);
    if (*weights->path) line_string("weight_file", weights->path);
    if (*weights->fault) line_string("weight_cache_fault", weights->fault);
    return end_answer(runner);
}

bool do_open(Runner *runner, const Command *command) {
    SessionOptions options = {.threads = usual_threads(), .is_stopped = runner->reads_input ? is_stopped : NULL};
    const char *bundle, *size = NULL;
    int64_t threads = options.threads;
    if (runner->session.is_open) return refuse(USAGE, NULL, "open", "a bundle is open", "the command close first");
    if (!has_keys(command, "do bundle", "size threads weight_cache backend activations") ||
        !json_string(&command->source, command->value, "open", "bundle", sizeof options.bundle - 1, &bundle) ||
        (member(command, "size") && !json_string(&command->source, command->value, "open", "size", 64, &size)) ||
        !integer(command, "threads", 1, MOST_THREADS, &threads) || !read_weight_cache(command, &options.cache) ||
        !read_processor(command, &options.processor))
        return false;
    if (options.processor != ON_CPU) options.cache.kind = CACHE_OFF; /* a GPU takes the weights as they are in the file */
    options.threads = (int)threads;
    /* Mappings have paths without symbolic links. */
    char *real = realpath(bundle, NULL);
    snprintf(options.bundle, sizeof options.bundle, "%s", real ? real : bundle);
    bool is_short = !real || strlen(real) < sizeof options.bundle;
    free(real);
    if (!is_short) return refuse(USAGE, bundle, NULL, "a path that is too long", NULL);
    random_seed(&runner->workload, 0);
    return session_open(&runner->session, &options, size) && answer_open(runner, command);
}

bool do_close(Runner *runner, const Command *command) {
    if (!has_keys(command, "do", "") || !needs_session(runner, command)) return false;
    session_close(&runner->session);
    begin_answer(command);
    return end_answer(runner);
}

bool do_size(Runner *runner, const Command *command) {
    const char *name;
    if (!has_keys(command, "do name", "") || !needs_session(runner, command) ||
        !json_string(&command->source, command->value, "size", "name", 64, &name) ||
        !session_use_size(&runner->session, name))
        return false;
    begin_answer(command);
    line_string("size", name);
    return end_answer(runner);
}

bool do_truncate(Runner *runner, const Command *command) {
    int64_t position = 0;
    return has_keys(command, "do position", "") && needs_session(runner, command) &&
           integer(command, "position", 0, MOST_IDS, &position) && session_truncate(&runner->session, position) &&
           answer_position(runner, command);
}

bool do_stats(Runner *runner, const Command *command) {
    const Session *session = &runner->session;
    if (!has_keys(command, "do", "")) return false;
    begin_answer(command);
    line_memory(session);
    if (session->is_open) {
        line_open("ple", '{');
        line_integer("rows", (int64_t)session->ple.rows_read);
        line_integer("bytes_read", (int64_t)session->ple.bytes_read);
        line_close('}');
        line_open("tower_loads", '{');
        line_integer("vision", (int64_t)session->towers.loads[VISION]);
        line_integer("audio", (int64_t)session->towers.loads[AUDIO]);
        line_close('}');
        line_integer("position", session->position);
        line_string("size", session->manifest.size[session->size].name);
        if (*session->weights.path) line_string("weight_file", session->weights.path);
    }
    return end_answer(runner);
}

bool do_profile(Runner *runner, const Command *command) {
    Session *session = &runner->session;
    Graph decoder = {0};
    const char *summary;
    if (!has_keys(command, "do", "") || !needs_session(runner, command)) return false;
    bool is_run = session_profile(session, &decoder) && graph_profile(&decoder, &summary);
    if (is_run) {
        begin_answer(command);
        line_string("size", session->manifest.size[session->size].name);
        line_string("summary", summary);
        is_run = end_answer(runner);
    }
    graph_close(&decoder);
    return is_run;
}
