/* The stream writer: what stream.h declares.
 *
 * Only this process reads the pipe. A pipe that is not read would block libxl for ever, and a pipe
 * that is closed would kill libxl's helper. So after a failure the stream is read and discarded.
 */

enum { MS = 1000000, LOOK_MS = 5, PIPE_SIZE = 1 << 20 };

/* Work on what the buffer holds. Afterwards the buffer has room, unless the header is due. */
static int writer__consume(struct writer *w)
{
    while (!w->done && !w->header_due && w->next(w))
        ;
    if (!w->failed)
        writer__flush(w);
    if (w->failed) {
        writer__discard(w);
        bool told = w->failure_told;
        w->failure_told = true;
        return told ? WRITER_MORE : WRITER_FAILED;
    }
    return w->done ? WRITER_DONE : w->header_due ? WRITER_HEADER : WRITER_MORE;
}

static uint8_t *writer__room(struct writer *w, size_t *room)
{
    memmove(w->buffer, w->buffer + w->begin, w->end - w->begin);
    w->end -= w->begin;
    w->begin = 0;
    *room = BUFFER - w->end;
    return w->buffer + w->end;
}

static void writer__took(struct writer *w, size_t size)
{
    w->end += size;
    w->received += size;
}

void writer_free(struct writer *w)
{
    if (!w)
        return;
    places_free(&w->places);
    free(w->before);
    free(w->entries);
    free(w);
}

/* A writer for an empty file. NULL: there is no memory. */
struct writer *writer_new(int fd)
{
    struct writer *w = calloc(1, sizeof *w);

    if (w) {
        w->places.fd = fd;
        w->next = writer__libxl_header;
    }
    return w;
}

/* Take bytes of the stream, up to the first result other than WRITER_MORE. */
int writer_feed(struct writer *w, const char *data, size_t size, size_t *used)
{
    int found = writer__consume(w);

    for (*used = 0; found == WRITER_MORE && *used < size;) {
        size_t room;
        uint8_t *to = writer__room(w, &room);
        size_t n = size - *used < room ? size - *used : room;
        memcpy(to, data + *used, n);
        writer__took(w, n);
        *used += n;
        found = writer__consume(w);
    }
    return found;
}

/* Only take so many bytes a second, until no more pages come; 0: no limit. Another thread may call
 * this at any time: a limit must end when the guest is suspended, which the stream does not tell. */
void writer_limit(struct writer *w, uint64_t bytes_per_second)
{
    __atomic_store_n(&w->rate, bytes_per_second, __ATOMIC_RELAXED);
}

