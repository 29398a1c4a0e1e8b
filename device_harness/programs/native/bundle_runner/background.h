/* Work in a process in the background; threads would need types that differ between Android's C library and musl's. */
#ifndef BACKGROUND_H
#define BACKGROUND_H

#include <stdbool.h>

typedef struct {
    int process, report;
    bool is_begun, was_right; /* `was_right`: the result of work that was done at once for lack of a process */
} Background;

/* Begin work that only reads memory and files, and returns false with an error recorded. */
void background_begin(Background *background, bool (*work)(void *), void *context);
/* Wait for the work; false with its error recorded. True if none was begun. */
bool background_end(Background *background);

#endif
