/* What the kernel counts of this process: memory, by kind and by the files of each parameter group, and page faults. */
#ifndef MEMORY_H
#define MEMORY_H

#include "session.h"

/* Add `memory` and `faults` to the line being written; groups only with an open session. */
void line_memory(const Session *session);

#endif
