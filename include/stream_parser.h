/* Takes libxl's stream apart as it comes, and writes the memory file.
 *
 * What comes before the first page, and what comes after the last, is written as it comes. The pages
 * go to their places (stream_places.h). Between PAGE_DATA records there is no other record in a
 * stream of libxc: if one comes, the lists of the records are written, and the rest of the stream
 * is written as it comes, with all its pages. A restore takes the last copy of each page, so the
 * file is still right.
 */
enum { LIBXL_HEADER_SIZE = 16, IMAGE_HEADER_SIZE = 24 + 16, BUFFER = 256 << 10 };
enum { LIBXL_END = 0, LIBXC_CONTEXT = 1, LIBXC_END = 0, GUEST_PV = 1, GUEST_HVM = 2 };

/* Limits, so that no stream can use up the memory. libxc lists 1024 entries in a record. */
enum { ENTRIES_LIMIT = 1 << 16, BEHIND_LIMIT = 1 << 19, BEFORE_LIMIT = 32 << 20 };
#define RECORD_LIMIT (128u << 20) /* REC_LENGTH_MAX of libxc */

enum phase { BEFORE, PAGES, AFTER };

struct writer {
    struct places places;
    enum phase phase;
    bool (*next)(struct writer *); /* reads what comes next; false: more bytes are needed */
    bool (*after_copy)(struct writer *);
    const char *complaint;
    bool header_due, done, failed, failure_told, image_seen;
    bool pipe_large;
    int ended_how;                 /* see writer_report */
    uint32_t ended_by;
    uint64_t copied, received, before_total;
    uint64_t copy_left;
    uint64_t rate;                 /* see writer_limit; other threads change it */
    uint64_t due_ns;               /* when the next bytes are to be taken */
    char *before;                  /* what came before the first page */
    size_t before_size, before_room;
    uint64_t *entries;             /* of the present PAGE_DATA record */
    size_t entry_count, entry_bytes, entry_next;
    uint32_t record_length;
    const uint8_t *queued;         /* a part of the buffer that has not been written yet */
    size_t queued_size;
    uint64_t queued_at;
    size_t begin, end;             /* of what the buffer holds */
    uint8_t buffer[BUFFER];
};

static bool writer__libxl_record(struct writer *w);
static bool writer__libxc_record(struct writer *w);
static bool writer__entries(struct writer *w);
static bool writer__pages(struct writer *w);

static bool writer__discard(struct writer *w)
{
    w->begin = w->end;
    return false;
}

static bool writer__fail(struct writer *w, const char *complaint)
{
    w->complaint = complaint;
    w->failed = true;
    w->queued_size = 0;
    w->next = writer__discard;
    return false;
}

static bool writer__no_memory(struct writer *w)
{
    places__fail(&w->places, ENOMEM);
    return writer__fail(w, NULL);
}

static bool writer__flush(struct writer *w)
{
    size_t size = w->queued_size;

    w->queued_size = 0;
    return !size || places__write(&w->places, w->queued, size, w->queued_at)
           || writer__fail(w, NULL);
}

/* Write a part of the buffer, before the buffer is filled again. */
static bool writer__queue(struct writer *w, const uint8_t *data, size_t size, uint64_t offset)
{
    if (w->queued_size && data == w->queued + w->queued_size
        && offset == w->queued_at + w->queued_size) {
        w->queued_size += size;
        return true;
    }
    if (!writer__flush(w))
        return false;
    w->queued = data;
    w->queued_size = size;
    w->queued_at = offset;
    return true;
}

/* The next bytes of the stream, if that many are there. */
static const uint8_t *writer__peek(struct writer *w, size_t size)
{
    return w->end - w->begin < size ? NULL : w->buffer + w->begin;
}

static uint32_t u32(const uint8_t *from)
{
    uint32_t value;

    memcpy(&value, from, sizeof value);
    return value;
}

static bool writer__keep(struct writer *w, const uint8_t *data, size_t size)
{
    if (w->before_size + size > BEFORE_LIMIT)
        return writer__fail(w, "too much comes before the first page");
    while (w->before_size + size > w->before_room) {
        void *larger = grown(w->before, w->before_room, &w->before_room, 1);
        if (!larger)
            return writer__no_memory(w);
        w->before = larger;
    }
    memcpy(w->before + w->before_size, data, size);
    w->before_size += size;
    return true;
}

