/* Streams whose events differ in nothing but their text, sent on without Python: see fastpath.py.

   An engine's socket is read, each chunk of what came is recognised by what stands before and after its text, and the
   caller's socket is written to. Whatever is not recognised, not whole or not taken is handed back, and its stream with
   it: nothing is decided here, and no error is raised. Only Linux has epoll; elsewhere this is not built. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_AT_ONCE 64      /* streams that are read before any is written to */
#define MOST_READ 16384      /* bytes of one read */
#define MOST_KEPT (1 << 20)  /* bytes of room for what is written that are not given back */
#define FRAMING 20           /* bytes around a chunk: its size in at most 16 digits, two ends of a line */

typedef struct {
    int sink;
    Py_ssize_t events;
    double heard;                                       /* when something came, by the monotonic clock, in seconds */
    double sent;                                        /* when that was an event which was sent on; 0 before */
    Py_ssize_t before, after, ours_before, ours_after;  /* lengths of the parts, which follow one another */
    char parts[];
} Stream;

typedef struct {
    PyObject_HEAD
    int poll;
    Stream **streams;  /* by the descriptor that is read */
    Py_ssize_t room;
    char *out;  /* what is to be written, and what is handed back, of one stream after the other */
    Py_ssize_t out_room;
} FastPath;

/* What came for one stream. */
typedef struct {
    int source;
    Py_ssize_t start, end; /* of what is to be written, in `out` */
    Py_ssize_t unread;     /* bytes behind that, which came and are not forwarded */
    bool back;             /* whether the stream is handed back */
} Turn;

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

/* A whole chunk at `at`, of which there may be more after it (RFC 9112, section 7.1): its data, or NULL. An extension,
   the last chunk and a trailer are for the parser. */
static const char *chunk(const char *at, const char *end, Py_ssize_t *size) {
    Py_ssize_t found = 0;
    const char *digit = at;
    for (; digit < end && digit - at < 8; digit++) {
        static const char digits[] = "0123456789abcdefABCDEF";
        const char *known = memchr(digits, *digit, sizeof digits - 1);
        if (known == NULL) break;
        found = found * 16 + (known - digits < 16 ? known - digits : known - digits - 6);
    }
    if (found == 0 || end - digit < found + 4) return NULL;
    const char *data = digit + 2;
    if (digit[0] != '\r' || digit[1] != '\n' || data[found] != '\r' || data[found + 1] != '\n') return NULL;
    *size = found;
    return data;
}

/* Whether this is what any writer of JSON makes of the same text: see splice.py, which has it as an expression. */
static bool plain(const char *text, Py_ssize_t size) {
    bool ascii = true;
    for (Py_ssize_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\\') {
            if (++i == size || memchr("\"\\bfnrt", text[i], 7) == NULL) return false;
        } else if (c == '"' || c < 0x20) {
            return false;
        } else if (c >= 0x80) {
            ascii = false;
        }
    }
    if (ascii) return true;
    PyObject *decoded = PyUnicode_DecodeUTF8(text, size, NULL);
    if (decoded == NULL) PyErr_Clear();
    Py_XDECREF(decoded);
    return decoded != NULL;
}

/* Room for so many bytes more, and for a whole read to hand back behind them; false without memory. */
static bool reserve(FastPath *self, Py_ssize_t used, Py_ssize_t more) {
    if (used + more + MOST_READ <= self->out_room) return true;
    Py_ssize_t room = 2 * (used + more + MOST_READ);
    char *out = realloc(self->out, (size_t)room);
    if (out == NULL) return false;
    self->out = out;
    self->out_room = room;
    return true;
}

static char *put(char *to, const char *from, Py_ssize_t size) {
    memcpy(to, from, (size_t)size);
    return to + size;
}

