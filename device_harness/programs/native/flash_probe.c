/* Reads rows of PLE shards as decode and prefill do, and measures how long the reads take.
 *
 *   flash_probe [--state cold|warm] [--seed N] [--reads N] [--batch N] [--batches N] [--tokens FILE] SHARD...
 *   flash_probe --drop FILE...
 *
 * The second form drops files of any kind from the page cache, and prints in one line how much of them stayed.
 * The shards are all those of a table, in order (docs/formats/ple_shard.md). Prints a line of JSON for the table, then
 * one for each access method (docs/probe.md). Exit code 2: wrong arguments or an invalid shard; 3: a system error.
 * C99 and Linux; linked statically; writes no files.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "input.h"
#include "sha256.h"

enum { BAD_INPUT = 2, SYSTEM = 3 };
enum { HEADER_BYTES = 4096, FIELD_BYTES = 96, ROW_ALIGNMENT = 512, CHECKSUM_BYTES = 4 };
enum { MOST_READS = 1 << 20, MOST_TOKENS = 1 << 22, MOST_SHARDS = 100000, TRIES = 3 };
#define MOST_BATCH_BYTES ((uint64_t)1 << 30)

static void fail(int code, const char *form, ...) {
    va_list values;
    va_start(values, form);
    vfprintf(stderr, form, values);
    fputc('\n', stderr);
    va_end(values);
    exit(code);
}

static void *allocate(uint64_t count, uint64_t size) {
    if (size && count > SIZE_MAX / size) fail(SYSTEM, "memory: found too little, wanted %" PRIu64 " items", count);
    void *found = calloc(count ? (size_t)count : 1, (size_t)size);
    if (!found) fail(SYSTEM, "memory: found too little, wanted %" PRIu64 " bytes", count * size);
    return found;
}

/* ---- checksums ----------------------------------------------------------------------------------------------- */

static uint32_t crc_table[256];

static void fill_crc_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
        crc_table[byte] = value;
    }
}

/* CRC-32 as in zlib. */
static uint32_t crc32(const uint8_t *data, size_t size) {
    uint32_t value = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++) value = value >> 8 ^ crc_table[(value ^ data[i]) & 0xFF];
    return ~value;
}

/* The SHA-256 of a header's fields. */
static void sha256_fields(const uint8_t fields[FIELD_BYTES], uint8_t digest[SHA256_DIGEST]) {
    uint32_t state[1][8];
    const uint8_t *data[1] = {fields};
    memcpy(state[0], SHA256_START, sizeof state[0]);
    sha256_plain(state, data, 1, FIELD_BYTES / SHA256_BLOCK);
    sha256_finish(sha256_plain, state[0], fields + FIELD_BYTES / SHA256_BLOCK * SHA256_BLOCK, FIELD_BYTES, digest);
}

/* ---- shards -------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t vocab_size;
    uint32_t version, layers, width, bits, row_bytes, shard_count;
} Layout;

typedef struct {
    const char *path;
    int fd;
    uint64_t first_token, row_count, bytes;
    uint8_t *map; /* NULL while it is not mapped */
} Shard;

typedef struct {
    Layout layout;
    Shard *shards;
    uint32_t count;
    uint64_t page_bytes, pages;
} Table;

static bool is_same(const Layout *a, const Layout *b) {
    return a->version == b->version && a->vocab_size == b->vocab_size && a->layers == b->layers &&
           a->width == b->width && a->bits == b->bits && a->row_bytes == b->row_bytes &&
           a->shard_count == b->shard_count;
}

static uint64_t number(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--) value = value << 8 | at[i];
    return value;
}

static void require(bool holds, const char *path, const char *field, uint64_t found, const char *wanted) {
    if (!holds) fail(BAD_INPUT, "%s header %s: found %" PRIu64 ", wanted %s", path, field, found, wanted);
}

static void read_all(int fd, const char *path, uint8_t *target, size_t size, uint64_t offset) {
    size_t done = read_whole(fd, target, size, offset);
    if (done == size) return;
    offset += done;
    if (errno) fail(SYSTEM, "%s: found '%s' at byte %" PRIu64 ", wanted rows", path, strerror(errno), offset);
    fail(BAD_INPUT, "%s: found its end at byte %" PRIu64 ", wanted more", path, offset);
}

