/* The error of a command: one at a time, printed as a line of JSON when the command ends. */
#ifndef FAULT_H
#define FAULT_H

#include <stdbool.h>
#include <stddef.h>

/* The exit codes for a wrong command, and for a machine that cannot go on. */
enum { EXIT_INPUT = 2, EXIT_MACHINE = 3 };

/* Whose mistake it is: the command's, the bundle's, or this machine's. */
typedef enum { USAGE, BUNDLE, MACHINE } FaultKind;

typedef struct {
    FaultKind kind;
    char file[512], place[192], found[512], wanted[256];
} Fault;

/* Record an error unless there is one already, and return false. `file`, `place` and `wanted` may be NULL; without
 * `wanted`, `found` says what is wrong. */
bool refuse(FaultKind kind, const char *file, const char *place, const char *found, const char *wanted);

/* The error recorded since the last call; NULL if there is none. */
const Fault *take_fault(void);

/* A formatted text; valid until eight more are made. */
const char *text(const char *form, ...) __attribute__((format(printf, 1, 2)));

/* The bytes of the character beyond ASCII that begins at `at`: 2 to 4; 0 if it is not UTF-8. */
size_t utf8_bytes(const char *at, const char *end);

/* Memory filled with zeros, or NULL with an error recorded. Sizes that do not fit are an error too. */
void *allocate(size_t count, size_t size);

#endif
