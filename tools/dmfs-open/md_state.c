/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The state of md's arrays, in their superblocks (md.c has the layouts), while they are written to.
 *
 * As md does: before the first write all superblocks say that the array is not clean, afterwards that it is.  In
 * between, whoever finds it so synchronises it.  Each change counts events, in the superblocks of the devices that were
 * there; one that lacks two is out of date, and one that lacks one is not, since a crash may come between two
 * devices.  So, where a device is out, there are two changes.
 *
 * The bitmap (linux/drivers/md/md-bitmap.h) begins with
 *      0  "bitm"     4  version, 3 or 4     8  uuid     24  events, u64     32  events when bits were last cleared, u64
 * and is out of date, so that all is synchronised, if its events are fewer than the array's.  So it is while the array
 * is written to, since no bits are set for that.  At the end it is brought up to date, its bits as they were, if it was
 * up to date at the begin, or all has been synchronised since; the events of the last clearing too, so that a device
 * that comes back is rebuilt in full.  It comes last: superblocks that are newer only cost time.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <dmfs/le.h>

#include "open.h"

#define SB_090_DISKS 27u
#define BITMAP_MAGIC 0x6d746962u
#define SECTOR 512u
#define BEGINS 2u /* changes at the begin */

enum { DISK_FAULTY = 1, DISK_ACTIVE = 2, DISK_SYNC = 4, DISK_REMOVED = 8 };
enum { ROLE_FAULTY = 0xfffe, ROLE_MOST = 0xff00 };

/* --- bytes --------------------------------------------------------------------------------------- */

static uint8_t *word_at(uint8_t *p, unsigned i)
{
	return p + (size_t)4 * i;
}

static void less(uint8_t *p, unsigned word)
{
	uint32_t n = get_le32(word_at(p, word));

	put_le32(word_at(p, word), n ? n - 1 : 0);
}

/* A device that is out, as md has those that it has removed. */
static void remove_090(uint8_t *p, unsigned i, uint32_t raid_disks)
{
	uint8_t *d = word_at(p, 128 + 32 * i);

	memset(d, 0, (size_t)4 * 32);
	if (i < raid_disks) {
		put_le32(word_at(d, 0), i);
		put_le32(word_at(d, 3), i);
		put_le32(word_at(d, 4), DISK_REMOVED | DISK_FAULTY);
	}
	less(p, 9);  /* there are */
	less(p, 34); /* active */
	less(p, 35); /* working */
	put_le32(word_at(p, 36), get_le32(word_at(p, 36)) + 1);
}

static void put_090(uint8_t *p, uint64_t events, bool clean, const uint8_t *as, unsigned nr)
{
	uint32_t disks = get_le32(word_at(p, 10));

	put_le32(word_at(p, 32), (uint32_t)time(NULL));
	put_le32(word_at(p, 33), (get_le32(word_at(p, 33)) & ~1u) | clean);
	put_le32(word_at(p, 39), (uint32_t)events);
	put_le32(word_at(p, 40), (uint32_t)(events >> 32));
	if (clean) {
		put_le32(word_at(p, 41), (uint32_t)events);
		put_le32(word_at(p, 42), (uint32_t)(events >> 32));
	}
	put_le32(word_at(p, 43), clean ? UINT32_MAX : 0);
	for (unsigned i = 0; i < SB_090_DISKS; i++) {
		uint32_t state = get_le32(word_at(p, 128 + 32 * i + 4));

		if (state & DISK_ACTIVE && !(state & DISK_FAULTY) && (i >= nr || as[i] != MD_USED))
			remove_090(p, i, disks);
	}
	put_le32(word_at(p, 38), md_sum_090(p));
}

static void put_1(uint8_t *p, size_t len, uint64_t events, bool clean, const uint8_t *as, unsigned nr)
{
	put_le64(p + 192, (uint64_t)time(NULL));
	put_le64(p + 200, events);
	put_le64(p + 208, clean ? UINT64_MAX : 0);
	for (unsigned i = 0; 256 + 2 * (size_t)i < len; i++) {
		uint8_t *role = p + 256 + 2 * (size_t)i;
		unsigned is = i < nr ? as[i] : 0;

		if (get_le16(role) <= ROLE_MOST && is != MD_USED)
			put_le16(role, is == MD_FAILED ? ROLE_FAULTY : MD_ROLE_SPARE);
	}
	put_le32(p + 216, md_sum_1(p, len));
}

