/* What libxl alone takes: a snapshot of a domain's memory by as little code as can be. It has no disks and undoes nothing.
 *
 *   bare suspend DOMID FILE   suspends the domain into the file, and resumes the domain
 *   bare live DOMID FILE      the same, and the domain runs while its memory is written
 *   bare watch DOMID          waits until the domain, whoever suspends it, was suspended and runs again
 *
 * Each prints for how many seconds the domain was suspended; "watch" first prints a line "ready". The other two take the
 * time from libxl's "Domain now suspended" to the return of the resume. "watch" looks from outside, every 10 ms.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LIBXL_API_VERSION 0x041400
#include <libxl.h>
#include <xentoollog.h>

#define POLL_US 10000

static double suspended_at;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void message(xentoollog_logger *logger, xentoollog_level level, int errnoval, const char *context,
                    const char *format, va_list args)
{
    (void)logger, (void)errnoval, (void)context;
    if (level < XTL_WARN)
        return;
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

static void progress(xentoollog_logger *logger, const char *context, const char *doing_what, int percent,
                     unsigned long done, unsigned long total)
{
    (void)logger, (void)context, (void)percent, (void)done, (void)total;
    if (!strcmp(doing_what, "Domain now suspended"))
        suspended_at = now();
}

static void destroy(xentoollog_logger *logger)
{
    (void)logger;
}

static int take(libxl_ctx *ctx, uint32_t domid, const char *path, int flags)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) {
        perror(path);
        return 1;
    }
    int failed = libxl_domain_suspend(ctx, domid, fd, flags, NULL);
    /* After a failure, too: the domain may be suspended, and this does no harm to one that runs. */
    failed |= libxl_domain_resume(ctx, domid, 1, NULL);
    double end = now();
    failed |= close(fd);
    if (!failed && suspended_at)
        printf("%.6f\n", end - suspended_at);
    return failed || !suspended_at;
}

static int is_suspended(libxl_ctx *ctx, uint32_t domid)
{
    libxl_dominfo info;
    libxl_dominfo_init(&info);
    int rc = libxl_domain_info(ctx, &info, domid);
    int suspended = info.shutdown && info.shutdown_reason == LIBXL_SHUTDOWN_REASON_SUSPEND;
    libxl_dominfo_dispose(&info);
    if (rc)
        exit(1); /* there is no such domain any more */
    return suspended;
}

static int watch(libxl_ctx *ctx, uint32_t domid)
{
    puts("ready");
    fflush(stdout);
    while (!is_suspended(ctx, domid))
        usleep(POLL_US);
    double begin = now();
    while (is_suspended(ctx, domid))
        usleep(POLL_US);
    printf("%.6f\n", now() - begin);
    return 0;
}

int main(int argc, char **argv)
{
    xentoollog_logger logger = { .vmessage = message, .progress = progress, .destroy = destroy };
    libxl_ctx *ctx;
    if (argc < 3 || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, &logger)) {
        fputs("usage: bare suspend|live DOMID FILE, bare watch DOMID; in a dom0\n", stderr);
        return 2;
    }
    uint32_t domid = strtoul(argv[2], NULL, 10);
    int failed = 2;
    if (!strcmp(argv[1], "watch"))
        failed = watch(ctx, domid);
    else if (argc > 3 && !strcmp(argv[1], "suspend"))
        failed = take(ctx, domid, argv[3], 0);
    else if (argc > 3 && !strcmp(argv[1], "live"))
        failed = take(ctx, domid, argv[3], LIBXL_SUSPEND_LIVE);
    libxl_ctx_free(ctx);
    return failed;
}
