/* What a manifest says to a runtime about a group. */
#ifndef MANIFEST_RUNTIME_H
#define MANIFEST_RUNTIME_H

#include "json.h"
#include "manifest.h"

/* Record that the manifest breaks the format, and return false. */
bool wrong(const JsonSource *source, const char *place, const char *found, const char *wanted);
/* Whether a word is a name: 1 to 128 of A-Z a-z 0-9 . _ -, the first a letter or digit. */
bool is_name(const char *word);

bool read_text(const JsonSource *source, const JsonValue *runtime, TextRecord *record);
bool read_tower(const JsonSource *source, const JsonValue *runtime, bool is_vision, int64_t vocab_size,
                TowerRecord *tower);

#endif
