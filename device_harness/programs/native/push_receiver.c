/* Stores chunks of files and hashes the stored bytes; the device's side of a push, and of its comparison.
 *
 *   push_receiver store NAME CHUNK FIRST STOP LAST       chunks from standard input
 *   push_receiver copy  NAME CHUNK FIRST STOP LAST FROM  chunks from the same offsets of the file FROM
 *   push_receiver hash  NAME CHUNK FIRST STOP LAST       stores nothing, and hashes what is there
 *
 * "store" says "next" whenever PIECE bytes of a chunk, or its last ones, are in the file: so that no more than is wanted
 * is on the way to a daemon that takes all it is sent into memory.
 *
 * The chunks are FIRST up to but not including STOP, of CHUNK bytes each, the last of LAST bytes. Each is written to
 * its offset in NAME and read again from there, and a line "NAME NUMBER SHA256" is printed. Writing to the storage
 * starts at once. At an error, its description and a line "failed" are printed, and the exit code is 1; but for a
 * chunk that "hash" cannot read, it prints a line "NAME NUMBER unreadable" and continues. The exit code for wrong
 * arguments is 2.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "input.h"
#include "sha256.h"

#define BLOCK (256 * 1024) /* stays in a processor's cache */
#define PIECE ((uint64_t)4 * 1024 * 1024)
#define ALIGNMENT 4096 /* the kernel copies to the start of a page several times faster than to 16 bytes after it */
#define MOST_HASHERS 4
#define BEHIND 4 /* how many of the last chunks may still be on their way to the storage */
#define MOST_CHUNK ((uint64_t)1 << 40)
#define MOST_CHUNKS ((uint64_t)1 << 22) /* with MOST_CHUNK, offsets stay within 63 bits */
#define MOST_NAME 255

static struct {
    const char *name, *from_name;
    int file;
    int from; /* the source of chunks: standard input or another file; -1 if nothing is stored */
    uint64_t chunk, first, stop, last;
    sha256_compressor compress;
    pthread_mutex_t lock;
    pthread_cond_t more;
    uint64_t stored, taken; /* chunks before `stored` are in the file; those before `taken` belong to a hasher */
} run = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static void say(const char *text, size_t size) {
    while (size) {
        ssize_t count = write(STDOUT_FILENO, text, size);
        if (count < 0 && errno != EINTR) _exit(1);
        if (count > 0) text += count, size -= (size_t)count;
    }
}

/* Print a line with one write, so that lines of several threads do not mix. */
static void say_line(const char *form, ...) {
    char line[2 * MOST_NAME];
    va_list values;
    va_start(values, form);
    int size = vsnprintf(line, sizeof line, form, values);
    va_end(values);
    say(line, size < (int)sizeof line ? (size_t)size : sizeof line - 1);
}

static void fail(const char *name, const char *words) {
    say_line("%s: %s\nfailed\n", name, words);
    _exit(1);
}

static uint64_t length_of(uint64_t number) { return number + 1 < run.stop ? run.chunk : run.last; }

/* Read bytes; false if they cannot all be read, which is an error if they were stored by this run. */
static bool read_back(uint8_t *to, size_t size, uint64_t offset) {
    if (read_whole(run.file, to, size, offset) == size) return true;
    if (run.from >= 0) fail(run.name, errno ? strerror(errno) : "it has become shorter");
    return false;
}

static void say_digest(uint64_t number, const uint8_t digest[SHA256_DIGEST]) {
    char text[2 * SHA256_DIGEST + 1];
    for (int i = 0; i < SHA256_DIGEST; i++) snprintf(text + 2 * i, 3, "%02x", digest[i]);
    say_line("%s %llu %s\n", run.name, (unsigned long long)number, text);
}

static void say_unreadable(uint64_t number) { say_line("%s %llu unreadable\n", run.name, (unsigned long long)number); }

