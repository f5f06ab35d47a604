/* tapbridge NETNS INTERFACE SOCKET: joins a new tap device in a namespace to a unix stream of QEMU's framing.
 *
 * The agent's work, as fast as it goes, so that a measurement is of the gateway and not of Python: a thread for each
 * direction, as many frames as are there for each write to and read from the socket. Ends when the gateway does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BATCH = 1 << 18, MAX_FRAME = 1 << 17, HEADER = 4 };

static int tap, sock;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void send_all(const char *data, size_t size) {
    while (size) {
        ssize_t n = write(sock, data, size);
        if (n < 0 && errno != EINTR) fail("write to the gateway");
        if (n > 0) data += n, size -= (size_t)n;
    }
}

static void *from_guest(void *unused) {
    static char batch[BATCH + HEADER + MAX_FRAME];
    size_t filled = 0;
    for (;;) {
        ssize_t n = filled < BATCH ? read(tap, batch + filled + HEADER, MAX_FRAME) : -1;
        if (n > 0) {
            uint32_t length = htonl((uint32_t)n);
            memcpy(batch + filled, &length, HEADER);
            filled += HEADER + (size_t)n;
        } else if (filled) {
            send_all(batch, filled);
            filled = 0;
        } else if (errno == EAGAIN) {
            poll(&(struct pollfd){tap, POLLIN, 0}, 1, -1);
        } else if (errno != EINTR) {
            fail("read from the tap");
        }
    }
    return unused;
}

static void to_guest(void) {
    static char batch[BATCH + HEADER + MAX_FRAME];
    size_t filled = 0;
    for (;;) {
        ssize_t n = read(sock, batch + filled, sizeof batch - filled);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) exit(n < 0);
        filled += (size_t)n;
        size_t at = 0;
        uint32_t length;
        while (filled - at >= HEADER) {
            memcpy(&length, batch + at, HEADER);
            length = ntohl(length);
            if (length > MAX_FRAME) fail("length of a frame");
            if (length > filled - at - HEADER) break;
            while (write(tap, batch + at + HEADER, length) < 0 && (errno == EAGAIN || errno == EINTR)) {}
            at += HEADER + length;
        }
        memmove(batch, batch + at, filled - at);
        filled -= at;
    }
}

int main(int count, char **arguments) {
    if (count != 4) {
        fputs("usage: tapbridge NETNS INTERFACE SOCKET\n", stderr);
        return 2;
    }
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, arguments[3], sizeof to.sun_path - 1);
    sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(sock, (void *)&to, sizeof to)) fail(arguments[3]);
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", arguments[1]);
    int namespace = open(path, O_RDONLY);
    if (namespace < 0 || setns(namespace, CLONE_NEWNET)) fail(path);
    struct ifreq wanted = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strncpy(wanted.ifr_name, arguments[2], IFNAMSIZ - 1);
    tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (tap < 0 || ioctl(tap, TUNSETIFF, &wanted)) fail("/dev/net/tun");
    pthread_t thread;
    pthread_create(&thread, NULL, from_guest, NULL);
    to_guest();
}
