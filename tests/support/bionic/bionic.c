/* Android's C library where it differs from glibc: other structures, other numbers, other names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "loader.h"

/* Code for Android reads the stack protector's value 40 bytes past the thread pointer, where glibc has the first
 * thread-local variable of the program: this one keeps others away. */
static _Thread_local char slots[64] __attribute__((aligned(16), used)) = {1};

/* ---- streams: three of 152 bytes in one array ------------------------------------------------------------------ */

enum { STREAM_BYTES = 152 };
static char standard_streams[3 * STREAM_BYTES];

static FILE *stream(void *given) {
    FILE *const own[] = {stdin, stdout, stderr};
    long offset = (char *)given - standard_streams;
    return offset >= 0 && offset < (long)sizeof standard_streams ? own[offset / STREAM_BYTES] : given;
}

static int print(void *to, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int done = vfprintf(stream(to), format, arguments);
    va_end(arguments);
    return done;
}
static int print_list(void *to, const char *format, va_list arguments) { return vfprintf(stream(to), format, arguments); }
static size_t put_block(const void *data, size_t size, size_t count, void *to) { return fwrite(data, size, count, stream(to)); }
static int put_text(const char *text, void *to) { return fputs(text, stream(to)); }
static int put_byte(int byte, void *to) { return fputc(byte, stream(to)); }
static int flush(void *given) { return fflush(given ? stream(given) : NULL); }
static int number_of(void *given) { return fileno(stream(given)); }
static size_t get_checked(void *data, size_t size, size_t count, void *from, size_t room) {
    return size * count > room ? 0 : fread(data, size, count, stream(from));
}

/* ---- threads: attributes and semaphores are smaller than glibc's, and hold a pointer to them -------------------- */

static int attributes_init(pthread_attr_t **place) {
    *place = malloc(sizeof **place);
    return *place ? pthread_attr_init(*place) : ENOMEM;
}
static int attributes_destroy(pthread_attr_t **place) {
    int result = pthread_attr_destroy(*place);
    free(*place);
    return result;
}
static int set_detached(pthread_attr_t **place, int state) { return pthread_attr_setdetachstate(*place, state); }
static int set_stack(pthread_attr_t **place, size_t bytes) { return pthread_attr_setstacksize(*place, bytes); }
static int set_guard(pthread_attr_t **place, size_t bytes) { return pthread_attr_setguardsize(*place, bytes); }
static int get_guard(pthread_attr_t **place, size_t *bytes) { return pthread_attr_getguardsize(*place, bytes); }
static int set_policy(pthread_attr_t **place, int policy) { return pthread_attr_setschedpolicy(*place, policy); }
static int set_priority(pthread_attr_t **place, const struct sched_param *value) { return pthread_attr_setschedparam(*place, value); }
static int get_priority(pthread_attr_t **place, struct sched_param *value) { return pthread_attr_getschedparam(*place, value); }
static int set_scope(pthread_attr_t **place, int scope) { return pthread_attr_setscope(*place, scope); }
static int create(pthread_t *thread, pthread_attr_t **place, void *(*run)(void *), void *argument) {
    return pthread_create(thread, place ? *place : NULL, run, argument);
}
/* Of glibc's 48 bytes only the first 40 are used, and Android's has no more. */
static int mutex_init(void *mutex, const pthread_mutexattr_t *kind) {
    pthread_mutex_t made;
    int result = pthread_mutex_init(&made, kind);
    memcpy(mutex, &made, 40);
    return result;
}
static int semaphore_init(sem_t **place, int is_shared, unsigned value) {
    *place = malloc(sizeof **place);
    return *place ? sem_init(*place, is_shared, value) : -1;
}
static int semaphore_destroy(sem_t **place) {
    int result = sem_destroy(*place);
    free(*place);
    return result;
}
static int semaphore_post(sem_t **place) { return sem_post(*place); }
static int semaphore_wait(sem_t **place) { return sem_wait(*place); }
static int semaphore_timed(sem_t **place, const struct timespec *until) { return sem_timedwait(*place, until); }

typedef struct Cleanup {
    struct Cleanup *previous;
    void (*run)(void *);
    void *argument;
} Cleanup;
static void cleanup_push(Cleanup *entry, void (*run)(void *), void *argument) { *entry = (Cleanup){NULL, run, argument}; }
static void cleanup_pop(Cleanup *entry, int runs) {
    if (runs) entry->run(entry->argument);
}

/* ---- signals: sets of 8 bytes; handlers stay the stand-in's ----------------------------------------------------- */

static int signals_fill(unsigned long *set) { return *set = ~0ul, 0; }
static int signals_delete(unsigned long *set, int number) { return *set &= ~(1ul << (number - 1)), 0; }
static int signals_block(int how, const void *set, void *old) {
    return syscall(SYS_rt_sigprocmask, how, set, old, sizeof(unsigned long)) ? errno : 0;
}
static int nothing(void) { return 0; }

/* ---- the rest --------------------------------------------------------------------------------------------------- */

