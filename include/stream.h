/* What Python calls of the stream writer: stream_writer.h explains it. */

enum {
    WRITER_MORE,   /* the stream goes on */
    WRITER_HEADER, /* the header of the file is due: see writer_begin */
    WRITER_DONE,   /* the stream is complete, and so is the file */
    WRITER_CUT,    /* the stream has ended before its END */
    WRITER_FAILED  /* see writer_tell; the rest of the stream is discarded */
};

/* Why records of pages were written as they came. */
enum {
    ENDED_BY_RECORD,   /* another record came between them */
    ENDED_BY_LIST,     /* the list of one of them is too long */
    ENDED_BY_BEHIND    /* too many pages are behind */
};

struct writer_report {
    int error;             /* an errno, or 0 */
    const char *complaint; /* what is wrong with the stream, or NULL */
    uint64_t received;     /* bytes of the stream */
    uint64_t before;       /* of these, before the first page */
    uint64_t end;          /* size of the file in bytes */
    uint64_t pages;        /* pages that have a place in the file */
    uint64_t holes;        /* of these, those that are a hole in the file */
    uint64_t repeated;     /* pages that came again */
    uint64_t behind;       /* pages in records behind the others */
    uint64_t copied;       /* PAGE_DATA records that were written as they came */
    int ended_how;         /* ENDED_BY_... */
    uint32_t ended_by;     /* type of the record after which the rest is written as it comes */
};

struct writer *writer_new(int fd);
void writer_free(struct writer *w);
int writer_feed(struct writer *w, const char *data, size_t size, size_t *used);
int writer_own_descriptors(struct writer *w, int pipe_fd, int stop_fd);
int writer_run(struct writer *w, int pipe_fd, int stop_fd);
void writer_limit(struct writer *w, uint64_t bytes_per_second);
int writer_begin(struct writer *w, uint64_t header_size);
void writer_abandon(struct writer *w);
int writer_punch(struct writer *w);
void writer_tell(const struct writer *w, struct writer_report *report);
