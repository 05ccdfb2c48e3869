/* A disk that fails when it is told to: put before libc by LD_PRELOAD.
 *
 * While $FAULTY_DISK/armed exists it holds one line, "CALL PART ERRNO": every CALL (sync, write,
 * short or open) on a path that contains PART fails with ERRNO. `short` writes half of the bytes
 * first. Every failure is a line in $FAULTY_DISK/log: "CALL PID FD PATH".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static int real_open(const char *path, int flags, int mode) {
    return REAL(int, "open64", const char *, int, ...)(path, flags, mode);
}

static ssize_t real_write(int fd, const void *bytes, size_t count) {
    return REAL(ssize_t, "write", int, const void *, size_t)(fd, bytes, count);
}

/* The errno that is due; 0 for none. */
static int due(const char *call, int fd, const char *path) {
    const char *dir = getenv("FAULTY_DISK");
    char name[4096], text[512], wanted[16], part[256], line[8192];
    int error, file, before = errno;
    if (!dir) return 0;
    snprintf(name, sizeof name, "%s/armed", dir);
    if ((file = real_open(name, O_RDONLY | O_CLOEXEC, 0)) < 0) { errno = before; return 0; }
    ssize_t count = read(file, text, sizeof text - 1);
    close(file);
    errno = before;
    if (count <= 0) return 0;
    text[count] = 0;
    if (sscanf(text, "%15s %255s %d", wanted, part, &error) != 3) return 0;
    if (strcmp(wanted, call) || !strstr(path, part)) return 0;
    snprintf(name, sizeof name, "%s/log", dir);
    file = real_open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    int length = snprintf(line, sizeof line, "%s %d %d %s\n", call, getpid(), fd, path);
    if (file >= 0) { if (real_write(file, line, length) < 0) { } close(file); }
    errno = before;
    return error;
}

static int due_fd(const char *call, int fd) {
    char link[64], path[4096];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t count = readlink(link, path, sizeof path - 1);
    errno = before;
    if (count <= 0) return 0;
    path[count] = 0;
    return due(call, fd, path);
}

#define FAIL_IF_DUE(call, fd) do { int e = due_fd(call, fd); if (e) { errno = e; return -1; } } while (0)

int fsync(int fd) { FAIL_IF_DUE("sync", fd); return REAL(int, "fsync", int)(fd); }
int fdatasync(int fd) { FAIL_IF_DUE("sync", fd); return REAL(int, "fdatasync", int)(fd); }

ssize_t write(int fd, const void *bytes, size_t count) {
    FAIL_IF_DUE("write", fd);
    int error = due_fd("short", fd);
    if (error) { if (real_write(fd, bytes, count / 2) < 0) { } errno = error; return -1; }
    return real_write(fd, bytes, count);
}

static ssize_t positioned(const char *name, int fd, const void *bytes, size_t count, off64_t at) {
    FAIL_IF_DUE("write", fd);
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, name);
    int error = due_fd("short", fd);
    if (error) { if (real(fd, bytes, count / 2, at) < 0) { } errno = error; return -1; }
    return real(fd, bytes, count, at);
}

ssize_t pwrite(int fd, const void *b, size_t n, off_t at) { return positioned("pwrite", fd, b, n, at); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t at) { return positioned("pwrite64", fd, b, n, at); }

static int opened(const char *path, int flags, int mode) {
    int error = flags & (O_WRONLY | O_RDWR | O_CREAT) ? due("open", -1, path) : 0;
    if (error) { errno = error; return -1; }
    return real_open(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);
    return opened(path, flags, mode);
}
