/* Files: reading, hashes, and the pages that this process has mapped. */
#ifndef FILES_H
#define FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fault.h"

#define CHUNK_BYTES ((uint64_t)16777216)

typedef struct {
    uint8_t bytes[32];
} Digest;

/* One part of a file, and the hash that it must have. */
typedef struct {
    const char *path;
    uint64_t offset, bytes;
    Digest wanted;
} FilePart;

/* The reason for which the last system call failed. */
const char *system_reason(void);

/* Open a regular file for reading and find its size; -1 with an error of this kind recorded. */
int open_file(const char *path, FaultKind kind, uint64_t *bytes);
void close_file(int file);
/* Read exactly `size` bytes. */
bool read_exactly(int file, const char *path, FaultKind kind, uint8_t *to, size_t size, uint64_t offset);
/* Read a whole file of at most `most` bytes; *found has one NUL more. Free it. */
bool read_file(const char *path, FaultKind kind, size_t most, char **found, size_t *bytes);

Digest sha256_of(const void *data, size_t size);
bool is_same_digest(const Digest *one, const Digest *other);
/* Compare parts of files with their hashes, two at a time. BUNDLE if one differs. */
bool check_parts(const FilePart *parts, size_t count);


/* The whole of a file of /proc, whose size is not known before; NULL if it cannot be read. Free it. */
char *read_proc(const char *path);

/* The address ranges at which this process has mapped a file. */
typedef struct {
    uintptr_t begin, end;
} Span;
typedef struct {
    Span spans[16];
    size_t count;
} FilePages;
FilePages find_pages(const char *path);
/* Drop the pages from this process; when used again, they are read from the page cache or from flash. */
void drop_pages(const FilePages *pages);
void expect_random_page_reads(const FilePages *pages);

#endif
