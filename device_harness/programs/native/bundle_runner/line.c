#include "line.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *line;
static size_t used, room;
static int answers = STDOUT_FILENO;

void keep_output(void) {
    int own = dup(STDOUT_FILENO);
    if (own >= 0 && dup2(STDERR_FILENO, STDOUT_FILENO) >= 0) answers = own;
}

static void add(const char *words, size_t size) {
    if (used + size + 1 > room) {
        size_t more = (used + size + 1) * 2;
        char *grown = realloc(line, more);
        if (!grown) _exit(EXIT_MACHINE); /* without memory for an answer there is none */
        line = grown, room = more;
    }
    memcpy(line + used, words, size);
    used += size;
}

static void add_text(const char *words) { add(words, strlen(words)); }

/* A text in quotes. Control characters are escaped, and bytes that are not UTF-8, as a path may have. */
static void add_quoted(const char *words) {
    add_text("\"");
    for (const char *at = words, *end = words + strlen(words); at < end;) {
        unsigned char byte = (unsigned char)*at;
        size_t size = byte < 0x80 ? (size_t)(byte >= 0x20 && byte != 0x7F) : utf8_bytes(at, end);
        char escape[8] = "\\";
        if (!size) snprintf(escape, sizeof escape, "\\u%04x", byte);
        if (!size || byte == '"' || byte == '\\') add_text(escape);
        add(at, size);
        at += size ? size : 1;
    }
    add_text("\"");
}

static void add_key(const char *key) {
    if (used && !strchr("{[", line[used - 1])) add_text(", ");
    if (!key) return;
    add_quoted(key);
    add_text(": ");
}

void line_begin(void) {
    used = 0;
    add_text("\n{"); /* where both streams are one, the newline ends what LiteRT has written without one */
}

void line_open(const char *key, char bracket) {
    add_key(key);
    add(&bracket, 1);
}

void line_close(char bracket) { add(&bracket, 1); }

void line_integer(const char *key, int64_t value) {
    char digits[32];
    snprintf(digits, sizeof digits, "%lld", (long long)value);
    add_key(key);
    add_text(digits);
}

void line_number(const char *key, double value) {
    char digits[40];
    snprintf(digits, sizeof digits, "%.9g", value);
    add_key(key);
    add_text(__builtin_isfinite(value) ? digits : "null");
}

void line_string(const char *key, const char *value) {
    add_key(key);
    add_quoted(value);
}

void line_null(const char *key) {
    add_key(key);
    add_text("null");
}

void line_end(void) {
    add_text("}\n");
    write_bytes(line, used);
}

static void add_field(const char *key, const char *value) {
    if (*value) line_string(key, value);
    else line_null(key);
}

void line_fault(const Fault *fault) {
    static const char *const kinds[] = {"usage", "bundle", "machine"};
    line_begin();
    line_open("error", '{');
    line_string("kind", kinds[fault->kind]);
    add_field("file", fault->file);
    add_field("place", fault->place);
    line_string("found", fault->found);
    add_field("wanted", fault->wanted);
    line_close('}');
    line_end();
}

void write_bytes(const void *data, size_t size) {
    const char *at = data;
    while (size) {
        ssize_t count = write(answers, at, size);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) _exit(EXIT_MACHINE);
        at += count, size -= (size_t)count;
    }
}
