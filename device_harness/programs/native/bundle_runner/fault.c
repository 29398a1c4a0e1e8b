#include "fault.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static Fault current;
static bool has_fault;

static void copy(char *to, size_t size, const char *from) { snprintf(to, size, "%s", from ? from : ""); }

bool refuse(FaultKind kind, const char *file, const char *place, const char *found, const char *wanted) {
    if (has_fault) return false;
    has_fault = true;
    current.kind = kind;
    copy(current.file, sizeof current.file, file);
    copy(current.place, sizeof current.place, place);
    copy(current.found, sizeof current.found, found);
    copy(current.wanted, sizeof current.wanted, wanted);
    return false;
}

const Fault *take_fault(void) {
    if (!has_fault) return NULL;
    has_fault = false;
    return &current;
}

const char *text(const char *form, ...) {
    static char texts[8][768];
    static unsigned next;
    char *to = texts[next++ % 8];
    va_list values;
    va_start(values, form);
    vsnprintf(to, sizeof texts[0], form, values);
    va_end(values);
    return to;
}

size_t utf8_bytes(const char *at, const char *end) {
    const unsigned char *s = (const unsigned char *)at;
    size_t length = *s >= 0xC2 && *s < 0xE0 ? 2 : *s >= 0xE0 && *s < 0xF0 ? 3 : *s >= 0xF0 && *s < 0xF5 ? 4 : 0;
    if ((size_t)(end - at) < length) return 0;
    for (size_t i = 1; i < length; i++)
        if (s[i] >> 6 != 2) return 0;
    bool is_outside = (*s == 0xE0 && s[1] < 0xA0) || (*s == 0xED && s[1] > 0x9F) || (*s == 0xF0 && s[1] < 0x90) ||
                      (*s == 0xF4 && s[1] > 0x8F);
    return is_outside ? 0 : length;
}

void *allocate(size_t count, size_t size) {
    void *found = size && count > SIZE_MAX / size ? NULL : calloc(count ? count : 1, size ? size : 1);
    if (!found) refuse(MACHINE, NULL, "memory", text("too little for %zu times %zu bytes", count, size), NULL);
    return found;
}
