#include "background.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault.h"

void background_begin(Background *background, bool (*work)(void *), void *context) {
    int ends[2];
    memset(background, 0, sizeof *background);
    background->is_begun = true;
    background->process = pipe(ends) ? -1 : fork();
    if (background->process < 0) {
        background->was_right = work(context);
        return;
    }
    if (!background->process) {
        /* One byte if all is right, or the error, which is shorter than what a pipe takes at once. */
        size_t size = work(context) ? 1 : sizeof(Fault);
        const Fault *fault = take_fault();
        ssize_t told = size == 1 ? write(ends[1], "", 1) : fault ? write(ends[1], fault, size) : 0;
        _exit(told == (ssize_t)size ? 0 : 1);
    }
    close(ends[1]);
    background->report = ends[0];
}

static const char *unless_empty(const char *words) { return *words ? words : NULL; }

bool background_end(Background *background) {
    Fault fault;
    if (!background->is_begun) return true;
    background->is_begun = false;
    if (background->process < 0) return background->was_right;
    ssize_t bytes;
    while ((bytes = read(background->report, &fault, sizeof fault)) < 0 && errno == EINTR) continue;
    close(background->report);
    while (waitpid(background->process, NULL, 0) < 0 && errno == EINTR) continue;
    if (bytes == (ssize_t)sizeof fault)
        return refuse(fault.kind, unless_empty(fault.file), unless_empty(fault.place), fault.found,
                      unless_empty(fault.wanted));
    return bytes == 1 || refuse(MACHINE, NULL, "check of the bundle's files", "its process was ended", NULL);
}
