#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "line.h"

/* A value in kB after `key` at the start of a line, in bytes; -1 if there is none. */
static int64_t kilobytes(const char *words, const char *key) {
    size_t length = strlen(key);
    for (const char *at = words; at && *at; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
        if (strncmp(at, key, length) == 0 && at[length] == ':') return strtoll(at + length + 1, NULL, 10) * 1024;
    return -1;
}

static void add_size(const char *key, int64_t bytes) {
    if (bytes < 0) line_null(key);
    else line_integer(key, bytes);
}

/* Mapped and resident bytes of the files of one group. */
typedef struct {
    char name[MOST_GROUP_NAME];
    int64_t mapped, resident;
} GroupMemory;

static GroupMemory *group_of(GroupMemory groups[], size_t *count, const char *name) {
    for (size_t i = 0; i < *count; i++)
        if (strcmp(groups[i].name, name) == 0) return &groups[i];
    if (*count == MOST_GROUPS) return NULL;
    snprintf(groups[*count].name, sizeof groups[*count].name, "%s", name);
    return &groups[(*count)++];
}

/* The group of a mapped file; NULL if it is not one of the bundle's, nor its weight cache. */
static const char *group_name(const Session *session, const char *path) {
    const Manifest *manifest = &session->manifest;
    size_t length = strlen(manifest->folder);
    if (*session->weights.path && strcmp(path, session->weights.path) == 0) return "text";
    if (strncmp(path, manifest->folder, length) != 0 || path[length] != '/') return NULL;
    for (size_t i = 0; i < manifest->files; i++)
        if (strcmp(manifest->file[i].name, path + length + 1) == 0)
            return manifest->file[i].group[0] ? manifest->file[i].group : NULL;
    return NULL;
}

/* Sum the mappings of /proc/self/smaps: a line of addresses and path, then lines of `Key: number kB`. */
static void count_mappings(const Session *session, GroupMemory groups[], size_t *count) {
    char *smaps = read_proc("/proc/self/smaps");
    GroupMemory *current = NULL;
    for (char *line = smaps; line && *line;) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        char *dash = strchr(line, '-'), *blank = strchr(line, ' ');
        if (dash && blank && dash < blank && line[strspn(line, "0123456789abcdef")] == '-') {
            const char *path = strchr(line, '/'), *name = path ? group_name(session, path) : NULL;
            current = name ? group_of(groups, count, name) : NULL;
            if (current) current->mapped += (int64_t)(strtoull(dash + 1, NULL, 16) - strtoull(line, NULL, 16));
        } else if (current && strncmp(line, "Rss:", 4) == 0) {
            current->resident += strtoll(line + 4, NULL, 10) * 1024;
        }
        line = end ? end + 1 : NULL;
    }
    free(smaps);
}

static void add_groups(const Session *session) {
    static GroupMemory groups[MOST_GROUPS];
    size_t count = 0;
    memset(groups, 0, sizeof groups);
    for (size_t i = 0; i < session->manifest.files; i++)
        if (session->manifest.file[i].group[0]) group_of(groups, &count, session->manifest.file[i].group);
    count_mappings(session, groups, &count);
    line_open("groups", '{');
    for (size_t i = 0; i < count; i++) {
        line_open(groups[i].name, '{');
        line_integer("mapped_bytes", groups[i].mapped);
        line_integer("resident_bytes", groups[i].resident);
        line_close('}');
    }
    line_close('}');
}

void line_memory(const Session *session) {
    char *status = read_proc("/proc/self/status"), *io = read_proc("/proc/self/io");
    struct rusage usage;
    line_open("memory", '{');
    add_size("rss_bytes", kilobytes(status, "VmRSS"));
    add_size("peak_rss_bytes", kilobytes(status, "VmHWM"));
    add_size("swap_bytes", kilobytes(status, "VmSwap"));
    add_size("rss_anonymous_bytes", kilobytes(status, "RssAnon"));
    add_size("rss_file_bytes", kilobytes(status, "RssFile"));
    add_size("rss_shmem_bytes", kilobytes(status, "RssShmem"));
    if (session->is_open) add_groups(session);
    line_close('}');
    memset(&usage, 0, sizeof usage);
    getrusage(RUSAGE_SELF, &usage);
    line_open("faults", '{');
    line_integer("minor", usage.ru_minflt);
    line_integer("major", usage.ru_majflt);
    int64_t kilo = kilobytes(io, "read_bytes"); /* in bytes there, without a unit */
    add_size("read_bytes", kilo < 0 ? kilo : kilo / 1024);
    line_close('}');
    free(status);
    free(io);
}
