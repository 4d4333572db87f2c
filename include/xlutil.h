/* libxlutil.h: the parser of xl's configuration syntax. */
typedef ... XLU_Config;
typedef ... XLU_ConfigList;

XLU_Config *xlu_cfg_init(FILE *report, const char *report_filename);
int xlu_cfg_readdata(XLU_Config *cfg, const char *data, int length);
void xlu_cfg_destroy(XLU_Config *cfg);
int xlu_cfg_get_string(const XLU_Config *cfg, const char *n, const char **value_r, int dont_warn);
int xlu_cfg_get_list(const XLU_Config *cfg, const char *n, XLU_ConfigList **list_r,
                     int *entries_r, int dont_warn);
const char *xlu_cfg_get_listitem(const XLU_ConfigList *list, int entry);
int xlu_disk_parse(XLU_Config *cfg, int nspecs, const char *const *specs,
                   libxl_device_disk *disk);