/* 0: no limit. */
static uint64_t writer__rate(const struct writer *w)
{
    return w->phase == AFTER || w->failed ? 0 : __atomic_load_n(&w->rate, __ATOMIC_RELAXED);
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Wait until bytes may be taken, or the limit has ended, or no more will come. */
static void writer__wait(struct writer *w, size_t took, int stop_fd)
{
    struct pollfd stop = { stop_fd, POLLIN, 0 };
    uint64_t now = now_ns(), rate = writer__rate(w);

    if (!rate)
        return;
    w->due_ns = (w->due_ns > now ? w->due_ns : now) + took * 1000000000ull / rate;
    /* (A millisecond is saved up, because poll() cannot wait for less.) */
    while (w->due_ns >= now + MS && writer__rate(w)) {
        uint64_t wait = (w->due_ns - now) / MS;
        if (poll(&stop, 1, wait < LOOK_MS ? wait : LOOK_MS) > 0)
            return;
        now = now_ns();
    }
}

/* Let libxl and this thread wait for each other less often; not while there is a limit, because what
 * is in the pipe when the guest is suspended was not taken before. (The user may have too many
 * pipes: a small one is only slower.) */
static void writer__enlarge(struct writer *w, int pipe_fd)
{
    if (w->pipe_large || writer__rate(w))
        return;
    w->pipe_large = true;
    fcntl(pipe_fd, F_SETPIPE_SZ, PIPE_SIZE);
}

static int writer__compare(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* Give the calling thread descriptors of its own, and only these: the file, the pipe, and stop_fd.
 *
 * A thread whose write does not return cannot be killed, and would keep all descriptors of its
 * process open: also the connection to the guest's QEMU, which talks to one at a time.
 * Returns 0, or an errno. */
int writer_own_descriptors(struct writer *w, int pipe_fd, int stop_fd)
{
    int kept[3] = { w->places.fd, pipe_fd, stop_fd };
    unsigned from = 0;

    qsort(kept, 3, sizeof *kept, writer__compare);
    if (unshare(CLONE_FILES))
        return errno;
    for (int i = 0; i < 3; from = kept[i++] + 1)
        if (from < (unsigned)kept[i] && close_range(from, kept[i] - 1, 0))
            return errno;
    return close_range(from, ~0U, 0) ? errno : 0;
}

/* Read the stream from a pipe that does not block, up to the first result other than WRITER_MORE.
 *
 * stop_fd becomes readable when no more bytes will be written into the pipe: what is in the pipe by
 * then is still read. After WRITER_HEADER and WRITER_FAILED call it again. After WRITER_FAILED it
 * discards the rest of the stream, and returns when no more comes. */
int writer_run(struct writer *w, int pipe_fd, int stop_fd)
{
    struct pollfd polled[2] = { { pipe_fd, POLLIN, 0 }, { stop_fd, POLLIN, 0 } };
    bool stopping = false;

    for (;;) {
        int found = writer__consume(w);
        if (found != WRITER_MORE)
            return found;
        size_t room;
        uint8_t *to = writer__room(w, &room);
        ssize_t n = read(pipe_fd, to, room);
        if (n > 0) {
            writer__took(w, n);
            writer__wait(w, n, stop_fd);
            writer__enlarge(w, pipe_fd);
        } else if (!n || (stopping && errno == EAGAIN)) {
            return w->failed ? WRITER_FAILED : WRITER_CUT;
        } else if (errno == EAGAIN) {
            poll(polled, 2, -1);
            stopping = polled[1].revents & POLLIN;
        } else if (errno != EINTR) {
            places__fail(&w->places, errno);
            writer__fail(w, NULL);
            return WRITER_FAILED;
        }
    }
}

/* After WRITER_HEADER: this many bytes at the start of the file are for its header. They must end
 * where the first record of pages begins at a multiple of 4096, if the pages are to be aligned.
 * Returns 0, or an errno. */
int writer_begin(struct writer *w, uint64_t header_size)
{
    struct places *p = &w->places;

    if (!w->header_due)
        return EINVAL;
    if (!places__write(p, w->before, w->before_size, header_size)) {
        writer__fail(w, NULL);
        return p->error;
    }
    p->end = header_size + w->before_size;
    w->before_total = w->before_size;
    free(w->before);
    w->before = NULL;
    w->header_due = false;
    w->phase = PAGES;
    return 0;
}

/* As after WRITER_FAILED, because the caller has failed: only read and discard from now on. */
void writer_abandon(struct writer *w)
{
    w->failed = w->failure_told = true;
    w->header_due = false;
    w->next = writer__discard;
}

/* After WRITER_DONE: make holes of pages that were overwritten with zeros, and of those that the guest
 * has given away. Returns 0, or an
 * errno; the file is as good either way. */
int writer_punch(struct writer *w)
{
    return places_punch(&w->places) ? 0 : w->places.error;
}

void writer_tell(const struct writer *w, struct writer_report *report)
{
    uint64_t pages, holes;

    places_count(&w->places, &pages, &holes);
    *report = (struct writer_report){
        .error = w->places.error,
        .complaint = w->complaint,
        .received = w->received,
        .before = w->phase == BEFORE ? w->before_size : w->before_total,
        .end = w->places.end,
        .pages = pages,
        .holes = holes,
        .repeated = w->places.repeated,
        .behind = w->places.slot_count,
        .copied = w->copied,
        .ended_how = w->ended_how,
        .ended_by = w->ended_by,
    };
}
