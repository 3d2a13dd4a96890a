// Asks for names again and again by getaddrinfo, the C library's own resolver: built with glibc and with musl.
//
//   lookup STOP NAME...     until there is a file STOP
//
// As every client of this folder: a line for each lookup, START_MS NAME MICROSECONDS ADDRESS (or what went wrong).
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long long microseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (argc > 2 && access(argv[1], F_OK) != 0) {
        for (int i = 2; i < argc; i++) {
            struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
            char address[INET6_ADDRSTRLEN] = "none";
            long long at = microseconds(CLOCK_REALTIME), start = microseconds(CLOCK_MONOTONIC);
            int error = getaddrinfo(argv[i], "80", &hints, &found);
            long long took = microseconds(CLOCK_MONOTONIC) - start;
            if (error != 0) {
                snprintf(address, sizeof address, "error-%d", error);
            } else if (found->ai_family == AF_INET) {
                inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, address, sizeof address);
            }
            if (found != NULL) freeaddrinfo(found);
            printf("%lld %s %lld %s\n", at / 1000, argv[i], took, address);
            usleep(20000);
        }
    }
}
