/* One step of a session: the buffers of its signatures, and the calls that use them. */
#ifndef STEP_H
#define STEP_H

#include "session.h"

/* The caches and the outputs of decode, all zeros. */
bool make_caches(Session *session);
void free_caches(Session *session);
void free_width(Width *width);

/* Run one signature: tokens at the next positions, and padding up to its width. */
bool run_step(Session *session, Width *width, const int32_t *ids, size_t count);
/* Wait until the GPU is done with all steps; a CPU is done when a call returns. */
bool finish_steps(Session *session);
/* Run the width's signature for the whole context once, in another copy of the decoder's graph. */
bool run_copy(Session *session, Width *width, Graph *decoder);

#endif
