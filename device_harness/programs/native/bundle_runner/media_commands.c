/* The commands about images and sounds: image, sound, forget. */
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "line.h"
#include "standard_input.h"

enum { MOST_BYTES = 64 << 20 };

/* The bytes that follow a command; they are read even if the command turns out to be wrong. */
static bool read_payload(Runner *runner, const Command *command, const char **data, int64_t *bytes) {
    if (!json_integer(&command->source, command->value, command->name, "bytes", 0, MOST_BYTES, bytes)) {
        runner->is_lost = true;
        return false;
    }
    if (!runner->reads_input) return refuse(USAGE, NULL, command->name, "no standard input to read from", NULL);
    *data = next_bytes((size_t)*bytes);
    runner->is_lost = !*data;
    return *data != NULL;
}

static bool answer_medium(Runner *runner, const Command *command, const char *key, bool with_rows) {
    const Medium *medium = towers_medium(&runner->session.towers, key);
    if (!medium) return false;
    size_t bytes = (size_t)(medium->rows * runner->session.manifest.text.hidden_size) * sizeof *medium->embeddings;
    begin_answer(command);
    line_integer("rows", medium->rows);
    if (*runner->session.towers.cache_fault) line_string("weight_cache_fault", runner->session.towers.cache_fault);
    if (with_rows) line_integer("bytes", (int64_t)bytes);
    end_answer(runner);
    if (with_rows) write_bytes(medium->embeddings, bytes);
    return true;
}

/* A sound's bytes are its mel frames, then one byte for each frame. */
static bool embed_sound(Runner *runner, const char *key, const char *data, int64_t bytes, int64_t frames) {
    const TowerRecord *record = &runner->session.manifest.audio;
    int64_t wanted = record->is_there ? frames * (record->mel_bins * (int64_t)sizeof(float) + 1) : bytes;
    if (bytes != wanted)
        return refuse(USAGE, NULL, "sound bytes", text("%lld", (long long)bytes), text("%lld", (long long)wanted));
    float *mel = allocate((size_t)bytes, 1);
    if (!mel) return false;
    memcpy(mel, data, (size_t)bytes);
    const uint8_t *mask = (const uint8_t *)mel + (record->is_there ? bytes - frames : 0);
    bool is_done = towers_embed_sound(&runner->session.towers, key, mel, mask, frames);
    free(mel);
    return is_done;
}

static bool do_medium(Runner *runner, const Command *command, bool is_image) {
    const char *data = NULL, *key;
    int64_t bytes, frames = 0;
    bool with_rows = false;
    if (!read_payload(runner, command, &data, &bytes)) return false;
    bool is_done = has_keys(command, is_image ? "do key bytes" : "do key bytes frames", "rows") &&
                   needs_session(runner, command) &&
                   json_string(&command->source, command->value, command->name, "key", MOST_KEY - 1, &key) &&
                   integer(command, "frames", 0, MOST_IDS, &frames) && boolean(command, "rows", &with_rows) &&
                   (is_image ? towers_embed_image(&runner->session.towers, key, (const uint8_t *)data, (size_t)bytes)
                             : embed_sound(runner, key, data, bytes, frames));
    return is_done && answer_medium(runner, command, key, with_rows);
}

bool do_image(Runner *runner, const Command *command) { return do_medium(runner, command, true); }

bool do_sound(Runner *runner, const Command *command) { return do_medium(runner, command, false); }

bool do_forget(Runner *runner, const Command *command) {
    const char *key;
    if (!has_keys(command, "do key", "") || !needs_session(runner, command) ||
        !json_string(&command->source, command->value, "forget", "key", MOST_KEY - 1, &key) ||
        !towers_forget(&runner->session.towers, key))
        return false;
    begin_answer(command);
    return end_answer(runner);
}
