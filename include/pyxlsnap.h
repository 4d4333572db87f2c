/* The functions and types of bridge.h. */
struct pyxlsnap_bridge {
    int log_fd;
    int child_fd;
    int min_level;
    unsigned long lost;
    ...;
};
struct pyxlsnap_record {
    uint32_t size;
    int32_t kind, level, errnoval;
    uint32_t context_size;
    uint64_t done, total;
};
#define PYXLSNAP_LOG ...
#define PYXLSNAP_PROGRESS ...
#define PYXLSNAP_DISASTER ...

struct pyxlsnap_bridge *pyxlsnap_bridge_new(int min_level);
void pyxlsnap_bridge_free(struct pyxlsnap_bridge *b);
xentoollog_logger *pyxlsnap_bridge_logger(struct pyxlsnap_bridge *b);
void pyxlsnap_bridge_attach(struct pyxlsnap_bridge *b, libxl_ctx *ctx);
void pyxlsnap_bridge_test_message(struct pyxlsnap_bridge *b, int level, const char *text);
void pyxlsnap_bridge_test_progress(struct pyxlsnap_bridge *b, const char *what,
                                   unsigned long done, unsigned long total);
bool pyxlsnap_close_in_children(int fd);
bool pyxlsnap_show_command(const char *words, size_t size);
pid_t pyxlsnap_bridge_test_fork(struct pyxlsnap_bridge *b, int exit_code);
int pyxlsnap_sigchld_is_ignored(void);
int pyxlsnap_renew_genid(libxl_ctx *ctx, libxl_domain_config *config);

struct pyxlsnap_report;
struct pyxlsnap_report *pyxlsnap_report_new(void);
FILE *pyxlsnap_report_file(struct pyxlsnap_report *r);
const char *pyxlsnap_report_text(struct pyxlsnap_report *r);
void pyxlsnap_report_free(struct pyxlsnap_report *r);
