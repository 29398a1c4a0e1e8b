/* Runs a bundle directory on LiteRT's C API.
 *
 *   bundle_runner LIBRARY [COMMAND...]
 *
 * Commands and answers are lines of JSON (docs/formats/bundle_runner.md): from standard input, or from the arguments.
 * LIBRARY is LiteRT's shared library. Exit code 0: all commands were read; 2: a command has no end, or was wrong in a
 * way that hides where the next begins, or one of the arguments failed; 3: the library cannot be used, there is no memory
 * for a command, or nobody reads the answers.
 * C11 and Linux or Android; no library but the C library's own.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "line.h"
#include "standard_input.h"

enum { PROTOCOL = 1 };

static const struct {
    const char *name;
    RunCommand *run;
} COMMANDS[] = {
    {"open", do_open},         {"prefill", do_prefill}, {"decode", do_decode}, {"generate", do_generate},
    {"truncate", do_truncate}, {"size", do_size},       {"image", do_image},   {"sound", do_sound},
    {"forget", do_forget},     {"stats", do_stats},     {"profile", do_profile}, {"close", do_close},
};

static bool dispatch(Runner *runner, const Json *json) {
    Command command = {{json, USAGE, NULL}, json_root(json), "command"};
    const char *name;
    if (!json_string(&command.source, command.value, "", "do", 32, &name)) return false;
    command.name = name;
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++)
        if (strcmp(COMMANDS[i].name, name) == 0) return COMMANDS[i].run(runner, &command);
    return refuse(USAGE, NULL, "do", name, "a command of docs/formats/bundle_runner.md");
}

/* Run one line; false after an error, which has been answered. */
static bool run_line(Runner *runner, const char *line, size_t size) {
    Json json = {0};
    if (strcmp(line, STOP) == 0) return true; /* it came too late: the generation had ended */
    char *copy = allocate(size + 1, 1);
    runner->started = monotonic_s();
    if (copy) {
        memcpy(copy, line, size);
        if (json_parse(&json, copy, size, USAGE, NULL)) dispatch(runner, &json);
    }
    const Fault *fault = take_fault();
    bool is_right = !fault;
    if (fault) line_fault(fault);
    json_free(&json);
    free(copy);
    return is_right;
}

static int run_input(Runner *runner) {
    size_t size;
    char *line;
    while (!runner->is_lost && (line = next_line(&size))) run_line(runner, line, size);
    const Fault *fault = take_fault();
    if (fault) line_fault(fault);
    if (fault && fault->kind == MACHINE) return EXIT_MACHINE;
    return fault || runner->is_lost ? EXIT_INPUT : 0;
}

int main(int argc, char **argv) {
    static Runner runner;
    signal(SIGPIPE, SIG_IGN); /* an answer that nobody reads has an exit code */
    keep_output();
    if (argc < 2 || !litert_load(argv[1])) {
        if (argc < 2) refuse(USAGE, NULL, "arguments", "none", "bundle_runner LIBRARY [COMMAND...]");
        line_fault(take_fault());
        return EXIT_MACHINE;
    }
    runner.reads_input = argc == 2;
    line_begin();
    line_string("ok", "start");
    line_integer("protocol", PROTOCOL);
    line_integer("pid", getpid());
    line_end();
    int code = runner.reads_input ? run_input(&runner) : 0;
    for (int i = 2; i < argc && !code; i++) code = run_line(&runner, argv[i], strlen(argv[i])) ? 0 : EXIT_INPUT;
    /* Some drivers of GPUs crash when their library is taken down. */
    if (runner.session.is_open && runner.session.options.processor != ON_CPU) _exit(code);
    session_close(&runner.session);
    free_input();
    return code;
}