/* Put one event behind what is in `out` already, as a chunk; the end of it then, or -1 if it is no such event. */
static Py_ssize_t forward(FastPath *self, Stream *stream, const char *event, Py_ssize_t size, Py_ssize_t at) {
    const char *before = stream->parts, *after = before + stream->before;
    const char *ours_before = after + stream->after, *ours_after = ours_before + stream->ours_before;
    const char *text = event + stream->before;
    Py_ssize_t length = size - stream->before - stream->after;
    if (length <= 0 || memcmp(event, before, (size_t)stream->before) != 0) return -1;
    if (memcmp(text + length, after, (size_t)stream->after) != 0 || !plain(text, length)) return -1;
    Py_ssize_t said = stream->ours_before + length + stream->ours_after;
    if (!reserve(self, at, said + FRAMING)) return -1;
    char digits[16], *digit = digits + sizeof digits;
    for (size_t left = (size_t)said; left; left >>= 4) *--digit = "0123456789abcdef"[left & 15];
    char *to = put(self->out + at, digit, digits + sizeof digits - digit);
    to = put(to, "\r\n", 2);
    to = put(to, ours_before, stream->ours_before);
    to = put(to, text, length);
    to = put(to, ours_after, stream->ours_after);
    to = put(to, "\r\n", 2);
    stream->events++;
    return to - self->out;
}

/* Read one stream: what can be forwarded is in `out` then, from `at` on. */
static Turn read_one(FastPath *self, int source, Py_ssize_t at, double came) {
    Stream *stream = self->streams[source];
    Turn turn = {.source = source, .start = at, .end = at, .back = true};
    char read[MOST_READ];
    if (!reserve(self, at, 0)) {
        turn.back = false; /* it can wait */
        return turn;
    }
    ssize_t size = recv(source, read, sizeof read, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) turn.back = false;
    if (size <= 0) return turn; /* its end; an error, too, is its end to whoever reads next */
    stream->heard = came;
    const char *next = read, *end = read + size;
    while (next < end) {
        Py_ssize_t length = 0;
        const char *event = chunk(next, end, &length);
        Py_ssize_t reached = event == NULL ? -1 : forward(self, stream, event, length, turn.end);
        if (reached < 0) break;
        turn.end = reached;
        next = event + length + 2;
    }
    if (turn.end > at) stream->sent = came;
    turn.back = next < end;
    turn.unread = end - next;
    put(self->out + turn.end, next, turn.unread);
    return turn;
}

static Stream *find(FastPath *self, int source) {
    return source >= 0 && source < self->room ? self->streams[source] : NULL;
}

/* Read it no more; the stream is the caller's then. */
static void give_up(FastPath *self, int source) {
    self->streams[source] = NULL;
    epoll_ctl(self->poll, EPOLL_CTL_DEL, source, NULL);
}

