/* Lets one call of the child move fewer bytes than it asks for, as read(2) and write(2) may at any time. What it moves is right.
   strace, which plays the other faults, says such a number of a call that it did not let through: nothing was moved. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Blocks move whole past the page cache (open(2), O_DIRECT). */
#define BLOCK 4096

/* How many of `count` bytes a call may move. */
static size_t some(const char *call, int file, size_t count)
{
    static unsigned long seen;
    static const char struck[] = "(SHORT)\n";
    const char *wanted = getenv("SHORT_CALL"), *folder = getenv("SHORT_FOLDER");
    const char *when = getenv("SHORT_WHEN"), *bytes = getenv("SHORT_BYTES");
    char link[64], path[PATH_MAX];
    int flags = fcntl(file, F_GETFL);
    size_t few;
    ssize_t length;

    if (!wanted || !folder || !when || !bytes || strcmp(call, wanted) != 0)
        return count;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path);
    if (length < (ssize_t)strlen(folder) || strncmp(path, folder, strlen(folder)) != 0)
        return count;
    few = flags >= 0 && (flags & O_DIRECT) ? BLOCK : strtoul(bytes, NULL, 10);
    if (count <= few || ++seen != strtoul(when, NULL, 10))
        return count;
    syscall(SYS_write, STDERR_FILENO, struck, sizeof struck - 1);
    return few;
}

ssize_t read(int file, void *into, size_t count)
{
    return syscall(SYS_read, file, into, some("read", file, count));
}

ssize_t write(int file, const void *from, size_t count)
{
    return syscall(SYS_write, file, from, some("write", file, count));
}

ssize_t pread64(int file, void *into, size_t count, off64_t offset)
{
    return syscall(SYS_pread64, file, into, some("pread64", file, count), offset);
}

ssize_t pwrite64(int file, const void *from, size_t count, off64_t offset)
{
    return syscall(SYS_pwrite64, file, from, some("pwrite64", file, count), offset);
}
