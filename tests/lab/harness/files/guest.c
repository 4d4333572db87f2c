/* PID 1 of the test guests: a guest that can tell.
 *
 * It keeps the same numbers in memory and on every disk, about five times a second compares them, and says so on its
 * console.  So whoever restores memory without the disks of the same moment (or the other way round, or a page or a
 * sector of another moment) is told, even long after the fact:
 *
 *   TICK n=57 up=11894 mem=ok xvda=56:ok xvdb=56:ok bad=0 boot=1f6c09aa
 *   BAD xvda header: expected 56, got 61
 *
 * n counts ticks and goes on from the disks after a reboot; "xvda=56" is the number read back from that disk at the
 * start of the tick; bad counts mismatches and I/O errors since boot and never falls.
 *
 * In memory: a blob that never changes, and pages that are stamped with n in turn, checked before each new stamp.
 * For the bench, "filled=32" on the kernel's command line is so many MiB more that are not zero, and "dirty=1024" writes to
 * as many of their pages as make 1024 KiB a second.
 * On each disk: a header (sector 0) with n, a ring of slots with the n of their last write, and a blob.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 500
#define SECTOR 512
#define MAGIC 0x70617473206c6162ull

/* Layout of a disk.  Slots stand 4 KiB apart, so that a lap of the ring touches 32 clusters of a qcow2 image. */
#define RING_AT (1 << 20)
#define RING_SLOTS 512
#define RING_STEP 4096
#define BLOB_AT (4 << 20)
#define BLOB_SIZE (1 << 20)
#define DISK_CHUNK (64 << 10)
#define DISK_MIN (BLOB_AT + BLOB_SIZE)
#define MAX_DISKS 8

#define MEM_SIZE (8 << 20)
#define MEM_CHUNK (256 << 10)
#define PAGE 4096
#define PAGES 1024
#define PAGES_PER_TICK 64
#define DIRTY_MS 100

struct header { /* sector 0 */
    uint64_t magic, seed, first, n, boot, filler[59];
};
struct slot {
    uint64_t magic, n, filler[62];
};
_Static_assert(sizeof(struct header) == SECTOR && sizeof(struct slot) == SECTOR, "one sector each");

struct disk {
    char name[8];
    int fd;
    uint64_t ring[RING_SLOTS]; /* the n last written to each slot, 0 = never */
    uint64_t sums[BLOB_SIZE / DISK_CHUNK];
    uint64_t seen; /* the counter read back in this tick */
    int ok;
    struct header header;
    uint8_t head[SECTOR] __attribute__((aligned(SECTOR))); /* O_DIRECT wants them aligned */
    uint8_t slot[SECTOR] __attribute__((aligned(SECTOR)));
    uint8_t chunk[DISK_CHUNK] __attribute__((aligned(SECTOR)));
};

static struct disk disks[MAX_DISKS];
static int ndisks;
static uint64_t n, bad, boot;
static int shouts; /* BAD lines left in this tick: a broken disk must not flood the console */

static uint8_t blob[MEM_SIZE] __attribute__((aligned(PAGE)));
static uint64_t blob_sums[MEM_SIZE / MEM_CHUNK];
static uint8_t pages[PAGES][PAGE] __attribute__((aligned(PAGE)));
static uint64_t page_stamp[PAGES];
static uint8_t buffer[DISK_CHUNK] __attribute__((aligned(SECTOR)));

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull); /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static void fill(void *to, size_t size, uint64_t seed)
{
    uint64_t *word = to;
    for (size_t i = 0; i < size / 8; i++)
        word[i] = next_random(&seed);
}

static uint64_t sum(const void *from, size_t size)
{
    const uint64_t *word = from;
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < size / 8; i++)
        h = ((h << 7 | h >> 57) ^ word[i]) * 0x100000001b3ull;
    return h;
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000ull + t.tv_nsec / 1000000;
}

/* One write for each line: a line is not torn by one of the kernel's. */
static void say(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (length >= (int)sizeof line)
        length = sizeof line - 1;
    if (write(1, line, length) < 0)
        return; /* nobody left to tell */
}

static int mismatch(const char *where, const char *what, uint64_t expected, uint64_t got)
{
    bad++;
    if (shouts-- > 0)
        say("BAD %s %s: expected %llu, got %llu\n", where, what, (unsigned long long)expected, (unsigned long long)got);
    return 0;
}

/* --- disks ------------------------------------------------------------------------------------------------------ */

/* All that a tick reads goes out at once, and so does all that it writes: under emulation it is the number of
 * interrupts that costs, not the number of bytes. */
