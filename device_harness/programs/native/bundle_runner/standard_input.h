/* Standard input: lines, and raw bytes that follow a line. */
#ifndef STANDARD_INPUT_H
#define STANDARD_INPUT_H

#include <stdbool.h>
#include <stddef.h>

enum { MOST_LINE_BYTES = 16 << 20 };
/* The command that ends a generation: exactly this line. */
#define STOP "{\"do\": \"stop\"}"

/* The next line without its newline, which becomes NUL; NULL at the end of input. *size is SIZE_MAX for one too long. */
char *next_line(size_t *size);
/* Exactly `size` bytes; NULL if the input ends before. Valid until the next line is read. */
const char *next_bytes(size_t size);
/* Whether a generation is to stop: the line STOP has come and is read now, or the input has ended. Does not wait. */
bool is_stopped(void);
void free_input(void);

#endif
