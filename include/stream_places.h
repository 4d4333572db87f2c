/* Where each page of the guest is in the memory file, and the PAGE_DATA records around the pages.
 *
 * The pfns are divided into blocks. A block has one record in the file, which is made when the first
 * page of the block comes, and grows until the first page of another block comes. A page that comes
 * again is written over its own place. A page of a block whose record can no longer grow gets a
 * place in a record behind.
 *
 * The list of a record begins with filler entries of type XTAB, as many as bring its first page to a
 * multiple of 4096 bytes. They have the pfn of the record's last entry: of two entries of one pfn,
 * the later one wins. The lists are written when the record is complete, and again at the end if a
 * type in them has changed.
 */
enum { PAGE = 4096, RECORD_HEAD = 8, ENTRY = 8, LIST_AT = 16 };
enum { PAGE_DATA = 1 };
enum { NOTAB = 0, UNLISTED = 5, BROKEN = 0xD, XALLOC = 0xE, XTAB = 0xF };

/* A list of 510 entries ends at 4096. Xen 4.21 can restore pages of 2 MiB only from 512 aligned pfns
 * in one record, so a block of HVM is a multiple of that. The list of 2048 pfns ends at 20480, a
 * quarter of it fillers; that of 1024 would end at 12288, a third of it fillers. */
enum { SHORT_LIST = 510, PV_BLOCK = 510, HVM_BLOCK = 2048, LONG_LIST = 2558 };

#define KNOWN_TYPES 0xFE1Fu
#define TYPES_WITH_DATA 0x1E1Fu

/* What is known of a pfn, in one byte: its last type, and its place in the file. */
enum { TYPE = 0x0F, PLACE = 0x30, HOLE = 0x10, DATA = 0x20, ZEROS = 0x30, BEHIND = 0x40 };

struct block {
    uint64_t first;    /* pfn */
    uint64_t offset;   /* of its record; 0: it has none */
    uint32_t next;     /* the first index that its record can still take */
    bool dirty;        /* a type has changed since its list was written */
    uint8_t page[];
};

struct slot { uint64_t pfn, offset; };                   /* a page behind, and its place */
struct behind { uint64_t offset; size_t first, count; }; /* its record: some of the slots */

struct places {
    int fd;
    int error;        /* the errno of the first failure */
    bool pv;
    uint32_t block_size;
    uint64_t end;     /* of the file */
    struct block **blocks;
    size_t block_count, block_room;
    struct map block_of;
    struct block *recent;
    struct block *open;       /* its record is the last in the file, and can grow */
    bool behind_open;         /* so is the last record behind */
    struct slot *slots;
    size_t slot_count, slot_room;
    struct map slot_of;
    struct behind *behinds;
    size_t behind_count, behind_room;
    uint64_t list[LONG_LIST];
    uint64_t head[(LIST_AT + LONG_LIST * ENTRY) / ENTRY];
    uint64_t repeated;
    bool lost;        /* a page that has a place came again without data */
};

static bool has_data(unsigned type)
{
    return TYPES_WITH_DATA >> type & 1;
}

static bool places__fail(struct places *p, int error)
{
    if (!p->error)
        p->error = error;
    return false;
}

