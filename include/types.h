/* Plain C types for the other declarations, and the release of the Xen headers. */
typedef int pid_t;
typedef ... FILE;
void free(void *ptr);

#define LIBXL_VERSION ...
static const int PYXLSNAP_XEN_MAJOR;
static const int PYXLSNAP_XEN_MINOR;
