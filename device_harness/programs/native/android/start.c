/* The start of an Android executable, in place of the NDK's crtbegin_dynamic.o.
 *
 * Android's linker jumps to _start with the kernel's argument block at the stack pointer; __libc_init never returns. The
 * arrays of constructors, which __libc_init runs, are empty: they begin with -1 and end with 0.
 */
extern int main(int, char **, char **);
extern void __libc_init(void *, void (*)(void), int (*)(int, char **, char **), const void *) __attribute__((noreturn));

static void (*const none[])(void) = {(void (*)(void))-1, 0};
static const struct {
    const void *before, *init, *fini;
} arrays = {none, none, none};

__attribute__((used)) static void start_main(void *block) { __libc_init(block, 0, main, &arrays); }

#if defined(__aarch64__)
__asm__(".text; .global _start; .type _start, %function; _start: mov x29, #0; mov x30, #0; mov x0, sp; b start_main;"
        ".size _start, . - _start");
#elif defined(__x86_64__)
__asm__(".text; .global _start; .type _start, @function; _start: xorl %ebp, %ebp; movq %rsp, %rdi; andq $-16, %rsp;"
        "call start_main; hlt; .size _start, . - _start");
#endif

/* The API level that the program needs at least: 23, as the library that it loads. */
__attribute__((section(".note.android.ident"), used, aligned(4))) static const struct {
    int name_bytes, value_bytes, type;
    char name[8];
    int level;
} ident = {8, 4, 1, "Android", 23};
