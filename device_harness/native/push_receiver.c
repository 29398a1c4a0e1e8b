/* Stores what a push sends, and hashes what then lies in the file.
 *
 *   push_receiver NAME CHUNK FIRST STOP LAST
 *
 * takes the chunks FIRST to before STOP of NAME from standard input: CHUNK bytes each, the last of them LAST bytes. Each
 * goes to its place in NAME, is read again from there, and its line "NAME NUMBER SHA256" is printed. What was stored is
 * sent on to the storage at once. At a fault its words and a line "failed" are printed, and the exit code is 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sha256.h"

#define BLOCK (256 * 1024) /* stays in a processor's cache */
#define ALIGNMENT 4096 /* the kernel copies to a page's start several times faster than to 16 bytes behind it */
#define MOST_HASHERS 4
#define BEHIND 4 /* chunks whose way to the storage nobody waits for */

static struct {
    const char *name;
    int file;
    uint64_t chunk, first, stop, last;
    sha256_compressor compress;
    pthread_mutex_t lock;
    pthread_cond_t more;
    uint64_t stored, taken; /* chunks before these are in the file; are some hasher's */
} run = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static void say(const char *text, size_t size) {
    while (size) {
        ssize_t count = write(STDOUT_FILENO, text, size);
        if (count < 0 && errno != EINTR) _exit(1);
        if (count > 0) text += count, size -= (size_t)count;
    }
}

static void fail(const char *words) {
    char line[512];
    int size = snprintf(line, sizeof line, "%s: %s\nfailed\n", run.name, words);
    say(line, size < (int)sizeof line ? (size_t)size : sizeof line - 1);
    _exit(1);
}

static uint64_t length_of(uint64_t number) { return number + 1 < run.stop ? run.chunk : run.last; }

static void read_file(uint8_t *to, size_t size, uint64_t offset) {
    while (size) {
        ssize_t count = pread(run.file, to, size, (off_t)offset);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail(strerror(errno));
        if (!count) fail("it has become shorter");
        to += count, size -= (size_t)count, offset += (uint64_t)count;
    }
}

static void say_digest(uint64_t number, const uint8_t digest[SHA256_DIGEST]) {
    char line[512];
    int at = snprintf(line, 400, "%s %llu ", run.name, (unsigned long long)number);
    for (int i = 0; i < SHA256_DIGEST; i++) at += snprintf(line + at, 3, "%02x", digest[i]);
    line[at] = '\n';
    say(line, (size_t)at + 1);
}

/* One chunk, or two of the same length at once. */
static void hash_chunks(uint64_t number, int lanes, uint8_t *buffer) {
    uint32_t states[SHA256_MOST_LANES][8];
    const uint8_t *data[SHA256_MOST_LANES];
    uint64_t size = length_of(number), done = 0;
    size_t most = BLOCK / (size_t)lanes, count = 0;
    for (int k = 0; k < lanes; k++) {
        memcpy(states[k], SHA256_START, sizeof SHA256_START);
        data[k] = buffer + (size_t)k * most;
    }
    while (done < size) {
        count = size - done < most ? (size_t)(size - done) : most;
        for (int k = 0; k < lanes; k++)
            read_file(buffer + (size_t)k * most, count, (number + (uint64_t)k) * run.chunk + done);
        run.compress(states, data, lanes, count / SHA256_BLOCK);
        done += count;
    }
    for (int k = 0; k < lanes; k++) {
        uint8_t digest[SHA256_DIGEST];
        sha256_finish(run.compress, states[k], data[k] + count / SHA256_BLOCK * SHA256_BLOCK, size, digest);
        say_digest(number + (uint64_t)k, digest);
    }
}

/* Only a start of the way to the storage: whoever wants it to be there calls fsync. What is there gives its memory
 * back, for a push would otherwise take all of it from everything else that runs, in new pages, which cost the most. */
static void settle_chunk(uint64_t number) {
    sync_file_range(run.file, (off_t)(number * run.chunk), (off_t)length_of(number), SYNC_FILE_RANGE_WRITE);
    if (number < run.first + BEHIND) return;
    off_t offset = (off_t)((number - BEHIND) * run.chunk), size = (off_t)length_of(number - BEHIND);
    sync_file_range(run.file, offset, size,
                    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(run.file, offset, size, POSIX_FADV_DONTNEED);
}

/* How many chunks from *number on are the caller's to hash: two wherever there are two; 0 at the end. */
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
        hash_chunks(number, lanes, buffer);
        for (int k = 0; k < lanes; k++) settle_chunk(number + (uint64_t)k);
    }
    return NULL;
}

/* Until there are so many bytes: what comes in small pieces is stored in large ones. */
static void receive(uint8_t *to, size_t size) {
    while (size) {
        ssize_t got = read(STDIN_FILENO, to, size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail(strerror(errno));
        if (!got) fail("the connection's end");
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
            if (count < 0) fail(strerror(errno));
            done += (size_t)count;
        }
        offset += size, left -= size;
    }
}

int main(int count, char **words) {
    if (count != 6) {
        say("usage: push_receiver NAME CHUNK FIRST STOP LAST\n", 48);
        return 2;
    }
    run.name = words[1];
    run.chunk = strtoull(words[2], NULL, 10);
    run.stored = run.taken = run.first = strtoull(words[3], NULL, 10);
    run.stop = strtoull(words[4], NULL, 10);
    run.last = strtoull(words[5], NULL, 10);
    run.compress = sha256_is_quick() ? sha256_quick : sha256_plain;
    if (getenv("PUSH_RECEIVER_PLAIN")) run.compress = sha256_plain; /* to test it where there are instructions */
    run.file = open(run.name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (run.file < 0) fail(strerror(errno));
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    int hashers = processors < 1 ? 1 : processors > MOST_HASHERS ? MOST_HASHERS : (int)processors;
    void *buffers;
    pthread_t threads[MOST_HASHERS];
    if (posix_memalign(&buffers, ALIGNMENT, (size_t)(hashers + 1) * BLOCK)) fail("no memory");
    for (int i = 0; i < hashers; i++)
        if (pthread_create(&threads[i], NULL, hash_all, (uint8_t *)buffers + (size_t)(i + 1) * BLOCK)) fail("no threads");
    for (uint64_t number = run.first; number < run.stop; number++) {
        store_chunk(number, buffers);
        pthread_mutex_lock(&run.lock);
        run.stored = number + 1;
        pthread_cond_broadcast(&run.more);
        pthread_mutex_unlock(&run.lock);
    }
    for (int i = 0; i < hashers; i++) pthread_join(threads[i], NULL);
    return 0;
}
