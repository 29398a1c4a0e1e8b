/* Answers: lines of JSON on standard output, each written at once, with an empty line before it. */
#ifndef LINE_H
#define LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fault.h"

/* Keep standard output for answers: whatever else is printed there, as by a GPU's library, goes to standard error. */
void keep_output(void);

/* Begin an object; NULL as key in a list. Nested objects and lists are opened and closed in order. */
void line_begin(void);
void line_open(const char *key, char bracket);
void line_close(char bracket);
void line_integer(const char *key, int64_t value);
void line_number(const char *key, double value);
void line_string(const char *key, const char *value);
void line_null(const char *key);
/* End the object and write it. If nobody reads the answers any more, these three end the program. */
void line_end(void);
void line_fault(const Fault *fault);
/* Write raw bytes, after the line that announces them. */
void write_bytes(const void *data, size_t size);

#endif
