#include "json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    Json *json;
    char *at, *end;
    FaultKind kind;
    const char *file;
    const char *start;
} Parser;

static bool broken(const Parser *parser, const char *wanted) {
    const char *found = parser->at < parser->end ? text("byte 0x%02x", (unsigned char)*parser->at) : "its end";
    return refuse(parser->kind, parser->file, text("byte %zu", (size_t)(parser->at - parser->start)), found, wanted);
}

static void skip_blanks(Parser *parser) {
    while (parser->at < parser->end && strchr(" \t\r\n", *parser->at) && *parser->at) parser->at++;
}

static uint32_t add_value(Parser *parser) {
    Json *json = parser->json;
    if (json->count == JSON_MOST_VALUES) {
        refuse(parser->kind, parser->file, "JSON", text("over %d values", JSON_MOST_VALUES), NULL);
        return 0;
    }
    if (json->count == json->room) {
        uint32_t room = json->room ? json->room * 2 : 64;
        JsonValue *values = realloc(json->values, room * sizeof *values);
        if (!values) {
            refuse(MACHINE, NULL, "memory", "too little for JSON", NULL);
            return 0;
        }
        json->values = values, json->room = room;
    }
    memset(&json->values[json->count], 0, sizeof *json->values);
    return json->count++;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool read_hex(Parser *parser, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < 4; i++) {
        int digit = parser->at < parser->end ? hex_digit(*parser->at) : -1;
        if (digit < 0) return broken(parser, "four hexadecimal digits");
        *code = *code << 4 | (uint32_t)digit;
        parser->at++;
    }
    return true;
}

static char *write_utf8(char *to, uint32_t code) {
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xC0 | code >> 6), *to++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *to++ = (char)(0xE0 | code >> 12), *to++ = (char)(0x80 | (code >> 6 & 0x3F));
        *to++ = (char)(0x80 | (code & 0x3F));
    } else {
        *to++ = (char)(0xF0 | code >> 18), *to++ = (char)(0x80 | (code >> 12 & 0x3F));
        *to++ = (char)(0x80 | (code >> 6 & 0x3F)), *to++ = (char)(0x80 | (code & 0x3F));
    }
    return to;
}

/* After `\u`: the character, from one code or a pair of surrogates. */
static bool read_unicode(Parser *parser, char **to) {
    uint32_t code, low;
    if (!read_hex(parser, &code)) return false;
    if (code >= 0xD800 && code < 0xDC00) {
        if (parser->end - parser->at < 2 || parser->at[0] != '\\' || parser->at[1] != 'u')
            return broken(parser, "a low surrogate");
        parser->at += 2;
        if (!read_hex(parser, &low)) return false;
        if (low < 0xDC00 || low >= 0xE000) return broken(parser, "a low surrogate");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code < 0xE000) {
        return broken(parser, "no low surrogate without a high one");
    }
    if (!code) return broken(parser, "no NUL in a string");
    *to = write_utf8(*to, code);
    return true;
}

static bool read_escape(Parser *parser, char **to) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (parser->at >= parser->end) return broken(parser, "an escape");
    char name = *parser->at;
    const char *found = name ? strchr(names, name) : NULL;
    if (name == 'u') {
        parser->at++;
        return read_unicode(parser, to);
    }
    if (!found) return broken(parser, "an escape");
    parser->at++;
    *(*to)++ = values[found - names];
    return true;
}

/* Copy one character of UTF-8 beyond ASCII. */
static bool read_utf8(Parser *parser, char **to) {
    size_t length = utf8_bytes(parser->at, parser->end);
    if (!length) return broken(parser, "UTF-8");
    memmove(*to, parser->at, length);
    *to += length, parser->at += length;
    return true;
}

static const char *read_string(Parser *parser) {
    if (parser->at >= parser->end || *parser->at != '"') {
        broken(parser, "a string");
        return NULL;
    }
    char *start = ++parser->at, *to = start;
    while (parser->at < parser->end && *parser->at != '"') {
        unsigned char c = (unsigned char)*parser->at;
        if (c < 0x20) {
            broken(parser, "no control characters in a string");
            return NULL;
        }
        if (c == '\\') {
            parser->at++;
            if (!read_escape(parser, &to)) return NULL;
        } else if (c >= 0x80) {
            if (!read_utf8(parser, &to)) return NULL;
        } else {
            *to++ = *parser->at++;
        }
    }
    if (parser->at >= parser->end) {
        broken(parser, "the end of a string");
        return NULL;
    }
    parser->at++;
    *to = 0;
    return start;
}

static bool read_digits(Parser *parser) {
    char *before = parser->at;
    while (parser->at < parser->end && *parser->at >= '0' && *parser->at <= '9') parser->at++;
    return parser->at > before || broken(parser, "a digit");
}

