"""Memory that two processes have in common."""

from libc.stdint cimport uint8_t


cdef int memory_new(size_t size) noexcept nogil
cdef uint8_t* memory_map(int fd, size_t size) noexcept nogil
cdef uint8_t* memory_map_theirs(int fd, size_t size) noexcept nogil
cdef void memory_unmap(uint8_t* memory, size_t size) noexcept nogil
cdef int send_descriptor(int sock, int fd) noexcept nogil
cdef ssize_t receive_with_descriptor(int sock, uint8_t* place, size_t size, int* fd) noexcept nogil
