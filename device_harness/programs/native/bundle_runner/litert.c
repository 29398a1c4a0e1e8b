#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "litert_functions.h"

enum { CPU = 1, GPU = 2 };

/* LiteRtEnvOption with a text as its value, and the tag of the folder of LiteRT's other libraries. */
typedef struct {
    int32_t tag, gap, kind, other_gap;
    const char *value;
} EnvironmentOption;
enum { LIBRARY_FOLDER = 22, TEXT = 8 };

#define DEFINE(name, arguments) int(*name) arguments;
FUNCTIONS(DEFINE)

#define GPU_PLACE "backend gpu"

char library_path[512];

bool litert_load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *said = dlerror();
        return refuse(MACHINE, path, NULL, said ? said : "it cannot be loaded", "LiteRT's library");
    }
    snprintf(library_path, sizeof library_path, "%s", path);
#define LOOK_UP(name, arguments)                                                                             \
    *(void **)&name = dlsym(library, "LiteRt" #name);                                                        \
    if (!name) return refuse(MACHINE, path, NULL, "no function LiteRt" #name, "a library with LiteRT's C API");
    FUNCTIONS(LOOK_UP)
    return true;
}

bool is_done(int status, const char *file, const char *function) {
    return !status || refuse(MACHINE, file, text("LiteRt%s", function), text("it failed with status %d", status), NULL);
}

bool litert_start(void **environment, Processor processor) {
    static char folder[sizeof library_path];
    const EnvironmentOption beside = {LIBRARY_FOLDER, 0, TEXT, 0, folder};
    const char *slash = strrchr(library_path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash > library_path ? (int)(slash - library_path) : 1, slash ? library_path : ".");
    return processor == ON_CPU ? DO(library_path, CreateEnvironment, 0, NULL, environment)
                               : DO(library_path, CreateEnvironment, 1, &beside, environment);
}

void litert_stop(void *environment) {
    if (environment) DestroyEnvironment(environment);
}

/* The options' text is not copied by LiteRT; it is freed with the graph. */
static void keep(void *payload) { (void)payload; }

/* The text of the options for the CPU; a path that TOML could not quote is refused. */
static char *cpu_options(const char *path, int threads, const char *weight_cache) {
    size_t room = 128 + (weight_cache ? strlen(weight_cache) : 0);
    for (const char *at = weight_cache ? weight_cache : ""; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == '"' || *at == '\\' || *at == 0x7F) {
            refuse(USAGE, path, "weight cache", weight_cache, "a path without quotes and backslashes");
            return NULL;
        }
    char *words = allocate(room, 1);
    if (!words) return NULL;
    int done = snprintf(words, room, "num_threads = %d\n", threads);
    if (weight_cache) snprintf(words + done, room - (size_t)done, "weight_cache_file_path = \"%s\"\n", weight_cache);
    return words;
}

static bool add_options(const Graph *graph, void *options, const char *kind, char *words) {
    void *opaque;
    return DO(graph->path, CreateOpaqueOptions, kind, words, keep, &opaque) &&
           DO(graph->path, AddOpaqueOptions, options, opaque);
}

static bool compile(Graph *graph, void *environment, void *options, bool is_profiled) {
    static char profiling[] = "enable_profiling = true\n";
    return DO(graph->path, SetOptionsHardwareAccelerators, options, CPU) &&
           (!is_profiled || add_options(graph, options, "runtime_options_string", profiling)) &&
           add_options(graph, options, "xnnpack", graph->cpu_options) &&
           DO(graph->path, CreateCompiledModel, environment, graph->model, options, &graph->compiled) &&
           (!is_profiled || (DO(graph->path, CompiledModelGetProfiler, graph->compiled, &graph->profiler) &&
                             DO(graph->path, StartProfiler, graph->profiler)));
}

static bool read_keys(Graph *graph) {
    if (!DO(graph->path, GetNumModelSignatures, graph->model, &graph->count)) return false;
    if (graph->count > MOST_SIGNATURES)
        return refuse(BUNDLE, graph->path, NULL, text("%zu signatures", graph->count), text("at most %d", MOST_SIGNATURES));
    graph->signatures = allocate(graph->count, sizeof *graph->signatures);
    for (size_t i = 0; graph->signatures && i < graph->count; i++) {
        Signature *signature = &graph->signatures[i];
        void *raw;
        const char *key;
        if (!DO(graph->path, GetModelSignature, graph->model, i, &raw) || !DO(graph->path, GetSignatureKey, raw, &key))
            return false;
        if (snprintf(signature->key, sizeof signature->key, "%s", key) >= MOST_NAME)
            return refuse(BUNDLE, graph->path, "a signature's name", text("%.100s", key), "a shorter one");
        signature->index = i;
    }
    return graph->signatures != NULL;
}

static bool name_graph(Graph *graph, const char *path, Processor processor) {
    memset(graph, 0, sizeof *graph);
    graph->processor = processor;
    return snprintf(graph->path, sizeof graph->path, "%s", path) < (int)sizeof graph->path ||
           refuse(USAGE, path, NULL, "a path that is too long", NULL);
}

static bool open_graph(Graph *graph, void *environment, const char *path, int threads, const char *weight_cache,
                       bool is_profiled) {
    void *options = NULL;
    if (!name_graph(graph, path, ON_CPU)) return false;
    graph->cpu_options = cpu_options(path, threads, weight_cache);
    bool is_open = graph->cpu_options && DO(path, CreateModelFromFile, environment, path, &graph->model) &&
                   DO(path, CreateOptions, &options) && compile(graph, environment, options, is_profiled) && read_keys(graph);
    if (options) DestroyOptions(options);
    if (!is_open) graph_close(graph);
    return is_open;
}

/* The options that our backend in Python gives (toolkit/runtime/backends/litert): with the CPU as a second processor,
 * LiteRT would run there what the GPU refuses, and count it as accelerated. */
static bool compile_on_gpu(Graph *graph, void *environment, void *options) {
    static char float32[] = "precision = 2\n", float16[] = "enable_infinite_float_capping = true\n";
    bool is_whole;
    if (!DO(graph->path, SetOptionsHardwareAccelerators, options, GPU) ||
        !add_options(graph, options, "gpu_options", graph->processor == ON_GPU_FLOAT32 ? float32 : float16))
        return false;
    int status = CreateCompiledModel(environment, graph->model, options, &graph->compiled);
    if (status)
        return refuse(MACHINE, graph->path, GPU_PLACE, text("LiteRT cannot open it with the GPU alone (status %d)", status),
                      NULL);
    return DO(graph->path, CompiledModelIsFullyAccelerated, graph->compiled, &is_whole) &&
           (is_whole || refuse(MACHINE, graph->path, GPU_PLACE, "ops that the GPU does not take", "all of them on the GPU"));
}

bool graph_open_on_gpu(Graph *graph, void *environment, const char *path, Processor processor) {
    void *options = NULL;
    if (!name_graph(graph, path, processor)) return false;
    bool is_open = DO(path, CreateModelFromFile, environment, path, &graph->model) && DO(path, CreateOptions, &options) &&
                   compile_on_gpu(graph, environment, options) && read_keys(graph);
    if (options) DestroyOptions(options);
    if (!is_open) graph_close(graph);
    return is_open;
}

bool is_on_gpu(const Graph *graph) { return graph->processor != ON_CPU; }

bool graph_open(Graph *graph, void *environment, const char *path, int threads, const char *weight_cache) {
    return open_graph(graph, environment, path, threads, weight_cache, false);
}

bool graph_open_profiled(Graph *graph, void *environment, const char *path, int threads, const char *weight_cache) {
    return open_graph(graph, environment, path, threads, weight_cache, true);
}

bool graph_profile(const Graph *graph, const char **summary) {
    return DO(graph->path, GetProfileSummary, graph->profiler, graph->compiled, summary);
}

void graph_close(Graph *graph) {
    for (size_t i = 0; graph->signatures && i < graph->count; i++) {
        free(graph->signatures[i].in);
        free(graph->signatures[i].out);
    }
    free(graph->signatures);
    if (graph->compiled) DestroyCompiledModel(graph->compiled);
    if (graph->model) DestroyModel(graph->model);
    free(graph->cpu_options);
    memset(graph, 0, sizeof *graph);
}

/* ---- signatures ---------------------------------------------------------------------------------------------- */

static bool describe(const Graph *graph, void *raw, const char *name, Tensor *tensor) {
    if (snprintf(tensor->name, sizeof tensor->name, "%s", name) >= MOST_NAME)
        return refuse(BUNDLE, graph->path, "a tensor's name", text("%.100s", name), "a shorter one");
    if (!DO(graph->path, GetRankedTensorType, raw, &tensor->type)) return false;
    unsigned rank = tensor->type.rank & 127;
    uint64_t bytes = tensor->type.element == BOOLEAN ? 1 : 4;
    bool is_right = rank <= 8 && !(tensor->type.rank & 128);
    if (tensor->type.element != BOOLEAN && tensor->type.element != INT32 && tensor->type.element != FLOAT32)
        return refuse(BUNDLE, graph->path, name, text("element type %d", tensor->type.element), "float32, int32 or bool");
    for (unsigned i = 0; i < rank && is_right; i++) {
        is_right = tensor->type.dimensions[i] > 0 && bytes < (uint64_t)1 << 40;
        bytes *= (uint64_t)(uint32_t)tensor->type.dimensions[i];
    }
    tensor->bytes = (size_t)bytes;
    return is_right || refuse(BUNDLE, graph->path, name, "a shape with a size that is not positive, or too large", NULL);
}

static bool read_side(const Graph *graph, void *raw, Signature *signature, bool is_input) {
    size_t count;
    if (!(is_input ? DO(graph->path, GetNumSignatureInputs, raw, &count)
                   : DO(graph->path, GetNumSignatureOutputs, raw, &count)))
        return false;
    if (count > MOST_TENSORS) return refuse(BUNDLE, graph->path, signature->key, text("%zu tensors", count), NULL);
    Tensor *tensors = allocate(count, sizeof *tensors);
    if (!tensors) return false;
    if (is_input) signature->in = tensors, signature->inputs = count;
    else signature->out = tensors, signature->outputs = count;
    for (size_t i = 0; i < count; i++) {
        const char *name;
        void *tensor;
        bool is_read = is_input ? DO(graph->path, GetSignatureInputName, raw, i, &name) &&
                                      DO(graph->path, GetSignatureInputTensorByIndex, raw, i, &tensor)
                                : DO(graph->path, GetSignatureOutputName, raw, i, &name) &&
                                      DO(graph->path, GetSignatureOutputTensorByIndex, raw, i, &tensor);
        if (!is_read || !describe(graph, tensor, name, &tensors[i])) return false;
    }
    return true;
}

const Signature *graph_signature(Graph *graph, const char *key) {
    for (size_t i = 0; i < graph->count; i++) {
        Signature *signature = &graph->signatures[i];
        void *raw;
        if (strcmp(signature->key, key) != 0) continue;
        if (signature->in && signature->out) return signature;
        if (DO(graph->path, GetModelSignature, graph->model, i, &raw) && read_side(graph, raw, signature, true) &&
            read_side(graph, raw, signature, false))
            return signature;
        free(signature->in), free(signature->out);
        signature->in = signature->out = NULL;
        return NULL;
    }
    refuse(BUNDLE, graph->path, text("signature %s", key), "no such signature", NULL);
    return NULL;
}

static const char *shape_text(const TensorType *type) {
    char words[160] = "";
    int done = 0;
    for (unsigned i = 0; i < (type->rank & 127) && i < 8; i++)
        done += snprintf(words + done, sizeof words - (size_t)done, "%s%d", i ? "," : "", type->dimensions[i]);
    const char *name = type->element == FLOAT32 ? "float32" : type->element == INT32 ? "int32" : "bool";
    return text("%s[%s]", name, words);
}

const Tensor *signature_tensor(const Graph *graph, const Signature *signature, bool is_input, const char *name,
                               int element, int rank, const int64_t *shape) {
    const Tensor *tensors = is_input ? signature->in : signature->out;
    size_t count = is_input ? signature->inputs : signature->outputs;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(tensors[i].name, name) != 0) continue;
        TensorType wanted = {.element = element, .rank = (uint32_t)rank};
        bool is_right = tensors[i].type.element == element && (tensors[i].type.rank & 127) == (uint32_t)rank;
        for (int k = 0; k < rank; k++) {
            wanted.dimensions[k] = (int32_t)shape[k];
            is_right = is_right && tensors[i].type.dimensions[k] == shape[k];
        }
        if (is_right) return &tensors[i];
        refuse(BUNDLE, graph->path, text("%s %s", signature->key, name), shape_text(&tensors[i].type), shape_text(&wanted));
        return NULL;
    }
    refuse(BUNDLE, graph->path, text("%s %s", signature->key, name), text("no such %s", is_input ? "input" : "output"), NULL);
    return NULL;
}
