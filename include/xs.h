/* xenstore.h: what libxl does not report (device states, the device model's pid), and a watch. */
#define XS_OPEN_READONLY ...
struct xs_handle;
struct xs_handle *xs_open(unsigned long flags);
void xs_close(struct xs_handle *xsh);
void *xs_read(struct xs_handle *h, uint32_t t, const char *path, unsigned int *len);
char **xs_directory(struct xs_handle *h, uint32_t t, const char *path, unsigned int *num);
bool xs_watch(struct xs_handle *h, const char *path, const char *token);
int xs_fileno(struct xs_handle *h);
char **xs_check_watch(struct xs_handle *h);