static struct iocb batch[MAX_DISKS * 4];
static int batched;

static void add(struct disk *d, int write, void *data, size_t size, off_t at)
{
    struct iocb *io = &batch[batched++];
    memset(io, 0, sizeof *io);
    io->aio_data = (uintptr_t)d;
    io->aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    io->aio_fildes = d->fd;
    io->aio_buf = (uintptr_t)data;
    io->aio_nbytes = size;
    io->aio_offset = at;
}

static void failed(const struct iocb *io, int64_t result)
{
    struct disk *d = (struct disk *)(uintptr_t)io->aio_data;
    const char *what = io->aio_lio_opcode == IOCB_CMD_PWRITE ? "bytes written" : "bytes read";
    d->ok = mismatch(d->name, what, io->aio_nbytes, result);
    if (io->aio_lio_opcode == IOCB_CMD_PREAD)
        memset((void *)(uintptr_t)io->aio_buf, 0, io->aio_nbytes);
}

static void carry_out(void)
{
    static aio_context_t context;
    struct iocb *list[MAX_DISKS * 4];
    struct io_event events[MAX_DISKS * 4];
    int sent = 0, done = 0;
    if (!context && syscall(SYS_io_setup, MAX_DISKS * 4, &context))
        mismatch("guest", "io_setup", 0, errno);
    for (int i = 0; i < batched; i++)
        list[i] = &batch[i];
    while (sent < batched) {
        int more = syscall(SYS_io_submit, context, batched - sent, list + sent);
        if (more > 0) {
            sent += more;
        } else { /* the kernel refuses this one; go on with the others */
            failed(list[sent], -errno);
            list[sent] = list[--batched];
        }
    }
    while (done < sent) {
        int more = syscall(SYS_io_getevents, context, 1, sent - done, events, NULL);
        for (int i = 0; i < more; i++) {
            const struct iocb *io = (struct iocb *)(uintptr_t)events[i].obj;
            if (events[i].res != (int64_t)io->aio_nbytes)
                failed(io, events[i].res);
        }
        done += more > 0 ? more : 0;
    }
    batched = 0;
}

/* One request by itself, through the common buffer. */
static int transfer(struct disk *d, int write, size_t size, off_t at)
{
    uint64_t before = bad;
    add(d, write, buffer, size, at);
    carry_out();
    return bad == before;
}

static off_t slot_at(int slot)
{
    return RING_AT + (off_t)slot * RING_STEP;
}

static off_t chunk_at(int chunk)
{
    return BLOB_AT + (off_t)chunk * DISK_CHUNK;
}

static void check_slot(struct disk *d, int slot, const void *data)
{
    const struct slot *s = data;
    if (d->ring[slot] && (s->magic != MAGIC || s->n != d->ring[slot]))
        d->ok = mismatch(d->name, "ring", d->ring[slot], s->magic == MAGIC ? s->n : 0);
}

static void check_chunk(struct disk *d, int chunk, const void *data)
{
    uint64_t got = sum(data, DISK_CHUNK);
    if (got != d->sums[chunk])
        d->ok = mismatch(d->name, "blob", d->sums[chunk], got);
}

/* The blob's contents follow from the seed; writes them (a new disk) or checks them (one that we know). */
static void set_up_blob(struct disk *d, int new)
{
    for (int chunk = 0; chunk < BLOB_SIZE / DISK_CHUNK; chunk++) {
        fill(buffer, DISK_CHUNK, d->header.seed + chunk);
        d->sums[chunk] = sum(buffer, DISK_CHUNK);
        if (new)
            transfer(d, 1, DISK_CHUNK, chunk_at(chunk));
        else if (transfer(d, 0, DISK_CHUNK, chunk_at(chunk)))
            check_chunk(d, chunk, buffer);
    }
}

/* What an earlier boot must have left in the ring.  Slot and header are written at the same time: the guest may have
 * been ended with the one written and not the other. */
static void recall_ring(struct disk *d)
{
    uint64_t last = d->header.n;
    const struct slot *s = (struct slot *)buffer;
    for (int slot = 0; slot < RING_SLOTS; slot++) {
        uint64_t back = (last % RING_SLOTS + RING_SLOTS - slot) % RING_SLOTS;
        d->ring[slot] = last >= back && last - back >= d->header.first ? last - back : 0;
        if (!d->ring[slot] || !transfer(d, 0, SECTOR, slot_at(slot)))
            continue;
        int ahead = s->n == last + 1 && s->n % RING_SLOTS == (uint64_t)slot;
        int behind = back == 0 && s->n + RING_SLOTS == last;
        if (s->magic == MAGIC && (ahead || behind))
            d->ring[slot] = s->n;
        check_slot(d, slot, s);
    }
}