void md_put_state(uint8_t *p, const struct md_super *sb, uint64_t events, bool clean, const uint8_t *as, unsigned nr)
{
	if (!strcmp(sb->version, "0.90"))
		put_090(p, events, clean, as, nr);
	else
		put_1(p, sb->bytes, events, clean, as, nr);
}

/* The role that a superblock gives a device. */
static int role_of(const uint8_t *p, const struct md_super *sb, unsigned number)
{
	if (!strcmp(sb->version, "0.90"))
		return number < SB_090_DISKS ? (int)get_le32(p + (size_t)4 * (128 + 32 * number + 3)) : -1;
	return 256 + 2 * (size_t)number < sb->bytes ? get_le16(p + 256 + 2 * (size_t)number) : -1;
}

/* --- disks ---------------------------------------------------------------------------------------- */

void md_disk_free(gpointer disk)
{
	struct md_disk *d = disk;

	md_clear(&d->sb);
	g_free(d->path);
	g_free(d);
}

int md_disk_look(struct md_disk *d, const char *id, GError **err)
{
	g_autoptr(GPtrArray) notes = g_ptr_array_new_with_free_func(g_free);
	struct src s;
	int r = src_open(d->path, &s, err);

	if (r)
		return r;
	md_clear(&d->sb);
	r = md_read(&s, &d->sb, notes);
	src_close(&s);
	if (!r && strcmp(d->sb.id, id))
		r = -ENOENT;
	return r ? fail(err, -r, "%s: the superblock of array %s is gone", d->path, id) : 0;
}

