#include "standard_input.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"

static struct {
    char *data;
    size_t begin, end, room;
    bool is_over;
} input;

/* Read more of standard input; false at its end, or without memory for more. */
static bool read_more(void) {
    if (input.begin) {
        memmove(input.data, input.data + input.begin, input.end - input.begin);
        input.end -= input.begin, input.begin = 0;
    }
    if (input.end == input.room) {
        size_t room = input.room ? input.room * 2 : 1 << 16;
        char *data = realloc(input.data, room);
        if (!data) return false;
        input.data = data, input.room = room;
    }
    ssize_t count;
    while ((count = read(STDIN_FILENO, input.data + input.end, input.room - input.end)) < 0 && errno == EINTR) continue;
    if (count <= 0) input.is_over = true;
    else input.end += (size_t)count;
    return count > 0;
}

static bool refuse_end(const char *found, const char *wanted) {
    return input.is_over ? refuse(USAGE, NULL, "command", found, wanted)
                         : refuse(MACHINE, NULL, "memory", "too little for a command", NULL);
}

/* The first newline that has been read; `seen`: how many bytes are known to have none. */
static char *find_newline(size_t seen) {
    return input.data ? memchr(input.data + input.begin + seen, '\n', input.end - input.begin - seen) : NULL;
}

char *next_line(size_t *size) {
    size_t seen = 0;
    for (;;) {
        char *found = find_newline(seen);
        if (found) {
            char *line = input.data + input.begin;
            *size = (size_t)(found - line);
            *found = 0;
            input.begin += *size + 1;
            return line;
        }
        seen = input.end - input.begin;
        bool is_long = seen > MOST_LINE_BYTES;
        if (is_long) refuse(USAGE, NULL, "command", text("over %d bytes in a line", MOST_LINE_BYTES), NULL);
        if (!is_long && read_more()) continue;
        if (seen || !input.is_over) refuse_end("the end of input in the middle of a line", "a newline at its end");
        return NULL;
    }
}

const char *next_bytes(size_t size) {
    while (input.end - input.begin < size)
        if (!read_more()) {
            refuse_end("the end of input", text("%zu bytes after the line", size));
            return NULL;
        }
    const char *found = input.data + input.begin;
    input.begin += size;
    return found;
}

bool is_stopped(void) {
    struct pollfd poll_of = {STDIN_FILENO, POLLIN, 0};
    char *newline;
    while (!(newline = find_newline(0)) && input.end - input.begin <= MOST_LINE_BYTES && poll(&poll_of, 1, 0) > 0 &&
           read_more())
        continue;
    if (input.is_over) return true;
    if (!newline) return false;
    const char *line = input.data + input.begin;
    size_t size = (size_t)(newline - line);
    if (size != sizeof STOP - 1 || memcmp(line, STOP, size) != 0) return false;
    input.begin += size + 1;
    return true;
}

void free_input(void) { free(input.data); }
