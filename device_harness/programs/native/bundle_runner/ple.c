#include "ple.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEADER_BYTES = 4096, FIELD_BYTES = 96, CHECKSUM_BYTES = 4, ROW_ALIGNMENT = 512 };
enum { FLOAT16_SCALES = 1, FLOAT32_SCALES = 2 }; /* versions of the format */

bool is_shard_name(const char *name) {
    if (strncmp(name, "ple_", 4) != 0 || strlen(name) != 13 || strcmp(name + 9, ".bin") != 0) return false;
    for (int i = 4; i < 9; i++)
        if (name[i] < '0' || name[i] > '9') return false;
    return true;
}

static uint32_t read_u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static uint64_t read_u64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}

static bool is_equal(const Shard *shard, const char *field, uint64_t found, uint64_t wanted) {
    return found == wanted || refuse(BUNDLE, shard->path, text("header %s", field), text("%llu", (unsigned long long)found),
                                     text("%llu", (unsigned long long)wanted));
}

/* What the manifest says about the table, and what its number of bits means. */
static bool set_layout(PleTable *table, const TextRecord *record, const Shard *shard, uint32_t bits) {
    if (bits != 2 && bits != 4 && bits != 8 && bits != 32)
        return refuse(BUNDLE, shard->path, "header bits", text("%u", bits), "2, 4, 8 or 32");
    table->bits = bits;
    table->vocab_size = (uint64_t)record->ple_vocab_size;
    table->layers = (uint32_t)record->num_layers, table->width = (uint32_t)record->ple_size;
    uint64_t codes = (uint64_t)table->layers * table->width * bits;
    if (codes % 8) return refuse(BUNDLE, shard->path, "header bits", "a part of a byte at a row's end", NULL);
    uint64_t bytes = codes / 8 + (bits == 32 ? 0 : table->scale_bytes * table->layers) + CHECKSUM_BYTES;
    table->row_bytes = (uint32_t)((bytes + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT);
    table->row = allocate(table->row_bytes, 1);
    return table->row != NULL;
}

static bool read_header(PleTable *table, const TextRecord *record, Shard *shard, size_t index) {
    uint8_t header[128];
    uint64_t bytes;
    shard->file = open_file(shard->path, BUNDLE, &bytes);
    if (shard->file < 0 || !read_exactly(shard->file, shard->path, BUNDLE, header, sizeof header, 0)) return false;
    Digest found = sha256_of(header, FIELD_BYTES), stated;
    memcpy(&stated, header + FIELD_BYTES, sizeof stated);
    if (memcmp(header, "GEMMAPLE", 8) != 0 || !is_same_digest(&found, &stated))
        return refuse(BUNDLE, shard->path, "header", "damaged bytes, or another format", "a PLE shard");
    uint32_t version = read_u32(header + 8);
    if (!table->row && version != FLOAT16_SCALES && version != FLOAT32_SCALES)
        return refuse(BUNDLE, shard->path, "header version", text("%u", version), "1 or 2");
    if (!table->row) table->version = version, table->scale_bytes = version == FLOAT16_SCALES ? 2 : 4;
    if (!is_equal(shard, "version", version, table->version) ||
        (!table->row && !set_layout(table, record, shard, read_u32(header + 48))))
        return false;
    uint64_t expected = index ? table->shard[index - 1].first + table->shard[index - 1].rows : 0;
    shard->first = read_u64(header + 16), shard->rows = read_u64(header + 24);
    if (!shard->rows || shard->rows > table->vocab_size - expected)
        return refuse(BUNDLE, shard->path, "header row_count", text("%llu", (unsigned long long)shard->rows),
                      text("1 to %llu", (unsigned long long)(table->vocab_size - expected)));
    posix_fadvise(shard->file, 0, 0, POSIX_FADV_RANDOM);
    return is_equal(shard, "header_bytes", read_u32(header + 12), HEADER_BYTES) &&
           is_equal(shard, "first_token", shard->first, expected) &&
           is_equal(shard, "vocab_size", read_u64(header + 32), table->vocab_size) &&
           is_equal(shard, "layers", read_u32(header + 40), table->layers) &&
           is_equal(shard, "width", read_u32(header + 44), table->width) &&
           is_equal(shard, "bits", read_u32(header + 48), table->bits) &&
           is_equal(shard, "row_bytes", read_u32(header + 52), table->row_bytes) &&
           is_equal(shard, "shard", read_u32(header + 56), index) &&
           is_equal(shard, "shard_count", read_u32(header + 60), table->shards) &&
           is_equal(shard, "bytes of the file", bytes, HEADER_BYTES + shard->rows * table->row_bytes);
}

bool ple_open(PleTable *table, const Manifest *manifest) {
    memset(table, 0, sizeof *table);
    for (size_t i = 0; i < manifest->files; i++) table->shards += is_shard_name(manifest->file[i].name);
    if (!table->shards) return refuse(BUNDLE, manifest->folder, NULL, "no PLE shards, so no text model", NULL);
    table->shard = allocate(table->shards, sizeof *table->shard);
    for (size_t i = 0; table->shard && i < table->shards; i++) table->shard[i].file = -1;
    bool is_open = table->shard != NULL;
    for (size_t i = 0; i < table->shards && is_open; i++) {
        char name[16];
        snprintf(name, sizeof name, "ple_%05u.bin", (unsigned)i % 100000);
        is_open = manifest_file(manifest, name) != NULL;
        snprintf(table->shard[i].path, sizeof table->shard[i].path, "%s/%s", manifest->folder, name);
        is_open = is_open && read_header(table, &manifest->text, &table->shard[i], i);
    }
    const Shard *last = is_open ? &table->shard[table->shards - 1] : NULL;
    is_open = is_open && is_equal(last, "row_count, summed over all shards", last->first + last->rows, table->vocab_size);
    if (!is_open) ple_close(table);
    return is_open;
}

void ple_close(PleTable *table) {
    for (size_t i = 0; table->shard && i < table->shards; i++)
        if (table->shard[i].file >= 0) close(table->shard[i].file);
    free(table->shard);
    free(table->row);
    memset(table, 0, sizeof *table);
}

/* The shard of a row, and the row's offset in it. */
static const Shard *place_of(const PleTable *table, int64_t id, uint64_t *row, uint64_t *offset) {
    *row = id >= 0 && (uint64_t)id < table->vocab_size ? (uint64_t)id : 0;
    size_t low = 0, high = table->shards;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (table->shard[middle].first <= *row) low = middle;
        else high = middle;
    }
    *offset = HEADER_BYTES + (*row - table->shard[low].first) * table->row_bytes;
    return &table->shard[low];
}

