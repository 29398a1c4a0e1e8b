#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../input.h"
#include "../sha256.h"

enum { BLOCK_BYTES = 1 << 18 };

const char *system_reason(void) {
    return errno == ENOENT ? "no such file" : errno ? text("%s", strerror(errno)) : "its end";
}

int open_file(const char *path, FaultKind kind, uint64_t *bytes) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) {
        refuse(kind, path, NULL, system_reason(), NULL);
        return -1;
    }
    /* A directory, a pipe or a device has no size that can be sought. */
    off_t size = lseek(file, 0, SEEK_END);
    char byte;
    if (size < 0 || (size && pread(file, &byte, 1, 0) != 1)) {
        refuse(kind, path, NULL, "no regular file that can be read", NULL);
        close(file);
        return -1;
    }
    *bytes = (uint64_t)size;
    return file;
}

void close_file(int file) { close(file); }

bool read_exactly(int file, const char *path, FaultKind kind, uint8_t *to, size_t size, uint64_t offset) {
    size_t done = read_whole(file, to, size, offset);
    if (done == size) return true;
    const char *place = text("bytes from %llu", (unsigned long long)offset);
    return errno ? refuse(MACHINE, path, place, system_reason(), NULL)
                 : refuse(kind, path, place, text("%zu bytes", done), text("%zu", size));
}

bool read_file(const char *path, FaultKind kind, size_t most, char **found, size_t *bytes) {
    uint64_t size;
    int file = open_file(path, kind, &size);
    if (file < 0) return false;
    bool is_read = size <= most || refuse(kind, path, NULL, text("%llu bytes", (unsigned long long)size),
                                          text("at most %zu", most));
    *found = is_read ? allocate((size_t)size + 1, 1) : NULL;
    is_read = *found && read_exactly(file, path, kind, (uint8_t *)*found, (size_t)size, 0);
    close(file);
    if (is_read) {
        *bytes = (size_t)size;
    } else {
        free(*found);
        *found = NULL;
    }
    return is_read;
}

/* ---- hashes -------------------------------------------------------------------------------------------------- */

static sha256_compressor compressor(void) {
    static sha256_compressor chosen;
    if (!chosen) chosen = sha256_is_quick() ? sha256_quick : sha256_plain;
    return chosen;
}

Digest sha256_of(const void *data, size_t size) {
    uint32_t state[1][8];
    const uint8_t *from[1] = {data};
    Digest digest;
    memcpy(state[0], SHA256_START, sizeof state[0]);
    compressor()(state, from, 1, size / SHA256_BLOCK);
    sha256_finish(compressor(), state[0], from[0] + size / SHA256_BLOCK * SHA256_BLOCK, size, digest.bytes);
    return digest;
}

bool is_same_digest(const Digest *one, const Digest *other) { return memcmp(one, other, sizeof *one) == 0; }

static const char *digest_text(const Digest *digest) {
    char words[65];
    for (int i = 0; i < 32; i++) snprintf(words + 2 * i, 3, "%02x", digest->bytes[i]);
    return text("sha256 %s", words);
}

/* A part whose hash is being computed. */
typedef struct {
    const FilePart *part;
    int file;
    uint64_t done;
    size_t held;
    uint32_t state[8];
    uint8_t *block;
} Lane;

static bool begin(Lane *lane, const FilePart *part) {
    uint64_t size;
    lane->part = part, lane->done = 0;
    lane->file = open_file(part->path, BUNDLE, &size);
    memcpy(lane->state, SHA256_START, sizeof lane->state);
    return lane->file >= 0;
}

static bool fill(Lane *lane) {
    const FilePart *part = lane->part;
    uint64_t left = part->bytes - lane->done;
    lane->held = left < BLOCK_BYTES ? (size_t)left : BLOCK_BYTES;
    return read_exactly(lane->file, part->path, BUNDLE, lane->block, lane->held, part->offset + lane->done);
}

static bool finish(Lane *lane) {
    const FilePart *part = lane->part;
    Digest found;
    size_t whole = lane->held / SHA256_BLOCK * SHA256_BLOCK;
    sha256_finish(compressor(), lane->state, lane->block + whole, part->bytes, found.bytes);
    return is_same_digest(&found, &part->wanted) ||
           refuse(BUNDLE, part->path, text("bytes from %llu", (unsigned long long)part->offset), digest_text(&found),
                  text("%s as in the manifest", digest_text(&part->wanted)));
}

