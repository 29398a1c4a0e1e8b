/* Loads ELF files of Android for arm64 into a process of glibc's, as Android's linker does into one of bionic's. */
#ifndef LOADER_H
#define LOADER_H

#include <stddef.h>
#include <stdint.h>

/* Map a file, relocate it and run its constructors; ends the process with a message where Android's linker would. */
void *load(const char *path);
/* The address of its entry point. */
uintptr_t entry_of(const void *module);
/* The address of a symbol that the file defines; NULL without one. */
void *symbol_of(void *module, const char *name);
/* The function or object that Android has under this name; NULL if it has none. */
void *android_symbol(const char *name);
/* Call `visit` with the program headers of each loaded file, as dl_iterate_phdr does, until it returns other than 0. */
int visit_modules(int (*visit)(void *info, size_t size, void *context), void *context);
/* Print what is wrong and end the process. */
_Noreturn void die(const char *path, const char *what, const char *name);

#endif