static long configuration(int name) {
    static const struct {
        int android, glibc;
    } NAMES[] = {{0x06, _SC_CLK_TCK},          {0x27, _SC_PAGESIZE},         {0x28, _SC_PAGESIZE},
                 {0x60, _SC_NPROCESSORS_CONF}, {0x61, _SC_NPROCESSORS_ONLN}, {0x62, _SC_PHYS_PAGES}};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (NAMES[i].android == name) return sysconf(NAMES[i].glibc);
    errno = EINVAL;
    return -1;
}
static int *error_number(void) { return &errno; }
static size_t length_checked(const char *text, size_t room) {
    (void)room;
    return strlen(text);
}
static char *find_checked(const char *text, int byte, size_t room) {
    (void)room;
    return (char *)strchr(text, byte);
}
static char *copy_checked(char *to, const char *from, size_t count, size_t room, size_t source) {
    (void)room, (void)source;
    return strncpy(to, from, count);
}
static ssize_t write_checked(int file, const void *data, size_t count, size_t room) {
    (void)room;
    return write(file, data, count);
}
static int property(const char *name, char *value) {
    (void)name;
    *value = 0;
    return 0;
}
static int log_print(int priority, const char *tag, const char *format, ...) {
    (void)priority, (void)tag;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    return fputc('\n', stderr);
}
static int log_write(int priority, const char *tag, const char *text) { return log_print(priority, tag, "%s", text); }
/* A library by its path; Android's own, such as a GPU's, are not there. */
static void *open_library(const char *path, int mode) {
    (void)mode;
    return path && strchr(path, '/') && !access(path, R_OK) ? load(path) : NULL;
}
static const char *open_error(void) { return "no such file, or a library of Android's that the stand-in does not have"; }

int __xpg_strerror_r(int, char *, size_t);

typedef int Visit(void *info, size_t size, void *context);
static int visit_all(Visit *visit, void *context) {
    int result = visit_modules(visit, context);
    return result ? result : dl_iterate_phdr((int (*)(struct dl_phdr_info *, size_t, void *))visit, context);
}

typedef int Main(int count, char **arguments, char **environment);
static _Noreturn void start(uintptr_t *block, void *unused, Main *run, void (*const *const *structors)(void)) {
    (void)unused;
    for (int i = 0; i < 3; i++)
        if (!structors[i] || (intptr_t)structors[i][0] != -1) die("__libc_init", "no list of constructors", "");
    char **arguments = (char **)(block + 1);
    exit(run((int)block[0], arguments, arguments + block[0] + 1));
}

static const struct {
    const char *name;
    void *address;
} OWN[] = {
    {"__sF", standard_streams},
    {"fprintf", print},
    {"vfprintf", print_list},
    {"fwrite", put_block},
    {"fputs", put_text},
    {"fputc", put_byte},
    {"putc", put_byte},
    {"fflush", flush},
    {"fileno", number_of},
    {"__fread_chk", get_checked},
    {"pthread_attr_init", attributes_init},
    {"pthread_attr_destroy", attributes_destroy},
    {"pthread_attr_setdetachstate", set_detached},
    {"pthread_attr_setstacksize", set_stack},
    {"pthread_attr_setguardsize", set_guard},
    {"pthread_attr_getguardsize", get_guard},
    {"pthread_attr_setschedpolicy", set_policy},
    {"pthread_attr_setschedparam", set_priority},
    {"pthread_attr_getschedparam", get_priority},
    {"pthread_attr_setscope", set_scope},
    {"pthread_create", create},
    {"pthread_mutex_init", mutex_init},
    {"__pthread_cleanup_push", cleanup_push},
    {"__pthread_cleanup_pop", cleanup_pop},
    {"sem_init", semaphore_init},
    {"sem_destroy", semaphore_destroy},
    {"sem_post", semaphore_post},
    {"sem_wait", semaphore_wait},
    {"sem_timedwait", semaphore_timed},
    {"sigfillset", signals_fill},
    {"sigdelset", signals_delete},
    {"pthread_sigmask", signals_block},
    {"sigaction", nothing},
    {"sigaltstack", nothing},
    {"signal", nothing},
    {"sysconf", configuration},
    {"__errno", error_number},
    {"__gnu_strerror_r", strerror_r},
    {"strerror_r", __xpg_strerror_r},
    {"__strlen_chk", length_checked},
    {"__strchr_chk", find_checked},
    {"__strncpy_chk2", copy_checked},
    {"__write_chk", write_checked},
    {"__system_property_get", property},
    {"__system_property_find", nothing},
    {"android_set_abort_message", nothing},
    {"__android_log_print", log_print},
    {"__android_log_write", log_write},
    {"__android_log_vprint", nothing},
    {"__register_atfork", nothing},
    {"dlopen", open_library},
    {"dlsym", symbol_of},
    {"dlerror", open_error},
    {"dlclose", nothing},
    {"dl_iterate_phdr", visit_all},
    {"__libc_init", start},
};

void *android_symbol(const char *name) {
    for (size_t i = 0; i < sizeof OWN / sizeof *OWN; i++)
        if (!strcmp(OWN[i].name, name)) return OWN[i].address;
    void *found = dlsym(RTLD_DEFAULT, name);
    return found ? found : dlsym(dlopen("libm.so.6", RTLD_NOW), name);
}
