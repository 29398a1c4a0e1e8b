/* The functions of LiteRT's C API that `litert_load` looks up. */
#ifndef LITERT_FUNCTIONS_H
#define LITERT_FUNCTIONS_H

#include "litert.h"

/* Name without its prefix LiteRt, and the arguments; each returns a status, 0 for success. */
#define FUNCTIONS(X)                                                                                         \
    X(CreateEnvironment, (int, const void *, void **))                                                       \
    X(DestroyEnvironment, (void *))                                                                          \
    X(CreateModelFromFile, (void *, const char *, void **))                                                  \
    X(DestroyModel, (void *))                                                                                \
    X(CreateOptions, (void **))                                                                              \
    X(DestroyOptions, (void *))                                                                              \
    X(SetOptionsHardwareAccelerators, (void *, int))                                                         \
    X(CreateOpaqueOptions, (const char *, void *, void (*)(void *), void **))                                \
    X(AddOpaqueOptions, (void *, void *))                                                                    \
    X(CreateCompiledModel, (void *, void *, void *, void **))                                                \
    X(DestroyCompiledModel, (void *))                                                                        \
    X(CompiledModelIsFullyAccelerated, (void *, bool *))                                                     \
    X(GetCompiledModelInputBufferRequirements, (void *, size_t, size_t, void **))                            \
    X(GetCompiledModelOutputBufferRequirements, (void *, size_t, size_t, void **))                           \
    X(GetNumModelSignatures, (void *, size_t *))                                                             \
    X(GetModelSignature, (void *, size_t, void **))                                                          \
    X(GetSignatureKey, (void *, const char **))                                                              \
    X(GetNumSignatureInputs, (void *, size_t *))                                                             \
    X(GetSignatureInputName, (void *, size_t, const char **))                                                \
    X(GetSignatureInputTensorByIndex, (void *, size_t, void **))                                             \
    X(GetNumSignatureOutputs, (void *, size_t *))                                                            \
    X(GetSignatureOutputName, (void *, size_t, const char **))                                               \
    X(GetSignatureOutputTensorByIndex, (void *, size_t, void **))                                            \
    X(GetRankedTensorType, (void *, TensorType *))                                                           \
    X(CreateManagedTensorBuffer, (void *, int, const TensorType *, size_t, void **))                         \
    X(CreateManagedTensorBufferFromRequirements, (void *, const TensorType *, void *, void **))              \
    X(DestroyTensorBuffer, (void *))                                                                         \
    X(LockTensorBuffer, (void *, void **, int))                                                              \
    X(UnlockTensorBuffer, (void *))                                                                          \
    X(RunCompiledModel, (void *, size_t, size_t, void **, size_t, void **))                                  \
    X(CompiledModelGetProfiler, (void *, void **))                                                           \
    X(StartProfiler, (void *))                                                                               \
    X(GetProfileSummary, (void *, void *, const char **))

#define DECLARE(name, arguments) extern int(*name) arguments;
FUNCTIONS(DECLARE)

extern char library_path[512];

/* Whether a status is a success; otherwise MACHINE is recorded. */
bool is_done(int status, const char *file, const char *function);
#define DO(file, name, ...) is_done(name(__VA_ARGS__), file, #name)

#endif