/* Hash one chunk, or two of the same length at once. */
static void hash_chunks(uint64_t number, int lanes, uint8_t *buffer) {
    uint32_t states[SHA256_MOST_LANES][8];
    const uint8_t *data[SHA256_MOST_LANES];
    bool is_whole[SHA256_MOST_LANES];
    uint64_t size = length_of(number), done = 0;
    size_t most = BLOCK / (size_t)lanes, count = 0;
    for (int k = 0; k < lanes; k++) {
        memcpy(states[k], SHA256_START, sizeof SHA256_START);
        data[k] = buffer + (size_t)k * most;
        is_whole[k] = true;
    }
    while (done < size && (is_whole[0] || is_whole[lanes - 1])) {
        count = size - done < most ? (size_t)(size - done) : most;
        for (int k = 0; k < lanes; k++)
            if (is_whole[k])
                is_whole[k] = read_back(buffer + (size_t)k * most, count, (number + (uint64_t)k) * run.chunk + done);
        run.compress(states, data, lanes, count / SHA256_BLOCK);
        done += count;
    }
    for (int k = 0; k < lanes; k++) {
        if (!is_whole[k]) { /* after an early end, `count` is not that of the last bytes */
            say_unreadable(number + (uint64_t)k);
            continue;
        }
        uint8_t digest[SHA256_DIGEST];
        sha256_finish(run.compress, states[k], data[k] + count / SHA256_BLOCK * SHA256_BLOCK, size, digest);
        say_digest(number + (uint64_t)k, digest);
    }
}

/* Ask the kernel to read ahead: its own prediction fails when several threads take turns reading one file. */
static void read_ahead(uint64_t number, int lanes) {
    uint64_t size = (uint64_t)(lanes - 1) * run.chunk + length_of(number + (uint64_t)lanes - 1);
    posix_fadvise(run.file, (off_t)(number * run.chunk), (off_t)size, POSIX_FADV_WILLNEED);
}

/* Some file systems do not have sync_file_range. That the storage cannot take the bytes is an error, of which the fsync at
 * the end of a push may not be told again. */
static void sync_range(off_t offset, off_t size, unsigned how) {
    if (sync_file_range(run.file, offset, size, how) && (errno == EIO || errno == ENOSPC || errno == EDQUOT))
        fail(run.name, strerror(errno));
}

/* Start writing a chunk to the storage (only fsync guarantees that it is there), and drop earlier chunks from the page
 * cache: otherwise a push takes the memory of all other programs, and new pages cost the most time. */
