/* The weight cache: files with weights in the layout that XNNPACK packs for this CPU, named as the Python runtime does
 * (toolkit/runtime/backends/cpu/weight_file.py), so that on one machine both share them. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "litert.h"
#include "manifest.h"

enum { CACHE_OFF, CACHE_MEMORY, CACHE_FOLDER };

typedef struct {
    int kind;
    char folder[512];
    char runtime[160];    /* the version of the library, for the files' names */
    uint64_t limit_bytes; /* beyond it, the least recently used files are removed */
} WeightCache;

/* Where the packed weights of an open graph are. */
typedef struct {
    char path[768];  /* of the file in the folder; empty if they are in memory */
    bool is_built;   /* it was made now */
    char fault[sizeof(Fault)]; /* why the folder could not be used; empty if it was, or if none was given */
} PackedWeights;

/* Open a file of the bundle with large weights. With a folder, pack them into a file there first if it is missing; if
 * that cannot be done, pack them in memory. */
bool open_with_weights(Graph *graph, void *environment, const Manifest *manifest, const FileRecord *record, int threads,
                       const WeightCache *cache, PackedWeights *packed);
/* The path of a file's packed weights in the folder. */
bool weight_file_path(const WeightCache *cache, const FileRecord *record, char path[768]);

#endif
