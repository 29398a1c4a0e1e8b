#include "manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "manifest_runtime.h"

enum { MOST_MANIFEST_BYTES = 16 << 20, MOST_DIMENSION = 1 << 20 };
#define MOST_FILE_BYTES ((int64_t)1 << 50)
#define FORMAT "gemma-edge-bundle/3"

static bool read_digest(const JsonSource *source, const JsonValue *value, const char *place, Digest *digest) {
    static const char digits[] = "0123456789abcdef";
    const char *words = value && value->kind == JSON_STRING ? value->string : "";
    bool is_right = strlen(words) == 64;
    for (int i = 0; i < 32 && is_right; i++) {
        const char *high = strchr(digits, words[2 * i]), *low = strchr(digits, words[2 * i + 1]);
        is_right = high && low;
        if (is_right) digest->bytes[i] = (uint8_t)((high - digits) << 4 | (low - digits));
    }
    return is_right || wrong(source, place, "no hash", "64 lower-case hexadecimal digits");
}

/* ---- files and groups ---------------------------------------------------------------------------------------- */

static bool read_file_record(const JsonSource *source, const JsonValue *value, FileRecord *record) {
    const char *place = record->name;
    int64_t bytes;
    if (!json_is_record(source, value, place, "bytes sha256 chunks", "") ||
        !json_integer(source, value, place, "bytes", 0, MOST_FILE_BYTES, &bytes) ||
        !read_digest(source, json_member(source->json, value, "sha256"), place, &record->sha256))
        return false;
    record->bytes = (uint64_t)bytes;
    const JsonValue *chunks = json_member(source->json, value, "chunks");
    uint64_t wanted = (record->bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
    if (chunks->kind != JSON_ARRAY || chunks->count != wanted)
        return wrong(source, text("files %s chunks", place), text("%u", chunks->count),
                     text("%llu for %llu bytes", (unsigned long long)wanted, (unsigned long long)record->bytes));
    const JsonValue *first = json_first(source->json, chunks), *last = first;
    for (const JsonValue *item = first; item; item = json_next(source->json, item)) last = item;
    return !first || (read_digest(source, first, place, &record->first) && read_digest(source, last, place, &record->last));
}

static bool read_files(const JsonSource *source, const JsonValue *files, Manifest *manifest) {
    if (files->kind != JSON_OBJECT || files->count > MOST_FILES)
        return wrong(source, "files", text("%u", files->count), text("an object of at most %d", MOST_FILES));
    manifest->file = allocate(files->count, sizeof *manifest->file);
    if (!manifest->file) return false;
    const JsonValue *item = json_first(source->json, files);
    for (; item; item = json_next(source->json, item)) {
        FileRecord *record = &manifest->file[manifest->files++];
        if (!is_name(item->key)) return wrong(source, "files", text("%.100s", item->key), "a name");
        snprintf(record->name, sizeof record->name, "%s", item->key);
        if (!read_file_record(source, item, record)) return false;
    }
    return true;
}

/* Note the group of each of its files. */
static bool read_group_files(const JsonSource *source, const JsonValue *group, const char *name, Manifest *manifest) {
    const JsonValue *files = json_member(source->json, group, "files");
    if (files->kind != JSON_ARRAY) return wrong(source, text("groups %s files", name), "no list", "a list");
    const JsonValue *item = json_first(source->json, files);
    for (; item; item = json_next(source->json, item)) {
        const char *word = item->kind == JSON_STRING ? item->string : "";
        FileRecord *found = NULL;
        for (size_t i = 0; i < manifest->files; i++)
            if (strcmp(manifest->file[i].name, word) == 0) found = &manifest->file[i];
        if (!found || found->group[0])
            return wrong(source, text("groups %s files", name), text("%.100s", word), "files of the bundle, each in one group");
        snprintf(found->group, sizeof found->group, "%s", name);
    }
    return true;
}

/* ---- groups, sizes, the whole -------------------------------------------------------------------------------- */

static bool is_kind(const char *word) {
    static const char *const kinds[] = {"text", "token_embedding", "per_layer_embedding", "vision", "audio", "drafter"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i], word) == 0) return true;
    return false;
}

static bool read_group(const JsonSource *source, const JsonValue *group, const char *name, Manifest *manifest) {
    const char *place = text("groups %.128s", name), *kind;
    int64_t number;
    if (!is_name(name)) return wrong(source, "groups", text("%.100s", name), "a name");
    if (!json_is_record(source, group, place, "kind files parameters bytes runtime", "") ||
        !json_string(source, group, place, "kind", 64, &kind) ||
        !json_integer(source, group, place, "parameters", 0, MOST_FILE_BYTES, &number) ||
        !json_integer(source, group, place, "bytes", 0, MOST_FILE_BYTES, &number))
        return false;
    if (!is_kind(kind) || (is_kind(name) && strcmp(name, kind) != 0))
        return wrong(source, text("groups %s kind", name), text("%.60s", kind), is_kind(name) ? name : "a kind of group");
    const JsonValue *runtime = json_member(source->json, group, "runtime");
    if (!read_group_files(source, group, name, manifest)) return false;
    if (strcmp(name, "text") == 0) return read_text(source, runtime, &manifest->text);
    return true;
}

