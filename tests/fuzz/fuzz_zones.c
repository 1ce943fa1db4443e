/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Zones files: the input is one, or changes to a good one.  What is taken must be a disk: printed and read again it is
 * the same, and whatever is done to its zones breaks no rule.
 */
#include <stdlib.h>
#include <string.h>

#include "io/zoned.h"

#define MAX_ZONES 4096u

static const char good[] = "# dmfs zones 1\n# model host-managed\n# max-open 2\n# max-active 3\n# logical-block 512\n# "
			   "reads-beyond-wptr zeroes\n"
			   "  start: 0x000000000, len 0x000010, cap 0x000010, wptr 0x000000 reset:0 non-seq:0, zcond: "
			   "0(nw) [type: 1(CONVENTIONAL)]\n"
			   "  start: 0x000000010, len 0x000010, cap 0x00000c, wptr 0x000004 reset:0 non-seq:0, zcond: "
			   "4(cl) [type: 2(SEQ_WRITE_REQUIRED)]\n"
			   "  start: 0x000000020, len 0x000010, cap 0x00000c, wptr 0x000000 reset:0 non-seq:0, zcond: "
			   "1(em) [type: 2(SEQ_WRITE_REQUIRED)]\n"
			   "  start: 0x000000030, len 0x000008, cap 0x000008, wptr 0x000008 reset:0 non-seq:0, "
			   "zcond:14(fu) [type: 2(SEQ_WRITE_REQUIRED)]\n"
			   "  start: 0x000000010, len 0x000010, cap 0x00000c, wptr 0x000008 reset:0 non-seq:0, zcond: "
			   "2(oi) [type: 2(SEQ_WRITE_REQUIRED)]\n"
			   "# commit 1 0123456789abcdef\n";

static void check_zone(const struct zones *z, unsigned i)
{
	const struct zones_zone *zone = &z->zone[i];
	uint32_t len = zones_length(z, i);

	if (!len || !zone->capacity || zone->capacity > len || zone->wp > len)
		abort();
	if (zone->type == DM_ZONE_CONVENTIONAL ? zone->condition || zone->wp : !zone->condition)
		abort();
	if (zone->condition == DM_ZONE_EMPTY && zone->wp)
		abort();
}

static void check_rules(const struct zone_rules *r)
{
	unsigned implicit = 0, explicit_ = 0, closed = 0;

	for (unsigned i = 0; i < r->z.n; i++) {
		check_zone(&r->z, i);
		implicit += r->z.zone[i].condition == DM_ZONE_IMPLICITLY_OPEN;
		explicit_ += r->z.zone[i].condition == DM_ZONE_EXPLICITLY_OPEN;
		closed += r->z.zone[i].condition == DM_ZONE_CLOSED;
	}
	if (implicit != r->implicit || explicit_ != r->explicit_ || closed != r->closed)
		abort();
	if (r->z.max_open && implicit + explicit_ > r->z.max_open)
		abort();
}

static void use(struct zone_rules *r, const uint8_t *in)
{
	unsigned i = in[0] % r->z.n;
	uint32_t offset = in[2] & 1 ? r->z.zone[i].wp : in[2];

	if (r->z.zone[i].type == DM_ZONE_CONVENTIONAL && in[1] % 6 == 0)
		return;
	switch (in[1] % 6) {
	case 0:
		if (!zone_rules_write(r, i, offset, 1 + in[2] / 64) && in[2] & 2 &&
		    r->z.zone[i].type == DM_ZONE_SEQUENTIAL)
			zone_rules_take_back(r, i, offset);
		break;
	case 1:
		zone_rules_open(r, i);
		break;
	case 2:
		zone_rules_close(r, i);
		break;
	case 3:
		zone_rules_finish(r, i);
		break;
	default:
		if (!zone_rules_may_reset(r, i))
			zone_rules_reset(r, i);
	}
}

/* Prints the disk and reads that: all is as before, but for what a power cycle closes. */
static void print_and_read(const struct zones *z)
{
	GString *text = g_string_new(NULL);
	struct zones again;

	zones_print_head(z, text);
	for (unsigned i = 0; i < z->n; i++)
		zones_print_zone(z, i, z->zone[i], text);
	if (zones_parse(text->str, text->len, "again", &again, NULL) || again.n != z->n || again.sectors != z->sectors)
		abort();
	for (unsigned i = 0; i < z->n; i++)
		if (again.zone[i].wp != z->zone[i].wp || again.zone[i].type != z->zone[i].type)
			abort();
	zones_clear(&again);
	g_string_free(text, TRUE);
}

static void look(const char *text, size_t len, const uint8_t *data, size_t size)
{
	struct zone_rules r = {0};

	if (zones_parse(text, len, "fuzz", &r.z, NULL))
		return;
	if (r.z.bytes > len || !r.z.n)
		abort();
	for (unsigned i = 0; i < r.z.n; i++)
		check_zone(&r.z, i);
	if (r.z.n <= MAX_ZONES) {
		print_and_read(&r.z);
		zone_rules_init(&r);
		/* A file may say that more are closed than may be active; then no more can be. */
		for (unsigned n = 0; size >= 3 && n < 300; n++, data += 3, size -= 3)
			use(&r, data);
		check_rules(&r);
		zone_rules_clear(&r);
	} else {
		zones_clear(&r.z);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An odd first byte: the rest is a text; else it changes bytes of a good one, and then its zones. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char text[sizeof good];
	unsigned changes;

	if (!size)
		return 0;
	if (data[0] & 1) {
		look((const char *)data + 1, size - 1, NULL, 0);
		return 0;
	}
	memcpy(text, good, sizeof good);
	changes = data[0] / 2 % 16;
	for (data++, size--; changes && size >= 3; changes--, data += 3, size -= 3)
		text[(data[0] | data[1] << 8) % (sizeof good - 1)] = (char)data[2];
	look(text, sizeof good - 1, data, size);
	return 0;
}