static void open_disk(const char *name)
{
    struct disk *d = &disks[ndisks];
    char path[16];
    snprintf(path, sizeof path, "/dev/%s", name);
    int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC); /* fails on read-only disks: those are not ours to check */
    if (fd < 0)
        return;
    memset(d, 0, sizeof *d);
    snprintf(d->name, sizeof d->name, "%s", name);
    d->fd = fd;
    d->ok = 1;
    uint64_t capacity = 0;
    if (ioctl(fd, BLKGETSIZE64, &capacity) || capacity < DISK_MIN || !transfer(d, 0, SECTOR, 0)) {
        close(fd);
        return;
    }
    ndisks++;
    memcpy(&d->header, buffer, SECTOR);
    int new = d->header.magic != MAGIC;
    if (new) {
        memset(&d->header, 0, SECTOR);
        d->header.magic = MAGIC;
        d->header.n = n;
        d->header.first = n + 1;
        if (getrandom(&d->header.seed, 8, GRND_INSECURE) != 8)
            d->header.seed = now_ms();
    }
    set_up_blob(d, new);
    if (new) {
        memcpy(buffer, &d->header, SECTOR);
        transfer(d, 1, SECTOR, 0);
    } else {
        recall_ring(d);
    }
    say("DISK %s %s n=%llu\n", name, new ? "new" : "known", (unsigned long long)d->header.n);
}

static void find_disks(void)
{
    for (char letter = 'a'; letter < 'a' + MAX_DISKS; letter++) {
        char name[8];
        int known = 0;
        snprintf(name, sizeof name, "xvd%c", letter);
        for (int i = 0; i < ndisks; i++)
            known |= !strcmp(disks[i].name, name);
        if (!known && ndisks < MAX_DISKS)
            open_disk(name);
    }
}

/* The disks of a guest that is booting again must tell the same story.  One tick apart is right when the guest was
 * ended between two writes. */
static void agree(void)
{
    for (int i = 0; i < ndisks; i++)
        if (disks[i].header.n > n)
            n = disks[i].header.n;
    for (int i = 0; i < ndisks; i++)
        if (disks[i].header.n && n - disks[i].header.n > 1)
            disks[i].ok = mismatch(disks[i].name, "agreement", n, disks[i].header.n);
}

/* What tick n looks at on a disk, beside the header: in turn an old slot, walking through the ring in an order of its
 * own, and a chunk of the blob. */
static int old_slot(void)
{
    return n / 2 * 37 % RING_SLOTS;
}

static int old_chunk(void)
{
    return n / 2 % (BLOB_SIZE / DISK_CHUNK);
}

static void check_disk(struct disk *d)
{
    const struct header *h = (struct header *)d->head;
    d->seen = h->magic == MAGIC ? h->n : 0;
    if (memcmp(h, &d->header, SECTOR))
        d->ok = mismatch(d->name, "header", d->header.n, d->seen);
    if (n % 2)
        check_slot(d, old_slot(), d->slot);
    else
        check_chunk(d, old_chunk(), d->chunk);
}

static void stamp_disk(struct disk *d)
{
    struct slot *s = (struct slot *)d->slot;
    memset(s, 0, sizeof *s);
    s->magic = MAGIC;
    s->n = n;
    d->ring[n % RING_SLOTS] = n;
    if (d->header.n != n - 1)
        d->header.first = n; /* it has missed ticks: only from here on does its ring follow from its header */
    d->header.n = n;
    d->header.boot = boot;
    memcpy(d->head, &d->header, SECTOR);
    add(d, 1, s, SECTOR, slot_at(n % RING_SLOTS));
    add(d, 1, d->head, SECTOR, 0);
}

static void tick_disks(void)
{
    for (int i = 0; i < ndisks; i++) {
        struct disk *d = &disks[i];
        d->ok = 1;
        add(d, 0, d->head, SECTOR, 0);
        if (n % 2)
            add(d, 0, d->slot, SECTOR, slot_at(old_slot()));
        else
            add(d, 0, d->chunk, DISK_CHUNK, chunk_at(old_chunk()));
    }
    carry_out();
    for (int i = 0; i < ndisks; i++) {
        check_disk(&disks[i]);
        stamp_disk(&disks[i]);
    }
    carry_out();
}

/* --- memory ----------------------------------------------------------------------------------------------------- */

