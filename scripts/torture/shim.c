/* Counts the calls that change what lies below one folder, and at the n-th of them does one thing: kills the process,
 * or makes the call fail. Loaded with LD_PRELOAD; for Linux and glibc.
 *
 * A process arms it with fault_arm (shim.py does it through ctypes) or by its environment:
 * FAULT_ROOT, FAULT_LOG, FAULT_KEEP, FAULT_AT, FAULT_ACTION, FAULT_CODE.
 *
 * Every counted call is one line of the log: number, operation, outcome, size, path, second path, with tabs between.
 * Calls are made one after the other, under a lock, so that the log has the order in which they happened. Counted are
 * the functions of libc: what a program does by a bare syscall, io_uring or a mapped file is not seen (tests/
 * test_torture.py compares with strace).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* BEFORE: killed instead of the call. DURING: killed when half of a write, or the whole of another call, is done.
 * ONCE: this call fails. FROM: it and all after it. SHORT: half of a write is done, and all after it fails. */
enum { NOTHING, BEFORE, DURING, ONCE, FROM, SHORT };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], keep[PATH_MAX];
static size_t root_length;
static int armed, log_fd = -1, action, code;
static long at, count;

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

int fault_arm(const char *folder, const char *log, const char *kept, long nth, int what, int number) {
    pthread_mutex_lock(&turn);
    armed = 0, count = 0, at = nth, action = what, code = number;
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    log_fd = -1;
    if (folder && realpath(folder, root)) {
        root_length = strlen(root);
        snprintf(keep, sizeof keep, "%s", kept ? kept : "");
        if (log) log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        armed = !log || log_fd >= 0;
    }
    int done = armed || !folder;
    pthread_mutex_unlock(&turn);
    return done;
}

long fault_count(void) { return count; }

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("FAULT_ROOT"), *nth = getenv("FAULT_AT");
    const char *what = getenv("FAULT_ACTION"), *number = getenv("FAULT_CODE");
    if (folder) {
        fault_arm(folder, getenv("FAULT_LOG"), getenv("FAULT_KEEP"), nth ? atol(nth) : 0, what ? atoi(what) : NOTHING,
                  number ? atoi(number) : EIO);
    }
}

