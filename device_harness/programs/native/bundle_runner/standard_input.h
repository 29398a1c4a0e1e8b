/* Standard input: lines, and raw bytes that follow a line. */
#ifndef STANDARD_INPUT_H
#define STANDARD_INPUT_H

#include <stdbool.h>
#include <stddef.h>

enum { MOST_LINE_BYTES = 16 << 20 };
/* The command that ends prefill, decode or generate: exactly this line. */
#define STOP "{\"do\": \"stop\"}"

/* The next line without its newline, which becomes NUL. NULL at the end of input; with an error recorded if a line is
 * too long or has no end, or without memory. */
char *next_line(size_t *size);
/* Exactly `size` bytes; NULL with an error recorded if the input ends before. Valid until the next line is read. */
const char *next_bytes(size_t size);
/* Whether a command is to end early: the line STOP has come and is read now, or the input has ended. Does not wait. */
bool is_stopped(void);
void free_input(void);

#endif
