/* Strict JSON: no duplicate keys, no NUL in strings, UTF-8, bounds on size and depth. Numbers are whole or double. */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fault.h"

enum { JSON_MOST_VALUES = 1 << 20, JSON_MOST_KEYS = 4096, JSON_MOST_DEPTH = 16 };

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_INTEGER, JSON_DOUBLE, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonKind;

typedef struct {
    JsonKind kind;
    uint32_t count;   /* members of an array or object */
    uint32_t first;   /* index of the first member; 0 if there is none */
    uint32_t next;    /* index of the next member of the same array or object; 0 for the last */
    const char *key;  /* in an object */
    union {
        int64_t integer;
        double number;
        const char *string;
    };
} JsonValue;

typedef struct {
    JsonValue *values; /* the first is the whole; NULL if there is none */
    uint32_t count, room;
} Json;

/* Parse `data`, of `size` bytes and one NUL after them; strings are unescaped in place and must outlive `json`. */
bool json_parse(Json *json, char *data, size_t size, FaultKind kind, const char *file);
void json_free(Json *json);

const JsonValue *json_root(const Json *json);
/* A member of an object by its key; NULL if the object lacks it. */
const JsonValue *json_member(const Json *json, const JsonValue *object, const char *key);
const JsonValue *json_first(const Json *json, const JsonValue *list);
const JsonValue *json_next(const Json *json, const JsonValue *member);

/* Where values are read from, for errors. */
typedef struct {
    const Json *json;
    FaultKind kind;
    const char *file;
} JsonSource;

/* An object that has all keys of `wanted` and no others but those of `optional`; both are lists with blanks between. */
bool json_is_record(const JsonSource *source, const JsonValue *value, const char *place, const char *wanted,
                    const char *optional);
bool json_integer(const JsonSource *source, const JsonValue *object, const char *place, const char *key, int64_t least,
                  int64_t most, int64_t *found);
bool json_number(const JsonSource *source, const JsonValue *object, const char *place, const char *key, double least,
                 double most, double *found);
/* A text of 1 to `most` bytes without control characters. */
bool json_string(const JsonSource *source, const JsonValue *object, const char *place, const char *key, size_t most,
                 const char **found);
/* A list of whole numbers; with `ascending`, each above the one before. *found is allocated; free it. */
bool json_integers(const JsonSource *source, const JsonValue *object, const char *place, const char *key, int64_t least,
                   int64_t most, size_t longest, bool ascending, int64_t **found, size_t *count);

#endif
