/* Loaded before the C library: counts what changes files below a directory, and at the n-th such
   step kills the process (a write is torn in half), or has the disk full, once or from then on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL, FULL_ONCE, READ_ONLY };
static char below[PATH_MAX];
static int mode;
static long at;
static atomic_long steps;

void fault_arm(const char *directory, long number, int how) {
    strncpy(below, directory, sizeof below - 1);
    at = number;
    mode = how;
    atomic_store(&steps, 0);
}
long fault_steps(void) { return atomic_load(&steps); }

static int path_counts(const char *path) {
    return below[0] && path && strncmp(path, below, strlen(below)) == 0;
}
static int file_counts(int number) {
    char link[64], path[PATH_MAX];
    if (!below[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", number);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_counts(path);
}
/* 0: go on; 1: this step fails with errno set; 2: this is a write to be torn, then killed. */
static int step(int takes_space, int is_write) {
    long number = atomic_fetch_add(&steps, 1) + 1;
    if (mode == KILL && number == at) {
        if (is_write) return 2;
        kill(getpid(), SIGKILL);
    }
    if ((mode == FULL && number >= at && takes_space) ||
        (mode == FULL_ONCE && number == at && takes_space)) {
        errno = ENOSPC;
        return 1;
    }
    if (mode == READ_ONLY && number >= at) {
        errno = EROFS;
        return 1;
    }
    return 0;
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int f, const void *data, size_t n) {
    REAL(write);
    if (file_counts(f)) {
        int what = step(1, 1);
        if (what == 1) return -1;
        if (what == 2) { real(f, data, n / 2); kill(getpid(), SIGKILL); }
    }
    return real(f, data, n);
}
ssize_t pwrite(int f, const void *data, size_t n, off_t o) {
    REAL(pwrite);
    if (file_counts(f)) {
        int what = step(1, 1);
        if (what == 1) return -1;
        if (what == 2) { real(f, data, n / 2, o); kill(getpid(), SIGKILL); }
    }
    return real(f, data, n, o);
}
ssize_t pwrite64(int f, const void *data, size_t n, off64_t o) {
    REAL(pwrite64);
    if (file_counts(f)) {
        int what = step(1, 1);
        if (what == 1) return -1;
        if (what == 2) { real(f, data, n / 2, o); kill(getpid(), SIGKILL); }
    }
    return real(f, data, n, o);
}
ssize_t writev(int f, const struct iovec *v, int n) {
    REAL(writev);
    if (file_counts(f)) {
        int what = step(1, 1);
        if (what == 1) return -1;
        if (what == 2) kill(getpid(), SIGKILL);
    }
    return real(f, v, n);
}
size_t fwrite(const void *data, size_t size, size_t n, FILE *f) {
    REAL(fwrite);
    if (below[0] && file_counts(fileno(f))) {
        int what = step(1, 1);
        if (what == 1) return 0;
        if (what == 2) { real(data, size, n / 2, f); fflush(f); kill(getpid(), SIGKILL); }
    }
    return real(data, size, n, f);
}
ssize_t sendfile(int to, int from, off_t *o, size_t n) {
    REAL(sendfile);
    if (file_counts(to)) {
        int what = step(1, 1);
        if (what == 1) return -1;
        if (what == 2) { real(to, from, o, 100); kill(getpid(), SIGKILL); }
    }
    return real(to, from, o, n);
}
ssize_t copy_file_range(int from, off64_t *o, int to, off64_t *p, size_t n, unsigned flags) {
    REAL(copy_file_range);
    if (file_counts(to)) {
        int what = step(1, 1);
        if (what == 1) return -1;
        if (what == 2) { real(from, o, to, p, 100, flags); kill(getpid(), SIGKILL); }
    }
    return real(from, o, to, p, n, flags);
}
#define ON_FILE(name, args, call, counted, space) \
    int name args { REAL(name); if (counted && step(space, 0)) return -1; return real call; }
ON_FILE(fsync, (int f), (f), file_counts(f), 1)
ON_FILE(fdatasync, (int f), (f), file_counts(f), 1)
ON_FILE(ftruncate, (int f, off_t n), (f, n), file_counts(f), 0)
ON_FILE(ftruncate64, (int f, off64_t n), (f, n), file_counts(f), 0)
ON_FILE(rename, (const char *a, const char *b), (a, b), path_counts(b), 0)
ON_FILE(renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), path_counts(b), 0)
ON_FILE(renameat2, (int d, const char *a, int e, const char *b, unsigned flags),
        (d, a, e, b, flags), path_counts(b), 0)
ON_FILE(unlink, (const char *a), (a), path_counts(a), 0)
ON_FILE(unlinkat, (int d, const char *a, int flags), (d, a, flags),
        (path_counts(a) || file_counts(d)), 0)
ON_FILE(rmdir, (const char *a), (a), path_counts(a), 0)
ON_FILE(mkdir, (const char *a, mode_t m), (a, m), path_counts(a), 1)

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        mode_t m = 0; \
        REAL(name); \
        if (flags & O_CREAT) { \
            va_list list; va_start(list, flags); m = va_arg(list, mode_t); va_end(list); \
            if (path_counts(path) && step(1, 0)) return -1; \
        } \
        return real(path, flags, m); \
    }
OPENS(open)
OPENS(open64)
#define OPENS_AT(name) \
    int name(int d, const char *path, int flags, ...) { \
        mode_t m = 0; \
        REAL(name); \
        if (flags & O_CREAT) { \
            va_list list; va_start(list, flags); m = va_arg(list, mode_t); va_end(list); \
            if (path_counts(path) && step(1, 0)) return -1; \
        } \
        return real(d, path, flags, m); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)
