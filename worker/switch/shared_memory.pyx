# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""Memory that two processes have in common, where the system has memory that stays: Linux, memfd_create(2).

Who gets memory from another process makes sure by its seals that it stays: a read beyond the end of what has been cut
short would be a SIGBUS. Elsewhere `memory_new` fails, and nothing is shared.
"""

from libc.stddef cimport size_t

cdef extern from *:
    """
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #include <fcntl.h>
    #ifndef MSG_CMSG_CLOEXEC
    #define MSG_CMSG_CLOEXEC 0
    #endif
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif

    #if defined(MFD_ALLOW_SEALING) && defined(F_ADD_SEALS)
    static int moorage_memory_new(size_t size) {
        int fd = memfd_create("moorage-lane", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd < 0) return -1;
        /* All of it now: later a page that the system has no room for would be a SIGBUS. */
        if (fallocate(fd, 0, 0, (off_t)size) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
            close(fd);
            return -1;
        }
        return fd;
    }
    static int moorage_memory_stays(int fd, size_t size) {
        struct stat info;
        int seals = fcntl(fd, F_GET_SEALS);
        return seals >= 0 && (seals & F_SEAL_SHRINK) && fstat(fd, &info) == 0 && info.st_size == (off_t)size;
    }
    #else
    static int moorage_memory_new(size_t size) { (void)size; return -1; }
    static int moorage_memory_stays(int fd, size_t size) { (void)fd; (void)size; return 0; }
    #endif

    static void *moorage_memory_map(int fd, size_t size) {
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        return memory == MAP_FAILED ? NULL : memory;
    }

    typedef union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } moorage_control;

    static int moorage_send_descriptor(int sock, int fd) {
        char byte = 0;
        struct iovec piece = {&byte, 1};
        moorage_control control;
        struct msghdr message;
        memset(&message, 0, sizeof message);
        memset(&control, 0, sizeof control);
        message.msg_iov = &piece;
        message.msg_iovlen = 1;
        message.msg_control = &control;
        message.msg_controllen = sizeof control.space;
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
        return sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -1 : 0;
    }

    /* The length is that of the whole datagram, as with MSG_TRUNC; one descriptor at most comes with it. */
    static ssize_t moorage_receive(int sock, void *place, size_t size, int *fd) {
        struct iovec piece = {place, size};
        moorage_control control;
        struct msghdr message;
        ssize_t n;
        struct cmsghdr *c;
        memset(&message, 0, sizeof message);
        message.msg_iov = &piece;
        message.msg_iovlen = 1;
        message.msg_control = &control;
        message.msg_controllen = CMSG_LEN(sizeof(int)); /* with the padding, two would have room */
        *fd = -1;
        n = recvmsg(sock, &message, MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
        if (n < 0) return n;
        c = CMSG_FIRSTHDR(&message);
        if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len >= CMSG_LEN(sizeof(int)))
            memcpy(fd, CMSG_DATA(c), sizeof *fd);
        return n;
    }
    """
    int moorage_memory_new(size_t size) nogil
    bint moorage_memory_stays(int fd, size_t size) nogil
    void* moorage_memory_map(int fd, size_t size) nogil
    int moorage_send_descriptor(int sock, int fd) nogil
    ssize_t moorage_receive(int sock, void* place, size_t size, int* fd) nogil
    int munmap(void* memory, size_t size) nogil


cdef int memory_new(size_t size) noexcept nogil:
    """A descriptor of new memory that can be shared; -1: this system has none, or none left."""
    return moorage_memory_new(size)


cdef uint8_t* memory_map(int fd, size_t size) noexcept nogil:
    """Memory of our own; NULL: it cannot be had."""
    return <uint8_t*>moorage_memory_map(fd, size)


cdef uint8_t* memory_map_theirs(int fd, size_t size) noexcept nogil:
    """Memory that another process shares; NULL: it cannot be had, is not of that size, or might be cut short."""
    return memory_map(fd, size) if moorage_memory_stays(fd, size) else NULL


cdef void memory_unmap(uint8_t* memory, size_t size) noexcept nogil:
    munmap(memory, size)


cdef int send_descriptor(int sock, int fd) noexcept nogil:
    """Let the other end of a socket have a descriptor, with one byte; 0, or -1 and errno."""
    return moorage_send_descriptor(sock, fd)


cdef ssize_t receive_with_descriptor(int sock, uint8_t* place, size_t size, int* fd) noexcept nogil:
    """A datagram and what descriptor came with it, or -1 in its place; the whole datagram's length, or -1 and errno."""
    return moorage_receive(sock, place, size, fd)
