/* The little C that cffi cannot express: libxl's callbacks.
 *
 * libxl forks without exec, and its children log. A callback that took Python's lock could hang
 * such a child for ever, because another thread may have held the lock at the fork. So everything
 * here is plain C and takes no lock. One record is one write() of at most PIPE_BUF bytes to a pipe:
 * the kernel does not mix it with other writes. pyxlsnap/xen/callbacks.py reads the other end.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <libxl.h>
#include <libxl_event.h>
#include <libxl_utils.h>
#include <libxlutil.h>
#include <xenstore.h>
#include <xentoollog.h>

enum { PYXLSNAP_LOG = 'L', PYXLSNAP_PROGRESS = 'P', PYXLSNAP_DISASTER = 'D' };

enum { PYXLSNAP_PROGRESS_MS = 500 }; /* between two reports of progress at least */

struct pyxlsnap_record {
    uint32_t size; /* of the whole record: this header, context, text */
    int32_t kind, level, errnoval;
    uint32_t context_size;
    uint64_t done, total;
};

struct pyxlsnap_bridge {
    xentoollog_logger logger; /* first: libxl passes a pointer to it to the callbacks */
    libxl_childproc_hooks childproc;
    libxl_event_hooks events;
    pid_t owner;
    int min_level;
    int log_fd, log_write_fd;     /* records */
    int child_fd, child_write_fd; /* an int for each child: its pidfd, -1 if the kernel gave none */
    uint64_t progress_ms;         /* when progress was last reported */
    unsigned long lost;           /* records dropped because the pipe was full */
};

static void pyxlsnap__send(struct pyxlsnap_bridge *b, struct pyxlsnap_record head,
                           const char *context, const char *text)
{
    char buf[PIPE_BUF];
    size_t room = sizeof buf - sizeof head;
    size_t c = context ? strnlen(context, room / 8) : 0;
    size_t t = strnlen(text, room - c);
    int saved = errno;

    head.size = sizeof head + c + t;
    head.context_size = c;
    memcpy(buf, &head, sizeof head);
    if (c)
        memcpy(buf + sizeof head, context, c);
    memcpy(buf + sizeof head + c, text, t);
    if (write(b->log_write_fd, buf, head.size) < 0)
        __atomic_add_fetch(&b->lost, 1, __ATOMIC_RELAXED);
    errno = saved;
}

static void pyxlsnap__vmessage(xentoollog_logger *logger, xentoollog_level level, int errnoval,
                               const char *context, const char *format, va_list al)
{
    struct pyxlsnap_bridge *b = (struct pyxlsnap_bridge *)logger;
    struct pyxlsnap_record head = { .kind = PYXLSNAP_LOG, .level = level, .errnoval = errnoval };
    char text[PIPE_BUF];

    if ((int)level < b->min_level)
        return;
    vsnprintf(text, sizeof text, format, al);
    pyxlsnap__send(b, head, context, text);
}

static void pyxlsnap__progress(xentoollog_logger *logger, const char *context,
                               const char *doing_what, int percent, unsigned long done,
                               unsigned long total)
{
    struct pyxlsnap_bridge *b = (struct pyxlsnap_bridge *)logger;
    struct pyxlsnap_record head = { .kind = PYXLSNAP_PROGRESS, .level = XTL_PROGRESS,
                                    .errnoval = -1, .done = done, .total = total };
    struct timespec t;
    (void)percent;

    /* Nobody needs these, and the guest is suspended. */
    if (!strcmp(doing_what, "End of stream") || !strcmp(doing_what, "Complete"))
        return;
    /* libxc reports every 4 MiB. Pass on some, and each first and last one: each takes processor
     * time in two of our processes, while the guest may be suspended. */
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t now_ms = t.tv_sec * 1000ull + t.tv_nsec / 1000000;
    if (done && done < total && now_ms < b->progress_ms + PYXLSNAP_PROGRESS_MS)
        return;
    b->progress_ms = now_ms;
    pyxlsnap__send(b, head, context, doing_what);
}

static void pyxlsnap__destroy(xentoollog_logger *logger)
{
    (void)logger; /* pyxlsnap_bridge_free does it */
}

