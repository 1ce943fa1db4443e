/* SPDX-License-Identifier: GPL-2.0-or-later */
/* `concise`: all devices in dm-init's format; written, it creates and activates devices, all or none. */
#include "core/concise.h"
#include "files.h"

static int concise_text(struct dmfs_handle *h, GString *out)
{
	dm_concise_print(out);
	return 0;
}

static int concise_write(struct dmfs_handle *h, fuse_req_t req, char *text, size_t len, GError **err)
{
	struct dm_opener who = dmfs_opener(req);
	int error;

	dm_block_begin();
	error = dm_concise_create(text, &who, err);
	dm_block_end();
	return error;
}

const struct dmfs_file dmfs_concise_file = {
	.name = "concise",
	.mode = 0600,
	.read_text = concise_text,
	.write_text = concise_write,
	.long_text = true,
};
