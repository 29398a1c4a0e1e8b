/* A stand-in for Android's linker, for tests: runs an Android executable for arm64 in a process of glibc's.
 *
 *   android_program EXECUTABLE [ARGUMENT...]
 *
 * It does with ELF files what bionic's linker64 does: it maps segments, applies relocations (packed ones too), binds
 * every symbol at once, runs constructors and enters the program at its entry point with the kernel's argument block.
 * It refuses what that linker refuses: another interpreter, libraries that Android does not have, symbols that nobody
 * defines, thread-local storage. The functions are glibc's, or those of bionic.c where Android's differ.
 */
#define _GNU_SOURCE
#include "loader.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, MOST_MODULES = 8, MOST_TAGS = 64, DT_ANDROID_RELA = 0x60000011 };

typedef struct {
    const char *path;
    uintptr_t base;
    Elf64_Ehdr header;
    Elf64_Phdr *segments;
    uint64_t tags[MOST_TAGS];
    uint64_t packed, versions;
    const char *strings;
    const Elf64_Sym *symbols;
} Module;

static Module modules[MOST_MODULES];
static int loaded;

static const char *const LIBRARIES[] = {"libandroid.so", "libc.so",      "libdl.so", "libEGL.so", "libGLESv2.so",
                                        "libGLESv3.so",  "liblog.so", "libm.so",  "libz.so"};
/* Libraries whose functions no test calls: screens and buffers of a GPU. */
static const char *const UNUSED[] = {"AAsset", "AHardwareBuffer", "egl", "gl"};

_Noreturn void die(const char *path, const char *what, const char *name) {
    fprintf(stderr, "android_program: %s: %s %s\n", path, what, name);
    _exit(127);
}

static void require(bool is_right, const Module *module, const char *what) {
    if (!is_right) die(module->path, what, "");
}

/* ---- segments ------------------------------------------------------------------------------------------------ */

static uintptr_t page_of(uintptr_t address) { return address & ~(uintptr_t)(PAGE - 1); }

static int rights(const Elf64_Phdr *segment) {
    return (segment->p_flags & PF_R ? PROT_READ : 0) | (segment->p_flags & PF_W ? PROT_WRITE : 0) |
           (segment->p_flags & PF_X ? PROT_EXEC : 0);
}

static void read_headers(Module *module, int file) {
    Elf64_Ehdr *header = &module->header;
    require(pread(file, header, sizeof *header, 0) == sizeof *header, module, "too short");
    require(!memcmp(header->e_ident, ELFMAG "\2\1", 6) && header->e_machine == EM_AARCH64 && header->e_type == ET_DYN,
            module, "no position-independent code for arm64");
    size_t size = header->e_phnum * sizeof *module->segments;
    module->segments = malloc(size);
    require(module->segments && pread(file, module->segments, size, (off_t)header->e_phoff) == (ssize_t)size, module,
            "its program headers cannot be read");
}