/* Hash one block of each lane; two at once take hardly longer than one. */
static void advance(Lane *lanes[], int count) {
    size_t blocks = lanes[0]->held / SHA256_BLOCK;
    for (int i = 1; i < count; i++)
        if (lanes[i]->held / SHA256_BLOCK < blocks) blocks = lanes[i]->held / SHA256_BLOCK;
    uint32_t states[2][8];
    const uint8_t *data[2];
    for (int i = 0; i < count; i++) memcpy(states[i], lanes[i]->state, sizeof states[i]), data[i] = lanes[i]->block;
    if (blocks) compressor()(states, data, count, blocks);
    for (int i = 0; i < count; i++) {
        memcpy(lanes[i]->state, states[i], sizeof states[i]);
        size_t rest = lanes[i]->held / SHA256_BLOCK - blocks;
        const uint8_t *more[1] = {lanes[i]->block + blocks * SHA256_BLOCK};
        if (rest) compressor()((uint32_t(*)[8])lanes[i]->state, more, 1, rest);
    }
}

bool check_parts(const FilePart *parts, size_t count) {
    Lane lanes[2] = {{.file = -1}, {.file = -1}};
    size_t next = 0;
    bool is_right = true;
    for (int i = 0; i < 2; i++) is_right = (lanes[i].block = allocate(BLOCK_BYTES, 1)) && is_right;
    while (is_right) {
        Lane *busy[2];
        int active = 0;
        for (int i = 0; i < 2 && is_right; i++) {
            if (lanes[i].file < 0 && next < count) is_right = begin(&lanes[i], &parts[next++]);
            if (lanes[i].file >= 0 && is_right) is_right = fill(&lanes[i]), busy[active++] = &lanes[i];
        }
        if (!is_right || !active) break;
        advance(busy, active);
        for (int i = 0; i < active && is_right; i++) {
            busy[i]->done += busy[i]->held;
            if (busy[i]->done < busy[i]->part->bytes) continue;
            is_right = finish(busy[i]);
            close(busy[i]->file);
            busy[i]->file = -1;
        }
    }
    for (int i = 0; i < 2; i++) {
        if (lanes[i].file >= 0) close(lanes[i].file);
        free(lanes[i].block);
    }
    return is_right;
}

/* ---- mapped pages -------------------------------------------------------------------------------------------- */


char *read_proc(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    size_t room = 1 << 16, done = 0;
    char *data = file < 0 ? NULL : malloc(room);
    while (data) {
        ssize_t count = read(file, data + done, room - 1 - done);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) break;
        done += (size_t)count;
        if (done == room - 1) {
            char *more = realloc(data, room *= 2);
            if (!more) free(data);
            data = more;
        }
    }
    if (data) data[done] = 0;
    if (file >= 0) close(file);
    return data;
}

FilePages find_pages(const char *path) {
    FilePages pages = {.count = 0};
    char *maps = read_proc("/proc/self/maps");
    for (char *line = maps; line && *line; ) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        char *dash = strchr(line, '-'), *name = strchr(line, '/');
        char *blank = dash ? strchr(dash, ' ') : NULL;
        /* Shared mappings only: the pages of a private one may have been written, and that would be lost. */
        if (blank && strlen(blank) > 4 && blank[4] == 's' && name && strcmp(name, path) == 0 && pages.count < 16)
            pages.spans[pages.count++] = (Span){strtoull(line, NULL, 16), strtoull(dash + 1, NULL, 16)};
        line = end ? end + 1 : NULL;
    }
    free(maps);
    return pages;
}

static void advise(const FilePages *pages, int advice) {
    for (size_t i = 0; i < pages->count; i++)
        madvise((void *)pages->spans[i].begin, pages->spans[i].end - pages->spans[i].begin, advice);
}

void drop_pages(const FilePages *pages) { advise(pages, MADV_DONTNEED); }

void expect_random_page_reads(const FilePages *pages) { advise(pages, MADV_RANDOM); }
