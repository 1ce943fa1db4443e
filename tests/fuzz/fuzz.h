/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the fuzzers of the engine's languages share: an engine without a
 * mount, in an empty directory of its own with two small files.
 *
 * Absolute names are kept out of what is fuzzed, so that no fuzzer opens anything else.
 */
#ifndef DMFS_FUZZ_H
#define DMFS_FUZZ_H

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/devices.h"
#include "core/type.h"
#include "targets/list.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char fuzz_dir[] = "/tmp/dmfs-fuzz-XXXXXX";

static inline void fuzz_clean_up(void)
{
	const char *names[] = {"f0", "f1"};

	for (unsigned i = 0; i < 2; i++) {
		g_autofree char *path = g_build_filename(fuzz_dir, names[i], NULL);

		unlink(path);
	}
	rmdir(fuzz_dir);
}

static inline void fuzz_start(void)
{
	const char *names[] = {"f0", "f1"};

	dm_register_targets(dm_target_list);
	if (!mkdtemp(fuzz_dir))
		abort();
	atexit(fuzz_clean_up);
	for (unsigned i = 0; i < 2; i++) {
		g_autofree char *path = g_build_filename(fuzz_dir, names[i], NULL);
		int fd = open(path, O_RDWR | O_CREAT, 0600);

		if (fd < 0 || ftruncate(fd, 1 << 20) < 0)
			abort();
		close(fd);
	}
}

/* The input as a text; every '/' becomes "@", and the word f0 or f1 the file's path. */
static inline char *fuzz_text(const uint8_t *data, size_t size)
{
	GString *out = g_string_new(NULL);

	for (size_t i = 0; i < size; i++) {
		if (data[i] == 'f' && i + 1 < size && (data[i + 1] == '0' || data[i + 1] == '1'))
			g_string_append_printf(out, "%s/f%c", fuzz_dir, data[++i]);
		else
			g_string_append_c(out, data[i] == '/' ? '@' : data[i] ? (char)data[i] : ' ');
	}
	return g_string_free(out, FALSE);
}

#endif
