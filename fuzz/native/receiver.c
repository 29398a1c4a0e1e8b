/* push_receiver: what it stores, copies and hashes. The input is a byte of choices, a line of arguments, and what comes
 * from the connection. Its files are "a" and "b" in memory. Each hash that it says is compared with one that is made
 * here of the bytes that should be there; a wrong, missing or repeated one aborts. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FILES = 2, FILE_BYTES = 300 * 1024, MOST_WORDS = 16, MOST_THREADS = 16, MOST_OPEN = 4, MOST_LINES = 1024 };
enum { LONG_INPUT = 1, PLAIN_SHA256 = 2 }; /* the byte of choices: zeros behind the input; no processor's instructions */

static uint8_t pattern[FILE_BYTES + FILES], received[FILE_BYTES]; /* a file begins at its own place in the pattern */
static int stored_in[FILES], connection;
static bool is_changed[FILES];
static jmp_buf ended;
static pthread_t first_thread;
static pthread_mutex_t output_lock = PTHREAD_MUTEX_INITIALIZER;
static char output[MOST_LINES * 512];
static size_t output_bytes;
static struct {
    void *memory;
    pthread_t thread[MOST_THREADS];
    int file[MOST_OPEN], threads, files;
} kept;

static int kept_open(const char *name, int access) {
    if ((*name != 'a' && *name != 'b') || name[1]) return errno = ENOENT, -1;
    char path[32];
    int which = *name - 'a';
    snprintf(path, sizeof path, "/proc/self/fd/%d", stored_in[which]);
    if ((access & O_ACCMODE) != O_RDONLY) is_changed[which] = true;
    return kept.file[kept.files++] = open(path, access & ~O_NOFOLLOW);
}

static int kept_memory(void **found, size_t alignment, size_t size) {
    int fault = posix_memalign(found, alignment, size);
    if (!fault) kept.memory = *found;
    return fault;
}

static int kept_thread(pthread_t *thread, const pthread_attr_t *kind, void *(*begin)(void *), void *given) {
    int fault = pthread_create(thread, kind, begin, given);
    if (!fault) kept.thread[kept.threads++] = *thread;
    return fault;
}

static ssize_t kept_write(int file, const void *text, size_t size) {
    if (file != STDOUT_FILENO) abort();
    pthread_mutex_lock(&output_lock);
    if (output_bytes + size >= sizeof output) abort();
    memcpy(output + output_bytes, text, size);
    output_bytes += size;
    pthread_mutex_unlock(&output_lock);
    return (ssize_t)size;
}

/* The end of the process: of the thread, if it is not the first; the first one then goes on to the same end. */
static _Noreturn void kept_end(int code) {
    if (code != 1) abort();
    if (!pthread_equal(pthread_self(), first_thread)) pthread_exit(NULL);
    longjmp(ended, 1);
}

#define main push_receiver_main
#define _exit kept_end
#define open kept_open
#define posix_memalign kept_memory
#define pthread_create kept_thread
#define write kept_write
#include "push_receiver.c"
#undef main
#undef open
#undef write

static void fill(int file, const uint8_t *data, size_t size) {
    if (ftruncate(file, 0) || pwrite(file, data, size, 0) != (ssize_t)size) abort();
}

int LLVMFuzzerInitialize(int *count, char ***words) {
    (void)count, (void)words;
    for (size_t i = 0; i < sizeof pattern; i++) pattern[i] = (uint8_t)(i * 2654435761u >> 13);
    for (int i = 0; i < FILES; i++) stored_in[i] = memfd_create("file", 0), is_changed[i] = true;
    connection = memfd_create("connection", 0);
    dup2(connection, STDIN_FILENO);
    first_thread = pthread_self();
    return 0;
}

/* The bytes of a chunk as they should be; false if they are not all there. */
static bool expected(uint64_t number, bool is_stored, uint8_t *to) {
    uint64_t start = (is_stored ? number - run.first : number) * run.chunk, size = length_of(number);
    uint64_t there = is_stored ? (uint64_t)lseek(STDIN_FILENO, 0, SEEK_END) : FILE_BYTES;
    if (run.file < 0 || start > there || size > there - start) return false;
    const char *source = run.from >= 0 ? run.from_name : run.name;
    memcpy(to, (is_stored ? received : pattern + (*source - 'a')) + start, size);
    return true;
}