static void pyxlsnap__disaster(void *user, libxl_event_type type, const char *msg, int errnoval)
{
    struct pyxlsnap_record head = { .kind = PYXLSNAP_DISASTER, .level = XTL_CRITICAL,
                                    .errnoval = errnoval };
    (void)type;
    pyxlsnap__send(user, head, "disaster", msg ? msg : "");
}

struct pyxlsnap__private { int fd; dev_t dev; ino_t ino; };
static struct pyxlsnap__private pyxlsnap__privates[16];
static int pyxlsnap__private_count;

/* Whether the descriptor is still open. Its number may have been reused for another file. */
static bool pyxlsnap__is_open(const struct pyxlsnap__private *p)
{
    struct stat st;
    return !fstat(p->fd, &st) && st.st_dev == p->dev && st.st_ino == p->ino;
}

/* Close a descriptor in every child of libxl, also in a child that never calls exec. Some children
 * stay as long as a QEMU runs; a socket or lock that they inherit would stay open as long. False if
 * there are too many such descriptors. */
static bool pyxlsnap_close_in_children(int fd)
{
    struct stat st;
    int i = 0;

    while (i < pyxlsnap__private_count && pyxlsnap__privates[i].fd != fd
           && pyxlsnap__is_open(&pyxlsnap__privates[i]))
        i++;
    if (i == sizeof pyxlsnap__privates / sizeof *pyxlsnap__privates || fstat(fd, &st))
        return false;
    pyxlsnap__privates[i] = (struct pyxlsnap__private){ fd, st.st_dev, st.st_ino };
    if (i == pyxlsnap__private_count)
        pyxlsnap__private_count++;
    return true;
}

static bool pyxlsnap__set_arguments(const char *from, const char *to, bool end_first)
{
    int first = end_first ? PR_SET_MM_ARG_END : PR_SET_MM_ARG_START;
    int second = end_first ? PR_SET_MM_ARG_START : PR_SET_MM_ARG_END;

    return !prctl(PR_SET_MM, first, end_first ? to : from, 0, 0)
           && !prctl(PR_SET_MM, second, end_first ? from : to, 0, 0);
}

/* Show other words as the command line of this process, as an exec would. The words, each with its
 * NUL, stay in memory. False if the kernel refuses: this needs CAP_SYS_RESOURCE. */
static bool pyxlsnap_show_command(const char *words, size_t size)
{
    char *copy = malloc(size);

    if (!copy)
        return false;
    memcpy(copy, words, size);
    /* The kernel refuses a start above the end: which of them goes first depends on where the words
     * were, which is the stack or an earlier copy. */
    return pyxlsnap__set_arguments(copy, copy + size, false)
           || pyxlsnap__set_arguments(copy, copy + size, true);
}

static void pyxlsnap__close_private(void)
{
    for (int i = 0; i < pyxlsnap__private_count; i++)
        if (pyxlsnap__is_open(&pyxlsnap__privates[i]))
            close(pyxlsnap__privates[i].fd);
}

/* Called by libxl instead of fork(). The pidfd is opened here, before the child can be reaped.
 *
 * libxl also calls this in a child of its own (the middle process of a spawn). No pidfd is
 * reported there: its number would be valid in that child only, and the owner would close a wrong
 * descriptor.
 */
static pid_t pyxlsnap__fork(void *user)
{
    struct pyxlsnap_bridge *b = user;
    pid_t pid = fork();

    if (pid == 0)
        pyxlsnap__close_private();
    if (pid > 0 && getpid() == b->owner) {
        int saved = errno;
        int fd = syscall(SYS_pidfd_open, pid, 0);
        ssize_t n = write(b->child_write_fd, &fd, sizeof fd);
        if (n < 0 && fd >= 0)
            close(fd);
        errno = saved;
    }
    return pid;
}

static void pyxlsnap_bridge_free(struct pyxlsnap_bridge *b)
{
    int *fds[] = { &b->log_fd, &b->log_write_fd, &b->child_fd, &b->child_write_fd };
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (*fds[i] >= 0)
            close(*fds[i]);
    free(b);
}

static struct pyxlsnap_bridge *pyxlsnap_bridge_new(int min_level)
{
    struct pyxlsnap_bridge *b = calloc(1, sizeof *b);
    int log[2] = { -1, -1 }, child[2] = { -1, -1 };