/* Offsets and bounds are those of docs/formats/ple_shard.md; every product below stays under 2^53. */
static Layout read_layout(const uint8_t *page, Shard *shard, uint32_t position) {
    const char *path = shard->path;
    uint64_t version = number(page + 8, 4), header_bytes = number(page + 12, 4);
    Layout layout = {number(page + 32, 8),           (uint32_t)version,              (uint32_t)number(page + 40, 4),
                     (uint32_t)number(page + 44, 4), (uint32_t)number(page + 48, 4), (uint32_t)number(page + 52, 4),
                     (uint32_t)number(page + 60, 4)};
    uint64_t vocab = layout.vocab_size, layers = layout.layers, width = layout.width, bits = layout.bits;
    shard->first_token = number(page + 16, 8);
    shard->row_count = number(page + 24, 8);
    require(version == 1 || version == 2, path, "version", version, "1 or 2");
    require(header_bytes == HEADER_BYTES, path, "header_bytes", header_bytes, "4096");
    require(bits == 2 || bits == 4 || bits == 8 || bits == 32, path, "bits", bits, "2, 4, 8 or 32");
    require(layers >= 1 && layers <= 1024, path, "layers", layers, "1 to 1024");
    require(width >= 1 && width <= 1 << 16 && layers * width * bits % 8 == 0, path, "width", width,
            "whole bytes, at most 65536 values");
    uint64_t scales = bits == 32 ? 0 : 2 * version * layers; /* float16 in version 1, float32 in version 2 */
    uint64_t used = layers * width * bits / 8 + scales + CHECKSUM_BYTES;
    uint64_t row_bytes = (used + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT;
    require(layout.row_bytes == row_bytes, path, "row_bytes", layout.row_bytes, "what layers, width and bits need");
    require(vocab >= 1 && vocab <= 1 << 24, path, "vocab_size", vocab, "1 to 16777216");
    require(shard->row_count >= 1 && shard->row_count <= vocab && shard->first_token <= vocab - shard->row_count, path,
            "row_count", shard->row_count, "rows within the vocabulary");
    require(layout.shard_count >= 1 && layout.shard_count <= vocab, path, "shard_count", layout.shard_count,
            "1 to vocab_size");
    require(number(page + 56, 4) == position, path, "shard", number(page + 56, 4), "its place among the arguments");
    return layout;
}

static Layout open_shard(Shard *shard, uint32_t position) {
    uint8_t page[HEADER_BYTES], digest[32];
    struct stat status;
    shard->fd = open(shard->path, O_RDONLY | O_CLOEXEC);
    if (shard->fd < 0 || fstat(shard->fd, &status) < 0)
        fail(BAD_INPUT, "%s: found '%s', wanted a PLE shard", shard->path, strerror(errno));
    if (!S_ISREG(status.st_mode) || status.st_size < HEADER_BYTES)
        fail(BAD_INPUT, "%s: found no file of at least %d bytes, wanted a PLE shard", shard->path, HEADER_BYTES);
    read_all(shard->fd, shard->path, page, sizeof page, 0);
    if (memcmp(page, "GEMMAPLE", 8) != 0)
        fail(BAD_INPUT, "%s: found a file that is no PLE shard, wanted one that begins with GEMMAPLE", shard->path);
    sha256_fields(page, digest);
    bool is_sound = memcmp(digest, page + FIELD_BYTES, sizeof digest) == 0;
    for (int i = FIELD_BYTES + 32; i < HEADER_BYTES; i++) is_sound &= page[i] == 0;
    if (!is_sound) fail(BAD_INPUT, "%s header: found damaged bytes, wanted bytes that match its hash", shard->path);
    Layout layout = read_layout(page, shard, position);
    shard->bytes = HEADER_BYTES + shard->row_count * layout.row_bytes;
    if ((uint64_t)status.st_size != shard->bytes)
        fail(BAD_INPUT, "%s: found %" PRIu64 " bytes, wanted %" PRIu64, shard->path, (uint64_t)status.st_size,
             shard->bytes);
    return layout;
}

static Table open_table(char **paths, int count) {
    if (count < 1 || count > MOST_SHARDS) fail(BAD_INPUT, "shards: found %d, wanted 1 to %d", count, MOST_SHARDS);
    Table table = {.count = (uint32_t)count, .page_bytes = (uint64_t)sysconf(_SC_PAGESIZE)};
    table.shards = allocate((uint64_t)count, sizeof *table.shards);
    uint64_t expected = 0;
    for (uint32_t i = 0; i < table.count; i++) {
        Shard *shard = &table.shards[i];
        shard->path = paths[i];
        Layout layout = open_shard(shard, i);
        if (i == 0) table.layout = layout;
        if (!is_same(&layout, &table.layout))
            fail(BAD_INPUT, "%s: found another table's layout, wanted that of %s", shard->path, paths[0]);
        require(shard->first_token == expected, shard->path, "first_token", shard->first_token,
                "the one after the previous shard");
        expected += shard->row_count;
        table.pages += (shard->bytes + table.page_bytes - 1) / table.page_bytes;
    }
    if (table.layout.shard_count != table.count || expected != table.layout.vocab_size)
        fail(BAD_INPUT, "shards: found %" PRIu32 " with %" PRIu64 " rows, wanted %" PRIu32 " with %" PRIu64, table.count,
             expected, table.layout.shard_count, table.layout.vocab_size);
    return table;
}

/* ---- tokens -------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t *ids;
    uint64_t count;  /* the length of the list; 0: random tokens */
    uint64_t next;   /* the position in the list */
    uint64_t chance; /* state of splitmix64 */
} Tokens;

