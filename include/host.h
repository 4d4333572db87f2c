/* libxl.h, libxl_utils.h: the host, its version, memory and CPU pools. */
typedef struct {
    bool cap_hap, cap_shadow;
    ...;
} libxl_physinfo;
void libxl_physinfo_init(libxl_physinfo *p);
void libxl_physinfo_dispose(libxl_physinfo *p);
int libxl_get_physinfo(libxl_ctx *ctx, libxl_physinfo *physinfo);

typedef struct {
    int xen_version_major, xen_version_minor;
    char *xen_version_extra;
    char *commandline;
    ...;
} libxl_version_info;
const libxl_version_info *libxl_get_version_info(libxl_ctx *ctx);

int libxl_get_free_memory(libxl_ctx *ctx, uint64_t *memkb);
int libxl_set_memory_target(libxl_ctx *ctx, uint32_t domid, int64_t target_memkb, int relative,
                            int enforce);
int libxl_wait_for_memory_target(libxl_ctx *ctx, uint32_t domid, int wait_secs);

int libxl_cpupool_qualifier_to_cpupoolid(libxl_ctx *ctx, const char *p, uint32_t *poolid_r,
                                         int *was_name_r);
int libxl_cpupoolid_is_valid(libxl_ctx *ctx, uint32_t poolid);

typedef struct {
    uint32_t size;
    uint8_t *map;
    ...;
} libxl_bitmap;
typedef struct {
    libxl_bitmap cpumap;
    ...;
} libxl_cpupoolinfo;
void libxl_cpupoolinfo_init(libxl_cpupoolinfo *p);
void libxl_cpupoolinfo_dispose(libxl_cpupoolinfo *p);
int libxl_cpupool_info(libxl_ctx *ctx, libxl_cpupoolinfo *info, uint32_t poolid);
