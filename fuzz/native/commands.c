/* Lines of commands for bundle_runner without an open bundle: JSON, and the arguments of `open`. */
#include <fcntl.h>

#define main bundle_runner_main
#include "bundle_runner/main.c"
#undef main

int LLVMFuzzerInitialize(int *count, char ***words) {
    (void)count, (void)words;
    int nothing = open("/dev/null", O_RDWR);
    dup2(nothing, STDIN_FILENO);
    dup2(nothing, STDOUT_FILENO);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Runner runner;
    char *line = malloc(size + 1);
    memcpy(line, data, size);
    line[size] = 0;
    run_line(&runner, line, size);
    session_close(&runner.session);
    free(line);
    return 0;
}