static uint64_t next_token(Tokens *tokens, uint64_t vocab_size) {
    if (tokens->count) return tokens->ids[tokens->next++ % tokens->count];
    uint64_t value = tokens->chance += 0x9E3779B97F4A7C15u; /* splitmix64, Steele et al. 2014 */
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
    value = (value ^ value >> 27) * 0x94D049BB133111EBu;
    return (value ^ value >> 31) % vocab_size;
}

/* Read ids separated by white space; like the model's reader, an id outside the table reads row 0. */
static void read_tokens(const char *path, Tokens *tokens, uint64_t vocab_size) {
    FILE *file = fopen(path, "r");
    if (!file) fail(BAD_INPUT, "%s: found '%s', wanted token ids", path, strerror(errno));
    char word[24];
    tokens->ids = allocate(MOST_TOKENS, sizeof *tokens->ids);
    while (fscanf(file, "%23s", word) == 1) {
        char *end;
        errno = 0;
        long long value = strtoll(word, &end, 10);
        if (*end || errno || strlen(word) > 20)
            fail(BAD_INPUT, "%s: found '%s', wanted token ids, whole numbers with blanks between", path, word);
        if (tokens->count == MOST_TOKENS) fail(BAD_INPUT, "%s: found more ids, wanted at most %d", path, MOST_TOKENS);
        tokens->ids[tokens->count++] = value < 0 || (uint64_t)value >= vocab_size ? 0 : (uint64_t)value;
    }
    if (ferror(file) || !tokens->count) fail(BAD_INPUT, "%s: found no token ids, wanted at least one", path);
    fclose(file);
}

