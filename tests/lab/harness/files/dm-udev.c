/* What the udev rules of device-mapper and LVM ask of dmsetup, from one small static program.
 *
 * Each event of a volume starts dmsetup three times, and under emulation it is the starting that costs: a fifth of a
 * second each, most of it in the dynamic linker.  Its answers are those of dmsetup.
 *
 * usage: dm-udev udevflags COOKIE | splitname [OPTION...] NAME | udevcomplete COOKIE
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sem.h>

static const char *const flags[] = {
    "DM_UDEV_DISABLE_DM_RULES_FLAG",
    "DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG",
    "DM_UDEV_DISABLE_DISK_RULES_FLAG",
    "DM_UDEV_DISABLE_OTHER_RULES_FLAG",
    "DM_UDEV_LOW_PRIORITY_FLAG",
    "DM_UDEV_DISABLE_LIBRARY_FALLBACK_FLAG",
    "DM_UDEV_PRIMARY_SOURCE_FLAG",
};

static int udevflags(uint32_t cookie)
{
    for (int bit = 0; bit < 16; bit++) {
        if (!(cookie >> (16 + bit) & 1))
            continue;
        if (bit < 7)
            printf("%s='1'\n", flags[bit]);
        else if (bit < 8)
            printf("DM_UDEV_FLAG%d='1'\n", bit);
        else
            printf("DM_SUBSYSTEM_UDEV_FLAG%d='1'\n", bit - 8);
    }
    return 0;
}

/* group-volume-layer; a hyphen inside a part is doubled */
static int splitname(const char *name)
{
    char part[3][128] = {"", "", ""};
    int i = 0, length = 0;
    for (; *name; name++) {
        if (*name == '-' && name[1] != '-' && i < 2) {
            i++, length = 0;
            continue;
        }
        if (*name == '-' && name[1] == '-')
            name++;
        if (length < 127)
            part[i][length++] = *name;
    }
    return printf("DM_VG_NAME='%s'\nDM_LV_NAME='%s'\nDM_LV_LAYER='%s'\n", part[0], part[1], part[2]) < 0;
}

/* One who waits is told by a semaphore, whose key is in the cookie. */
static int udevcomplete(uint32_t cookie)
{
    struct sembuf done = {.sem_op = -1, .sem_flg = IPC_NOWAIT};
    int set = semget(0x0d4d0000 | (cookie & 0xffff), 1, 0);
    return set < 0 || semop(set, &done, 1) < 0;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    const char *last = argv[argc - 1];
    if (!strcmp(argv[1], "udevflags"))
        return udevflags(strtoul(last, NULL, 0));
    if (!strcmp(argv[1], "splitname"))
        return splitname(last);
    if (!strcmp(argv[1], "udevcomplete"))
        return udevcomplete(strtoul(last, NULL, 0));
    return 2;
}
