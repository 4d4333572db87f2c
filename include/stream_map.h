/* An array that grows, and a hash table from numbers of 64 bits to others, which are not 0. */

struct map { uint64_t *keys; uint32_t *values; size_t size, used; };

/* A larger array, if it is full. NULL: there is no memory, and the old one is still there. */
static void *grown(void *array, size_t count, size_t *room, size_t item)
{
    size_t wanted = *room ? *room * 2 : 64;

    if (count < *room)
        return array;
    array = realloc(array, wanted * item);
    if (array)
        *room = wanted;
    return array;
}

static size_t map__at(const struct map *m, uint64_t key)
{
    size_t at = (key * 0x9E3779B97F4A7C15u >> 20) & (m->size - 1);

    while (m->values[at] && m->keys[at] != key)
        at = (at + 1) & (m->size - 1);
    return at;
}

/* The value of a key; 0 if there is none. */
static uint32_t map_find(const struct map *m, uint64_t key)
{
    return m->size ? m->values[map__at(m, key)] : 0;
}

static bool map__grow(struct map *m)
{
    struct map new = { .size = m->size ? m->size * 2 : 256, .used = m->used };

    new.keys = malloc(new.size * sizeof *new.keys);
    new.values = calloc(new.size, sizeof *new.values);
    if (!new.keys || !new.values) {
        free(new.keys);
        free(new.values);
        return false;
    }
    for (size_t i = 0; i < m->size; i++)
        if (m->values[i]) {
            size_t at = map__at(&new, m->keys[i]);
            new.keys[at] = m->keys[i];
            new.values[at] = m->values[i];
        }
    free(m->keys);
    free(m->values);
    *m = new;
    return true;
}

/* Add a key that is not there. */
static bool map_add(struct map *m, uint64_t key, uint32_t value)
{
    if (m->used * 2 >= m->size && !map__grow(m))
        return false;
    size_t at = map__at(m, key);
    m->keys[at] = key;
    m->values[at] = value;
    m->used++;
    return true;
}