/* Compare each line with what it must say; return how many chunks were named. */
static uint64_t check_lines(bool is_stored) {
    static bool is_named[MOST_LINES];
    static uint8_t data[FILE_BYTES];
    uint64_t named = 0;
    size_t length = strlen(run.name);
    memset(is_named, 0, sizeof is_named);
    output[output_bytes] = 0;
    for (char *line = output, *next; *line; line = next) {
        next = strchr(line, '\n');
        if (!next) abort();
        *next++ = 0;
        char *end;
        if (strncmp(line, run.name, length) || line[length] != ' ') continue; /* "next", an error, or "failed" */
        uint64_t number = strtoull(line + length + 1, &end, 10);
        if (number < run.first || number >= run.stop || is_named[number - run.first]) abort();
        is_named[number - run.first] = true;
        named++;
        char text[2 * SHA256_DIGEST + 16] = " unreadable";
        if (expected(number, is_stored, data)) {
            uint32_t state[1][8];
            uint8_t digest[SHA256_DIGEST];
            const uint8_t *whole[1] = {data};
            uint64_t size = length_of(number);
            memcpy(state[0], SHA256_START, sizeof SHA256_START);
            sha256_plain(state, whole, 1, size / SHA256_BLOCK);
            sha256_finish(sha256_plain, state[0], data + size / SHA256_BLOCK * SHA256_BLOCK, size, digest);
            for (int i = 0; i < SHA256_DIGEST; i++) snprintf(text + 1 + 2 * i, 3, "%02x", digest[i]);
        } else if (run.from >= 0) abort(); /* it was stored, so it was there */
        if (strcmp(end, text)) abort();
    }
    return named;
}

static void end_threads(void) {
    pthread_mutex_lock(&run.lock);
    run.stored = run.taken = run.stop; /* nothing is left for the threads */
    pthread_cond_broadcast(&run.more);
    pthread_mutex_unlock(&run.lock);
    for (int i = 0; i < kept.threads; i++) pthread_join(kept.thread[i], NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char line[1024], *words[MOST_WORDS + 1];
    const uint8_t *end = size ? memchr(data, '\n', size) : NULL;
    if (!end || end == data || (size_t)(end - data) > sizeof line) return 0;
    memcpy(line, data + 1, (size_t)(end - data - 1));
    line[end - data - 1] = 0;
    int count = 0;
    words[count++] = "push_receiver";
    for (char *rest = line, *word; count < MOST_WORDS && (word = strsep(&rest, " "));) words[count++] = word;
    words[count] = NULL;
    if (count > 5 && strtoull(words[5], NULL, 10) - strtoull(words[4], NULL, 10) > MOST_LINES / 2) return 0; /* slow */

    for (int i = 0; i < FILES; i++)
        if (is_changed[i]) fill(stored_in[i], pattern + i, FILE_BYTES), is_changed[i] = false;
    size_t sent = size - (size_t)(end + 1 - data);
    memcpy(received, end + 1, sent);
    memset(received + sent, 0, FILE_BYTES - sent);
    fill(connection, received, *data & LONG_INPUT ? FILE_BYTES : sent);
    lseek(connection, 0, SEEK_SET);
    if (*data & PLAIN_SHA256) setenv("PUSH_RECEIVER_PLAIN", "1", 1);
    else unsetenv("PUSH_RECEIVER_PLAIN");
    run = (__typeof__(run)){.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
    output_bytes = 0;

    int code = setjmp(ended) ? 1 : push_receiver_main(count, words);
    if (code == 1) end_threads();
    uint64_t named = code == 2 ? 0 : check_lines(run.from == STDIN_FILENO);
    if (code == 0 && named != run.stop - run.first) abort();
    free(kept.memory);
    for (int i = 0; i < kept.files; i++)
        if (kept.file[i] >= 0) close(kept.file[i]);
    memset(&kept, 0, sizeof kept);
    return 0;
}
