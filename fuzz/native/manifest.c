/* A bundle's manifest.json, as bundle_runner reads it. Its hash over itself, which is compared last, seldom fits. */
#include "bundle_runner/manifest.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Manifest manifest;
    char *copy = malloc(size + 1);
    memcpy(copy, data, size);
    copy[size] = 0;
    if (size) parse_manifest(&manifest, "manifest.json", copy, size);
    manifest_free(&manifest);
    take_fault();
    free(copy);
    return 0;
}