void ple_prefetch(const PleTable *table, const int32_t *ids, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint64_t row, offset;
        const Shard *shard = place_of(table, ids[i], &row, &offset);
        posix_fadvise(shard->file, (off_t)offset, table->row_bytes, POSIX_FADV_WILLNEED);
    }
}

/* CRC-32 as in zlib, eight bytes at a time. */
static uint32_t crc32(const uint8_t *data, size_t size) {
    static uint32_t tables[8][256];
    if (!tables[0][1]) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t value = byte;
            for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
            tables[0][byte] = value;
        }
        for (int k = 1; k < 8; k++)
            for (int byte = 0; byte < 256; byte++)
                tables[k][byte] = tables[k - 1][byte] >> 8 ^ tables[0][tables[k - 1][byte] & 0xFF];
    }
    uint32_t value = 0xFFFFFFFFu;
    for (; size >= 8; size -= 8, data += 8) {
        uint32_t low = read_u32(data) ^ value, high = read_u32(data + 4);
        value = tables[7][low & 0xFF] ^ tables[6][low >> 8 & 0xFF] ^ tables[5][low >> 16 & 0xFF] ^ tables[4][low >> 24] ^
                tables[3][high & 0xFF] ^ tables[2][high >> 8 & 0xFF] ^ tables[1][high >> 16 & 0xFF] ^ tables[0][high >> 24];
    }
    for (; size; size--, data++) value = value >> 8 ^ tables[0][(value ^ *data) & 0xFF];
    return ~value;
}

static float half_to_float(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float value = exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
    return half >> 15 ? -value : value;
}

/* The signed code number `at` of codes of at most 8 bits, the first in the lowest bits of a byte. */
static int code_at(const uint8_t *codes, size_t at, uint32_t bits) {
    uint32_t per_byte = 8 / bits, sign = 1u << (bits - 1);
    uint32_t code = codes[at / per_byte] >> at % per_byte * bits & ((sign << 1) - 1);
    return (int)(code ^ sign) - (int)sign;
}

/* The codes times their layer's scale times sqrt(width), in this order. */
static void unpack(const PleTable *table, float *to) {
    const uint8_t *codes = table->row;
    const uint8_t *scales = codes + (size_t)table->layers * table->width * table->bits / 8;
    float root = sqrtf((float)table->width);
    for (uint32_t layer = 0; layer < table->layers; layer++) {
        size_t first = (size_t)layer * table->width;
        float scale = 1;
        if (table->bits != 32 && table->scale_bytes == 2) scale = half_to_float(scales + 2 * layer);
        else if (table->bits != 32) memcpy(&scale, scales + 4 * layer, 4);
        for (uint32_t i = 0; i < table->width; i++) {
            size_t at = first + i;
            if (table->bits == 32) memcpy(&to[at], codes + 4 * at, 4), to[at] *= root;
            else to[at] = (float)code_at(codes, at, table->bits) * scale * root;
        }
    }
}

bool ple_read(PleTable *table, int64_t id, float *to) {
    uint64_t row, offset;
    const Shard *shard = place_of(table, id, &row, &offset);
    if (!read_exactly(shard->file, shard->path, BUNDLE, table->row, table->row_bytes, offset)) return false;
    size_t size = table->row_bytes - CHECKSUM_BYTES;
    if (crc32(table->row, size) != read_u32(table->row + size))
        return refuse(BUNDLE, shard->path, text("row of token %llu", (unsigned long long)row), "damaged bytes", NULL);
    table->rows_read++, table->bytes_read += table->row_bytes;
    unpack(table, to);
    return true;
}
