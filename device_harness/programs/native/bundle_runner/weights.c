#include "weights.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

/* Increase this with `_SCHEME` of weight_file.py. */
#define SCHEME "1"
#define SUFFIX ".xnnpack"
enum { MOST_LINES = 4096, MOST_KEPT = 4096 };

/* ---- names --------------------------------------------------------------------------------------------------- */

/* The lines of /proc/cpuinfo that name the cores' models and features. */
static bool is_about_cpu(const char *line) {
    static const char *const keys[] = {"model name",       "flags",       "Features", "CPU implementer",
                                       "CPU architecture", "CPU variant", "CPU part", "isa"};
    size_t length = strcspn(line, ":");
    while (length && strchr(" \t", line[length - 1])) length--;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strlen(keys[i]) == length && strncmp(line, keys[i], length) == 0) return true;
    return false;
}

static int compare_lines(const void *one, const void *other) {
    return strcmp(*(const char *const *)one, *(const char *const *)other);
}

/* What the packed weights depend on: the scheme, the model, the library, and the CPU. Free it. */
static char *key_text(const WeightCache *cache, const char *sha256) {
    struct utsname system;
    char *cpuinfo = read_proc("/proc/cpuinfo");
    char **lines = allocate(MOST_LINES, sizeof *lines);
    size_t count = 0, room = 1024;
    if (!lines) {
        free(cpuinfo);
        return NULL;
    }
    for (char *line = cpuinfo; line && *line && count < MOST_LINES;) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        if (is_about_cpu(line)) lines[count++] = line, room += strlen(line) + 1;
        line = end ? end + 1 : NULL;
    }
    qsort(lines, count, sizeof *lines, compare_lines);
    memset(&system, 0, sizeof system);
    uname(&system);
    char *key = allocate(room, 1);
    int done = key ? snprintf(key, room, "%s\n%s\n%s\n%s\n", SCHEME, sha256, cache->runtime, system.machine) : 0;
    for (size_t i = 0; key && i < count; i++)
        if (!i || strcmp(lines[i], lines[i - 1]) != 0)
            done += snprintf(key + done, room - (size_t)done, "\n%s", lines[i]);
    free(lines);
    free(cpuinfo);
    return key;
}

bool weight_file_path(const WeightCache *cache, const FileRecord *record, char path[768]) {
    char sha256[65], digits[17];
    for (int i = 0; i < 32; i++) snprintf(sha256 + 2 * i, 3, "%02x", record->sha256.bytes[i]);
    char *key = key_text(cache, sha256);
    if (!key) return false;
    Digest digest = sha256_of(key, strlen(key));
    free(key);
    for (int i = 0; i < 8; i++) snprintf(digits + 2 * i, 3, "%02x", digest.bytes[i]);
    snprintf(path, 768, "%s/%.16s-%s%s", cache->folder, sha256, digits, SUFFIX);
    return true;
}

/* ---- the folder ---------------------------------------------------------------------------------------------- */

static bool make_folders(const char *folder) {
    char path[512];
    snprintf(path, sizeof path, "%s", folder);
    for (char *at = path + 1; *at; at++)
        if (*at == '/') {
            *at = 0;
            mkdir(path, 0777);
            *at = '/';
        }
    return !mkdir(path, 0777) || errno == EEXIST || refuse(MACHINE, folder, "weight cache", system_reason(), NULL);
}

/* Lock the folder as the Python runtime does; the lock ends when the file is closed, or the process ends. */
static int lock_folder(const char *folder, bool is_exclusive) {
    const char *path = text("%s/lock", folder);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666), done = -1;
    while (file >= 0 && (done = flock(file, is_exclusive ? LOCK_EX : LOCK_SH)) && errno == EINTR) continue;
    if (file >= 0 && !done) return file;
    refuse(MACHINE, path, "weight cache", system_reason(), NULL);
    if (file >= 0) close(file);
    return -1;
}