static int below(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* The absolute path of `path` in `folder`, or of the open file itself where path is NULL. Whether it is below root. */
static int resolve(int folder, const char *path, char *whole) {
    char link[64];
    ssize_t n = 0;
    if (!armed) return 0;
    if (!path || (path[0] != '/' && folder != AT_FDCWD)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        n = readlink(link, whole, PATH_MAX - 1);
        if (n < 0) return 0;
        whole[n] = 0;
    } else if (path[0] != '/') {
        if (!getcwd(whole, PATH_MAX)) return 0;
        n = (ssize_t)strlen(whole);
    }
    if (path) snprintf(whole + n, (size_t)(PATH_MAX - n), "%s%s", n ? "/" : "", path);
    return below(whole);
}

static void note(const char *operation, const char *outcome, long long size, const char *path, const char *other) {
    char line[2 * PATH_MAX + 128];
    if (log_fd < 0) return;
    int n = snprintf(line, sizeof line, "%ld\t%s\t%s\t%lld\t%s\t%s\n", count, operation, outcome, size, path, other);
    if (n > 0 && syscall(SYS_write, log_fd, line, (size_t)n) < 0) abort();
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Takes the turn. What has to be done with this call: NOTHING, DURING, SHORT, or ONCE for a failure. */
static int enter(const char *operation, const char *path, const char *other) {
    pthread_mutex_lock(&turn);
    count++;
    if (!at || count < at) return NOTHING;
    if (count > at) return action == FROM || action == SHORT ? ONCE : NOTHING;
    if (action == BEFORE) {
        note(operation, "killed", 0, path, other);
        die();
    }
    return action == FROM ? ONCE : action;
}

static void leave(int todo, const char *operation, long long result, long long size, const char *path, const char *other) {
    int saved = errno;
    char outcome[16] = "ok";
    if (result < 0) snprintf(outcome, sizeof outcome, "%d", saved);
    if (todo == DURING) snprintf(outcome, sizeof outcome, "killed");
    note(operation, outcome, size, path, other);
    if (todo == DURING) die();
    pthread_mutex_unlock(&turn);
    errno = saved;
}

/* The calls. Each: is it below root; take the turn; fail, or do it, perhaps half; note it; give the turn back. */

#define CALL(operation, path, other, size, failure, expression)                       \
    int todo = enter(operation, path, other);                                         \
    __auto_type result = (failure);                                                   \
    if (todo == ONCE || (todo == SHORT)) errno = code; else result = (expression);    \
    leave(todo, operation, result, size, path, other);                                \
    return result

static int creates(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }

#define OPEN(name)                                                                    \
    int name(const char *path, int flags, ...) {                                      \
        REAL(int, #name, const char *, int, ...);                                     \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        char whole[PATH_MAX]; struct stat known;                                      \
        if (!creates(flags) || !resolve(AT_FDCWD, path, whole)) return real(path, flags, mode); \
        int new = stat(whole, &known) != 0;                                           \
        CALL(new ? "create" : flags & O_TRUNC ? "empty" : "open", whole, "", 0, -1, real(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                  \
    int name(int folder, const char *path, int flags, ...) {                          \
        REAL(int, #name, int, const char *, int, ...);                                \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        char whole[PATH_MAX]; struct stat known;                                      \
        if (!creates(flags) || !resolve(folder, path, whole)) return real(folder, path, flags, mode); \
        int new = stat(whole, &known) != 0;                                           \
        CALL(new ? "create" : flags & O_TRUNC ? "empty" : "open", whole, "", 0, -1, real(folder, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                   \
    FILE *name(const char *path, const char *mode) {                                  \
        REAL(FILE *, #name, const char *, const char *);                              \
        char whole[PATH_MAX];                                                         \
        if (mode[0] == 'r' || !resolve(AT_FDCWD, path, whole)) return real(path, mode); \
        int todo = enter("create", whole, "");                                        \
        FILE *file = NULL;                                                            \
        if (todo == ONCE || todo == SHORT) errno = code; else file = real(path, mode); \
        leave(todo, "create", file ? 0 : -1, 0, whole, "");                           \
        return file;                                                                  \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char whole[PATH_MAX];
    if (!resolve(fd, NULL, whole)) return real(fd, data, size);
    int todo = enter("write", whole, "");
    ssize_t result = -1;
    if (todo == ONCE) errno = code;
    else if (todo == SHORT && size < 2) errno = code;
    else result = real(fd, data, todo == NOTHING ? size : size / 2);
    leave(todo, "write", result, result, whole, "");
    return result;
}

#define PWRITE(name, offset_type)                                                     \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) {         \
        REAL(ssize_t, #name, int, const void *, size_t, offset_type);                 \
        char whole[PATH_MAX];                                                         \
        if (!resolve(fd, NULL, whole)) return real(fd, data, size, offset);           \
        int todo = enter("write", whole, "");                                         \
        ssize_t result = -1;                                                          \
        if (todo == ONCE || (todo == SHORT && size < 2)) errno = code;                \
        else result = real(fd, data, todo == NOTHING ? size : size / 2, offset);      \
        leave(todo, "write", result, result, whole, "");                              \
        return result;                                                                \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    char whole[PATH_MAX];
    if (!resolve(fd, NULL, whole)) return real(fd, parts, n);
    int todo = enter("write", whole, "");
    struct iovec half = n > 0 ? parts[0] : (struct iovec){0};
    half.iov_len = n > 1 ? half.iov_len : half.iov_len / 2;
    ssize_t result = -1;
    if (todo == ONCE || (todo == SHORT && !half.iov_len)) errno = code;
    else result = todo == NOTHING ? real(fd, parts, n) : real(fd, &half, 1);
    leave(todo, "write", result, result, whole, "");
    return result;
}

#define OF_A_FILE(type, name, operation, parameters, arguments, size)                 \
    type name parameters {                                                            \
        static type (*real) parameters;                                               \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                    \
        char whole[PATH_MAX];                                                         \
        if (!resolve(fd, NULL, whole)) return real arguments;                         \
        CALL(operation, whole, "", size, -1, real arguments);                         \
    }
static long long size_of(int fd) {
    struct stat known;
    return fstat(fd, &known) ? -1 : (long long)known.st_size;
}
OF_A_FILE(int, fsync, "fsync", (int fd), (fd), size_of(fd))
OF_A_FILE(int, fdatasync, "fsync", (int fd), (fd), size_of(fd))
OF_A_FILE(int, ftruncate, "truncate", (int fd, off_t size), (fd, size), size)
OF_A_FILE(int, ftruncate64, "truncate", (int fd, off64_t size), (fd, size), size)
OF_A_FILE(int, fallocate, "allocate", (int fd, int mode, off_t from, off_t size), (fd, mode, from, size), size)
OF_A_FILE(int, posix_fallocate, "allocate", (int fd, off_t from, off_t size), (fd, from, size), size)

#define OF_A_PATH(type, name, operation, folder, parameters, arguments)               \
    type name parameters {                                                            \
        static type (*real) parameters;                                               \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                    \
        char whole[PATH_MAX];                                                         \
        if (!resolve(folder, path, whole)) return real arguments;                     \
        CALL(operation, whole, "", 0, -1, real arguments);                            \
    }
OF_A_PATH(int, mkdir, "mkdir", AT_FDCWD, (const char *path, mode_t mode), (path, mode))
OF_A_PATH(int, mkdirat, "mkdir", folder, (int folder, const char *path, mode_t mode), (folder, path, mode))
OF_A_PATH(int, rmdir, "rmdir", AT_FDCWD, (const char *path), (path))
OF_A_PATH(int, unlink, "unlink", AT_FDCWD, (const char *path), (path))
OF_A_PATH(int, remove, "unlink", AT_FDCWD, (const char *path), (path))
OF_A_PATH(int, unlinkat, flags ? "rmdir" : "unlink", folder, (int folder, const char *path, int flags), (folder, path, flags))
OF_A_PATH(int, truncate, "truncate", AT_FDCWD, (const char *path, off_t size), (path, size))
OF_A_PATH(int, truncate64, "truncate", AT_FDCWD, (const char *path, off64_t size), (path, size))
OF_A_PATH(int, symlink, "link", AT_FDCWD, (const char *to, const char *path), (to, path))

/* A hard link to the file that a rename is about to replace, named by the number of the call: what a power cut that
 * forgets the rename brings back. */
static void save_replaced(const char *path) {
    char kept[2 * PATH_MAX];
    if (!keep[0]) return;
    snprintf(kept, sizeof kept, "%s/%ld", keep, count);
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, kept, 0) < 0) return; /* there was none, or it is a folder */
}

#define OF_TWO_PATHS(name, operation, from_folder, to_folder, parameters, arguments)  \
    int name parameters {                                                             \
        static int (*real) parameters;                                                \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                    \
        char whole[PATH_MAX], other[PATH_MAX];                                        \
        int known = resolve(from_folder, from, whole);                                \
        if (!(resolve(to_folder, to, other) || known)) return real arguments;         \
        int todo = enter(operation, whole, other), result = -1;                       \
        if (todo == ONCE || todo == SHORT) errno = code;                              \
        else { save_replaced(other); result = real arguments; }                       \
        leave(todo, operation, result, 0, whole, other);                              \
        return result;                                                                \
    }
OF_TWO_PATHS(rename, "rename", AT_FDCWD, AT_FDCWD, (const char *from, const char *to), (from, to))
OF_TWO_PATHS(renameat, "rename", a, b, (int a, const char *from, int b, const char *to), (a, from, b, to))
OF_TWO_PATHS(renameat2, "rename", a, b, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
OF_TWO_PATHS(link, "link", AT_FDCWD, AT_FDCWD, (const char *from, const char *to), (from, to))
OF_TWO_PATHS(linkat, "link", a, b, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