static bool read_groups(const JsonSource *source, const JsonValue *groups, Manifest *manifest) {
    if (groups->kind != JSON_OBJECT || groups->count > MOST_GROUPS)
        return wrong(source, "groups", text("%u", groups->count), text("an object of at most %d", MOST_GROUPS));
    if (!json_member(source->json, groups, "text")) return wrong(source, "groups", "no group text", "text among them");
    const JsonValue *item = json_first(source->json, groups);
    for (; item; item = json_next(source->json, item))
        if (!read_group(source, item, item->key, manifest)) return false;
    for (int i = 0; i < 2; i++) {
        const JsonValue *group = json_member(source->json, groups, i ? "audio" : "vision");
        const JsonValue *runtime = group ? json_member(source->json, group, "runtime") : NULL;
        TowerRecord *tower = i ? &manifest->audio : &manifest->vision;
        if (group && !read_tower(source, runtime, !i, manifest->text.vocab_size, tower)) return false;
    }
    const TowerRecord *one = &manifest->vision, *other = &manifest->audio;
    if (one->is_there && other->is_there && one->table_first < other->table_first + other->table_count &&
        other->table_first < one->table_first + one->table_count)
        return wrong(source, "groups audio runtime vocab_offset", text("%lld", (long long)other->table_first),
                     "no id of vision's table");
    return true;
}

static bool read_size(const JsonSource *source, const JsonValue *value, const char *name, Manifest *manifest) {
    SizeRecord *size = &manifest->size[manifest->sizes++];
    int64_t *layers, *widths;
    size_t layer_count, width_count;
    const char *place = text("sizes %.64s", name);
    const JsonValue *prefix = json_member(source->json, value, "prefix");
    for (const char *at = name; *at; at++)
        if (*at < 0x20 || *at > 0x7E || *at == '/' || strlen(name) > 64)
            return wrong(source, "sizes", text("%.64s", name), "1 to 64 printable characters without a slash");
    snprintf(size->name, sizeof size->name, "%s", name);
    if (!*name || !json_is_record(source, value, place, "layers ffn_sizes prefix", "")) return wrong(source, "sizes", "no name", NULL);
    if (!json_integers(source, value, place, "layers", 0, 1023, 1024, true, &layers, &layer_count)) return false;
    free(layers);
    if (!json_integers(source, value, place, "ffn_sizes", 1, MOST_DIMENSION, 1024, false, &widths, &width_count)) return false;
    free(widths);
    const char *word = prefix->kind == JSON_STRING ? prefix->string : "/";
    if (layer_count != width_count || (*word && !is_name(word)) || strncmp(word, "prefill", 7) == 0)
        return wrong(source, text("sizes %s", name), "another form", "as many ffn_sizes as layers, and a prefix");
    snprintf(size->prefix, sizeof size->prefix, "%s", word);
    for (size_t i = 0; i + 1 < manifest->sizes; i++)
        if (strcmp(manifest->size[i].prefix, word) == 0) return wrong(source, "sizes", "a prefix twice", "each prefix once");
    return true;
}

static bool read_sizes(const JsonSource *source, const JsonValue *root, Manifest *manifest) {
    const JsonValue *sizes = json_member(source->json, root, "sizes");
    const char *wanted;
    if (sizes->kind != JSON_OBJECT || !sizes->count || sizes->count > MOST_SIZES)
        return wrong(source, "sizes", text("%u", sizes->count), text("an object of 1 to %d", MOST_SIZES));
    const JsonValue *item = json_first(source->json, sizes);
    for (; item; item = json_next(source->json, item))
        if (!read_size(source, item, item->key, manifest)) return false;
    if (!json_string(source, root, "", "default_size", 64, &wanted)) return false;
    for (size_t i = 0; i < manifest->sizes; i++)
        if (strcmp(manifest->size[i].name, wanted) == 0 && !manifest->size[i].prefix[0]) {
            manifest->default_size = i;
            return true;
        }
    return wrong(source, "default_size", wanted, "the size whose prefix is empty");
}

static bool read_root(const JsonSource *source, Manifest *manifest) {
    const JsonValue *root = json_root(source->json);
    const char *format;
    const JsonValue *stated = json_member(source->json, root, "format");
    if (stated && stated->kind == JSON_STRING && strcmp(stated->string, FORMAT) != 0)
        return wrong(source, "format", text("%.60s", stated->string), FORMAT);
    return json_is_record(source, root, "the whole",
                          "format generator architecture checkpoint sizes default_size quant groups files sha256", "") &&
           json_string(source, root, "", "format", 64, &format) &&
           read_files(source, json_member(source->json, root, "files"), manifest) &&
           read_groups(source, json_member(source->json, root, "groups"), manifest) && read_sizes(source, root, manifest);
}

