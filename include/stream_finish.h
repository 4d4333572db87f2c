/* What is done with the records of pages when no more pages come: their last lists, the holes. */

static bool places__write_behind(struct places *p, const struct behind *record)
{
    for (size_t i = 0; i < record->count; i++) {
        uint64_t pfn = p->slots[record->first + i].pfn;
        struct block *b = places__block(p, pfn); /* (it exists) */
        unsigned type = b->page[pfn - b->first] & TYPE;
        p->list[i] = (uint64_t)(has_data(type) ? type : NOTAB) << 60 | pfn;
    }
    return places__write_head(p, record->offset, SHORT_LIST, record->count, record->count);
}

/* Add a record without pages, of the first entries of p->list. */
static bool places__append_list(struct places *p, size_t *count)
{
    uint64_t offset = p->end;
    size_t n = *count;

    if (!n)
        return true;
    *count = 0;
    p->end += LIST_AT + SHORT_LIST * ENTRY;
    return places__write_head(p, offset, SHORT_LIST, n, 0);
}

/* The pages whose last entry has no data, though there is a place for them. */
static bool places__write_lost(struct places *p)
{
    size_t count = 0;

    for (size_t n = 0; n < p->block_count; n++) {
        struct block *b = p->blocks[n];
        for (uint32_t i = 0; i < p->block_size; i++) {
            unsigned type = b->page[i] & TYPE;
            if (!(b->page[i] & PLACE) || has_data(type))
                continue;
            p->list[count++] = (uint64_t)type << 60 | (b->first + i);
            if (count == SHORT_LIST && !places__append_list(p, &count))
                return false;
        }
    }
    return places__append_list(p, &count);
}

/* Write all lists that are not written yet. No page may come afterwards. */
static bool places_finish(struct places *p)
{
    if (!places__close(p))
        return false;
    for (size_t i = 0; i < p->block_count; i++)
        if (p->blocks[i]->dirty && p->blocks[i]->offset && !places__write_block(p, p->blocks[i]))
            return false;
    for (size_t i = 0; i < p->behind_count; i++)
        if (!places__write_behind(p, &p->behinds[i]))
            return false;
    return !p->lost || places__write_lost(p);
}

struct range { uint64_t offset, size; };

static bool places__punch_range(struct places *p, const struct range *r)
{
    int how = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

    if (!r->size || !fallocate(p->fd, how, r->offset, r->size))
        return true;
    return places__fail(p, errno);
}

/* Whether nobody needs what is in the file for a page: it has become zero, or the guest has given it
 * away since (its last entry has no data). */
static bool is_needless(uint8_t page)
{
    return (page & PLACE) == ZEROS || ((page & PLACE) == DATA && !has_data(page & TYPE));
}

/* Add a page to the range, or punch the range and begin with the page, if it is needless. */
static bool places__punch_page(struct places *p, struct range *r, uint8_t *page, uint64_t offset)
{
    if (!is_needless(*page))
        return true;
    *page = (*page & ~PLACE) | HOLE;
    if (r->size && offset == r->offset + r->size) {
        r->size += PAGE;
        return true;
    }
    bool done = places__punch_range(p, r);
    *r = (struct range){ offset, PAGE };
    return done;
}

/* Make holes where pages were overwritten with zeros, or are needless. */
static bool places_punch(struct places *p)
{
    struct range r = { 0, 0 };

    for (size_t n = 0; n < p->block_count; n++) {
        struct block *b = p->blocks[n];
        uint64_t offset = b->offset + LIST_AT + places__block_list(p) * ENTRY;
        for (uint32_t i = 0; i < p->block_size; i++) {
            if (!in_own_record(b->page[i]))
                continue;
            if (!places__punch_page(p, &r, &b->page[i], offset))
                return false;
            offset += PAGE;
        }
    }
    for (size_t i = 0; i < p->slot_count; i++) {
        struct slot *s = &p->slots[i];
        struct block *b = places__block(p, s->pfn);
        if (!places__punch_page(p, &r, &b->page[s->pfn - b->first], s->offset))
            return false;
    }
    return places__punch_range(p, &r);
}

/* How many pages have a place, and how many of these are holes. */
static void places_count(const struct places *p, uint64_t *pages, uint64_t *holes)
{
    *pages = *holes = 0;
    for (size_t n = 0; n < p->block_count; n++)
        for (uint32_t i = 0; i < p->block_size; i++) {
            *pages += (p->blocks[n]->page[i] & PLACE) != 0;
            *holes += (p->blocks[n]->page[i] & PLACE) == HOLE;
        }
}
