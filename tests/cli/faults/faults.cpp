// Calls of libc that fail, or do half of their work, at the n-th time: for LD_PRELOAD.
//
// GPUDEDUP_FAULTS names a file that all processes of a run map: which call fails, and how often
// each kind was called. A process takes part from gpudedup_faults_begin() on, the helper process
// (GPUDEDUP_FAULTS_ROLE=1) from its first pthread_sigmask on, which is the first thing it does
// after its imports. What libc calls within itself is not seen: stdio, malloc, the loader.

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>

namespace {

enum Kind {
    OPEN, READ, WRITE, TRUNCATE, FSYNC, LINK, RENAME, UNLINK, MKDIR, MMAP, STAT, STATFS, DUP, FCNTL,
    IOCTL, PIPE, THREAD, SPAWN, CLOSE, MADVISE, PIDFD, RECEIVE, SEEK, KINDS
};

// Control of shim.py.
struct Control {
    int64_t role, kind, first, last, error, delivered;
    int64_t counts[2][KINDS];
};

Control *control;
int role;
volatile int counting;

constexpr long PIDFD_OPEN = 434, PIDFD_GETFD = 438;
constexpr int DUPFD = 0, DUPFD_CLOEXEC = 1030, O_CREATES = 0100 | 020200000;

template <typename F> F real(const char *name) { return reinterpret_cast<F>(dlsym(RTLD_NEXT, name)); }

// Whether this call is one to fail; then errno is set, to 0 for one that does half of its work.
bool fails(Kind kind) {
    if (!counting || !control) return false;
    int64_t n = __atomic_add_fetch(&control->counts[role][kind], 1, __ATOMIC_SEQ_CST);
    if (control->role != role || control->kind != kind) return false;
    if (n < control->first || n > control->last) return false;
    __atomic_add_fetch(&control->delivered, 1, __ATOMIC_SEQ_CST);
    errno = static_cast<int>(control->error);
    return true;
}

// In whole words, as /proc wants them.
size_t half(size_t count) { return count < 16 ? (count + 1) / 2 : count / 16 * 8; }

struct Vector {
    void *base;
    size_t size;
};

}  // namespace

