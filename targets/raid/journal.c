/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid4/5/6's journal: what will be written to a stripe is durable there before the first device is
 * written, so a crash leaves no stripe half written (the write hole).
 *
 * md's log format, in blocks of 4 KiB, numbers little-endian.  A meta block, and then the pages it
 * tells of:
 *
 *    0 u32 0x6433c509                  16 u64 sequence number
 *    4 u32 CRC-32C of the block        24 u64 its own sector
 *    8 u8 version 1                    32 payloads
 *   12 u32 bytes used
 *
 *   payload: u16 type (0 data, 1 parity, 2 flushed), u16 flags, u32 sectors, u64 where (data: sector of the
 *   array; parity: of the device), and a u32 CRC-32C for each page; flushed: u32 bytes, u64 device sectors.
 *
 * Checksums begin with that of 16 zeroes (the array's UUID, which dm-raid has none of).  The next meta
 * block has the next number; one that jumps ahead is the kernel's after a recovery.
 *
 * The log always begins at sector 0: when it is full, and at a suspend, all that is in it is
 * brought home, the devices are flushed, and an empty meta block with a much higher number there makes the
 * rest meaningless.
 *
 * The kernel always replays from sector 0 too, though it may have begun elsewhere: it brings old content back then.  So
 * the log's first block has a number of ours, and superblocks a mark that the kernel wipes: a log of ours that
 * somebody has been at since is left alone.
 *
 * journal_mode writeback: a write is answered once it is in the log; its stripe stays busy until it is on the devices,
 * and reads of it wait there.
 */
#include "journal.h"

#include <inttypes.h>

#include <dmfs/crc32c.h>
#include <dmfs/le.h>

#define MAGIC 0x6433c509u
#define VERSION 1u
#define HEADER 32u
#define OWN (0x646d6673ull << 32) /* our sequence numbers; the kernel begins with 32 bits */
#define SEQUENCE_JUMP 10000u
#define BATCH_PAGES 512u
#define MOST_DISKS 190u /* a column's payloads fit in one meta block */

enum payload { DATA, PARITY, FLUSHED };

struct raid_journal {
	struct raid *r;
	struct dm_dev *dev;
	uint64_t sectors, head, seq;
	uint32_t seed;
	struct dm_wq *wq, *home_wq;
	struct dm_work work;
	pthread_mutex_t lock;
	pthread_cond_t idle;
	struct raid_stripe *queue, **tail;
	unsigned away; /* stripes in the log that are not on their devices */
	atomic_bool failed;
};

/* --- meta blocks ---------------------------------------------------------------------------------- */

static uint32_t sum(const struct raid_journal *j, const void *page)
{
	return dm_crc32c(j->seed, page, PAGE_BYTES);
}

static void meta_init(uint8_t *meta, uint64_t seq, uint64_t sector)
{
	memset(meta, 0, PAGE_BYTES);
	put_le32(meta, MAGIC);
	meta[8] = VERSION;
	put_le32(meta + 12, HEADER);
	put_le64(meta + 16, seq);
	put_le64(meta + 24, sector);
}

static void meta_seal(const struct raid_journal *j, uint8_t *meta)
{
	put_le32(meta + 4, 0);
	put_le32(meta + 4, sum(j, meta));
}

static bool meta_valid(const struct raid_journal *j, uint8_t *meta, uint64_t sector)
{
	uint32_t crc = get_le32(meta + 4), used = get_le32(meta + 12);

	put_le32(meta + 4, 0);
	return get_le32(meta) == MAGIC && meta[8] == VERSION && get_le64(meta + 24) == sector && used >= HEADER &&
	       used <= PAGE_BYTES && sum(j, meta) == crc;
}

/* Makes the log empty: everything in it is on the devices.  May wait. */
static int start_over(struct raid_journal *j, bool flush)
{
	struct raid *r = j->r;
	uint8_t *meta = g_malloc(PAGE_BYTES);
	int error = flush ? raid_members_flush(r) : 0;

	if (!error && (atomic_load(&r->unsaved) || atomic_load(&r->broken) || atomic_load(&r->dead)))
		error = -EIO; /* it is not all there */

	j->seq += SEQUENCE_JUMP;
	meta_init(meta, j->seq++, 0);
	meta_seal(j, meta);
	if (!error)
		error = dm_write_sync(j->dev, 0, PAGE_SECTORS, meta, DM_FUA | DM_META);
	g_free(meta);
	j->head = PAGE_SECTORS;
	return error;
}

/* --- writing ---------------------------------------------------------------------------------------- */

struct batch {
	struct iovec iov[BATCH_PAGES + 1];
	unsigned n;
	uint8_t *metas[BATCH_PAGES];
	unsigned nr_metas;
};

static void add_page(struct batch *b, void *page)
{
	b->iov[b->n++] = (struct iovec){page, PAGE_BYTES};
}

static uint8_t *payload(uint8_t *meta, enum payload type, uint32_t sectors, uint64_t where)
{
	uint32_t used = get_le32(meta + 12), size = 16 + sectors / PAGE_SECTORS * 4;
	uint8_t *p = meta + used;

	put_le16(p, (uint16_t)type);
	put_le32(p + 4, sectors);
	put_le64(p + 8, where);
	put_le32(meta + 12, used + size);
	return p + 16;
}

static bool out(struct raid_stripe *s, unsigned d, unsigned c)
{
	return raid_mask(s, RAID_OUT, d)[c] && raid_mask(s, RAID_VALID, d)[c] == 0xff;
}

static bool is_parity(const struct raid_stripe *s, unsigned d)
{
	return (int)d == s->p || (int)d == s->q;
}

static bool column_written(struct raid_stripe *s, unsigned c)
{
	for (unsigned d = 0; d < s->c->disks; d++)
		if (raid_mask(s, RAID_WRITE, d)[c])
			return true;
	return false;
}

/* Pages of a column: its data, and the parity, of which one that is gone is zeroes. */
static unsigned column_pages(struct raid_stripe *s, unsigned c)
{
	unsigned n = s->q >= 0 ? 2 : 1;

	if (!column_written(s, c))
		return 0;
	for (unsigned d = 0; d < s->c->disks; d++)
		n += !is_parity(s, d) && out(s, d, c);
	return n;
}

static unsigned stripe_pages(struct raid_stripe *s)
{
	unsigned n = 0;

	for (unsigned c = 0; c < s->c->pages; c++)
		n += column_pages(s, c) ? column_pages(s, c) + 1 : 0; /* a meta block for each, at most */
	return n;
}

static uint64_t array_sector(const struct raid_stripe *s, unsigned d, unsigned c)
{
	const struct raid_geo *g = &s->c->geo;
	uint64_t at = s->nr * s->c->sectors + c * PAGE_SECTORS, row = at / g->chunk;

	return (row * g->data + (unsigned)raid_row_slot(g, row, d)) * g->chunk + at % g->chunk;
}

static uint8_t zero_page[PAGE_BYTES] __attribute__((aligned(PAGE_BYTES)));

static void log_column(struct raid_journal *j, struct batch *b, uint8_t *meta, struct raid_stripe *s, unsigned c)
{
	void *parity[2] = {zero_page, zero_page};
	unsigned n = s->q >= 0 ? 2 : 1;
	uint8_t *sums;

	for (unsigned d = 0; d < s->c->disks; d++) {
		if (is_parity(s, d) || !out(s, d, c))
			continue;
		put_le32(payload(meta, DATA, PAGE_SECTORS, array_sector(s, d, c)), sum(j, raid_page(s, d, c)));
		add_page(b, raid_page(s, d, c));
	}
	if (out(s, (unsigned)s->p, c))
		parity[0] = raid_page(s, (unsigned)s->p, c);
	if (n == 2 && out(s, (unsigned)s->q, c))
		parity[1] = raid_page(s, (unsigned)s->q, c);
	sums = payload(meta, PARITY, n * PAGE_SECTORS, s->nr * s->c->sectors + c * PAGE_SECTORS);
	for (unsigned i = 0; i < n; i++) {
		put_le32(sums + 4 * i, sum(j, parity[i]));
		add_page(b, parity[i]);
	}
}

static uint8_t *new_meta(struct raid_journal *j, struct batch *b)
{
	uint8_t *meta = aligned_alloc(PAGE_BYTES, PAGE_BYTES);

	meta_init(meta, j->seq++, j->head + b->n * PAGE_SECTORS);
	b->metas[b->nr_metas++] = meta;
	add_page(b, meta);
	return meta;
}

/* The most a column's payloads take. */
static unsigned column_bytes(const struct raid_stripe *s)
{
	return 20 * s->c->disks + 24;
}

static void log_stripe(struct raid_journal *j, struct batch *b, struct raid_stripe *s)
{
	uint8_t *meta = NULL;

	for (unsigned c = 0; c < s->c->pages; c++) {
		if (!column_pages(s, c))
			continue;
		if (!meta || get_le32(meta + 12) + column_bytes(s) > PAGE_BYTES)
			meta = new_meta(j, b);
		log_column(j, b, meta, s, c);
	}
}

static int write_batch(struct raid_journal *j, struct batch *b)
{
	struct dm_region where = {j->dev, j->head, (uint64_t)b->n * PAGE_SECTORS};
	int error = 0;

	for (unsigned i = 0; i < b->nr_metas; i++)
		meta_seal(j, b->metas[i]);
	if (b->n)
		error = dm_io_sync(DM_WRITE, DM_FUA | DM_META, 1, &where, b->iov, (int)b->n, NULL);
	for (unsigned i = 0; i < b->nr_metas; i++)
		free(b->metas[i]);
	j->head += where.sectors;
	return error;
}

/* Home: to the devices, several at once. */
static void go_home(struct dm_work *work)
{
	struct raid_stripe *s = container_of(work, struct raid_stripe, work);

	raid_stripe_journaled(s, s->journal_error);
}

/* Takes stripes that fit into one batch and into the log; NULL if none does. */
static struct raid_stripe *take(struct raid_journal *j, bool *full)
{
	struct raid_stripe *list = NULL, **tail = &list;
	uint64_t room = (j->sectors - j->head) / PAGE_SECTORS;
	unsigned pages = 0;

	*full = false;
	pthread_mutex_lock(&j->lock);
	while (j->queue) {
		struct raid_stripe *s = j->queue;
		unsigned need = stripe_pages(s);

		*full = pages + need > room && !atomic_load(&j->failed);
		if (*full || (list && pages + need > BATCH_PAGES))
			break;
		pages += need;
		j->queue = s->journal_next;
		if (!j->queue)
			j->tail = &j->queue;
		s->journal_next = NULL;
		*tail = s;
		tail = &s->journal_next;
		j->away++;
	}
	pthread_mutex_unlock(&j->lock);
	return list;
}

static void fail_journal(struct raid_journal *j, int error)
{
	if (atomic_exchange(&j->failed, true))
		return;
	dm_log_err("raid: the journal device has failed: %s", g_strerror(-error));
	dm_target_event(j->r->ti, NULL, NULL);
}

/* The log is full: when all in it is home it begins anew.  False: not yet. */
static bool make_room(struct raid_journal *j)
{
	bool now;
	int error;

	pthread_mutex_lock(&j->lock);
	now = !j->away;
	pthread_mutex_unlock(&j->lock);
	if (!now)
		return false;
	error = start_over(j, true);
	if (error)
		fail_journal(j, error);
	return true;
}

static void journal_work(struct dm_work *work)
{
	struct raid_journal *j = container_of(work, struct raid_journal, work);
	struct raid_stripe *list;
	bool full;

	do {
		struct batch *b = g_new0(struct batch, 1);
		int error = 0;

		list = take(j, &full);
		for (struct raid_stripe *s = list; s && !atomic_load(&j->failed); s = s->journal_next)
			log_stripe(j, b, s);
		error = write_batch(j, b);
		g_free(b);
		if (error)
			fail_journal(j, error);
		while (list) {
			struct raid_stripe *s = list;

			list = s->journal_next;
			s->journal_error = atomic_load(&j->failed) ? -EIO : 0;
			s->work.fn = go_home;
			dm_wq_queue(j->home_wq, &s->work);
		}
		if (full && !make_room(j))
			return; /* who comes home last calls again */
		pthread_mutex_lock(&j->lock);
		full = j->queue != NULL;
		pthread_mutex_unlock(&j->lock);
	} while (full);
}

void raid_journal_append(struct raid_journal *j, struct raid_stripe *s)
{
	pthread_mutex_lock(&j->lock);
	s->journal_next = NULL;
	*j->tail = s;
	j->tail = &s->journal_next;
	pthread_mutex_unlock(&j->lock);
	dm_wq_queue(j->wq, &j->work);
}

void raid_journal_home(struct raid_journal *j)
{
	bool more = false;

	pthread_mutex_lock(&j->lock);
	if (!--j->away) {
		pthread_cond_broadcast(&j->idle);
		more = j->queue != NULL;
	}
	pthread_mutex_unlock(&j->lock);
	if (more)
		dm_wq_queue(j->wq, &j->work);
}

void raid_journal_settle(struct raid_journal *j)
{
	int error;

	pthread_mutex_lock(&j->lock);
	while (j->away || j->queue)
		pthread_cond_wait(&j->idle, &j->lock);
	pthread_mutex_unlock(&j->lock);
	dm_wq_flush(j->wq);
	if (!j->r->writable || atomic_load(&j->failed) || !j->head)
		return;
	error = start_over(j, true);
	if (error)
		fail_journal(j, error);
}

char raid_journal_letter(struct raid_journal *j)
{
	return atomic_load(&j->failed) ? 'D' : j->r->params.write_back ? 'a' : 'A';
}

/* --- replay ------------------------------------------------------------------------------------------- */

/* What the log has of one column. */
struct kept {
	uint64_t parity; /* the log's sector, 0: only data */
	uint64_t data[]; /* of each device's page, 0: none */
};

struct replay {
	struct raid_journal *j;
	GHashTable *columns; /* device sector to struct kept */
	uint64_t pos, seq;
	uint8_t *page;
	unsigned stripes;
	bool begun_here; /* the first block is one of start_over()'s */
	bool jumped;     /* and the kernel goes on after what follows it */
};

static int copy_page(struct replay *rp, uint64_t from, unsigned disk, uint64_t sector)
{
	struct raid *r = rp->j->r;
	struct raid_member *m = &r->members[disk];
	int error;

	if (!raid_member_alive(m))
		return 0;
	error = dm_read_sync(rp->j->dev, from, PAGE_SECTORS, rp->page, DM_META);
	if (error)
		return error;
	error = dm_write_sync(m->data, m->data_offset + sector, PAGE_SECTORS, rp->page, 0);
	if (error && raid_member_fail(r, disk, "replay the journal to", error))
		error = 0;
	return error;
}

/* Writes a column's data and parity as they are in the log. */
static int play(struct replay *rp, uint64_t sector, struct kept *k)
{
	struct raid *r = rp->j->r;
	int p, q, error = 0;

	raid_row_parity(&r->geo, sector / r->geo.chunk, &p, &q);
	for (unsigned d = 0; d < r->geo.disks && !error; d++)
		if (k->data[d])
			error = copy_page(rp, k->data[d], d, sector);
	if (!error)
		error = copy_page(rp, k->parity, (unsigned)p, sector);
	if (!error && q >= 0)
		error = copy_page(rp, k->parity + PAGE_SECTORS, (unsigned)q, sector);
	rp->stripes++;
	return error;
}

static struct kept *column_of(struct replay *rp, uint64_t sector)
{
	struct kept *k = g_hash_table_lookup(rp->columns, &sector);

	if (!k) {
		k = g_malloc0(sizeof *k + rp->j->r->geo.disks * sizeof k->data[0]);
		g_hash_table_insert(rp->columns, g_memdup2(&sector, sizeof sector), k);
	}
	return k;
}

static int take_data(struct replay *rp, uint64_t where, uint64_t log)
{
	struct raid *r = rp->j->r;
	uint64_t sector;
	struct kept *k;
	unsigned disk;
	int error = 0;

	if (where % PAGE_SECTORS || where >= raid_geo_array_sectors(&r->geo))
		return -EINVAL;
	disk = raid_row_map(&r->geo, where, &sector);
	k = column_of(rp, sector);
	if (k->parity) { /* a later write: what was before is played first */
		error = play(rp, sector, k);
		memset(k, 0, sizeof *k + r->geo.disks * sizeof k->data[0]);
	}
	k->data[disk] = log;
	return error;
}

static int take_parity(struct replay *rp, uint64_t where, uint64_t log)
{
	if (where % PAGE_SECTORS || where >= rp->j->r->geo.dev_sectors)
		return -EINVAL;
	column_of(rp, where)->parity = log;
	return 0;
}

/* Whether all pages of a meta block are there; their sectors are counted. */
static bool pages_valid(struct replay *rp, const uint8_t *meta, uint64_t *sectors)
{
	uint32_t used = get_le32(meta + 12);

	*sectors = 0;
	for (uint32_t at = HEADER, size; at + 16 <= used; at += size) {
		uint16_t type = get_le16(meta + at);
		uint32_t n = get_le32(meta + at + 4);

		if (type == FLUSHED) {
			size = n > PAGE_BYTES ? PAGE_BYTES : 8 + n;
			continue;
		}
		if (type > PARITY || !n || n % PAGE_SECTORS || n > 2 * PAGE_SECTORS || at + 16 + n / 2 > used)
			return false;
		size = 16 + n / PAGE_SECTORS * 4;
		for (uint32_t i = 0; i < n / PAGE_SECTORS; i++, *sectors += PAGE_SECTORS) {
			uint64_t log = rp->pos + PAGE_SECTORS + *sectors;

			if (log + PAGE_SECTORS > rp->j->sectors ||
			    dm_read_sync(rp->j->dev, log, PAGE_SECTORS, rp->page, DM_META) ||
			    sum(rp->j, rp->page) != get_le32(meta + at + 16 + 4 * i))
				return false;
		}
	}
	return true;
}

static int take_block(struct replay *rp, const uint8_t *meta)
{
	uint32_t used = get_le32(meta + 12);
	uint64_t log = rp->pos + PAGE_SECTORS;
	int error = 0;

	for (uint32_t at = HEADER, size; at + 16 <= used && !error; at += size) {
		uint16_t type = get_le16(meta + at);
		uint32_t n = get_le32(meta + at + 4);
		uint64_t where = get_le64(meta + at + 8);

		size = type == FLUSHED ? MIN(8 + n, PAGE_BYTES) : 16 + n / PAGE_SECTORS * 4;
		if (type == FLUSHED) {
			for (uint32_t i = 8; i + 8 <= size && at + i + 8 <= used; i += 8) {
				uint64_t sector = get_le64(meta + at + i);

				g_hash_table_remove(rp->columns, &sector);
			}
			continue;
		}
		if (type == PARITY)
			error = take_parity(rp, where, log);
		for (uint32_t i = 0; i < n && type == DATA && !error; i += PAGE_SECTORS)
			error = take_data(rp, where + i, log + i);
		log += n;
	}
	return error;
}

/* Goes through the log; with take, what is in it is taken in. */
static int scan(struct replay *rp, bool take)
{
	uint8_t *meta = g_malloc(PAGE_BYTES);
	bool first = true;
	int error = 0;

	rp->pos = 0;
	while (rp->pos + PAGE_SECTORS <= rp->j->sectors && !error) {
		uint64_t sectors, seq;

		error = dm_read_sync(rp->j->dev, rp->pos, PAGE_SECTORS, meta, DM_META);
		if (error || !meta_valid(rp->j, meta, rp->pos))
			break;
		seq = get_le64(meta + 16);
		if (first)
			rp->begun_here = seq >> 32 == OWN >> 32 && get_le32(meta + 12) == HEADER;
		else
			rp->jumped |= seq > rp->seq + 1;
		/* what is left of earlier rounds has lower numbers */
		if ((!first && seq <= rp->seq) || !pages_valid(rp, meta, &sectors))
			break;
		error = take ? take_block(rp, meta) : 0;
		rp->seq = seq;
		rp->pos += PAGE_SECTORS + sectors;
		first = false;
	}
	g_free(meta);
	return error;
}

/* Columns of which the log has no parity: their data is written as any other. */
static int play_all(struct replay *rp)
{
	GHashTableIter iter;
	gpointer key, value;
	int error = 0;

	g_hash_table_iter_init(&iter, rp->columns);
	while (!error && g_hash_table_iter_next(&iter, &key, &value)) {
		uint64_t sector = *(uint64_t *)key;
		struct raid *r = rp->j->r;
		const struct raid_geo *g = &r->geo;
		struct kept *k = value;

		if (k->parity) {
			error = play(rp, sector, k);
			continue;
		}
		for (unsigned d = 0; d < g->disks && !error; d++) {
			uint64_t row = sector / g->chunk;
			int slot = raid_row_slot(g, row, d);

			if (!k->data[d] || slot < 0)
				continue;
			error = dm_read_sync(rp->j->dev, k->data[d], PAGE_SECTORS, rp->page, DM_META);
			if (!error)
				error = raid_stripes_write(
				    r->family, (row * g->data + (unsigned)slot) * g->chunk + sector % g->chunk,
				    PAGE_SECTORS, rp->page);
			rp->stripes++;
		}
	}
	return error;
}

int raid_journal_start(struct raid_journal *j, GError **err)
{
	struct replay rp = {.j = j, .seq = OWN | g_random_int()};
	bool fresh = !j->r->state.events; /* then it means nothing */
	int error;

	rp.columns = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
	rp.page = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
	error = fresh ? 0 : scan(&rp, false);
	/* one of ours that the kernel has replayed long since: what it wrote itself is not found from here */
	if (!error && !fresh && !(rp.begun_here && !j->r->state.ours && !rp.jumped))
		error = scan(&rp, true);
	/* what is written from here on is not journaled: the log is as it was until all of it is home */
	if (!error)
		error = play_all(&rp);
	g_hash_table_destroy(rp.columns);
	free(rp.page);
	if (rp.stripes)
		dm_log_info("raid: recovered %u stripes from the journal", rp.stripes);
	j->seq = OWN | ((rp.seq & UINT32_MAX) + 1);
	if (!error)
		error = start_over(j, !fresh);
	return error ? dm_fail(err, -error, "raid: the journal cannot be replayed: %s", g_strerror(-error)) : 0;
}

/* --- begin and end ---------------------------------------------------------------------------------------- */

struct raid_journal *raid_journal_open(struct raid *r, GError **err)
{
	static const uint8_t uuid[16];
	struct raid_journal *j;

	if (r->geo.disks > MOST_DISKS) {
		dm_fail(err, EINVAL, "raid: an array with a journal has at most %u devices, not %u", MOST_DISKS,
			r->geo.disks);
		return NULL;
	}
	j = g_new0(struct raid_journal, 1);
	j->r = r;
	j->dev = r->params.journal;
	j->sectors = dm_round_down(dm_dev_sectors(j->dev), PAGE_SECTORS);
	j->seed = dm_crc32c(~0u, uuid, sizeof uuid);
	j->tail = &j->queue;
	j->wq = dm_wq_new("raid-journal", 1);
	j->home_wq = dm_wq_new("raid-home", 4);
	j->work.fn = journal_work;
	pthread_mutex_init(&j->lock, NULL);
	pthread_cond_init(&j->idle, NULL);
	return j;
}

void raid_journal_close(struct raid_journal *j)
{
	if (!j)
		return;
	dm_wq_free(j->wq);
	dm_wq_free(j->home_wq);
	pthread_mutex_destroy(&j->lock);
	pthread_cond_destroy(&j->idle);
	g_free(j);
}

/* The largest stripe of which all pages, and as many meta blocks, fit into a part of the log and into a batch. */
unsigned raid_journal_stripe_pages(const struct raid_journal *j, unsigned disks)
{
	uint64_t most = MIN(j->sectors / PAGE_SECTORS / 4, BATCH_PAGES) / (disks + 1);

	return MAX((unsigned)most, 1);
}
