"""Intrusive doubly linked lists: a node knows its owner, joins and leaves a list in constant time."""


cdef struct Node:
    Node* prev
    Node* next
    void* owner


cdef inline void list_init(Node* head) noexcept nogil:
    head.prev = head
    head.next = head


cdef inline void node_init(Node* node, void* owner) noexcept nogil:
    node.prev = NULL
    node.next = NULL
    node.owner = owner


cdef inline bint is_linked(const Node* node) noexcept nogil:
    return node.next != NULL


cdef inline bint list_empty(const Node* head) noexcept nogil:
    return head.next == head


cdef inline void list_append(Node* head, Node* node) noexcept nogil:
    node.prev = head.prev
    node.next = head
    head.prev.next = node
    head.prev = node


cdef inline void list_remove(Node* node) noexcept nogil:
    """Leave the list, if the node is in one."""
    if node.next != NULL:
        node.prev.next = node.next
        node.next.prev = node.prev
        node.prev = NULL
        node.next = NULL


cdef inline void list_add(Node* head, Node* node) noexcept nogil:
    """Append a node that may be in the list already."""
    if node.next == NULL:
        list_append(head, node)


cdef inline void* list_pop(Node* head) noexcept nogil:
    """The owner of the first node, taken out; NULL: the list is empty."""
    cdef Node* node = head.next
    if node == head:
        return NULL
    list_remove(node)
    return node.owner
