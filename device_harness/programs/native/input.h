/* Input of the programs in this folder: numbers from the command line, and bytes of a file. */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

/* Parse a whole number within bounds into *value; false if the word is not one. */
static inline bool parse_number(const char *word, uint64_t least, uint64_t most, uint64_t *value) {
    char *end;
    errno = 0;
    unsigned long long found = strtoull(word, &end, 10);
    if (*word < '0' || *word > '9' || *end || errno || found < least || found > most) return false;
    *value = found;
    return true;
}

/* Read up to size bytes from offset on and return how many; fewer at the file's end (errno is 0) or at an error. */
static inline size_t read_whole(int file, uint8_t *to, size_t size, uint64_t offset) {
    size_t done = 0;
    errno = 0;
    while (done < size) {
        ssize_t count = pread(file, to + done, size - done, (off_t)(offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
            if (count == 0) errno = 0;
            break;
        }
        done += (size_t)count;
    }
    return done;
}