static int compare_ids(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Draw a batch of ids, distinct and in ascending order, as the model's reader looks them up. */
static uint64_t draw_batch(Tokens *tokens, uint64_t vocab_size, uint64_t *batch, uint64_t count) {
    uint64_t distinct = 0;
    for (uint64_t i = 0; i < count; i++) batch[i] = next_token(tokens, vocab_size);
    qsort(batch, (size_t)count, sizeof *batch, compare_ids);
    for (uint64_t i = 0; i < count; i++)
        if (!distinct || batch[distinct - 1] != batch[i]) batch[distinct++] = batch[i];
    return distinct;
}

/* ---- the page cache ------------------------------------------------------------------------------------------ */

static void map_all(Table *table, int advice) {
    for (uint32_t i = 0; i < table->count; i++) {
        Shard *shard = &table->shards[i];
        shard->map = mmap(NULL, (size_t)shard->bytes, PROT_READ, MAP_SHARED, shard->fd, 0);
        if (shard->map == MAP_FAILED || madvise(shard->map, (size_t)shard->bytes, advice) < 0)
            fail(SYSTEM, "%s: found '%s', wanted to map it", shard->path, strerror(errno));
    }
}

static void unmap_all(Table *table) {
    for (uint32_t i = 0; i < table->count; i++) {
        if (table->shards[i].map) munmap(table->shards[i].map, (size_t)table->shards[i].bytes);
        table->shards[i].map = NULL;
    }
}

/* Count the shards' pages in memory. For a file that we neither own nor may write to, Linux reports all pages. */
static uint64_t resident_pages(const Table *table) {
    static unsigned char flags[65536];
    uint64_t found = 0;
    for (uint32_t i = 0; i < table->count; i++) {
        const Shard *shard = &table->shards[i];
        uint8_t *map = mmap(NULL, (size_t)shard->bytes, PROT_READ, MAP_SHARED, shard->fd, 0);
        if (map == MAP_FAILED) fail(SYSTEM, "%s: found '%s', wanted to map it", shard->path, strerror(errno));
        uint64_t step = sizeof flags * table->page_bytes;
        for (uint64_t at = 0; at < shard->bytes; at += step) {
            uint64_t size = shard->bytes - at < step ? shard->bytes - at : step;
            if (mincore(map + at, (size_t)size, flags) < 0)
                fail(SYSTEM, "%s: found '%s', wanted mincore", shard->path, strerror(errno));
            for (uint64_t page = 0; page * table->page_bytes < size; page++) found += flags[page] & 1;
        }
        munmap(map, (size_t)shard->bytes);
    }
    return found;
}

/* Drop the shards from memory, and return how many pages stay. Dirty and mapped pages cannot be dropped. */
static uint64_t drop_pages(Table *table) {
    uint64_t left = 0;
    unmap_all(table);
    for (int i = 0; i < TRIES; i++) {
        for (uint32_t shard = 0; shard < table->count; shard++) {
            fsync(table->shards[shard].fd);
            posix_fadvise(table->shards[shard].fd, 0, 0, POSIX_FADV_DONTNEED);
        }
        left = resident_pages(table);
        if (!left) break;
    }
    return left;
}

/* read_bytes of /proc/self/io: the bytes read from storage for this process; -1 if not reported. */
static int64_t storage_bytes(void) {
    FILE *file = fopen("/proc/self/io", "r");
    char name[32];
    long long value, found = -1;
    while (file && fscanf(file, "%31s %lld", name, &value) == 2)
        if (strcmp(name, "read_bytes:") == 0) found = value;
    if (file) fclose(file);
    return found;
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

typedef enum { NOTHING_AHEAD, READAHEAD, WILLNEED } Ahead;

typedef struct {
    const char *name;
    bool is_mapped, is_random;
    Ahead ahead; /* called for all rows of a batch before the first is read */
} Access;

static const Access ACCESSES[] = {
    {"pread", false, false, NOTHING_AHEAD},  {"pread_random", false, true, NOTHING_AHEAD},
    {"mmap", true, false, NOTHING_AHEAD},    {"mmap_random", true, true, NOTHING_AHEAD},
    {"pread_readahead", false, true, READAHEAD}, {"mmap_willneed", true, true, WILLNEED},
};
enum { ACCESS_COUNT = sizeof ACCESSES / sizeof ACCESSES[0] };

typedef struct {
    uint64_t reads, rows, time_ns, minor_faults, major_faults, pages_before, pages_after;
    int64_t storage_bytes;
    uint64_t *latency_ns; /* of each read, a row or a batch */
} Measure;

typedef struct {
    Table *table;
    const Access *access;
    uint64_t *batch; /* ids of one read */
    uint64_t batch_rows;
    uint8_t *rows; /* room for a batch */
} Reader;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static Shard *find_shard(const Table *table, uint64_t token) {
    uint32_t low = 0, high = table->count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (table->shards[middle].first_token <= token) low = middle;
        else high = middle;
    }
    return &table->shards[low];
}

static uint64_t row_offset(const Table *table, const Shard *shard, uint64_t token) {
    return HEADER_BYTES + (token - shard->first_token) * table->layout.row_bytes;
}

static void advise_row(const Table *table, const Shard *shard, uint64_t offset, int advice) {
    uint64_t start = offset / table->page_bytes * table->page_bytes;
    madvise(shard->map + start, (size_t)(offset + table->layout.row_bytes - start), advice);
}

/* The part that is timed: from the ids to their rows in our own memory. */
static void read_batch(const Reader *reader, uint64_t count) {
    const Table *table = reader->table;
    uint64_t row_bytes = table->layout.row_bytes;
    for (uint64_t i = 0; reader->access->ahead != NOTHING_AHEAD && i < count; i++) {
        Shard *shard = find_shard(table, reader->batch[i]);
        uint64_t offset = row_offset(table, shard, reader->batch[i]);
        if (reader->access->ahead == WILLNEED) advise_row(table, shard, offset, MADV_WILLNEED);
        else readahead(shard->fd, (off_t)offset, (size_t)row_bytes);
    }
    for (uint64_t i = 0; i < count; i++) {
        Shard *shard = find_shard(table, reader->batch[i]);
        uint64_t offset = row_offset(table, shard, reader->batch[i]);
        uint8_t *target = reader->rows + i * row_bytes;
        if (reader->access->is_mapped) memcpy(target, shard->map + offset, (size_t)row_bytes);
        else read_all(shard->fd, shard->path, target, row_bytes, offset);
    }
}

/* The part that is not timed: check the checksums, and unmap the rows as the model's reader does. */
static void settle_batch(const Reader *reader, uint64_t count) {
    const Table *table = reader->table;
    uint64_t row_bytes = table->layout.row_bytes;
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *row = reader->rows + i * row_bytes;
        Shard *shard = find_shard(table, reader->batch[i]);
        if (crc32(row, (size_t)(row_bytes - CHECKSUM_BYTES)) != number(row + row_bytes - CHECKSUM_BYTES, 4))
            fail(BAD_INPUT, "%s row of token %" PRIu64 ": found damaged bytes, wanted bytes that match its checksum",
                 shard->path, reader->batch[i]);
        if (reader->access->is_mapped)
            advise_row(table, shard, row_offset(table, shard, reader->batch[i]), MADV_DONTNEED);
    }
}