static bool places__write(struct places *p, const void *data, size_t size, uint64_t offset)
{
    const char *from = data;

    while (size) {
        ssize_t n = pwrite(p->fd, from, size, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return places__fail(p, n ? errno : ENOSPC);
        from += n;
        size -= n;
        offset += n;
    }
    return true;
}

static void places_free(struct places *p)
{
    for (size_t i = 0; i < p->block_count; i++)
        free(p->blocks[i]);
    free(p->blocks);
    free(p->slots);
    free(p->behinds);
    free(p->block_of.keys);
    free(p->block_of.values);
    free(p->slot_of.keys);
    free(p->slot_of.values);
}

static struct block *places__new_block(struct places *p, uint64_t number)
{
    /* (Whole words: places__index reads words.) */
    size_t bytes = (p->block_size + 7) & ~(size_t)7;
    void *larger = grown(p->blocks, p->block_count, &p->block_room, sizeof *p->blocks);
    struct block *b = larger ? malloc(sizeof *b + bytes) : NULL;

    if (larger)
        p->blocks = larger;
    if (!b || p->block_count >= UINT32_MAX || !map_add(&p->block_of, number, p->block_count + 1)) {
        free(b);
        places__fail(p, ENOMEM);
        return NULL;
    }
    *b = (struct block){ .first = number * p->block_size };
    memset(b->page, UNLISTED, bytes);
    p->blocks[p->block_count++] = b;
    return b;
}

/* The block of a pfn; NULL: there is no memory for it. */
static struct block *places__block(struct places *p, uint64_t pfn)
{
    uint64_t number = pfn / p->block_size;
    uint32_t found;

    if (p->recent && pfn - p->recent->first < p->block_size)
        return p->recent;
    found = map_find(&p->block_of, number);
    return p->recent = found ? p->blocks[found - 1] : places__new_block(p, number);
}

/* Write the head of a record: fillers, then the entries of p->list. */
static bool places__write_head(struct places *p, uint64_t offset, size_t list, size_t count,
                               size_t pages)
{
    size_t fillers = list - count;
    uint32_t numbers[4] = { PAGE_DATA, RECORD_HEAD + list * ENTRY + pages * PAGE, list, 0 };

    memcpy(p->head, numbers, sizeof numbers);
    for (size_t i = 0; i < fillers; i++)
        p->head[2 + i] = (uint64_t)XTAB << 60 | (p->list[count - 1] & ~(0xFull << 60));
    memcpy(p->head + 2 + fillers, p->list, count * ENTRY);
    return places__write(p, p->head, LIST_AT + list * ENTRY, offset);
}

static size_t places__block_list(const struct places *p)
{
    return p->pv ? SHORT_LIST : LONG_LIST;
}

static bool in_own_record(uint8_t page)
{
    return page & PLACE && !(page & BEHIND);
}

/* Write the list of a block's record. */
static bool places__write_block(struct places *p, struct block *b)
{
    size_t count = 0, pages = 0;

    for (uint32_t i = 0; i < p->block_size; i++) {
        unsigned type = b->page[i] & TYPE;
        if (type == UNLISTED)
            continue;
        if (in_own_record(b->page[i])) {
            pages++;
            /* Its last entry has no data: it follows in a record of its own. */
            type = has_data(type) ? type : NOTAB;
        } else if (has_data(type)) {
            type = XTAB; /* the page is behind */
        }
        p->list[count++] = (uint64_t)type << 60 | (b->first + i);
    }
    b->dirty = false;
    return places__write_head(p, b->offset, places__block_list(p), count, pages);
}

/* The record that could grow cannot any more. */
static bool places__close(struct places *p)
{
    struct block *b = p->open;

    p->open = NULL;
    p->behind_open = false;
    return !b || places__write_block(p, b);
}

static bool places__open_block(struct places *p, struct block *b)
{
    if (!places__close(p))
        return false;
    b->offset = p->end;
    p->end += LIST_AT + places__block_list(p) * ENTRY;
    p->open = b;
    return true;
}

/* How many pages are before this one in the record of its block. */
static uint64_t places__index(const struct block *b, uint32_t i)
{
    const uint64_t ones = 0x0101010101010101u;
    uint64_t found = 0;

    for (uint32_t at = 0; at < i; at += 8) {
        uint64_t word;
        memcpy(&word, b->page + at, 8);
        word = (word >> 4 | word >> 5) & ~(word >> 6) & ones; /* in_own_record, eight times */
        if (i - at < 8)
            word &= ((uint64_t)1 << (i - at) * 8) - 1;
        found += word * ones >> 56;
    }
    return found;
}

static bool places__open_behind(struct places *p)
{
    void *larger = grown(p->behinds, p->behind_count, &p->behind_room, sizeof *p->behinds);

    if (!larger)
        return places__fail(p, ENOMEM);
    p->behinds = larger;
    if (!places__close(p))
        return false;
    p->behinds[p->behind_count++] = (struct behind){ p->end, p->slot_count, 0 };
    p->end += LIST_AT + SHORT_LIST * ENTRY;
    p->behind_open = true;
    return true;
}

/* A new place behind; 0: it failed. */
static uint64_t places__add_behind(struct places *p, uint64_t pfn)
{
    struct behind *last = p->behind_count ? &p->behinds[p->behind_count - 1] : NULL;
    void *larger;

    if ((!p->behind_open || last->count == SHORT_LIST) && !places__open_behind(p))
        return 0;
    larger = grown(p->slots, p->slot_count, &p->slot_room, sizeof *p->slots);
    if (larger)
        p->slots = larger;
    if (!larger || !map_add(&p->slot_of, pfn, p->slot_count + 1))
        return places__fail(p, ENOMEM);
    p->slots[p->slot_count++] = (struct slot){ pfn, p->end };
    p->behinds[p->behind_count - 1].count++;
    p->end += PAGE;
    return p->end - PAGE;
}

static void places__set_type(struct block *b, uint8_t *page, unsigned type)
{
    if ((*page & TYPE) == type)
        return;
    *page = (*page & ~TYPE) | type;
    b->dirty = true;
}

/* An entry without data. */
static bool places_list(struct places *p, uint64_t pfn, unsigned type)
{
    struct block *b = places__block(p, pfn);

    if (!b)
        return false;
    /* HVM needs no record for pfns without memory. PV has a type for each. */
    if (!b->offset && (p->pv || type == XALLOC) && !places__open_block(p, b))
        return false;
    places__set_type(b, &b->page[pfn - b->first], type);
    p->lost |= (b->page[pfn - b->first] & PLACE) != 0;
    return true;
}

/* An entry with data: the offset of its place, and what is known of it. 0: it failed. */
static uint64_t places_find(struct places *p, uint64_t pfn, unsigned type, uint8_t **page)
{
    struct block *b = places__block(p, pfn);
    uint32_t i;
    uint64_t offset;

    if (!b || (!b->offset && !places__open_block(p, b)))
        return 0;
    i = pfn - b->first;
    *page = &b->page[i];
    if (**page & BEHIND) {
        offset = p->slots[map_find(&p->slot_of, pfn) - 1].offset;
        p->repeated++;
    } else if (**page & PLACE) {
        offset = b->offset + LIST_AT + places__block_list(p) * ENTRY + places__index(b, i) * PAGE;
        p->repeated++;
    } else if (b == p->open && i >= b->next) {
        offset = p->end;
        p->end += PAGE;
        b->next = i + 1;
        **page |= HOLE;
    } else {
        if (!(offset = places__add_behind(p, pfn)))
            return 0;
        **page |= HOLE | BEHIND;
    }
    places__set_type(b, *page, type);
    return offset;
}
