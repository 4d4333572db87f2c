/* xenstore.h: what libxl does not report (device states, the device model's pid), watches, and a transaction that
   withdraws a suspend request. */
#define XS_OPEN_READONLY ...
struct xs_handle;
struct xs_handle *xs_open(unsigned long flags);
void xs_close(struct xs_handle *xsh);
void *xs_read(struct xs_handle *h, uint32_t t, const char *path, unsigned int *len);
char **xs_directory(struct xs_handle *h, uint32_t t, const char *path, unsigned int *num);
uint32_t xs_transaction_start(struct xs_handle *h);
bool xs_transaction_end(struct xs_handle *h, uint32_t t, bool abort);
bool xs_write(struct xs_handle *h, uint32_t t, const char *path, const void *data, unsigned int len);
bool xs_watch(struct xs_handle *h, const char *path, const char *token);
int xs_fileno(struct xs_handle *h);
char **xs_check_watch(struct xs_handle *h);
char **xs_read_watch(struct xs_handle *h, unsigned int *num);