/* The hash of the whole file but the one line that states it; *lines is how many such lines there are. */
static bool hash_without_own_line(const char *data, size_t bytes, Digest *digest, int *lines) {
    static const char own[] = "\n \"sha256\": \"";
    char *kept = allocate(bytes, 1);
    size_t size = 0, next;
    *lines = 0;
    for (size_t at = 0; kept && at < bytes; at = next) {
        const char *newline = memchr(data + at + 1, '\n', bytes - at - 1);
        next = newline ? (size_t)(newline - data) : bytes;
        /* A line with the newline before it, except the first. */
        bool is_own = next - at >= sizeof own - 1 && memcmp(data + at, own, sizeof own - 1) == 0;
        *lines += is_own;
        if (!is_own) memcpy(kept + size, data + at, next - at), size += next - at;
    }
    if (kept) *digest = sha256_of(kept, size);
    free(kept);
    return kept != NULL;
}

static bool parse_manifest(Manifest *manifest, const char *path, char *data, size_t bytes) {
    Json json = {0};
    JsonSource source = {&json, BUNDLE, path};
    Digest found, stated;
    int lines;
    bool is_read = hash_without_own_line(data, bytes, &found, &lines) && json_parse(&json, data, bytes, BUNDLE, path) &&
                   read_root(&source, manifest) &&
                   read_digest(&source, json_member(&json, json_root(&json), "sha256"), "sha256", &stated) &&
                   ((lines == 1 && is_same_digest(&found, &stated)) ||
                    wrong(&source, "sha256", "another hash", "that of the manifest without this line"));
    json_free(&json);
    return is_read;
}

bool manifest_read(Manifest *manifest, const char *folder) {
    char *data;
    size_t bytes;
    memset(manifest, 0, sizeof *manifest);
    if (snprintf(manifest->folder, sizeof manifest->folder, "%s", folder) + 130 > (int)sizeof manifest->folder)
        return refuse(USAGE, folder, NULL, "a path that is too long", NULL);
    char *path = allocate(strlen(folder) + 16, 1);
    if (!path) return false;
    snprintf(path, strlen(folder) + 16, "%s/manifest.json", folder);
    bool is_read = read_file(path, BUNDLE, MOST_MANIFEST_BYTES, &data, &bytes);
    if (is_read) {
        is_read = parse_manifest(manifest, path, data, bytes);
        free(data);
    }
    free(path);
    if (!is_read) manifest_free(manifest);
    return is_read;
}

void manifest_free(Manifest *manifest) {
    free(manifest->file);
    free(manifest->text.cache);
    memset(manifest, 0, sizeof *manifest);
}

const FileRecord *manifest_file(const Manifest *manifest, const char *name) {
    for (size_t i = 0; i < manifest->files; i++)
        if (strcmp(manifest->file[i].name, name) == 0) return &manifest->file[i];
    refuse(BUNDLE, manifest->folder, name, "no such file in the manifest", NULL);
    return NULL;
}

int manifest_size(const Manifest *manifest, const char *name) {
    for (size_t i = 0; i < manifest->sizes; i++)
        if (strcmp(manifest->size[i].name, name) == 0) return (int)i;
    refuse(USAGE, manifest->folder, "size", text("%.64s", name), "one of the manifest's sizes");
    return -1;
}

const char *manifest_path(const Manifest *manifest, const char *name) { return text("%s/%s", manifest->folder, name); }

bool manifest_check(const Manifest *manifest, const FileRecord *const records[], size_t count) {
    FilePart *parts = allocate(2 * count, sizeof *parts);
    char(*paths)[768] = allocate(count, sizeof *paths);
    size_t made = 0;
    bool is_right = parts && paths;
    for (size_t i = 0; i < count && is_right; i++) {
        const FileRecord *record = records[i];
        uint64_t bytes;
        snprintf(paths[i], sizeof paths[i], "%s/%s", manifest->folder, record->name);
        int file = open_file(paths[i], BUNDLE, &bytes);
        is_right = file >= 0 && (bytes == record->bytes ||
                                 refuse(BUNDLE, paths[i], NULL, text("%llu bytes", (unsigned long long)bytes),
                                        text("%llu", (unsigned long long)record->bytes)));
        if (file >= 0) close_file(file);
        if (!is_right || !record->bytes) continue;
        uint64_t last = (record->bytes - 1) / CHUNK_BYTES * CHUNK_BYTES;
        parts[made++] = (FilePart){paths[i], 0, last ? CHUNK_BYTES : record->bytes, record->first};
        if (last && strstr(record->name, ".tflite"))
            parts[made++] = (FilePart){paths[i], last, record->bytes - last, record->last};
    }
    is_right = is_right && check_parts(parts, made);
    free(parts);
    free(paths);
    return is_right;
}