/* Take bytes out of the buffer and write them as they are. */
static bool writer__pass(struct writer *w, size_t size)
{
    const uint8_t *data = w->buffer + w->begin;

    w->begin += size;
    if (w->phase == BEFORE)
        return writer__keep(w, data, size);
    w->places.end += size;
    return writer__queue(w, data, size, w->places.end - size);
}

static bool writer__copy(struct writer *w)
{
    size_t there = w->end - w->begin;
    size_t size = there < w->copy_left ? there : w->copy_left;

    if (!size && w->copy_left)
        return false;
    w->copy_left -= size;
    if (!w->copy_left)
        w->next = w->after_copy;
    return writer__pass(w, size);
}

/* Write the head of a record, and its body, as they are. */
static bool writer__copy_record(struct writer *w, uint32_t length, bool (*then)(struct writer *))
{
    w->copy_left = RECORD_HEAD + (((uint64_t)length + 7) & ~(uint64_t)7);
    w->after_copy = then;
    w->next = writer__copy;
    return true;
}

static bool writer__libxl_header(struct writer *w)
{
    static const uint8_t known[12] = "LibxlFmt\0\0\0\2"; /* the version is 2, big-endian */
    const uint8_t *head = writer__peek(w, LIBXL_HEADER_SIZE);

    if (!head)
        return false;
    if (memcmp(head, known, sizeof known))
        return writer__fail(w, "its beginning is not that of a libxl stream");
    w->next = writer__libxl_record;
    return writer__pass(w, LIBXL_HEADER_SIZE);
}

static bool writer__image_header(struct writer *w)
{
    static const uint8_t known[12] = "\377\377\377\377\377\377\377\377XENF";
    const uint8_t *head = writer__peek(w, IMAGE_HEADER_SIZE);

    if (!head)
        return false;
    if (memcmp(head, known, sizeof known) || memcmp(head + 12, "\0\0\0", 3) || head[15] < 2
        || head[15] > 3 || head[17] & 1)
        return writer__fail(w, "its version of libxc's format is unknown");
    if ((u32(head + 24) != GUEST_PV && u32(head + 24) != GUEST_HVM) || memcmp(head + 28, "\14", 2))
        return writer__fail(w, "its kind of guest is unknown");
    w->places.pv = u32(head + 24) == GUEST_PV;
    w->places.block_size = w->places.pv ? PV_BLOCK : HVM_BLOCK;
    w->next = writer__libxc_record;
    return writer__pass(w, IMAGE_HEADER_SIZE);
}

static bool writer__libxl_record(struct writer *w)
{
    const uint8_t *head = writer__peek(w, RECORD_HEAD);

    if (!head)
        return false;
    uint32_t type = u32(head), length = u32(head + 4);
    if (type == LIBXL_END) {
        if (length || w->phase == BEFORE)
            return writer__fail(w, "its END is damaged or comes too early");
        w->done = writer__pass(w, RECORD_HEAD) && writer__flush(w);
        return false;
    }
    if (type != LIBXC_CONTEXT)
        return writer__copy_record(w, length, writer__libxl_record);
    if (length || w->image_seen)
        return writer__fail(w, "its LIBXC_CONTEXT is damaged");
    w->image_seen = true;
    w->next = writer__image_header;
    return writer__pass(w, RECORD_HEAD);
}

/* From now on everything is written as it comes. */
static bool writer__end_order(struct writer *w, int how, uint32_t type)
{
    w->phase = AFTER;
    w->ended_how = how;
    w->ended_by = type;
    return writer__flush(w) && (places_finish(&w->places) || writer__fail(w, NULL));
}

static bool writer__page_data(struct writer *w, uint32_t length)
{
    const uint8_t *head = writer__peek(w, LIST_AT);

    if (!head)
        return false;
    w->entry_count = u32(head + RECORD_HEAD);
    if (length < RECORD_HEAD || !w->entry_count
        || w->entry_count > (length - RECORD_HEAD) / ENTRY)
        return writer__fail(w, "the length of a PAGE_DATA record is wrong");
    if (w->entry_count > ENTRIES_LIMIT || w->places.slot_count > BEHIND_LIMIT) {
        bool list = w->entry_count > ENTRIES_LIMIT;
        w->copied++;
        return writer__end_order(w, list ? ENDED_BY_LIST : ENDED_BY_BEHIND, PAGE_DATA)
               && writer__copy_record(w, length, writer__libxc_record);
    }
    if (!w->entries && !(w->entries = malloc(ENTRIES_LIMIT * ENTRY)))
        return writer__no_memory(w);
    w->record_length = length;
    w->entry_bytes = 0;
    w->begin += LIST_AT;
    w->next = writer__entries;
    return true;
}

