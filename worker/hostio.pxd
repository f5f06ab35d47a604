"""The system calls on host sockets, with their structs, as the engine uses them."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset
from posix.uio cimport iovec

from worker.wire._cursor cimport load_u16, store_u16
from worker.wire.addr cimport Addr, addr_from_16, addr_from_v4, addr_v4

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/socket.h>
    #include <unistd.h>
    #ifndef SOCK_NONBLOCK
    #include <fcntl.h>
    #define SOCK_NONBLOCK 0
    #define SOCK_CLOEXEC 0
    static inline int moorage_prepare(int fd) {
        if (fd >= 0) { fcntl(fd, F_SETFL, O_NONBLOCK); fcntl(fd, F_SETFD, FD_CLOEXEC); }
        return fd;
    }
    #define accept4(fd, a, l, f) moorage_prepare(accept(fd, a, l))
    #else
    static inline int moorage_prepare(int fd) { return fd; }
    #endif
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    #ifndef __linux__
    struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
    static inline int recvmmsg(int fd, struct mmsghdr *m, unsigned int n, int flags, void *timeout) {
        unsigned int i;
        for (i = 0; i < n; i++) {
            ssize_t k = recvmsg(fd, &m[i].msg_hdr, flags);
            if (k < 0) return i ? (int)i : -1;
            m[i].msg_len = k;
        }
        return i;
    }
    static inline int sendmmsg(int fd, struct mmsghdr *m, unsigned int n, int flags) {
        unsigned int i;
        for (i = 0; i < n; i++)
            if (sendmsg(fd, &m[i].msg_hdr, flags) < 0) return i ? (int)i : -1;
        return i;
    }
    #endif
    typedef union { struct sockaddr any; struct sockaddr_in v4; struct sockaddr_in6 v6; } SocketName;
    /* Ask for the address that each datagram was sent to, beside it (ip(7), ipv6(7)). */
    static inline void moorage_tell_destinations(int fd) {
        SocketName name;
        socklen_t length = sizeof name;
        int on = 1;
        if (getsockname(fd, &name.any, &length) != 0) return;
    #ifdef IPV6_RECVPKTINFO
        if (name.any.sa_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
    #endif
    #ifdef IP_PKTINFO
        if (name.any.sa_family == AF_INET) setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    #endif
    }
    /* What came beside a datagram, as it goes beside the answer: from that address, by any interface. */
    static inline void moorage_forget_interface(struct msghdr *m) {
        for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
    #ifdef IPV6_RECVPKTINFO
            if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO)
                ((struct in6_pktinfo *)CMSG_DATA(c))->ipi6_ifindex = 0;
    #endif
    #ifdef IP_PKTINFO
            if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
                ((struct in_pktinfo *)CMSG_DATA(c))->ipi_ifindex = 0;
    #endif
        }
    }
    """
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        pass
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    cdef struct in6_addr:
        uint8_t s6_addr[16]
    cdef struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    ctypedef union SocketName:
        sockaddr any
        sockaddr_in v4
        sockaddr_in6 v6
    cdef struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    cdef struct linger:
        int l_onoff
        int l_linger
    int socket(int family, int kind, int protocol) nogil
    int socketpair(int family, int kind, int protocol, int* out) nogil
    int moorage_prepare(int fd) nogil
    void moorage_tell_destinations(int fd) nogil
    void moorage_forget_interface(msghdr* message) nogil
    int connect(int fd, const sockaddr* addr, socklen_t length) nogil
    int accept4(int fd, sockaddr* addr, socklen_t* length, int flags) nogil
    int getsockopt(int fd, int level, int name, void* value, socklen_t* length) nogil
    int setsockopt(int fd, int level, int name, const void* value, socklen_t length) nogil
    int shutdown(int fd, int how) nogil
    ssize_t sendmsg(int fd, const msghdr* message, int flags) nogil
    ssize_t recvmsg(int fd, msghdr* message, int flags) nogil
    int recvmmsg(int fd, mmsghdr* messages, unsigned int n, int flags, void* timeout) nogil
    int sendmmsg(int fd, mmsghdr* messages, unsigned int n, int flags) nogil
    ssize_t recvfrom(int fd, void* data, size_t n, int flags, sockaddr* addr, socklen_t* length) nogil
    ssize_t recv(int fd, void* data, size_t n, int flags) nogil
    ssize_t send(int fd, const void* data, size_t n, int flags) nogil
    enum:
        AF_INET
        AF_INET6
        AF_UNIX
        SOCK_STREAM
        SOCK_DGRAM
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_RCVBUF
        SO_ERROR
        SO_KEEPALIVE
        SO_LINGER
        SHUT_WR
        IPPROTO_TCP
        TCP_NODELAY
        MSG_DONTWAIT
        MSG_NOSIGNAL
        MSG_TRUNC

cdef extern from "<sys/uio.h>" nogil:
    ssize_t readv(int fd, const iovec* pieces, int count)
    ssize_t writev(int fd, const iovec* pieces, int count)


cdef inline void to_sockaddr(sockaddr_in* out, const Addr* addr, uint16_t port) noexcept nogil:
    memset(out, 0, sizeof(sockaddr_in))
    out.sin_family = AF_INET
    memcpy(&out.sin_addr.s_addr, addr_v4(addr), 4)
    store_u16(<uint8_t*>&out.sin_port, port)


cdef inline void from_sockaddr(const sockaddr_in* name, Addr* addr, uint16_t* port) noexcept nogil:
    addr[0] = addr_from_v4(<const uint8_t*>&name.sin_addr.s_addr)
    port[0] = load_u16(<const uint8_t*>&name.sin_port)


cdef inline bint from_name(const SocketName* name, Addr* addr, uint16_t* port) noexcept nogil:
    """False: neither IPv4 nor IPv6. IPv4 clients of an IPv6 socket have mapped addresses, as all of ours are."""
    if name.v4.sin_family == AF_INET6:
        addr[0] = addr_from_16(name.v6.sin6_addr.s6_addr)
        port[0] = load_u16(<const uint8_t*>&name.v6.sin6_port)
        return True
    from_sockaddr(&name.v4, addr, port)
    return name.v4.sin_family == AF_INET


cdef inline socklen_t name_length(const SocketName* name) noexcept nogil:
    return sizeof(sockaddr_in6) if name.v4.sin_family == AF_INET6 else sizeof(sockaddr_in)


cdef inline void set_option(int fd, int level, int name, int value) noexcept nogil:
    """Best effort: a host without the option works without it."""
    setsockopt(fd, level, name, &value, sizeof(int))


cdef inline void reset_on_close(int fd) noexcept nogil:
    """Let `close` send RST instead of FIN."""
    cdef linger how
    how.l_onoff = 1
    how.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &how, sizeof(linger))
