// What the kernel exports, sorted.
typedef unsigned int u32;
struct export_ { const char *name; void *addr; };

#define DATA(x) extern char x[];
#define FUNC(x) extern char x[];
#include "exports.inc"
#undef DATA
#undef FUNC
#define DATA(x) { #x, x },
#define FUNC(x) { #x, x },
const struct export_ kernel_exports[] = {
#include "exports.inc"
};
const u32 nkernel_exports = sizeof kernel_exports / sizeof kernel_exports[0];
