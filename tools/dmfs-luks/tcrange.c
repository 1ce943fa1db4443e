/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where the data of a TrueCrypt or VeraCrypt volume is (tchead.h), by what its header says. */
#include <errno.h>
#include <inttypes.h>

#include "../common/fail.h"
#include "tchead.h"

#define HIDDEN_OLD_SECTORS 3 /* before version 6, TrueCrypt had the hidden volume's header that far from the end */

/* The same for all: it is within the file, and encrypted. */
static int check_range(const struct tc_header *h, const struct tc_where *w, const struct tc_range *r, GError **err)
{
	if (h->sector_size % 512 || h->data_at % 512)
		return fail(err, EOPNOTSUPP,
			    "its header tells of sectors of %u bytes, and data at byte %" PRIu64
			    ": neither may be but a multiple of 512",
			    h->sector_size, h->data_at);
	if (h->flags & (TC_IS_SYSTEM | TC_IS_IN_PLACE) && h->data_bytes < h->volume_bytes && !w->unfinished)
		return fail(err, EOPNOTSUPP,
			    "only %" PRIu64 " of its %" PRIu64 " bytes are encrypted: let TrueCrypt or "
			    "VeraCrypt finish that, or open it with -r",
			    h->data_bytes, h->volume_bytes);
	if (!r->sectors || r->start > w->sectors || r->sectors > w->sectors - r->start)
		return fail(err, EINVAL,
			    "it has %" PRIu64 " sectors, too few for data of %" PRIu64 " from sector %" PRIu64
			    " on: was it cut short?",
			    w->sectors, r->sectors, r->start);
	return 0;
}

/*
 * The header is on the disk, outside of all partitions, and what is encrypted is one of them or all of the disk
 * behind the boot loader; in both cases IVs count from the disk's begin.
 */
static int system_range(const struct tc_header *h, const struct tc_where *w, struct tc_range *out, GError **err)
{
	uint64_t at = h->data_at / 512, sectors = h->volume_bytes / 512, end, first;

	if (!sectors || sectors > UINT64_MAX / 512 - at)
		return fail(err, EINVAL, "its header tells of %" PRIu64 " bytes of data at byte %" PRIu64,
			    h->volume_bytes, h->data_at);
	if (!w->partition) {
		*out = (struct tc_range){at, sectors, at};
		return 0;
	}
	end = at + sectors;
	first = w->start_known ? w->partition_start : at;
	if (first < at || first >= end)
		return fail(err, EINVAL,
			    "the partition starts at sector %" PRIu64 " of its disk, but what is encrypted are sectors "
			    "%" PRIu64 " to %" PRIu64,
			    first, at, end - 1);
	*out = (struct tc_range){0, end - first, first};
	if (w->start_known)
		out->sectors = MIN(out->sectors, w->sectors); /* there are others behind it */
	return 0;
}

static int usual_range(const struct tc_header *h, const struct tc_where *w, struct tc_range *out, GError **err)
{
	bool xts = g_str_has_prefix(h->mode, "xts"), at_end = w->hidden && (!xts || h->version < 4);
	uint64_t at = h->data_at ? h->data_at / 512 : 1;

	*out = (struct tc_range){at, (w->hidden ? h->hidden_bytes : h->volume_bytes) / 512, at};
	if (w->hidden && !out->sectors)
		return fail(err, EINVAL, "its header tells of no hidden volume");
	if (at_end) /* it ends where its header begins */
		out->start = w->header_sectors - MIN(w->header_sectors, out->sectors + HIDDEN_OLD_SECTORS);
	else if (xts && h->version < 3)
		out->start = 1;
	if (xts)
		out->iv = out->start;
	if (!out->sectors && w->sectors > out->start)
		out->sectors = w->sectors - out->start;
	return 0;
}

int tc_data_range(const struct tc_header *h, const struct tc_where *where, struct tc_range *out, GError **err)
{
	int r = (where->system ? system_range : usual_range)(h, where, out, err);

	return r ? r : check_range(h, where, out, err);
}