static bool writer__libxc_record(struct writer *w)
{
    const uint8_t *head = writer__peek(w, RECORD_HEAD);

    if (!head)
        return false;
    uint32_t type = u32(head), length = u32(head + 4);
    if (length > RECORD_LIMIT)
        return writer__fail(w, "one of its records is too long");
    if (w->phase == BEFORE && (type == PAGE_DATA || type == LIBXC_END)) {
        w->header_due = true;
        return false;
    }
    if (w->phase == PAGES && type == PAGE_DATA)
        return writer__page_data(w, length);
    if (w->phase == PAGES && !writer__end_order(w, ENDED_BY_RECORD, type))
        return false;
    w->copied += type == PAGE_DATA;
    return writer__copy_record(w, length, type == LIBXC_END ? writer__libxl_record
                                                            : writer__libxc_record);
}

/* Whether the entries are known, and the length of the record fits. */
static bool writer__entries_fit(const struct writer *w)
{
    uint64_t with_data = 0;

    for (size_t i = 0; i < w->entry_count; i++) {
        unsigned type = w->entries[i] >> 60;
        if (!(KNOWN_TYPES >> type & 1) || w->entries[i] >> 52 & 0xFF)
            return false;
        with_data += has_data(type);
    }
    return w->record_length == RECORD_HEAD + w->entry_count * ENTRY + with_data * PAGE;
}

static bool writer__entries(struct writer *w)
{
    size_t missing = w->entry_count * ENTRY - w->entry_bytes;
    size_t there = w->end - w->begin;
    size_t size = there < missing ? there : missing;

    memcpy((char *)w->entries + w->entry_bytes, w->buffer + w->begin, size);
    w->begin += size;
    w->entry_bytes += size;
    if (size < missing)
        return false;
    /* The types are bits 60 to 63; libxc writes 0 into bits 52 to 59. */
    if (!writer__entries_fit(w))
        return writer__fail(w, "a PAGE_DATA record is damaged");
    w->entry_next = 0;
    w->next = writer__pages;
    return true;
}

typedef uint64_t pair __attribute__((vector_size(16)));

/* (As quick as memcmp() on a processor, and twice as quick as that in an emulator.) */
static bool is_zero(const uint8_t *page)
{
    for (const uint8_t *at = page; at < page + PAGE; at += 8 * sizeof(pair)) {
        pair p[8];
        memcpy(p, at, sizeof p);
        pair any = (p[0] | p[1] | p[2] | p[3]) | (p[4] | p[5] | p[6] | p[7]);
        if (any[0] | any[1])
            return false;
    }
    return true;
}

static bool writer__page(struct writer *w, uint64_t entry, const uint8_t *data)
{
    uint8_t *known;
    uint64_t offset = places_find(&w->places, entry << 12 >> 12, entry >> 60, &known);
    bool zero = is_zero(data);

    if (!offset)
        return writer__fail(w, NULL);
    if (zero && (*known & PLACE) != DATA)
        return true; /* there is a hole, or there are zeros */
    *known = (*known & ~PLACE) | (zero ? ZEROS : DATA);
    return writer__queue(w, data, PAGE, offset);
}

static bool writer__pages(struct writer *w)
{
    const uint64_t pfn = ((uint64_t)1 << 52) - 1;

    while (w->entry_next < w->entry_count) {
        uint64_t entry = w->entries[w->entry_next];
        const uint8_t *data = w->buffer + w->begin;
        if (has_data(entry >> 60)) {
            if (!writer__peek(w, PAGE))
                return false;
            w->begin += PAGE;
            if (!writer__page(w, entry, data))
                return false;
        } else if (!places_list(&w->places, entry & pfn, entry >> 60)) {
            return writer__fail(w, NULL);
        }
        w->entry_next++;
    }
    w->next = writer__libxc_record;
    return true;
}