static void prepare_access(const Reader *reader) {
    Table *table = reader->table;
    for (uint32_t i = 0; i < table->count; i++)
        posix_fadvise(table->shards[i].fd, 0, 0,
                      !reader->access->is_mapped && reader->access->is_random ? POSIX_FADV_RANDOM : POSIX_FADV_NORMAL);
    unmap_all(table);
    if (reader->access->is_mapped) map_all(table, reader->access->is_random ? MADV_RANDOM : MADV_NORMAL);
}

/* Read the same rows once without timing, so that they are in memory, if there is room. */
static void warm_up(Reader *reader, Tokens tokens, uint64_t reads) {
    const Access plain = ACCESSES[1];
    Reader warm = *reader;
    warm.access = &plain;
    prepare_access(&warm);
    for (uint64_t i = 0; i < reads; i++) {
        uint64_t count = draw_batch(&tokens, reader->table->layout.vocab_size, reader->batch, reader->batch_rows);
        read_batch(&warm, count);
    }
}

/* End if nobody reads the results any more. */
static void require_listener(void) {
    struct pollfd output = {.fd = STDOUT_FILENO};
    if (poll(&output, 1, 0) > 0 && output.revents & (POLLERR | POLLHUP)) exit(SYSTEM);
}

static void measure_one(Reader *reader, uint64_t count, Measure *measure) {
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    uint64_t started = now_ns();
    read_batch(reader, count);
    uint64_t took = now_ns() - started;
    getrusage(RUSAGE_SELF, &after);
    settle_batch(reader, count);
    measure->latency_ns[measure->reads++] = took;
    measure->time_ns += took;
    measure->rows += count;
    measure->minor_faults += (uint64_t)(after.ru_minflt - before.ru_minflt);
    measure->major_faults += (uint64_t)(after.ru_majflt - before.ru_majflt);
}

/* `reads` reads of `batch_rows` rows. Cold: single rows start from an empty cache, as a conversation does; each batch
 * does, as each prompt may. */
static void measure_all(Reader *reader, Tokens tokens, uint64_t reads, bool is_cold, Measure *measure) {
    measure->reads = measure->rows = measure->time_ns = measure->minor_faults = measure->major_faults = 0;
    measure->pages_before = 0;
    if (is_cold) measure->pages_before = drop_pages(reader->table);
    else {
        warm_up(reader, tokens, reads);
        measure->pages_before = resident_pages(reader->table);
    }
    int64_t stored = storage_bytes();
    for (uint64_t i = 0; i < reads; i++) {
        require_listener();
        if (is_cold && i && reader->batch_rows > 1) {
            uint64_t left = drop_pages(reader->table);
            if (left > measure->pages_before) measure->pages_before = left;
        }
        if (!i || (is_cold && reader->batch_rows > 1)) prepare_access(reader);
        measure_one(reader, draw_batch(&tokens, reader->table->layout.vocab_size, reader->batch, reader->batch_rows),
                    measure);
    }
    measure->storage_bytes = stored < 0 ? -1 : storage_bytes() - stored;
    measure->pages_after = resident_pages(reader->table);
    unmap_all(reader->table);
}

