/* A slow disk for one process: LD_PRELOADed, it lets fsync and fdatasync wait before they do their work.
 *
 * SLOW_DISK names a file that says how many milliseconds, in decimal; it is read again all the while, so that a long
 * wait ends when the disk is healed. Nothing else is changed: what was synced is on the disk afterwards. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { STEP_MS = 5 };

static long told_ms(void)
{
    const char *path = getenv("SLOW_DISK");
    char text[16] = "";
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    if (read(file, text, sizeof text - 1) < 0)
        text[0] = 0;
    close(file);
    return atol(text);
}

static void wait_as_told(void)
{
    struct timespec step = { 0, STEP_MS * 1000000L };
    long waited;
    for (waited = 0; waited < told_ms(); waited += STEP_MS)
        nanosleep(&step, 0);
}

int fsync(int file)
{
    static int (*next)(int);
    if (!next)
        next = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_as_told();
    return next(file);
}

int fdatasync(int file)
{
    static int (*next)(int);
    if (!next)
        next = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_as_told();
    return next(file);
}