/* Whether a cache is complete: its header has the place of its list of weights, which is the end of the file. */
static bool is_complete(const char *path) {
    uint64_t header[3] = {0, 0, 0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    off_t size = lseek(file, 0, SEEK_END);
    bool is_read = pread(file, header, sizeof header, 0) == (ssize_t)sizeof header;
    close(file);
    return is_read && header[0] && header[2] && header[1] + header[2] == (uint64_t)size;
}

typedef struct {
    char path[768];
    uint64_t bytes;
    int64_t used_s;
} Kept;

static int compare_kept(const void *one, const void *other) {
    int64_t a = ((const Kept *)one)->used_s, b = ((const Kept *)other)->used_s;
    return a < b ? 1 : a > b ? -1 : strcmp(((const Kept *)one)->path, ((const Kept *)other)->path);
}

/* What follows a cache's name; NULL if the name is not one that we give: other files in the folder are not ours. */
static const char *after_cache_name(const char *name) {
    enum { HALF = 16, WHOLE = 2 * HALF + 1, ENDING = sizeof SUFFIX - 1 };
    for (int i = 0; i < WHOLE; i++)
        if (i == HALF ? name[i] != '-' : !name[i] || !strchr("0123456789abcdef", name[i])) return NULL;
    return strncmp(name + WHOLE, SUFFIX, ENDING) == 0 ? name + WHOLE + ENDING : NULL;
}

/* Remove the least recently used caches beyond the limit, and what a build that was cut off has left. */
static void prune(const WeightCache *cache, const char *keep) {
    DIR *folder = opendir(cache->folder);
    Kept *kept = allocate(MOST_KEPT, sizeof *kept);
    size_t count = 0;
    struct dirent *entry;
    while (folder && kept && (entry = readdir(folder)) && count < MOST_KEPT) {
        struct stat stat_of;
        const char *rest = after_cache_name(entry->d_name);
        if (!rest || *rest) continue;
        snprintf(kept[count].path, sizeof kept[count].path, "%s/%s", cache->folder, entry->d_name);
        if (strcmp(kept[count].path, keep) == 0 || stat(kept[count].path, &stat_of)) continue;
        kept[count].bytes = (uint64_t)stat_of.st_size, kept[count].used_s = stat_of.st_mtime;
        count++;
    }
    if (folder) closedir(folder);
    struct stat stat_of;
    uint64_t total = stat(keep, &stat_of) ? 0 : (uint64_t)stat_of.st_size;
    if (kept) qsort(kept, count, sizeof *kept, compare_kept);
    for (size_t i = 0; kept && i < count; i++)
        if ((total += kept[i].bytes) > cache->limit_bytes) unlink(kept[i].path);
    free(kept);
    take_fault();
}

static void remove_partial(const char *folder) {
    DIR *open_folder = opendir(folder);
    struct dirent *entry;
    while (open_folder && (entry = readdir(open_folder))) {
        const char *rest = entry->d_name[0] == '.' ? after_cache_name(entry->d_name + 1) : NULL;
        const char *dot = rest ? strrchr(rest, '.') : NULL;
        if (dot && strcmp(dot, ".partial") == 0) unlink(text("%s/%s", folder, entry->d_name));
    }
    if (open_folder) closedir(open_folder);
}

/* Whether there is room for a model's packed weights: they are as large as the model's, each rounded up to cache lines
 * (weight_file.py asks for the same). XNNPACK ends the process when it cannot write. */
static bool has_room(const char *folder, uint64_t model_bytes) {
    struct statvfs found;
    if (statvfs(folder, &found)) return refuse(MACHINE, folder, "weight cache", system_reason(), NULL);
    uint64_t free_bytes = (uint64_t)found.f_bavail * found.f_frsize, wanted = model_bytes + model_bytes / 4;
    return free_bytes >= wanted ||
           refuse(MACHINE, folder, "weight cache", text("%llu bytes free", (unsigned long long)free_bytes),
                  text("%llu", (unsigned long long)wanted));
}

/* ---- opening ------------------------------------------------------------------------------------------------- */

static void mark_used(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    futimens(file, NULL);
    close(file);
}

/* With the folder locked: pack into a file with another name, then rename it. The graph that packs weights is not run,
 * because it keeps the largest matrix in memory until it is closed. */
static bool build(Graph *graph, void *environment, const WeightCache *cache, const char *model, uint64_t model_bytes,
                  int threads, const char *path) {
    char partial[800];
    remove_partial(cache->folder);
    if (!has_room(cache->folder, model_bytes)) return false;
    snprintf(partial, sizeof partial, "%s/.%s.%d.partial", cache->folder, strrchr(path, '/') + 1, (int)getpid());
    if (!graph_open(graph, environment, model, threads, partial)) {
        unlink(partial);
        return false;
    }
    graph_close(graph);
    int file = is_complete(partial) ? open(partial, O_RDONLY | O_CLOEXEC) : -1;
    bool is_made = file >= 0 && !fsync(file) && !rename(partial, path);
    if (file >= 0) close(file);
    if (is_made) {
        prune(cache, path);
        return true;
    }
    unlink(partial);
    return refuse(MACHINE, cache->folder, "weight cache", "packed weights that are not complete",
                  "room for as many bytes as the model has");
}

static bool open_kept(Graph *graph, void *environment, const char *model, const FileRecord *record, int threads,
                      const WeightCache *cache, PackedWeights *packed) {
    const char *path = packed->path;
    if (!make_folders(cache->folder) || !weight_file_path(cache, record, packed->path)) return false;
    int lock = lock_folder(cache->folder, false);
    if (lock < 0) return false;
    bool is_there = is_complete(path);
    if (!is_there) {
        close(lock);
        lock = lock_folder(cache->folder, true);
        if (lock < 0) return false;
        is_there = is_complete(path); /* another process may have made it meanwhile */
        packed->is_built = !is_there;
    }
    bool is_open = is_there || build(graph, environment, cache, model, record->bytes, threads, path);
    if (is_open) mark_used(path);
    is_open = is_open && graph_open(graph, environment, model, threads, path);
    close(lock);
    return is_open;
}

bool open_with_weights(Graph *graph, void *environment, const Manifest *manifest, const FileRecord *record, int threads,
                       const WeightCache *cache, PackedWeights *packed) {
    char model[768];
    snprintf(model, sizeof model, "%s", manifest_path(manifest, record->name));
    memset(packed, 0, sizeof *packed);
    if (cache->kind == CACHE_FOLDER) {
        if (open_kept(graph, environment, model, record, threads, cache, packed)) return true;
        const Fault *fault = take_fault();
        memset(packed, 0, sizeof *packed);
        if (fault)
            snprintf(packed->fault, sizeof packed->fault, "%s: %s%s%s", fault->file, fault->found,
                     *fault->wanted ? ", wanted " : "", fault->wanted);
    }
    return graph_open(graph, environment, model, threads, cache->kind == CACHE_OFF ? NULL : ":memory");
}
