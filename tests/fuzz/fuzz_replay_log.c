/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Logs of log-writes, as dmfs-replay-log reads them: whatever is taken lies inside the log. */
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"

#include "../../tools/dmfs-replay-log/log.c"

#define MAX_ENTRIES 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("log", MFD_CLOEXEC);
	g_autoptr(GError) err = NULL;
	struct entry e = {0};
	struct log log;

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	if (log_open_fd(&log, fd, "log", &err))
		return 0;
	for (unsigned i = 0; i < MAX_ENTRIES && log_next(&log, &e, &err) > 0; i++) {
		if (e.data > size || e.len > size - e.data || e.number != i)
			abort();
		if ((e.sector + e.sectors) * log.block > INT64_MAX)
			abort();
		if (e.flags & LOG_WRITES_MARK && strlen(e.mark) > log.block)
			abort();
	}
	g_free(e.mark);
	log_close(&log);
	return 0;
}