static bool read_number(Parser *parser, JsonValue *value) {
    char *start = parser->at;
    bool is_whole = true;
    if (*parser->at == '-') parser->at++;
    if (parser->at < parser->end && *parser->at == '0') parser->at++;
    else if (!read_digits(parser)) return false;
    if (parser->at < parser->end && *parser->at == '.') {
        is_whole = false, parser->at++;
        if (!read_digits(parser)) return false;
    }
    if (parser->at < parser->end && (*parser->at == 'e' || *parser->at == 'E')) {
        is_whole = false, parser->at++;
        if (parser->at < parser->end && (*parser->at == '+' || *parser->at == '-')) parser->at++;
        if (!read_digits(parser)) return false;
    }
    size_t length = (size_t)(parser->at - start);
    char digits[64];
    if (length >= sizeof digits) {
        parser->at = start;
        return broken(parser, "a number of fewer digits");
    }
    memcpy(digits, start, length);
    digits[length] = 0;
    value->kind = is_whole ? JSON_INTEGER : JSON_DOUBLE;
    errno = 0;
    if (is_whole) value->integer = strtoll(digits, NULL, 10);
    else value->number = strtod(digits, NULL);
    return !is_whole || !errno ||
           refuse(parser->kind, parser->file, "JSON", digits, "whole numbers from -2^63 to 2^63 - 1");
}

static bool read_word(Parser *parser, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(parser->end - parser->at) < length || memcmp(parser->at, word, length)) return broken(parser, word);
    parser->at += length;
    return true;
}

static uint32_t read_value(Parser *parser, int depth);

static bool is_new_key(Parser *parser, uint32_t list, const char *key) {
    const JsonValue *values = parser->json->values;
    for (uint32_t i = values[list].first; i; i = values[i].next)
        if (strcmp(values[i].key, key) == 0)
            return refuse(parser->kind, parser->file, text("key %.100s", key), "the key twice in an object", "each key once");
    return true;
}

/* The members of an array or object, up to its closing bracket. */
static bool read_members(Parser *parser, uint32_t list, char closing, int depth) {
    bool is_object = closing == '}';
    uint32_t last = 0;
    parser->at++;
    skip_blanks(parser);
    if (parser->at < parser->end && *parser->at == closing) {
        parser->at++;
        return true;
    }
    for (;;) {
        const char *key = NULL;
        skip_blanks(parser);
        if (is_object) {
            key = read_string(parser);
            if (!key || !is_new_key(parser, list, key)) return false;
            if (parser->json->values[list].count == JSON_MOST_KEYS)
                return refuse(parser->kind, parser->file, "JSON", text("over %d keys in an object", JSON_MOST_KEYS), NULL);
            skip_blanks(parser);
            if (parser->at >= parser->end || *parser->at != ':') return broken(parser, "a colon");
            parser->at++;
        }
        uint32_t member = read_value(parser, depth + 1);
        if (!member) return false;
        JsonValue *values = parser->json->values;
        values[member].key = key;
        if (last) values[last].next = member;
        else values[list].first = member;
        values[list].count++;
        last = member;
        skip_blanks(parser);
        if (parser->at >= parser->end) return broken(parser, "the end of a list");
        if (*parser->at == closing) break;
        if (*parser->at != ',') return broken(parser, "a comma");
        parser->at++;
    }
    parser->at++;
    return true;
}

/* The index of the value read, which is 0 for the outermost only; 0 with an error recorded otherwise. */
static uint32_t read_value(Parser *parser, int depth) {
    uint32_t at = add_value(parser);
    if (!at && depth) return 0;
    skip_blanks(parser);
    bool is_right;
    char first = parser->at < parser->end ? *parser->at : 0;
    JsonValue *value = &parser->json->values[at];
    if (first == '{' || first == '[') {
        value->kind = first == '{' ? JSON_OBJECT : JSON_ARRAY;
        is_right = depth < JSON_MOST_DEPTH ? read_members(parser, at, first == '{' ? '}' : ']', depth)
                                           : broken(parser, text("at most %d levels", JSON_MOST_DEPTH));
    } else if (first == '"') {
        value->kind = JSON_STRING;
        value->string = read_string(parser);
        is_right = value->string != NULL;
    } else if (first == '-' || (first >= '0' && first <= '9')) {
        is_right = read_number(parser, value);
    } else if (first == 't' || first == 'f' || first == 'n') {
        value->kind = first == 't' ? JSON_TRUE : first == 'f' ? JSON_FALSE : JSON_NULL;
        is_right = read_word(parser, first == 't' ? "true" : first == 'f' ? "false" : "null");
    } else {
        is_right = broken(parser, "a value");
    }
    return is_right ? at : 0;
}

bool json_parse(Json *json, char *data, size_t size, FaultKind kind, const char *file) {
    Parser parser = {.json = json, .at = data, .end = data + size, .kind = kind, .file = file, .start = data};
    memset(json, 0, sizeof *json);
    read_value(&parser, 0);
    const Fault *fault = take_fault();
    if (fault) {
        Fault kept = *fault;
        return refuse(kept.kind, kept.file, kept.place, kept.found, kept.wanted);
    }
    skip_blanks(&parser);
    return parser.at == parser.end || broken(&parser, "nothing after the value");
}

void json_free(Json *json) {
    free(json->values);
    memset(json, 0, sizeof *json);
}

const JsonValue *json_root(const Json *json) { return json->values; }

