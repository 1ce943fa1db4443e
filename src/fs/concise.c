/* SPDX-License-Identifier: GPL-2.0-or-later */
/* `concise`: all devices in dm-init's format; written, it creates and activates devices, all or none. */
#include <string.h>

#include "core/concise.h"
#include "files.h"

static int concise_text(struct dmfs_handle *h, GString *out)
{
	dm_concise_print(out);
	return 0;
}

static int concise_write(struct dmfs_handle *h, fuse_req_t req, char *text, size_t len, GError **err)
{
	int error;

	dm_block_begin();
	error = dm_concise_create(text, &h->writer, err);
	dm_block_end();
	return error;
}

/* A separator or a backslash at the end, newlines and blanks aside: what it separates or quotes is still to come. */
static bool concise_unfinished(const char *text, size_t len)
{
	size_t backslashes = 0;
	bool separator;

	while (len && g_ascii_isspace(text[len - 1]))
		len--;
	separator = len && strchr(",;", text[len - 1]);
	for (len -= separator; backslashes < len && text[len - 1 - backslashes] == '\\';)
		backslashes++;
	return separator ? backslashes % 2 == 0 : backslashes % 2;
}

const struct dmfs_file dmfs_concise_file = {
	.name = "concise",
	.mode = 0600,
	.read_text = concise_text,
	.write_text = concise_write,
	.long_text = true,
	.unfinished = concise_unfinished,
};
