// As lookup.c, by c-ares: an event loop's resolver, with sockets of its own.
#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long long microseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void found(void *to, int status, int timeouts, struct ares_addrinfo *result) {
    char *address = to;
    (void)timeouts;
    if (status != ARES_SUCCESS) {
        snprintf(address, INET6_ADDRSTRLEN, "error-%d", status);
    } else if (result->nodes != NULL && result->nodes->ai_family == AF_INET) {
        inet_ntop(AF_INET, &((struct sockaddr_in *)result->nodes->ai_addr)->sin_addr, address, INET6_ADDRSTRLEN);
    }
    if (result != NULL) ares_freeaddrinfo(result);
}

int main(int argc, char **argv) {
    ares_channel channel;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (ares_library_init(ARES_LIB_INIT_ALL) != ARES_SUCCESS || ares_init(&channel) != ARES_SUCCESS) return 1;
    while (argc > 2 && access(argv[1], F_OK) != 0) {
        for (int i = 2; i < argc; i++) {
            struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
            char address[INET6_ADDRSTRLEN] = "none";
            long long at = microseconds(CLOCK_REALTIME), start = microseconds(CLOCK_MONOTONIC);
            ares_getaddrinfo(channel, argv[i], "80", &hints, found, address);
            for (;;) {
                fd_set readers, writers;
                struct timeval wait;
                FD_ZERO(&readers);
                FD_ZERO(&writers);
                int count = ares_fds(channel, &readers, &writers);
                if (count == 0) break;
                select(count, &readers, &writers, NULL, ares_timeout(channel, NULL, &wait));
                ares_process(channel, &readers, &writers);
            }
            long long took = microseconds(CLOCK_MONOTONIC) - start;
            printf("%lld %s %lld %s\n", at / 1000, argv[i], took, address);
            usleep(20000);
        }
    }
}
