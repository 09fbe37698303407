/* A trivial service: writes `NAME PID CLOCK_MONOTONIC_NS` to LOG first thing in main(), then answers every HTTP request
   on 127.0.0.1:PORT with 200. SIGTERM is stamped as `NAME.term PID NS`. Usage: child LOG NAME PORT [WORD …] */
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char *path, *name;

static void stamp(const char *suffix) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    char line[256];
    int size = snprintf(line, sizeof line, "%s%s %d %lld\n", name, suffix, getpid(), t.tv_sec * 1000000000LL + t.tv_nsec);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (write(fd, line, size) != size) _exit(3);
    close(fd);
}

static void term(int number) {
    stamp(".term");
    _exit(number - SIGTERM);
}

int main(int argc, char **argv) {
    path = argv[1];
    name = argv[2];
    stamp("");
    if (argc < 4) return 2;
    signal(SIGTERM, term);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) return 1;
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    for (;;) {
        int client = accept(listener, 0, 0);
        char request[4096];
        if (read(client, request, sizeof request) > 0 && write(client, answer, sizeof answer - 1) < 0) { }
        close(client);
    }
}