static int move(int fd, uint64_t at, void *buf, size_t len, bool write)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write ? pwrite(fd, (uint8_t *)buf + done, len - done, (off_t)(at + done))
				  : pread(fd, (uint8_t *)buf + done, len - done, (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* Whole sectors from one that a superblock or a bitmap begins in, changed and durable. */
static int change(struct md_disk *d, uint64_t at, size_t len, bool (*fn)(struct md_disk *, uint8_t *, void *),
		  void *data, GError **err)
{
	size_t whole = (len + SECTOR - 1) / SECTOR * SECTOR;
	g_autofree uint8_t *block = g_malloc(whole);
	int fd = open(d->path, O_RDWR | O_CLOEXEC), r = fd < 0 ? -errno : move(fd, at, block, whole, false);

	if (!r && fn(d, block, data)) {
		r = move(fd, at, block, whole, true);
		if (!r && fsync(fd))
			r = -errno;
	}
	if (fd >= 0)
		close(fd);
	return r ? fail(err, -r, "%s: md's superblock or bitmap: %s", d->path, g_strerror(-r)) : 0;
}

struct state {
	uint64_t events;
	bool clean, synced;
	uint8_t *as;
	unsigned nr;
};

static bool put_super(struct md_disk *d, uint8_t *p, void *data)
{
	const struct state *state = data;

	md_put_state(p, &d->sb, state->events, state->clean, state->as, state->nr);
	return true;
}

static bool put_bitmap(struct md_disk *d, uint8_t *p, void *data)
{
	const struct state *state = data;
	uint32_t version = get_le32(p + 4);

	if (get_le32(p) != BITMAP_MAGIC || (version != 3 && version != 4) || memcmp(p + 8, d->sb.uuid, 16) ||
	    (!state->synced && get_le64(p + 24) + BEGINS != d->sb.events))
		return false;
	put_le64(p + 24, state->events);
	put_le64(p + 32, state->events);
	return true;
}

static int by_events(gconstpointer a, gconstpointer b)
{
	const struct md_disk *x = *(struct md_disk *const *)a, *y = *(struct md_disk *const *)b;

	return x->sb.events < y->sb.events ? -1 : x->sb.events > y->sb.events;
}

/* One change: to all that is not out, those that are behind first. */
static int put_all(GPtrArray *disks, struct state *state, GError **err)
{
	for (unsigned i = 0; i < disks->len; i++) {
		struct md_disk *d = disks->pdata[i];
		int r = d->as == MD_FAILED ? 0 : change(d, d->sb.at, d->sb.bytes, put_super, state, err);

		if (r)
			return r;
	}
	return 0;
}

static struct state state_of(GPtrArray *disks)
{
	struct state state = {0};

	for (unsigned i = 0; i < disks->len; i++)
		state.nr = MAX(state.nr, ((struct md_disk *)disks->pdata[i])->sb.number + 1);
	state.as = g_malloc0(state.nr);
	for (unsigned i = 0; i < disks->len; i++) {
		const struct md_disk *d = disks->pdata[i];

		if (d->as != MD_FAILED || state.as[d->sb.number] != MD_USED) /* hostile numbers */
			state.as[d->sb.number] = d->as;
		if (d->as == MD_USED)
			state.events = MAX(state.events, d->sb.events);
	}
	return state;
}

/* --- begin and end ----------------------------------------------------------------------------------- */

struct agreement {
	const GPtrArray *disks;
	bool good;
};

static bool compare(struct md_disk *best, uint8_t *p, void *data)
{
	struct agreement *a = data;

	for (unsigned i = 0; i < a->disks->len; i++) {
		const struct md_disk *d = a->disks->pdata[i];

		if (strcmp(d->sb.version, best->sb.version) ||
		    (d->as == MD_USED && role_of(p, &best->sb, d->sb.number) != d->sb.role))
			a->good = false;
		for (unsigned k = 0; k < i; k++)
			if (((struct md_disk *)a->disks->pdata[k])->sb.number == d->sb.number)
				a->good = false;
	}
	return false;
}

/* Whether the newest superblock knows all devices by the numbers they have. */
static int check_agreement(GPtrArray *disks, uint64_t events, GError **err)
{
	struct agreement a = {disks, true};

	for (unsigned i = 0; i < disks->len; i++) {
		struct md_disk *d = disks->pdata[i];
		int r;

		if (d->as != MD_USED || d->sb.events != events)
			continue;
		r = change(d, d->sb.at, d->sb.bytes, compare, &a, err);
		if (r)
			return r;
		return a.good ? 0 : fail(err, EINVAL, "its superblocks disagree about which device is which");
	}
	return fail(err, EINVAL, "it has no device");
}

int md_state_begin(GPtrArray *disks, GError **err)
{
	struct state state = state_of(disks);
	int r = state.events > UINT64_MAX / 2
		    ? fail(err, EINVAL, "its count of events cannot be: %" PRIu64, state.events)
		    : check_agreement(disks, state.events, err);

	g_ptr_array_sort(disks, by_events);
	for (unsigned i = 0; i < BEGINS && !r; i++) {
		state.events++;
		r = put_all(disks, &state, err);
	}
	g_free(state.as);
	return r;
}

static int flush(const struct md_disk *d, GError **err)
{
	int fd = open(d->path, O_RDWR | O_CLOEXEC), r = fd < 0 || fsync(fd) ? -errno : 0;

	if (fd >= 0)
		close(fd);
	return r ? fail(err, -r, "%s: %s", d->path, g_strerror(-r)) : 0;
}

int md_state_end(GPtrArray *disks, enum md_end how, GError **err)
{
	struct state state = state_of(disks);
	bool failed = false;
	int r = 0;

	for (unsigned i = 0; i < disks->len && !r; i++) {
		const struct md_disk *d = disks->pdata[i];

		failed |= d->as == MD_FAILED;
		r = d->as == MD_USED ? flush(d, err) : 0;
	}
	state.clean = how != MD_UNCLEAN;
	state.synced = how == MD_SYNCED;
	for (unsigned i = 0; i < 1u + failed && !r; i++) {
		state.events++;
		r = put_all(disks, &state, err);
	}
	for (unsigned i = 0; i < disks->len && state.clean && !r; i++) {
		struct md_disk *d = disks->pdata[i];

		if (d->as == MD_USED && d->sb.bitmap_at)
			r = change(d, d->sb.bitmap_at, SECTOR, put_bitmap, &state, err);
	}
	g_free(state.as);
	return r;
}
