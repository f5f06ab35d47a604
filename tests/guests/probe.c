/* What busybox cannot do inside a guest; static, so that it runs in the QEMU guest's initramfs too.
 *
 *   probe random SIZE SEED         SIZE bytes that depend on SEED alone, to standard output
 *   probe post HOST PORT PATH SIZE SEED
 *                                  uploads the same by HTTP/1.0 in large pieces; prints the answer
 *   probe udp HOST PORT SIZE...    sends a datagram of each size, expects it back; prints "SIZE ok" or what happened
 *   probe http PATH                an HTTP server on a unix socket, as podman's clients expect it: "OK" for a _ping,
 *                                  an empty list for everything else
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { TRIES = 3, WAIT_MS = 2000, MAX_DATAGRAM = 65507 };

static uint64_t next_random(uint64_t *state) {  /* xorshift64*, Vigna 2016 */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

static int write_random(int fd, size_t size, uint64_t seed) {
    static uint64_t block[8192];
    uint64_t state = seed + 1;
    while (size) {
        for (size_t i = 0; i < sizeof block / sizeof *block; i++) block[i] = next_random(&state);
        size_t wanted = size < sizeof block ? size : sizeof block, done = 0;
        while (done < wanted) {
            ssize_t n = write(fd, (char *)block + done, wanted - done);
            if (n < 0) { perror("write"); return 1; }
            done += (size_t)n;
        }
        size -= wanted;
    }
    return 0;
}

static int open_to(int type, const char *host, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int fd = socket(AF_INET, type, 0);
    if (inet_aton(host, &to.sin_addr) && !connect(fd, (void *)&to, sizeof to)) return fd;
    perror("connect");
    return -1;
}

static int post(const char *host, const char *port, const char *path, const char *size, const char *seed) {
    static char answer[4096];
    ssize_t n;
    int fd = open_to(SOCK_STREAM, host, port);
    if (fd < 0) return 1;
    dprintf(fd, "POST %s HTTP/1.0\r\nContent-Length: %s\r\n\r\n", path, size);
    if (write_random(fd, strtoull(size, 0, 10), strtoull(seed, 0, 10))) return 1;
    while ((n = read(fd, answer, sizeof answer)) > 0) fwrite(answer, 1, (size_t)n, stdout);
    if (n < 0) perror("read");
    return n < 0;
}

static const char *echo(int fd, size_t size) {
    static unsigned char sent[MAX_DATAGRAM], back[MAX_DATAGRAM + 1];
    for (size_t i = 0; i < size; i++) sent[i] = (unsigned char)(i * 31 + size);
    for (int attempt = 0; attempt < TRIES; attempt++) {
        if (send(fd, sent, size, 0) < 0) return strerror(errno);
        struct pollfd wait = {fd, POLLIN, 0};
        while (poll(&wait, 1, WAIT_MS) > 0) {
            ssize_t n = recv(fd, back, sizeof back, 0);
            if (n < 0) return strerror(errno);
            if ((size_t)n == size && !memcmp(sent, back, size)) return "ok";
        }
    }
    return "no answer";
}

static int udp(char **arguments) {
    int fd = open_to(SOCK_DGRAM, arguments[0], arguments[1]), failed = 0;
    if (fd < 0) return 1;
    for (char **size = arguments + 2; *size; size++) {
        const char *outcome = echo(fd, (size_t)atoi(*size));
        printf("%s %s\n", *size, outcome);
        failed |= strcmp(outcome, "ok") != 0;
    }
    return failed;
}

static void answer_requests(int client) {
    char heard[8192];
    size_t length = 0;
    ssize_t n;
    while ((n = read(client, heard + length, sizeof heard - 1 - length)) > 0) {
        length += (size_t)n;
        heard[length] = 0;
        if (!strstr(heard, "\r\n\r\n")) continue;
        const char *body = strstr(heard, "/_ping ") ? "OK" : "[]";
        dprintf(client, "HTTP/1.1 200 OK\r\nLibpod-API-Version: 4.3.1\r\nContent-Type: application/json\r\n"
                "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
        length = 0;
    }
}

static int http(const char *path) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client;
    strncpy(at.sun_path, path, sizeof at.sun_path - 1);
    umask(0);  /* for every user */
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 16)) { perror(path); return 1; }
    signal(SIGCHLD, SIG_IGN);
    while ((client = accept(listener, 0, 0)) >= 0) {
        if (!fork()) {
            answer_requests(client);
            _exit(0);
        }
        close(client);
    }
    return 1;
}

int main(int count, char **arguments) {
    if (count == 4 && !strcmp(arguments[1], "random"))
        return write_random(1, strtoull(arguments[2], 0, 10), strtoull(arguments[3], 0, 10));
    if (count == 7 && !strcmp(arguments[1], "post"))
        return post(arguments[2], arguments[3], arguments[4], arguments[5], arguments[6]);
    if (count > 4 && !strcmp(arguments[1], "udp")) return udp(arguments + 2);
    if (count == 3 && !strcmp(arguments[1], "http")) return http(arguments[2]);
    fputs("usage: probe random SIZE SEED | probe post HOST PORT PATH SIZE SEED | probe udp HOST PORT SIZE..."
          " | probe http PATH\n", stderr);
    return 2;
}