/* ---- results ------------------------------------------------------------------------------------------------- */

/* A percentile of sorted latencies: the smallest that `percent` of all do not exceed. */
static double percentile_us(const Measure *measure, unsigned percent) {
    uint64_t rank = (measure->reads * percent + 99) / 100;
    return (double)measure->latency_ns[rank ? rank - 1 : 0] / 1000.0;
}

static void print_measure(const Reader *reader, bool is_cold, Measure *measure) {
    const char *state = !is_cold ? "warm" : measure->pages_before ? "not_cold" : "cold";
    uint64_t bytes = measure->rows * reader->table->layout.row_bytes;
    double seconds = (double)measure->time_ns / 1e9;
    qsort(measure->latency_ns, (size_t)measure->reads, sizeof *measure->latency_ns, compare_ids);
    printf("{\"record\": \"reads\", \"access\": \"%s\", \"pattern\": \"%s\", \"state\": \"%s\", \"reads\": %" PRIu64
           ", \"rows\": %" PRIu64 ", \"latency_mean_us\": %.3f, \"latency_p50_us\": %.3f, \"latency_p90_us\": %.3f, "
           "\"latency_p99_us\": %.3f, \"latency_max_us\": %.3f",
           reader->access->name, reader->batch_rows > 1 ? "batch" : "row", state, measure->reads, measure->rows,
           (double)measure->time_ns / 1000.0 / (double)measure->reads, percentile_us(measure, 50),
           percentile_us(measure, 90), percentile_us(measure, 99), percentile_us(measure, 100));
    printf(", \"row_bytes_read\": %" PRIu64 ", \"read_s\": %.9f, \"bandwidth_bytes_per_s\": %.0f, \"minor_faults\": %" PRIu64
           ", \"major_faults\": %" PRIu64, bytes, seconds, seconds > 0 ? (double)bytes / seconds : 0.0,
           measure->minor_faults, measure->major_faults);
    if (measure->storage_bytes < 0) printf(", \"storage_read_bytes\": null");
    else printf(", \"storage_read_bytes\": %" PRId64, measure->storage_bytes);
    printf(", \"resident_pages_before\": %" PRIu64 ", \"resident_pages_after\": %" PRIu64 "}\n", measure->pages_before,
           measure->pages_after);
    if (fflush(stdout)) exit(SYSTEM);
}

static void print_table(const Table *table, uint64_t seed, const Tokens *tokens, uint64_t measures) {
    const Layout *layout = &table->layout;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < table->count; i++) bytes += table->shards[i].bytes;
    printf("{\"record\": \"table\", \"pid\": %ld, \"shards\": %" PRIu32 ", \"table_bytes\": %" PRIu64
           ", \"table_pages\": %" PRIu64 ", \"page_bytes\": %" PRIu64 ", \"row_bytes\": %" PRIu32 ", \"rows\": %" PRIu64
           ", \"bits\": %" PRIu32 ", \"seed\": %" PRIu64 ", \"listed_tokens\": %" PRIu64 ", \"measures\": %" PRIu64 "}\n",
           (long)getpid(), table->count, bytes, table->pages, table->page_bytes, layout->row_bytes, layout->vocab_size,
           layout->bits, seed, tokens->count, measures);
    if (fflush(stdout)) exit(SYSTEM);
}

static void on_bus_error(int signal_number) {
    static const char text[] = "shards: found a file that shrank or cannot be read, wanted the whole file\n";
    (void)signal_number;
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(SYSTEM);
}

static uint64_t parse_count(const char *option, const char *text, uint64_t least, uint64_t most) {
    uint64_t value = 0;
    if (!parse_number(text, least, most, &value))
        fail(BAD_INPUT, "%s: found '%s', wanted %" PRIu64 " to %" PRIu64, option, text, least, most);
    return value;
}

