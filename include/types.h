/* Plain C that the other declarations stand on, and what the compiler knows of this Xen. */
typedef int pid_t;
typedef ... FILE;
void free(void *ptr);

#define LIBXL_VERSION ...
static const int PYXLSNAP_XEN_MAJOR;
static const int PYXLSNAP_XEN_MINOR;
