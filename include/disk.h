/* libxl.h: a domain's disks. */
typedef struct {
    char *pdev_path, *vdev, *script, *backend_domname;
    int backend, format;
    int readwrite, is_cdrom;
    ...;
} libxl_device_disk;
void libxl_device_disk_init(libxl_device_disk *p);
void libxl_device_disk_dispose(libxl_device_disk *p);
const char *libxl_disk_format_to_string(int format);
const char *libxl_disk_backend_to_string(int backend);
