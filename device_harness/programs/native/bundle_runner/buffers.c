/* Buffers, and calls of signatures with them. */
#include <stdlib.h>
#include <string.h>

#include "litert_functions.h"

enum { HOST_MEMORY = 1 };

static size_t type_bytes(const TensorType *type) {
    size_t bytes = type->element == BOOLEAN ? 1 : 4;
    for (unsigned i = 0; i < (type->rank & 127); i++) bytes *= (size_t)type->dimensions[i];
    return bytes;
}

bool buffer_make(Buffer *buffer, void *environment, const TensorType *type) {
    buffer->type = *type;
    buffer->bytes = type_bytes(type);
    if (!DO(library_path, CreateManagedTensorBuffer, environment, HOST_MEMORY, type, buffer->bytes, &buffer->handle)) {
        buffer->handle = NULL;
        return false;
    }
    /* Memory fresh from the system is zero already; only reading it takes no page of its own. */
    unsigned char *bytes = buffer_lock(buffer, TO_WRITE);
    if (!bytes) return false;
    if (bytes[0] || memcmp(bytes, bytes + 1, buffer->bytes - 1) != 0) memset(bytes, 0, buffer->bytes);
    return buffer_unlock(buffer);
}

bool buffer_make_for(Buffer *buffer, void *environment, const Graph *graph, const Signature *signature, bool is_input,
                     const char *name, const TensorType *type) {
    int64_t shape[8];
    void *requirements;
    for (unsigned k = 0; k < (type->rank & 127); k++) shape[k] = type->dimensions[k];
    const Tensor *tensor =
        signature_tensor(graph, signature, is_input, name, type->element, (int)(type->rank & 127), shape);
    if (!tensor) return false;
    size_t index = (size_t)(tensor - (is_input ? signature->in : signature->out));
    buffer->type = *type;
    buffer->bytes = type_bytes(type);
    bool is_made =
        (is_input ? DO(graph->path, GetCompiledModelInputBufferRequirements, graph->compiled, signature->index, index,
                       &requirements)
                  : DO(graph->path, GetCompiledModelOutputBufferRequirements, graph->compiled, signature->index, index,
                       &requirements)) &&
        DO(graph->path, CreateManagedTensorBufferFromRequirements, environment, type, requirements, &buffer->handle);
    if (!is_made) buffer->handle = NULL;
    void *bytes = is_made ? buffer_lock(buffer, TO_WRITE) : NULL;
    if (bytes) memset(bytes, 0, buffer->bytes);
    return bytes && buffer_unlock(buffer);
}

void buffer_free(Buffer *buffer) {
    if (buffer->handle) DestroyTensorBuffer(buffer->handle);
    memset(buffer, 0, sizeof *buffer);
}

void *buffer_lock(const Buffer *buffer, LockMode mode) {
    void *address = NULL;
    if (!DO(library_path, LockTensorBuffer, buffer->handle, &address, (int)mode)) return NULL;
    if (!address) refuse(MACHINE, library_path, "LiteRtLockTensorBuffer", "no memory", NULL);
    return address;
}

bool buffer_unlock(const Buffer *buffer) { return DO(library_path, UnlockTensorBuffer, buffer->handle); }

static bool bind_side(Call *call, bool is_input, FindBuffer *find, void *context) {
    const Signature *signature = call->signature;
    const Tensor *tensors = is_input ? signature->in : signature->out;
    size_t count = is_input ? signature->inputs : signature->outputs;
    for (size_t i = 0; i < count; i++) {
        Buffer *buffer = find(context, tensors[i].name, is_input);
        const char *place = text("%s %s", signature->key, tensors[i].name);
        if (!buffer) return refuse(BUNDLE, call->graph->path, place, "a tensor that the format does not have", NULL);
        int rank = (int)(buffer->type.rank & 127);
        int64_t shape[8];
        for (int k = 0; k < rank; k++) shape[k] = buffer->type.dimensions[k];
        if (!signature_tensor(call->graph, signature, is_input, tensors[i].name, buffer->type.element, rank, shape))
            return false;
        (is_input ? call->in : call->out)[i] = buffer->handle;
    }
    return true;
}

bool call_make(Call *call, const Graph *graph, const Signature *signature, FindBuffer *find, void *context) {
    call->graph = graph, call->signature = signature;
    call->in = allocate(signature->inputs, sizeof *call->in);
    call->out = allocate(signature->outputs, sizeof *call->out);
    bool is_made = call->in && call->out && bind_side(call, true, find, context) && bind_side(call, false, find, context);
    if (!is_made) call_free(call);
    return is_made;
}

bool call_run(const Call *call) {
    const Signature *signature = call->signature;
    int status = RunCompiledModel(call->graph->compiled, signature->index, signature->inputs, call->in,
                                  signature->outputs, call->out);
    return !status || refuse(MACHINE, call->graph->path, text("signature %s", signature->key),
                             text("LiteRT cannot run it (status %d)", status), NULL);
}

void call_free(Call *call) {
    free(call->in);
    free(call->out);
    memset(call, 0, sizeof *call);
}
