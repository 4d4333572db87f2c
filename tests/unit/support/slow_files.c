/* A slow disk under a QEMU, which is started with this library in LD_PRELOAD.
 *
 * An fdatasync, and an open, waits as long as there is a file "sync NAME" or "open NAME" in the
 * directory $STALLED; NAME is the last part of the path. A file "OPERATION NAME reached" tells that
 * it waits.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int (*real_open)(const char *, int, ...);

static void stall(const char *operation, const char *path)
{
    const char *directory = getenv("STALLED"), *slash = strrchr(path, '/');
    char wanted[4096], reached[4200];

    if (!directory)
        return;
    snprintf(wanted, sizeof wanted, "%s/%s %s", directory, operation, slash ? slash + 1 : path);
    if (access(wanted, F_OK))
        return;
    snprintf(reached, sizeof reached, "%s reached", wanted);
    close(real_open(reached, O_CREAT | O_WRONLY, 0600));
    while (!access(wanted, F_OK))
        usleep(2000);
}

static int opened(const char *path, int flags, mode_t mode)
{
    if (!real_open)
        real_open = dlsym(RTLD_NEXT, "open64");
    stall("open", path);
    return real_open(path, flags, mode);
}

#define OPEN(name)                                                                               \
    int name(const char *path, int flags, ...)                                                   \
    {                                                                                            \
        va_list arguments;                                                                       \
        va_start(arguments, flags);                                                              \
        mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;                           \
        va_end(arguments);                                                                       \
        return opened(path, flags, mode);                                                        \
    }

OPEN(open)
OPEN(open64)

int fdatasync(int fd)
{
    static int (*real_fdatasync)(int);
    char link[64], path[4096] = "";

    if (!real_fdatasync)
        real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    if (!real_open)
        real_open = dlsym(RTLD_NEXT, "open64");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) > 0)
        stall("sync", path);
    return real_fdatasync(fd);
}