static int drop_files(char **paths, int count) {
    Table table = {.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE)};
    uint64_t bytes = 0;
    if (count < 1 || count > MOST_SHARDS) fail(BAD_INPUT, "--drop: found %d files, wanted 1 to %d", count, MOST_SHARDS);
    table.shards = allocate((uint64_t)count, sizeof *table.shards);
    for (int i = 0; i < count; i++) {
        Shard *shard = &table.shards[table.count];
        struct stat status;
        shard->path = paths[i];
        shard->fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (shard->fd < 0 || fstat(shard->fd, &status) < 0)
            fail(BAD_INPUT, "%s: found '%s', wanted a file", shard->path, strerror(errno));
        if (!S_ISREG(status.st_mode)) fail(BAD_INPUT, "%s: found something else, wanted a regular file", shard->path);
        shard->bytes = (uint64_t)status.st_size;
        bytes += shard->bytes;
        if (shard->bytes) table.count++;
        else close(shard->fd);
    }
    uint64_t left = drop_pages(&table);
    printf("{\"record\": \"dropped\", \"files\": %d, \"bytes\": %" PRIu64 ", \"resident_bytes\": %" PRIu64 "}\n", count,
           bytes, left * table.page_bytes);
    return fflush(stdout) ? SYSTEM : 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--drop") == 0) return drop_files(argv + 2, argc - 2);
    uint64_t seed = 0, reads = 512, batch_rows = 256, batches = 8;
    bool wants_cold = true, wants_warm = true;
    const char *list = NULL;
    int at = 1;
    for (; at < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        if (at + 1 >= argc) fail(BAD_INPUT, "%s: found nothing after it, wanted a value", argv[at]);
        if (strcmp(argv[at], "--seed") == 0) seed = parse_count("--seed", argv[at + 1], 0, UINT64_MAX);
        else if (strcmp(argv[at], "--reads") == 0) reads = parse_count("--reads", argv[at + 1], 1, MOST_READS);
        else if (strcmp(argv[at], "--batch") == 0) batch_rows = parse_count("--batch", argv[at + 1], 2, MOST_READS);
        else if (strcmp(argv[at], "--batches") == 0) batches = parse_count("--batches", argv[at + 1], 1, MOST_READS);
        else if (strcmp(argv[at], "--tokens") == 0) list = argv[at + 1];
        else if (strcmp(argv[at], "--state") == 0) {
            wants_cold = strcmp(argv[at + 1], "cold") == 0;
            wants_warm = strcmp(argv[at + 1], "warm") == 0;
            if (!wants_cold && !wants_warm) fail(BAD_INPUT, "--state: found '%s', wanted cold or warm", argv[at + 1]);
        } else fail(BAD_INPUT, "option: found %s, wanted one of those in docs/probe.md", argv[at]);
    }
    fill_crc_table();
    signal(SIGBUS, on_bus_error);
    Table table = open_table(argv + at, argc - at);
    if (batch_rows * table.layout.row_bytes > MOST_BATCH_BYTES)
        fail(BAD_INPUT, "--batch: found %" PRIu64 " rows of %" PRIu32 " bytes, wanted at most %" PRIu64 " bytes",
             batch_rows, table.layout.row_bytes, MOST_BATCH_BYTES);
    Tokens tokens = {.chance = seed};
    if (list) read_tokens(list, &tokens, table.layout.vocab_size);
    Reader reader = {.table = &table, .batch = allocate(batch_rows, sizeof(uint64_t)),
                     .rows = allocate(batch_rows, table.layout.row_bytes)};
    memset(reader.rows, 1, (size_t)(batch_rows * table.layout.row_bytes)); /* cause its page faults before timing */
    Measure measure = {.latency_ns = allocate(reads > batches ? reads : batches, sizeof(uint64_t))};
    uint64_t row_ways = 0;
    for (int i = 0; i < ACCESS_COUNT; i++) row_ways += ACCESSES[i].ahead == NOTHING_AHEAD;
    print_table(&table, seed, &tokens, (uint64_t)(wants_cold + wants_warm) * (row_ways + ACCESS_COUNT));
    for (int is_batch = 0; is_batch < 2; is_batch++)
        for (int is_cold = 1; is_cold >= 0; is_cold--)
            for (int i = 0; i < ACCESS_COUNT; i++) {
                if (is_cold ? !wants_cold : !wants_warm) continue;
                if (!is_batch && ACCESSES[i].ahead != NOTHING_AHEAD) continue;
                reader.access = &ACCESSES[i];
                reader.batch_rows = is_batch ? batch_rows : 1;
                measure_all(&reader, tokens, is_batch ? batches : reads, is_cold, &measure);
                print_measure(&reader, is_cold, &measure);
            }
    return 0;
}
