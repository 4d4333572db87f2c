/* libxl.h, libxl_event.h: contexts, children, abort. */
typedef ... libxl_ctx;
typedef ... xentoollog_logger;
typedef ... libxl_asyncop_how;
typedef ... libxl_asyncprogress_how;
typedef uint32_t libxl_domid;
typedef struct { unsigned char uuid[16]; } libxl_uuid;
typedef struct { int val; ...; } libxl_defbool;

int libxl_ctx_alloc(libxl_ctx **pctx, int version, unsigned flags, xentoollog_logger *lg);
int libxl_ctx_free(libxl_ctx *ctx);
int libxl_ao_abort(libxl_ctx *ctx, const libxl_asyncop_how *how);
void libxl_childproc_sigchld_occurred(libxl_ctx *ctx);

#define ERROR_FAIL ...
#define ERROR_INVAL ...
#define ERROR_GUEST_TIMEDOUT ...
#define ERROR_DOMAIN_NOTFOUND ...
#define ERROR_ABORTED ...
const char *libxl_error_to_string(int rc);