static int tick_memory(void)
{
    int ok = 1, chunk = n % (MEM_SIZE / MEM_CHUNK);
    uint64_t got = sum(blob + chunk * MEM_CHUNK, MEM_CHUNK);
    if (got != blob_sums[chunk])
        ok = mismatch("mem", "blob", blob_sums[chunk], got);
    for (int i = 0; i < PAGES_PER_TICK; i++) {
        int page = (n * PAGES_PER_TICK + i) % PAGES;
        uint64_t *head = (uint64_t *)pages[page], *tail = head + PAGE / 8 - 1;
        if (*head != page_stamp[page] || *tail != page_stamp[page])
            ok = mismatch("mem", "page", page_stamp[page], *head != page_stamp[page] ? *head : *tail);
        *head = *tail = page_stamp[page] = n;
    }
    return ok;
}

static void write_for_ever(uint8_t *memory, size_t count, size_t kib_per_second)
{
    size_t each = kib_per_second * 1024 / PAGE * DIRTY_MS / 1000, page = 0;
    for (uint64_t due = now_ms();;) {
        for (size_t i = 0; i < each; i++, page = (page + 1) % count)
            ++*(volatile uint64_t *)(memory + page * PAGE);
        due += DIRTY_MS;
        uint64_t now = now_ms();
        if (due > now)
            usleep((due - now) * 1000);
        else
            due = now; /* late, as in main() */
    }
}

/* The kernel puts a parameter that it does not know ("disks=2") into our environment. */
static size_t parameter(const char *name)
{
    const char *value = getenv(name);
    return value ? strtoul(value, NULL, 10) : 0;
}

static void use_memory(void)
{
    size_t size = parameter("filled") << 20, rate = parameter("dirty");
    if (!size)
        return;
    /* Shared, so that a process of its own can write to the same pages: ticks come at their time all the same. */
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        say("BAD mem filled: %s\n", strerror(errno));
        return;
    }
    fill(memory, size, boot);
    if (rate && !fork())
        write_for_ever(memory, size / PAGE, rate);
}

/* --- start and loop --------------------------------------------------------------------------------------------- */

static void load_modules(void)
{
    char path[256];
    FILE *order = fopen("/modules.order", "r");
    while (order && fscanf(order, "%255s", path) == 1) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
            say("MODULE %s: %s\n", path, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    if (order)
        fclose(order);
}

static void await_disks(void)
{
    int expected = parameter("disks");
    for (int tries = 0; tries < 600; tries++) {
        int present = 0;
        for (char letter = 'a'; letter < 'a' + MAX_DISKS; letter++) {
            char path[16];
            snprintf(path, sizeof path, "/dev/xvd%c", letter);
            present += !access(path, F_OK);
        }
        if (present >= expected)
            return;
        usleep(50000);
    }
    say("DISKS missing\n");
}

static void tick(void)
{
    char line[512];
    int at = 0;
    shouts = 4;
    find_disks(); /* one may have been attached meanwhile */
    n++;
    int mem = tick_memory();
    tick_disks();
    line[0] = 0;
    for (int i = 0; i < ndisks; i++)
        at += snprintf(line + at, sizeof line - at, " %s=%llu:%s", disks[i].name, (unsigned long long)disks[i].seen,
                       disks[i].ok ? "ok" : "BAD");
    say("TICK n=%llu up=%llu mem=%s%s bad=%llu boot=%08llx\n", (unsigned long long)n, (unsigned long long)now_ms(),
        mem ? "ok" : "BAD", line, (unsigned long long)bad, (unsigned long long)boot);
}

int main(void)
{
    mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, 0);
    mount("sys", "/sys", "sysfs", 0, 0);
    mount("dev", "/dev", "devtmpfs", 0, 0);
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; console >= 0 && fd < 3; fd++)
        if (console != fd)
            dup2(console, fd);
    if (getrandom(&boot, 4, GRND_INSECURE) != 4)
        boot = now_ms();
    fill(blob, MEM_SIZE, boot);
    for (int chunk = 0; chunk < MEM_SIZE / MEM_CHUNK; chunk++)
        blob_sums[chunk] = sum(blob + chunk * MEM_CHUNK, MEM_CHUNK);
    use_memory();
    load_modules();
    await_disks();
    shouts = 8;
    find_disks();
    agree();
    say("BOOT %08llx disks=%d n=%llu\n", (unsigned long long)boot, ndisks, (unsigned long long)n);
    for (uint64_t due = now_ms();;) {
        tick();
        due += TICK_MS;
        uint64_t now = now_ms();
        if (due > now)
            usleep((due - now) * 1000);
        else
            due = now; /* late (a save, a slow machine): do not catch up */
    }
}
