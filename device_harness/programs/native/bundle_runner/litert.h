/* LiteRT through its C API (litert/c of version 2.3), which is loaded with dlopen; no header of it is needed. */
#ifndef LITERT_H
#define LITERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fault.h"

/* LiteRtElementType */
enum { FLOAT32 = 1, INT32 = 2, BOOLEAN = 6 };
enum { MOST_TENSORS = 4096, MOST_SIGNATURES = 4096, MOST_NAME = 160 };

/* LiteRtRankedTensorType: the element type, then the rank (7 bits) and whether there are strides (1 bit). */
typedef struct {
    int32_t element;
    uint32_t rank;
    int32_t dimensions[8];
    uint32_t strides[8];
} TensorType;

typedef struct {
    char name[MOST_NAME];
    TensorType type;
    size_t bytes;
} Tensor;

/* A signature; its tensors are read at first use. */
typedef struct {
    char key[MOST_NAME];
    size_t index;
    size_t inputs, outputs;
    Tensor *in, *out;
} Signature;

/* What runs a graph; a GPU computes in float32 or float16. */
typedef enum { ON_CPU, ON_GPU_FLOAT32, ON_GPU_FLOAT16 } Processor;

/* A .tflite file, ready to run. */
typedef struct {
    char path[512];
    Processor processor;
    void *model, *compiled, *profiler;
    char *cpu_options;
    size_t count;
    Signature *signatures;
} Graph;

/* Memory that signatures read or write in place. */
typedef struct {
    void *handle;
    TensorType type;
    size_t bytes;
} Buffer;

/* A signature with a buffer for each input and output. */
typedef struct {
    const Graph *graph;
    const Signature *signature;
    void **in, **out;
} Call;

/* Load the library and look up every function by name. MACHINE if one is missing. */
bool litert_load(const char *path);

/* The environment that graphs share buffers in. For a GPU, LiteRT looks for its delegate beside the library. */
bool litert_start(void **environment, Processor processor);
void litert_stop(void *environment);

/* Open a file; `weight_cache`: a path for the packed weights, ":memory" for one copy in memory, NULL for none. */
bool graph_open(Graph *graph, void *environment, const char *path, int threads, const char *weight_cache);
/* The same with LiteRT's profiler, which belongs to the graph; `graph_profile` sums up all calls so far. */
bool graph_open_profiled(Graph *graph, void *environment, const char *path, int threads, const char *weight_cache);
bool graph_profile(const Graph *graph, const char **summary);
/* Open a file on the GPU alone; MACHINE if there is none, or if it does not take every op. */
bool graph_open_on_gpu(Graph *graph, void *environment, const char *path, Processor processor);
bool is_on_gpu(const Graph *graph);
void graph_close(Graph *graph);
/* The signature `key`, with its tensors; NULL with BUNDLE recorded if the file lacks it. */
const Signature *graph_signature(Graph *graph, const char *key);
/* The input or output `name`, which must have this element type and shape; NULL with BUNDLE recorded. */
const Tensor *signature_tensor(const Graph *graph, const Signature *signature, bool is_input, const char *name,
                               int element, int rank, const int64_t *shape);

/* A buffer of this type in the CPU's memory, filled with zeros. */
bool buffer_make(Buffer *buffer, void *environment, const TensorType *type);
/* The same where the graph's processor wants the tensor, which must have this type. */
bool buffer_make_for(Buffer *buffer, void *environment, const Graph *graph, const Signature *signature, bool is_input,
                     const char *name, const TensorType *type);
void buffer_free(Buffer *buffer);
/* The buffer's content, until `buffer_unlock`; NULL with MACHINE recorded. With TO_WRITE all of it must be written;
 * its earlier content is there only with TO_READ and TO_CHANGE. */
typedef enum { TO_READ, TO_WRITE, TO_CHANGE } LockMode;
void *buffer_lock(const Buffer *buffer, LockMode mode);
bool buffer_unlock(const Buffer *buffer);

/* Finds the buffer for an input or output; NULL with BUNDLE recorded. */
typedef Buffer *FindBuffer(void *context, const char *name, bool is_input);
bool call_make(Call *call, const Graph *graph, const Signature *signature, FindBuffer *find, void *context);
bool call_run(const Call *call);
void call_free(Call *call);

#endif
