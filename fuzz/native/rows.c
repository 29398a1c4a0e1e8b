/* A shard of per-layer embeddings, as bundle_runner opens it and reads rows. All hashes and checksums are corrected,
 * so that the code behind them is reached. */
#include <sys/mman.h>

#include "bundle_runner/ple.c"

static const TextRecord TEXT = {.ple_vocab_size = 4, .num_layers = 2, .ple_size = 16};

static void write_at(int file, const void *data, size_t size, uint64_t offset) {
    if (pwrite(file, data, size, (off_t)offset) != (ssize_t)size) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int file = -1;
    static char name[32];
    if (file < 0) {
        file = memfd_create("ple", 0);
        snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    }
    if (size < 128 || ftruncate(file, 0)) return 0;
    Digest digest = sha256_of(data, FIELD_BYTES);
    write_at(file, data, size, 0);
    write_at(file, &digest, sizeof digest, FIELD_BYTES);
    PleTable table = {.shards = 1};
    Shard shard = {.file = -1};
    snprintf(shard.path, sizeof shard.path, "%s", name);
    table.shard = &shard;
    if (read_header(&table, &TEXT, &shard, 0)) {
        float values[2 * 16];
        uint8_t *row = malloc(table.row_bytes);
        for (uint64_t i = 0; i < shard.rows; i++) {
            uint64_t offset = HEADER_BYTES + i * table.row_bytes;
            if (pread(file, row, table.row_bytes, (off_t)offset) != (ssize_t)table.row_bytes) abort();
            uint32_t checksum = crc32(row, table.row_bytes - CHECKSUM_BYTES);
            write_at(file, &checksum, sizeof checksum, offset + table.row_bytes - CHECKSUM_BYTES);
            ple_read(&table, (int64_t)i, values);
        }
        free(row);
    }
    if (shard.file >= 0) close(shard.file);
    free(table.row);
    take_fault();
    return 0;
}