    if (!b)
        return NULL;
    b->logger.vmessage = pyxlsnap__vmessage;
    b->logger.progress = pyxlsnap__progress;
    b->logger.destroy = pyxlsnap__destroy;
    b->childproc.chldowner = libxl_sigchld_owner_mainloop;
    b->childproc.fork_replacement = pyxlsnap__fork;
    b->events.disaster = pyxlsnap__disaster;
    b->owner = getpid();
    b->min_level = min_level;
    int bad = pipe2(log, O_CLOEXEC | O_NONBLOCK) || pipe2(child, O_CLOEXEC | O_NONBLOCK);
    b->log_fd = log[0];
    b->log_write_fd = log[1];
    b->child_fd = child[0];
    b->child_write_fd = child[1];
    if (bad) {
        pyxlsnap_bridge_free(b);
        return NULL;
    }
    fcntl(log[1], F_SETPIPE_SZ, 1 << 20); /* room for a burst of messages; may fail for non-root */
    return b;
}

static xentoollog_logger *pyxlsnap_bridge_logger(struct pyxlsnap_bridge *b)
{
    return &b->logger;
}

/* libxl does not copy the hooks. They are part of the bridge, which outlives the ctx. */
static void pyxlsnap_bridge_attach(struct pyxlsnap_bridge *b, libxl_ctx *ctx)
{
    libxl_childproc_setmode(ctx, &b->childproc, b);
    libxl_event_register_callbacks(ctx, &b->events, b);
}

/* For the tests of the bridge, which also run where there is no Xen. */
static void pyxlsnap_bridge_test_message(struct pyxlsnap_bridge *b, int level, const char *text)
{
    xtl_log(&b->logger, level, -1, "test", "%s", text);
}

static void pyxlsnap_bridge_test_progress(struct pyxlsnap_bridge *b, const char *what,
                                          unsigned long done, unsigned long total)
{
    xtl_progress(&b->logger, "test", what, done, total);
}

static pid_t pyxlsnap_bridge_test_fork(struct pyxlsnap_bridge *b, int exit_code)
{
    pid_t pid = pyxlsnap__fork(b);
    if (!pid) {
        xtl_log(&b->logger, XTL_INFO, -1, "test", "in the child");
        if (exit_code < 0)
            pause(); /* until it is killed */
        if (!pyxlsnap__fork(b)) /* as the middle process of a spawn does */
            _exit(0);
        _exit(exit_code);
    }
    return pid;
}

/* If a process ignores SIGCHLD, the kernel reaps its children, and libxl calls that a disaster. */
static int pyxlsnap_sigchld_is_ignored(void)
{
    struct sigaction sa;
    if (sigaction(SIGCHLD, NULL, &sa))
        return 0;
    return sa.sa_handler == SIG_IGN || (sa.sa_flags & SA_NOCLDWAIT);
}

/* A FILE for libxlutil's error messages, whose text can be read. */
struct pyxlsnap_report {
    FILE *file;
    char *text;
    size_t size;
};

static struct pyxlsnap_report *pyxlsnap_report_new(void)
{
    struct pyxlsnap_report *r = calloc(1, sizeof *r);
    if (r && !(r->file = open_memstream(&r->text, &r->size))) {
        free(r);
        r = NULL;
    }
    return r;
}

static FILE *pyxlsnap_report_file(struct pyxlsnap_report *r)
{
    return r->file;
}

static const char *pyxlsnap_report_text(struct pyxlsnap_report *r)
{
    return fflush(r->file) ? "" : r->text;
}

static void pyxlsnap_report_free(struct pyxlsnap_report *r)
{
    fclose(r->file);
    free(r->text);
    free(r);
}

/* Give a guest that has a VM generation ID a new one. A restored guest is back in time; domain
 * controllers and clusters detect this by the new ID. */
static int pyxlsnap_renew_genid(libxl_ctx *ctx, libxl_domain_config *config)
{
    libxl_ms_vm_genid *id = &config->b_info.u.hvm.ms_vm_genid;
    if (config->c_info.type != LIBXL_DOMAIN_TYPE_HVM || libxl_ms_vm_genid_is_zero(id))
        return 0;
    return libxl_ms_vm_genid_generate(ctx, id);
}