extern "C" {

void gpudedup_faults_begin() { counting = 1; }
void gpudedup_faults_end() { counting = 0; }

__attribute__((constructor)) static void start() {
    const char *path = getenv("GPUDEDUP_FAULTS"), *who = getenv("GPUDEDUP_FAULTS_ROLE");
    if (!path) return;
    int fd = real<int (*)(const char *, int)>("open")(path, 02000002);
    if (fd < 0) abort();
    auto map = real<void *(*)(void *, size_t, int, int, int, off_t)>("mmap");
    control = static_cast<Control *>(map(nullptr, sizeof(Control), 3, 1, fd, 0));
    real<int (*)(int)>("close")(fd);
    role = who && *who == '1';
}

// Functions get their names by asm: headers declare some as macros, or with other attributes.
#define CALL(result, name, symbol, parameters) result gd_##name parameters __asm__(symbol); \
    result gd_##name parameters

// A call that fails as a whole.
#define WHOLE(kind, result, symbol, id, failed, parameters, ...) \
    CALL(result, id, symbol, parameters) { \
        static auto call = real<result(*) parameters>(symbol); \
        return fails(kind) && errno ? failed : call(__VA_ARGS__); \
    }

#define OPENS(symbol, id) \
    CALL(int, id, symbol, (const char *path, int flags, ...)) { \
        static auto call = real<int (*)(const char *, int, ...)>(symbol); \
        va_list more; \
        va_start(more, flags); \
        unsigned mode = flags & O_CREATES ? va_arg(more, unsigned) : 0; \
        va_end(more); \
        return fails(OPEN) ? -1 : call(path, flags, mode); \
    }
#define OPENS_AT(symbol, id) \
    CALL(int, id, symbol, (int at, const char *path, int flags, ...)) { \
        static auto call = real<int (*)(int, const char *, int, ...)>(symbol); \
        va_list more; \
        va_start(more, flags); \
        unsigned mode = flags & O_CREATES ? va_arg(more, unsigned) : 0; \
        va_end(more); \
        return fails(OPEN) ? -1 : call(at, path, flags, mode); \
    }
OPENS("open", open)
OPENS("open64", open64)
OPENS_AT("openat", openat)
OPENS_AT("openat64", openat64)
WHOLE(OPEN, int, "__open_2", open_2, -1, (const char *path, int flags), path, flags)
WHOLE(OPEN, int, "__open64_2", open64_2, -1, (const char *path, int flags), path, flags)
WHOLE(OPEN, void *, "fopen", fopen, nullptr, (const char *path, const char *how), path, how)
WHOLE(OPEN, void *, "fopen64", fopen64, nullptr, (const char *path, const char *how), path, how)
WHOLE(OPEN, void *, "opendir", opendir, nullptr, (const char *path), path)
WHOLE(OPEN, void *, "fdopendir", fdopendir, nullptr, (int fd), fd)

#define READS(symbol, id) \
    CALL(ssize_t, id, symbol, (int fd, void *to, size_t count)) { \
        static auto call = real<ssize_t (*)(int, void *, size_t)>(symbol); \
        if (fails(READ)) { \
            if (errno) return -1; \
            count = half(count); \
        } \
        return call(fd, to, count); \
    }
#define READS_AT(symbol, id) \
    CALL(ssize_t, id, symbol, (int fd, void *to, size_t count, off_t at)) { \
        static auto call = real<ssize_t (*)(int, void *, size_t, off_t)>(symbol); \
        if (fails(READ)) { \
            if (errno) return -1; \
            count = half(count); \
        } \
        return call(fd, to, count, at); \
    }
#define WRITES_AT(symbol, id) \
    CALL(ssize_t, id, symbol, (int fd, const void *from, size_t count, off_t at)) { \
        static auto call = real<ssize_t (*)(int, const void *, size_t, off_t)>(symbol); \
        if (fails(WRITE)) { \
            if (errno) return -1; \
            count = half(count); \
        } \
        return call(fd, from, count, at); \
    }
// Of several buffers, half of the first.
#define VECTOR(kind, symbol, id, plain, offset_parameter, offset, more_parameters, more) \
    CALL(ssize_t, id, symbol, \
         (int fd, const Vector *buffers, int count offset_parameter more_parameters)) { \
        static auto call = \
            real<ssize_t (*)(int, const Vector *, int offset_parameter more_parameters)>(symbol); \
        Vector first; \
        if (fails(kind)) { \
            if (errno) return -1; \
            first = {buffers->base, half(buffers->size)}; \
            buffers = &first; \
            count = 1; \
        } \
        return call(fd, buffers, count offset more); \
    }
#define NONE
#define AT , off_t at
#define FLAGS , int flags
#define GIVE_AT , at
#define GIVE_FLAGS , flags
READS("read", read)
READS_AT("pread", pread)
READS_AT("pread64", pread64)
VECTOR(READ, "readv", readv, read, NONE, NONE, NONE, NONE)
VECTOR(READ, "preadv", preadv, pread, AT, GIVE_AT, NONE, NONE)
VECTOR(READ, "preadv64", preadv64, pread, AT, GIVE_AT, NONE, NONE)
VECTOR(READ, "preadv2", preadv2, pread, AT, GIVE_AT, FLAGS, GIVE_FLAGS)
VECTOR(READ, "preadv64v2", preadv64v2, pread, AT, GIVE_AT, FLAGS, GIVE_FLAGS)
WHOLE(READ, void *, "readdir", readdir, nullptr, (void *folder), folder)
WHOLE(READ, void *, "readdir64", readdir64, nullptr, (void *folder), folder)

// Where errors are printed there is nowhere to say that they cannot be.
CALL(ssize_t, write, "write", (int fd, const void *from, size_t count)) {
    static auto call = real<ssize_t (*)(int, const void *, size_t)>("write");
    if (fd != 2 && fails(WRITE)) {
        if (errno) return -1;
        count = half(count);
    }
    return call(fd, from, count);
}
WRITES_AT("pwrite", pwrite)
WRITES_AT("pwrite64", pwrite64)
VECTOR(WRITE, "writev", writev, write, NONE, NONE, NONE, NONE)
VECTOR(WRITE, "pwritev", pwritev, pwrite, AT, GIVE_AT, NONE, NONE)
VECTOR(WRITE, "pwritev64", pwritev64, pwrite, AT, GIVE_AT, NONE, NONE)
VECTOR(WRITE, "pwritev64v2", pwritev64v2, pwrite, AT, GIVE_AT, FLAGS, GIVE_FLAGS)

WHOLE(TRUNCATE, int, "ftruncate", ftruncate, -1, (int fd, off_t size), fd, size)
WHOLE(TRUNCATE, int, "ftruncate64", ftruncate64, -1, (int fd, off_t size), fd, size)
WHOLE(TRUNCATE, int, "truncate64", truncate64, -1, (const char *path, off_t size), path, size)
WHOLE(TRUNCATE, int, "fallocate64", fallocate64, -1, (int fd, int how, off_t at, off_t size), fd,
      how, at, size)
WHOLE(TRUNCATE, int, "posix_fallocate64", posix_fallocate64, errno, (int fd, off_t at, off_t size),
      fd, at, size)
WHOLE(FSYNC, int, "fsync", fsync, -1, (int fd), fd)
WHOLE(FSYNC, int, "fdatasync", fdatasync, -1, (int fd), fd)
WHOLE(LINK, int, "link", link, -1, (const char *from, const char *to), from, to)
WHOLE(LINK, int, "linkat", linkat, -1, (int a, const char *from, int b, const char *to, int flags),
      a, from, b, to, flags)
WHOLE(RENAME, int, "rename", rename, -1, (const char *from, const char *to), from, to)
WHOLE(RENAME, int, "renameat", renameat, -1, (int a, const char *from, int b, const char *to), a,
      from, b, to)
WHOLE(UNLINK, int, "unlink", unlink, -1, (const char *path), path)
WHOLE(UNLINK, int, "unlinkat", unlinkat, -1, (int at, const char *path, int flags), at, path, flags)
WHOLE(UNLINK, int, "rmdir", rmdir, -1, (const char *path), path)
WHOLE(MKDIR, int, "mkdir", mkdir, -1, (const char *path, unsigned mode), path, mode)
WHOLE(MKDIR, int, "mkdirat", mkdirat, -1, (int at, const char *path, unsigned mode), at, path, mode)

// Frames of a new thread: where CPython gets no memory for them, Thread.start() waits for ever.
constexpr size_t FRAMES = 16 << 10;
#define MAPS(symbol, id) \
    CALL(void *, id, symbol, \
         (void *at, size_t size, int protection, int flags, int fd, off_t offset)) { \
        static auto call = real<void *(*)(void *, size_t, int, int, int, off_t)>(symbol); \
        if (!(fd < 0 && size == FRAMES) && fails(MMAP)) return reinterpret_cast<void *>(-1); \
        return call(at, size, protection, flags, fd, offset); \
    }
MAPS("mmap", mmap)
MAPS("mmap64", mmap64)
WHOLE(MADVISE, int, "madvise", madvise, -1, (void *at, size_t size, int advice), at, size, advice)

WHOLE(STAT, int, "fstat", fstat, -1, (int fd, void *to), fd, to)
WHOLE(STAT, int, "fstat64", fstat64, -1, (int fd, void *to), fd, to)
WHOLE(STAT, int, "stat", stat, -1, (const char *path, void *to), path, to)
WHOLE(STAT, int, "stat64", stat64, -1, (const char *path, void *to), path, to)
WHOLE(STAT, int, "lstat64", lstat64, -1, (const char *path, void *to), path, to)
WHOLE(STAT, int, "fstatat64", fstatat64, -1, (int at, const char *path, void *to, int flags), at,
      path, to, flags)
WHOLE(STAT, int, "__fxstat", fxstat, -1, (int version, int fd, void *to), version, fd, to)
WHOLE(STAT, int, "__fxstat64", fxstat64, -1, (int version, int fd, void *to), version, fd, to)
WHOLE(STAT, int, "__xstat", xstat, -1, (int version, const char *path, void *to), version, path, to)
WHOLE(STAT, int, "__xstat64", xstat64, -1, (int version, const char *path, void *to), version, path,
      to)
WHOLE(STATFS, int, "statfs", statfs, -1, (const char *path, void *to), path, to)
WHOLE(STATFS, int, "fstatfs", fstatfs, -1, (int fd, void *to), fd, to)
WHOLE(STATFS, int, "statvfs64", statvfs64, -1, (const char *path, void *to), path, to)
WHOLE(STATFS, int, "fstatvfs64", fstatvfs64, -1, (int fd, void *to), fd, to)

WHOLE(SEEK, off_t, "lseek", lseek, -1, (int fd, off_t at, int whence), fd, at, whence)
WHOLE(SEEK, off_t, "lseek64", lseek64, -1, (int fd, off_t at, int whence), fd, at, whence)

WHOLE(DUP, int, "dup", dup, -1, (int fd), fd)
WHOLE(DUP, int, "dup2", dup2, -1, (int fd, int to), fd, to)
WHOLE(DUP, int, "dup3", dup3, -1, (int fd, int to, int flags), fd, to, flags)
#define CONTROLS(symbol, id) \
    CALL(int, id, symbol, (int fd, int command, void *argument)) { \
        static auto call = real<int (*)(int, int, void *)>(symbol); \
        bool dups = command == DUPFD || command == DUPFD_CLOEXEC; \
        return fails(dups ? DUP : FCNTL) ? -1 : call(fd, command, argument); \
    }
CONTROLS("fcntl", fcntl)
CONTROLS("fcntl64", fcntl64)
WHOLE(IOCTL, int, "ioctl", ioctl, -1, (int fd, unsigned long request, void *argument), fd, request,
      argument)
WHOLE(PIPE, int, "pipe", pipe, -1, (int *fds), fds)
WHOLE(PIPE, int, "pipe2", pipe2, -1, (int *fds, int flags), fds, flags)
WHOLE(PIPE, int, "socketpair", socketpair, -1, (int family, int type, int protocol, int *fds),
      family, type, protocol, fds)
WHOLE(THREAD, int, "pthread_create", pthread_create, errno,
      (void *thread, const void *how, void *(*run)(void *), void *argument), thread, how, run,
      argument)
WHOLE(SPAWN, int, "fork", fork, -1, (), )
WHOLE(SPAWN, int, "posix_spawn", posix_spawn, errno,
      (void *pid, const char *path, const void *actions, const void *how, char *const *words,
       char *const *environment),
      pid, path, actions, how, words, environment)

// The descriptor is closed all the same, as the kernel does.
CALL(int, close, "close", (int fd)) {
    static auto call = real<int (*)(int)>("close");
    int done = call(fd);
    return fails(CLOSE) ? -1 : done;
}

CALL(long, syscall, "syscall", (long number, long a, long b, long c, long d, long e, long f)) {
    static auto call = real<long (*)(long, ...)>("syscall");
    if ((number == PIDFD_OPEN || number == PIDFD_GETFD) && fails(PIDFD)) return -1;
    return call(number, a, b, c, d, e, f);
}

// struct msghdr; half of a message with descriptors is one without: too many are open here.
struct Message {
    void *name;
    unsigned name_size;
    Vector *buffers;
    size_t buffer_count;
    void *control;
    size_t control_size;
    int flags;
};
CALL(ssize_t, recvmsg, "recvmsg", (int fd, Message *to, int flags)) {
    static auto call = real<ssize_t (*)(int, Message *, int)>("recvmsg");
    if (fails(RECEIVE)) {
        if (errno) return -1;
        to->control_size = 0;
    }
    return call(fd, to, flags);
}

CALL(int, pthread_sigmask, "pthread_sigmask", (int how, const void *set, void *old)) {
    static auto call = real<int (*)(int, const void *, void *)>("pthread_sigmask");
    if (role) counting = 1;
    return call(how, set, old);
}

}  // extern "C"