/* Room for all segments in one piece, then each of them in its place, writable until it is relocated. */
static void map_segments(Module *module, int file) {
    uintptr_t end = 0;
    for (int i = 0; i < module->header.e_phnum; i++) {
        const Elf64_Phdr *segment = &module->segments[i];
        require(segment->p_type != PT_TLS, module, "thread-local storage, which Android gives 64 bytes of alignment");
        if (segment->p_type == PT_LOAD && segment->p_vaddr + segment->p_memsz > end)
            end = segment->p_vaddr + segment->p_memsz;
        require(segment->p_type != PT_LOAD || segment->p_align >= 16384, module, "not aligned to pages of 16 KiB");
    }
    void *room = mmap(NULL, end + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(room != MAP_FAILED, module, "no memory");
    module->base = (uintptr_t)room;
    for (int i = 0; i < module->header.e_phnum; i++) {
        const Elf64_Phdr *segment = &module->segments[i];
        if (segment->p_type != PT_LOAD) continue;
        uintptr_t start = page_of(module->base + segment->p_vaddr);
        size_t size = page_of(module->base + segment->p_vaddr + segment->p_memsz + PAGE - 1) - start;
        void *place = mmap((void *)start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        require(place == (void *)start, module, "no memory");
        ssize_t read = pread(file, (void *)(module->base + segment->p_vaddr), segment->p_filesz, (off_t)segment->p_offset);
        require(read == (ssize_t)segment->p_filesz, module, "a segment that the file does not have");
    }
}

static void protect_segments(const Module *module) {
    for (int i = 0; i < module->header.e_phnum; i++) {
        const Elf64_Phdr *segment = &module->segments[i];
        bool is_constant = segment->p_type == PT_GNU_RELRO;
        if (segment->p_type != PT_LOAD && !is_constant) continue;
        uintptr_t start = page_of(module->base + segment->p_vaddr);
        uintptr_t end = module->base + segment->p_vaddr + segment->p_memsz;
        end = is_constant ? page_of(end) : page_of(end + PAGE - 1);
        if (end > start) mprotect((void *)start, end - start, is_constant ? PROT_READ : rights(segment));
        if (segment->p_flags & PF_X) __builtin___clear_cache((char *)start, (char *)end);
    }
}

/* ---- symbols and relocations --------------------------------------------------------------------------------- */

static bool is_listed(const char *name, const char *const *list, size_t count, bool by_prefix) {
    for (size_t i = 0; i < count; i++)
        if (by_prefix ? !strncmp(name, list[i], strlen(list[i])) : !strcmp(name, list[i])) return true;
    return false;
}

static void read_dynamic(Module *module) {
    const Elf64_Dyn *entry = NULL;
    for (int i = 0; i < module->header.e_phnum; i++)
        if (module->segments[i].p_type == PT_DYNAMIC) entry = (void *)(module->base + module->segments[i].p_vaddr);
    require(entry != NULL, module, "no dynamic section");
    const Elf64_Dyn *first = entry;
    for (; entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag < MOST_TAGS) module->tags[entry->d_tag] = entry->d_un.d_val;
        if (entry->d_tag == DT_ANDROID_RELA) module->packed = entry->d_un.d_val;
        if (entry->d_tag == DT_VERSYM) module->versions = entry->d_un.d_val;
    }
    module->strings = (const char *)module->base + module->tags[DT_STRTAB];
    module->symbols = (const void *)(module->base + module->tags[DT_SYMTAB]);
    for (entry = first; entry->d_tag != DT_NULL; entry++) {
        const char *name = module->strings + entry->d_un.d_val;
        if (entry->d_tag == DT_NEEDED && !is_listed(name, LIBRARIES, sizeof LIBRARIES / sizeof *LIBRARIES, false))
            die(module->path, "library not found:", name);
    }
}

static void unused(void) { die("a library", "a function of Android's that the stand-in does not have was called", ""); }

static uintptr_t address_of(const Module *module, uint32_t index) {
    const Elf64_Sym *symbol = &module->symbols[index];
    const char *name = module->strings + symbol->st_name;
    if (symbol->st_shndx != SHN_UNDEF) return module->base + symbol->st_value;
    void *found = android_symbol(name);
    if (found || ELF64_ST_BIND(symbol->st_info) == STB_WEAK) return (uintptr_t)found;
    if (is_listed(name, UNUSED, sizeof UNUSED / sizeof *UNUSED, true)) return (uintptr_t)unused;
    die(module->path, "cannot locate symbol", name);
}

static void relocate(const Module *module, uint64_t offset, uint64_t info, int64_t addend) {
    uintptr_t *place = (uintptr_t *)(module->base + offset);
    switch (ELF64_R_TYPE(info)) {
    case R_AARCH64_NONE: return;
    case R_AARCH64_RELATIVE: *place = module->base + (uintptr_t)addend; return;
    case R_AARCH64_ABS64:
    case R_AARCH64_GLOB_DAT:
    case R_AARCH64_JUMP_SLOT: *place = address_of(module, (uint32_t)ELF64_R_SYM(info)) + (uintptr_t)addend; return;
    default: die(module->path, "a relocation of a kind that is not known", "");
    }
}

static void relocate_table(const Module *module, uint64_t start, uint64_t size) {
    const Elf64_Rela *table = (const void *)(module->base + start);
    for (uint64_t i = 0; start && i < size / sizeof *table; i++)
        relocate(module, table[i].r_offset, table[i].r_info, table[i].r_addend);
}

static int64_t next_number(const unsigned char **at) { /* signed LEB128 */
    int64_t value = 0;
    int shift = 0;
    unsigned char byte;
    do {
        byte = *(*at)++;
        value |= (int64_t)(byte & 127) << shift;
        shift += 7;
    } while (byte & 128);
    return shift < 64 && byte & 64 ? value | -((int64_t)1 << shift) : value;
}

/* Android's packed relocations (APS2): groups that share an info, a distance or an addend. */
static void relocate_packed(const Module *module, uint64_t start) {
    enum { BY_INFO = 1, BY_DISTANCE = 2, BY_ADDEND = 4, HAS_ADDEND = 8 };
    const unsigned char *at = (const void *)(module->base + start);
    require(!memcmp(at, "APS2", 4), module, "packed relocations of a kind that is not known");
    at += 4;
    int64_t left = next_number(&at), addend = 0;
    uint64_t offset = (uint64_t)next_number(&at), info = 0;
    while (left > 0) {
        int64_t count = next_number(&at), flags = next_number(&at);
        uint64_t distance = flags & BY_DISTANCE ? (uint64_t)next_number(&at) : 0;
        if (flags & BY_INFO) info = (uint64_t)next_number(&at);
        bool is_shared = flags & HAS_ADDEND && flags & BY_ADDEND, is_own = flags & HAS_ADDEND && !(flags & BY_ADDEND);
        if (is_shared) addend += next_number(&at);
        if (!(flags & HAS_ADDEND)) addend = 0;
        for (left -= count; count > 0; count--) {
            offset += flags & BY_DISTANCE ? distance : (uint64_t)next_number(&at);
            if (!(flags & BY_INFO)) info = (uint64_t)next_number(&at);
            if (is_own) addend += next_number(&at);
            relocate(module, offset, info, addend);
        }
    }
}

/* ---- what the linker offers ---------------------------------------------------------------------------------- */

void *load(const char *path) {
    if (loaded == MOST_MODULES) die(path, "too many files", "");
    Module *module = &modules[loaded];
    module->path = strdup(path);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    require(file >= 0, module, "cannot be opened");
    read_headers(module, file);
    map_segments(module, file);
    close(file);
    read_dynamic(module);
    loaded++;
    if (module->packed) relocate_packed(module, module->packed);
    relocate_table(module, module->tags[DT_RELA], module->tags[DT_RELASZ]);
    relocate_table(module, module->tags[DT_JMPREL], module->tags[DT_PLTRELSZ]);
    protect_segments(module);
    void (*const *constructors)(int, char **, char **) = (void *)(module->base + module->tags[DT_INIT_ARRAY]);
    for (size_t i = 0; i < module->tags[DT_INIT_ARRAYSZ] / sizeof *constructors; i++)
        if (constructors[i] && (intptr_t)constructors[i] != -1) constructors[i](0, NULL, environ);
    return module;
}

uintptr_t entry_of(const void *module) { return ((const Module *)module)->base + ((const Module *)module)->header.e_entry; }

void *symbol_of(void *handle, const char *name) {
    const Module *module = handle;
    const Elf64_Sym *end = (const void *)(module->base + module->versions); /* the table that follows the symbols */
    for (const Elf64_Sym *symbol = module->symbols + 1; symbol < end; symbol++)
        if (symbol->st_shndx != SHN_UNDEF && !strcmp(module->strings + symbol->st_name, name))
            return (void *)(module->base + symbol->st_value);
    return NULL;
}

int visit_modules(int (*visit)(void *info, size_t size, void *context), void *context) {
    int result = 0;
    for (int i = 0; i < loaded && !result; i++) {
        struct dl_phdr_info info = {modules[i].base, modules[i].path, modules[i].segments, modules[i].header.e_phnum, 0, 0, 0, NULL};
        result = visit(&info, sizeof info, context);
    }
    return result;
}

static void require_interpreter(const Module *module) {
    for (int i = 0; i < module->header.e_phnum; i++)
        if (module->segments[i].p_type == PT_INTERP &&
            !strcmp((const char *)(module->base + module->segments[i].p_vaddr), "/system/bin/linker64"))
            return;
    die(module->path, "no program for", "/system/bin/linker64");
}

int main(int count, char **arguments) {
    if (count < 2) die("arguments", "none; wanted", "EXECUTABLE [ARGUMENT...]");
    void *program = load(arguments[1]);
    require_interpreter(program);
    /* The kernel's block: the count, the arguments, NULL, the environment, NULL. */
    size_t variables = 0, stack = (size_t)8 << 20;
    while (environ[variables]) variables++;
    size_t words = 1 + (size_t)count + variables + 1;
    words += words & 1;
    uintptr_t *low = mmap(NULL, stack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (low == MAP_FAILED) die(arguments[1], "no memory for a stack", "");
    uintptr_t *block = low + stack / sizeof *low - words;
    block[0] = (uintptr_t)count - 1;
    memcpy(block + 1, arguments + 1, (size_t)count * sizeof *block);
    memcpy(block + 1 + count, environ, (variables + 1) * sizeof *block);
    __asm__ volatile("mov sp, %0\n\tbr %1" : : "r"(block), "r"(entry_of(program)) : "memory");
    __builtin_unreachable();
}
