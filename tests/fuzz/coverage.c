/* Counts which parts of the stream writer an input reaches, for libFuzzer. gcc calls this function at
 * each branch (-fsanitize-coverage=trace-pc); clang could count by itself. */
enum { STREAM_COUNTERS = 1 << 15 };
unsigned char stream_counters[STREAM_COUNTERS];

__attribute__((visibility("hidden"), no_sanitize("address", "undefined"), no_sanitize_coverage))
void __sanitizer_cov_trace_pc(void)
{
    uintptr_t here = (uintptr_t)__builtin_return_address(0);

    stream_counters[(here - (uintptr_t)__sanitizer_cov_trace_pc) / 4 % STREAM_COUNTERS]++;
}
