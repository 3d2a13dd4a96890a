/* Preloaded into a process under test: while the file that NETLINK_HANGS names is there, a message to the kernel by
 * netlink does not come back, as when the kernel waits for a lock that nobody gives up. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void wait_for_the_kernel(int fd) {
    int family = 0;
    socklen_t length = sizeof family;
    const char *hangs = getenv("NETLINK_HANGS");
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) != 0 || family != AF_NETLINK || !hangs)
        return;
    while (access(hangs, F_OK) == 0)
        usleep(10000);
}

ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    ssize_t (*next)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
    wait_for_the_kernel(fd);
    return next(fd, bytes, length, flags);
}

ssize_t sendto(int fd, const void *bytes, size_t length, int flags, const struct sockaddr *to, socklen_t to_length) {
    ssize_t (*next)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    wait_for_the_kernel(fd);
    return next(fd, bytes, length, flags, to, to_length);
}