/* Write what is there for a stream; to `back`, if it goes back. False with an exception set. */
static bool write_one(FastPath *self, Turn *turn, PyObject *back) {
    Stream *stream = find(self, turn->source);
    if (stream == NULL) return true; /* taken out meanwhile, by what another's hand-back set going */
    Py_ssize_t size = turn->end - turn->start;
    ssize_t sent = size ? send(stream->sink, self->out + turn->start, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    if (sent < 0) sent = 0; /* full or gone: whoever writes next finds out */
    if (!turn->back && sent == size) return true;
    give_up(self, turn->source);
    PyObject *one = Py_BuildValue(
        "(iy#y#nd)", turn->source, self->out + turn->end, turn->unread, self->out + turn->start + sent, size - sent,
        stream->events, stream->sent);
    free(stream);
    bool kept = one != NULL && PyList_Append(back, one) == 0;
    Py_XDECREF(one);
    return kept;
}

static PyObject *fastpath_run(PyObject *object, PyObject *Py_UNUSED(none)) {
    FastPath *self = (FastPath *)object;
    struct epoll_event ready[MOST_AT_ONCE];
    Turn turns[MOST_AT_ONCE];
    PyObject *back = PyList_New(0);
    if (back == NULL) return NULL;
    int count = epoll_wait(self->poll, ready, MOST_AT_ONCE, 0), read = 0;
    double came = now();
    Py_ssize_t at = 0;
    for (int i = 0; i < count; i++) {
        int source = ready[i].data.fd;
        if (find(self, source) == NULL) continue;
        turns[read] = read_one(self, source, at, came);
        at = turns[read].end + turns[read].unread;
        read++;
    }
    bool well = true;
    for (int i = 0; i < read; i++) well = write_one(self, &turns[i], back) && well;
    if (self->out_room > MOST_KEPT) {
        free(self->out);
        self->out = NULL;
        self->out_room = 0;
    }
    if (well) return back;
    Py_DECREF(back);
    return NULL;
}

static PyObject *fastpath_add(PyObject *object, PyObject *args) {
    FastPath *self = (FastPath *)object;
    int source, sink;
    const char *parts[4];
    Py_ssize_t sizes[4], all = 0;
    if (!PyArg_ParseTuple(args, "iiy#y#y#y#:add", &source, &sink, &parts[0], &sizes[0], &parts[1], &sizes[1],
                          &parts[2], &sizes[2], &parts[3], &sizes[3]))
        return NULL;
    if (source < 0 || find(self, source) != NULL) {
        PyErr_Format(PyExc_ValueError, "descriptor %d is read already, or is none", source);
        return NULL;
    }
    if (source >= self->room) {
        Py_ssize_t room = 2 * (Py_ssize_t)source + 64;
        Stream **streams = realloc(self->streams, (size_t)room * sizeof *streams);
        if (streams == NULL) return PyErr_NoMemory();
        memset(streams + self->room, 0, (size_t)(room - self->room) * sizeof *streams);
        self->streams = streams;
        self->room = room;
    }
    for (int i = 0; i < 4; i++) all += sizes[i];
    Stream *stream = malloc(sizeof *stream + (size_t)all);
    if (stream == NULL) return PyErr_NoMemory();
    stream->sink = sink;
    stream->events = 0;
    stream->heard = now();
    stream->sent = 0;
    stream->before = sizes[0];
    stream->after = sizes[1];
    stream->ours_before = sizes[2];
    stream->ours_after = sizes[3];
    char *to = stream->parts;
    for (int i = 0; i < 4; i++) to = put(to, parts[i], sizes[i]);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = source};
    if (epoll_ctl(self->poll, EPOLL_CTL_ADD, source, &event) < 0) {
        free(stream);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->streams[source] = stream;
    Py_RETURN_NONE;
}

/* The stream that is read from `given`; NULL with an exception set. */
static Stream *asked_for(FastPath *self, PyObject *given, int *source) {
    long number = PyLong_AsLong(given);
    if (number == -1 && PyErr_Occurred()) return NULL;
    *source = number < 0 || number > INT_MAX ? -1 : (int)number;
    Stream *stream = find(self, *source);
    if (stream == NULL) PyErr_SetObject(PyExc_KeyError, given);
    return stream;
}

static PyObject *fastpath_remove(PyObject *object, PyObject *given) {
    FastPath *self = (FastPath *)object;
    int source;
    Stream *stream = asked_for(self, given, &source);
    if (stream == NULL) return NULL;
    PyObject *told = Py_BuildValue("(nd)", stream->events, stream->sent);
    give_up(self, source);
    free(stream);
    return told;
}

static PyObject *fastpath_heard(PyObject *object, PyObject *given) {
    int source;
    Stream *stream = asked_for((FastPath *)object, given, &source);
    return stream == NULL ? NULL : PyFloat_FromDouble(stream->heard);
}

static PyObject *fastpath_fileno(PyObject *object, PyObject *Py_UNUSED(none)) {
    return PyLong_FromLong(((FastPath *)object)->poll);
}

static PyObject *fastpath_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(names)) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    FastPath *self = (FastPath *)alloc(type, 0); /* zeroed */
    if (self == NULL) return NULL;
    self->poll = epoll_create1(EPOLL_CLOEXEC);
    if (self->poll >= 0) return (PyObject *)self;
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(self);
    return NULL;
}

static void fastpath_dealloc(PyObject *object) {
    FastPath *self = (FastPath *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (Py_ssize_t i = 0; i < self->room; i++) free(self->streams[i]);
    free(self->streams);
    free(self->out);
    if (self->poll >= 0) close(self->poll);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"add", fastpath_add, METH_VARARGS, NULL},
    {"remove", fastpath_remove, METH_O, NULL},
    {"heard", fastpath_heard, METH_O, NULL},
    {"run", fastpath_run, METH_NOARGS, NULL},
    {"fileno", fastpath_fileno, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, fastpath_new},
    {Py_tp_dealloc, fastpath_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "tandem.router._fastpath.FastPath",
    .basicsize = sizeof(FastPath),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static int fill(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    int failed = type == NULL ? -1 : PyModule_AddObjectRef(module, "FastPath", type);
    Py_XDECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "tandem.router._fastpath",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__fastpath(void) {
    return PyModuleDef_Init(&definition);
}