static void settle_chunk(uint64_t number) {
    sync_range((off_t)(number * run.chunk), (off_t)length_of(number), SYNC_FILE_RANGE_WRITE);
    if (number < run.first + BEHIND) return;
    off_t offset = (off_t)((number - BEHIND) * run.chunk), size = (off_t)length_of(number - BEHIND);
    sync_range(offset, size, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(run.file, offset, size, POSIX_FADV_DONTNEED);
    if (run.from != STDIN_FILENO) posix_fadvise(run.from, offset, size, POSIX_FADV_DONTNEED);
}

/* Take the next chunks to hash, from *number on; returns how many: two if possible, 0 at the end. */
static int take_chunks(uint64_t *number) {
    pthread_mutex_lock(&run.lock);
    while (run.stored < run.stop && run.stored - run.taken < SHA256_MOST_LANES) pthread_cond_wait(&run.more, &run.lock);
    *number = run.taken;
    int lanes = run.stored - run.taken < 2 ? (int)(run.stored - run.taken) : 2;
    if (lanes == 2 && length_of(*number + 1) != run.chunk) lanes = 1;
    run.taken += (uint64_t)lanes;
    pthread_mutex_unlock(&run.lock);
    return lanes;
}

static void *hash_all(void *buffer) {
    uint64_t number;
    for (int lanes; (lanes = take_chunks(&number));) {
        if (run.from < 0) read_ahead(number, lanes);
        hash_chunks(number, lanes, buffer);
        for (int k = 0; run.from >= 0 && k < lanes; k++) settle_chunk(number + (uint64_t)k);
    }
    return NULL;
}

/* Read exactly this many bytes, so that input in small pieces is stored in large ones. */
static void receive(uint8_t *to, size_t size) {
    while (size) {
        ssize_t got = read(run.from, to, size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail(run.from_name, strerror(errno));
        if (!got) fail(run.from_name, "an end before all was stored");
        to += got, size -= (size_t)got;
    }
}

static void store_chunk(uint64_t number, uint8_t *buffer) {
    uint64_t offset = number * run.chunk, left = length_of(number);
    while (left) {
        size_t size = left < BLOCK ? (size_t)left : BLOCK;
        receive(buffer, size);
        for (size_t done = 0; done < size;) {
            ssize_t count = pwrite(run.file, buffer + done, size - done, (off_t)(offset + done));
            if (count < 0 && errno == EINTR) continue;
            if (count < 0) fail(run.name, strerror(errno));
            done += (size_t)count;
        }
        offset += size, left -= size;
        if (run.from == STDIN_FILENO && (!left || (length_of(number) - left) % PIECE == 0)) say("next\n", 5);
    }
}

static int misused(void) {
    static const char usage[] = "usage: push_receiver store|copy|hash NAME CHUNK FIRST STOP LAST [FROM]\n";
    say(usage, sizeof usage - 1);
    return 2;
}

/* O_NONBLOCK: do not wait for something that is not a regular file; reading it fails later. */
static int open_file(const char *name, int access) {
    return open(name, access | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

/* Parse the arguments and open the files; false if the arguments are invalid. */
static bool prepare(int count, char **words) {
    if (count != 7 && count != 8) return false;
    bool copies = strcmp(words[1], "copy") == 0, hashes = strcmp(words[1], "hash") == 0;
    if ((!copies && !hashes && strcmp(words[1], "store")) || copies != (count == 8)) return false;
    run.name = words[2], run.from_name = copies ? words[7] : "the connection";
    if (strlen(run.name) > MOST_NAME || strlen(run.from_name) > MOST_NAME) return false;
    if (!parse_number(words[3], 1, MOST_CHUNK, &run.chunk) || !parse_number(words[5], 1, MOST_CHUNKS, &run.stop) ||
        !parse_number(words[4], 0, run.stop - 1, &run.first) || !parse_number(words[6], 1, run.chunk, &run.last))
        return false;
    run.file = open_file(run.name, hashes ? O_RDONLY : O_RDWR);
    if (run.file < 0 && !hashes) fail(run.name, strerror(errno));
    run.from = hashes ? -1 : copies ? open_file(run.from_name, O_RDONLY) : STDIN_FILENO;
    if (copies && (run.from < 0 || lseek(run.from, (off_t)(run.first * run.chunk), SEEK_SET) < 0))
        fail(run.from_name, strerror(errno));
    run.stored = hashes ? run.stop : run.first;
    run.taken = run.first;
    return true;
}

int main(int count, char **words) {
    if (!prepare(count, words)) return misused();
    run.compress = sha256_is_quick() ? sha256_quick : sha256_plain;
    if (getenv("PUSH_RECEIVER_PLAIN")) run.compress = sha256_plain; /* to test it where there are instructions */
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int hashers = processors < 1 ? 1 : processors > MOST_HASHERS ? MOST_HASHERS : (int)processors;
    void *buffers;
    pthread_t threads[MOST_HASHERS];
    if (posix_memalign(&buffers, ALIGNMENT, (size_t)(hashers + 1) * BLOCK)) fail(run.name, "no memory");
    for (int i = 0; i < hashers; i++)
        if (pthread_create(&threads[i], NULL, hash_all, (uint8_t *)buffers + (size_t)(i + 1) * BLOCK))
            fail(run.name, "no threads");
    while (run.stored < run.stop) { /* only this thread writes it */
        store_chunk(run.stored, buffers);
        pthread_mutex_lock(&run.lock);
        run.stored++;
        pthread_cond_broadcast(&run.more);
        pthread_mutex_unlock(&run.lock);
    }
    for (int i = 0; i < hashers; i++) pthread_join(threads[i], NULL);
    return 0;
}