const JsonValue *json_first(const Json *json, const JsonValue *list) {
    return list->first ? &json->values[list->first] : NULL;
}

const JsonValue *json_next(const Json *json, const JsonValue *member) {
    return member->next ? &json->values[member->next] : NULL;
}

const JsonValue *json_member(const Json *json, const JsonValue *object, const char *key) {
    if (!object || object->kind != JSON_OBJECT) return NULL;
    for (const JsonValue *member = json_first(json, object); member; member = json_next(json, member))
        if (strcmp(member->key, key) == 0) return member;
    return NULL;
}

/* Whether a word is in a list of words with single blanks between them. */
static bool is_listed(const char *list, const char *word) {
    size_t length = strlen(word);
    for (const char *at = list; length && (at = strstr(at, word)); at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || !at[length])) return true;
    return false;
}

bool json_is_record(const JsonSource *source, const JsonValue *value, const char *place, const char *wanted,
                    const char *optional) {
    if (!value || value->kind != JSON_OBJECT) return refuse(source->kind, source->file, place, "no object", "an object");
    uint32_t listed = 0, words = *wanted ? 1 : 0;
    for (const char *at = wanted; *at; at++) words += *at == ' ';
    for (const JsonValue *member = json_first(source->json, value); member; member = json_next(source->json, member)) {
        bool is_wanted = is_listed(wanted, member->key);
        listed += is_wanted;
        if (strchr(member->key, ' ') || (!is_wanted && !is_listed(optional, member->key)))
            return refuse(source->kind, source->file, place, text("the key %.100s", member->key),
                          text("%s%s%s", wanted, *wanted && *optional ? " " : "", optional));
    }
    if (listed < words) return refuse(source->kind, source->file, place, "a missing key", text("all of %s", wanted));
    return true;
}

static const char *member_place(const char *place, const char *key) {
    return *place ? text("%s %s", place, key) : key;
}

bool json_integer(const JsonSource *source, const JsonValue *object, const char *place, const char *key, int64_t least,
                  int64_t most, int64_t *found) {
    const JsonValue *value = json_member(source->json, object, key);
    const char *wanted = text("%lld to %lld", (long long)least, (long long)most);
    if (!value || value->kind != JSON_INTEGER)
        return refuse(source->kind, source->file, member_place(place, key), "no whole number", wanted);
    if (value->integer < least || value->integer > most)
        return refuse(source->kind, source->file, member_place(place, key), text("%lld", (long long)value->integer), wanted);
    *found = value->integer;
    return true;
}

bool json_number(const JsonSource *source, const JsonValue *object, const char *place, const char *key, double least,
                 double most, double *found) {
    const JsonValue *value = json_member(source->json, object, key);
    bool is_number = value && (value->kind == JSON_INTEGER || value->kind == JSON_DOUBLE);
    double number = is_number ? value->kind == JSON_INTEGER ? (double)value->integer : value->number : 0;
    if (!is_number || !(number >= least && number <= most))
        return refuse(source->kind, source->file, member_place(place, key), is_number ? text("%g", number) : "no number",
                      text("%g to %g", least, most));
    *found = number;
    return true;
}

bool json_string(const JsonSource *source, const JsonValue *object, const char *place, const char *key, size_t most,
                 const char **found) {
    const JsonValue *value = json_member(source->json, object, key);
    bool is_right = value && value->kind == JSON_STRING && *value->string && strlen(value->string) <= most;
    for (const char *at = is_right ? value->string : ""; *at && is_right; at++)
        is_right = (unsigned char)*at >= 0x20 && *at != 0x7F;
    if (!is_right)
        return refuse(source->kind, source->file, member_place(place, key),
                      value && value->kind == JSON_STRING ? text("%.100s", value->string) : "no text",
                      text("1 to %zu printable characters", most));
    *found = value->string;
    return true;
}

bool json_integers(const JsonSource *source, const JsonValue *object, const char *place, const char *key, int64_t least,
                   int64_t most, size_t longest, bool ascending, int64_t **found, size_t *count) {
    const JsonValue *list = json_member(source->json, object, key);
    const char *where = member_place(place, key);
    if (!list || list->kind != JSON_ARRAY) return refuse(source->kind, source->file, where, "no list", "a list");
    if (list->count > longest)
        return refuse(source->kind, source->file, where, text("%u values", list->count), text("at most %zu", longest));
    int64_t *values = allocate(list->count, sizeof *values);
    if (!values) return false;
    size_t n = 0;
    const char *wanted = text("%lld to %lld%s", (long long)least, (long long)most, ascending ? ", ascending" : "");
    for (const JsonValue *item = json_first(source->json, list); item; item = json_next(source->json, item), n++) {
        bool is_whole = item->kind == JSON_INTEGER;
        if (!is_whole || item->integer < least || item->integer > most ||
            (ascending && n && item->integer <= values[n - 1])) {
            free(values);
            return refuse(source->kind, source->file, text("%s[%zu]", where, n),
                          is_whole ? text("%lld", (long long)item->integer) : "no whole number", wanted);
        }
        values[n] = item->integer;
    }
    *found = values, *count = n;
    return true;
}
