#include "command.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "line.h"

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double monotonic_s(void) { return seconds_of(CLOCK_MONOTONIC); }

bool has_keys(const Command *command, const char *wanted, const char *optional) {
    return json_is_record(&command->source, command->value, command->name, wanted, optional);
}

const JsonValue *member(const Command *command, const char *key) {
    return json_member(command->source.json, command->value, key);
}

bool integer(const Command *command, const char *key, int64_t least, int64_t most, int64_t *found) {
    return !member(command, key) ||
           json_integer(&command->source, command->value, command->name, key, least, most, found);
}

bool number(const Command *command, const char *key, double least, double most, double *found) {
    return !member(command, key) || json_number(&command->source, command->value, command->name, key, least, most, found);
}

bool boolean(const Command *command, const char *key, bool *found) {
    const JsonValue *value = member(command, key);
    if (!value) return true;
    *found = value->kind == JSON_TRUE;
    return *found || value->kind == JSON_FALSE ||
           refuse(USAGE, NULL, text("%s %s", command->name, key), "another value", "true or false");
}

bool needs_session(const Runner *runner, const Command *command) {
    return runner->session.is_open || refuse(USAGE, NULL, command->name, "no bundle is open", "the command open first");
}

static bool read_uses(const Command *command, Prompt *prompt) {
    const JsonValue *list = member(command, "media");
    if (!list) return true;
    if (list->kind != JSON_ARRAY || list->count > MOST_MEDIA)
        return refuse(USAGE, NULL, text("%s media", command->name), "another value", text("a list of at most %d", MOST_MEDIA));
    const Json *json = command->source.json;
    for (const JsonValue *item = json_first(json, list); item; item = json_next(json, item)) {
        MediaUse *use = &prompt->uses[prompt->use_count++];
        if (!json_is_record(&command->source, item, "media", "key at", "") ||
            !json_string(&command->source, item, "media", "key", MOST_KEY - 1, &use->key) ||
            !json_integer(&command->source, item, "media", "at", -MOST_IDS, MOST_IDS, &use->at))
            return false;
    }
    return true;
}

bool read_prompt(Runner *runner, const Command *command, Prompt *prompt) {
    const TextRecord *record = &runner->session.manifest.text;
    int64_t *ids = NULL, count = 0;
    memset(prompt, 0, sizeof *prompt);
    bool is_random = member(command, "random") != NULL;
    if (is_random == (member(command, "ids") != NULL))
        return refuse(USAGE, NULL, command->name, is_random ? "both ids and random" : "no ids", "either ids or random");
    if (is_random) {
        if (!integer(command, "random", 0, MOST_IDS, &count)) return false;
        prompt->count = (size_t)count;
    } else if (!json_integers(&command->source, command->value, command->name, "ids", 0, record->vocab_size - 1, MOST_IDS,
                              false, &ids, &prompt->count)) {
        return false;
    }
    prompt->ids = allocate(prompt->count, sizeof *prompt->ids);
    for (size_t i = 0; prompt->ids && i < prompt->count; i++)
        prompt->ids[i] = (int32_t)(is_random ? random_below(&runner->workload, (uint32_t)record->ple_vocab_size) : ids[i]);
    free(ids);
    return prompt->ids && read_uses(command, prompt);
}

void begin_answer(const Command *command) {
    line_begin();
    line_string("ok", command->name);
}

bool end_answer(const Runner *runner) {
    line_number("seconds", monotonic_s() - runner->started);
    line_number("uptime_s", seconds_of(CLOCK_BOOTTIME));
    line_end();
    return true;
}

bool answer_position(Runner *runner, const Command *command) {
    begin_answer(command);
    line_integer("position", runner->session.position);
    return end_answer(runner);
}
