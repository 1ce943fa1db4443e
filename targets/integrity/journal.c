/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The journal in use (journal.h).
 *
 * A write takes free entries, copies its data and tags into them, and makes them known as the newest of their blocks. A
 * commit closes the section begun, waits for copies into what it writes (they need no I/O), and writes it durably. When
 * few entries are free, all that is committed goes home: the newest committed entry of each block, under the block's
 * lock, so that readers find either the entry or data and tag that match.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <dmfs/le.h>
#include <dmfs/rounding.h>

#include "journal_internal.h"

#define WRITE_BYTES ((size_t)1 << 20)  /* of encrypted or empty sections at once */
#define HOME_BYTES ((size_t)128 << 10) /* of a run */
#define HOME_UNDER_WAY ((size_t)4 << 20)

/* --- entries ---------------------------------------------------------------------------------- */

static gpointer key_of(uint64_t block)
{
	return (gpointer)(uintptr_t)block;
}

/* lock held */
static void note_newest(struct integrity_journal *j, uint64_t block, uint64_t entry)
{
	gpointer old;

	if (g_hash_table_lookup_extended(j->newest, key_of(block), NULL, &old)) {
		if ((uint64_t)(uintptr_t)old > entry)
			return;
	} else {
		atomic_fetch_add(&j->live, 1);
	}
	g_hash_table_insert(j->newest, key_of(block), (gpointer)(uintptr_t)entry);
}

/* lock held: the entry has gone home. */
static void forget(struct integrity_journal *j, uint64_t block, uint64_t entry)
{
	gpointer newest;

	if (g_hash_table_lookup_extended(j->newest, key_of(block), NULL, &newest) &&
	    (uint64_t)(uintptr_t)newest == entry) {
		g_hash_table_remove(j->newest, key_of(block));
		atomic_fetch_sub(&j->live, 1);
	}
}

bool integrity_journal_find(struct integrity *ic, uint64_t block, unsigned blocks, uint64_t *entries)
{
	struct integrity_journal *j = ic->journal;
	bool any = false;

	if (!atomic_load(&j->live))
		return false;
	pthread_mutex_lock(&j->lock);
	for (unsigned i = 0; i < blocks; i++) {
		gpointer entry;

		entries[i] = NOT_IN_JOURNAL;
		if (!g_hash_table_lookup_extended(j->newest, key_of(block + i), NULL, &entry))
			continue;
		entries[i] = (uint64_t)(uintptr_t)entry;
		any = true;
	}
	pthread_mutex_unlock(&j->lock);
	return any;
}

void integrity_journal_read(struct integrity *ic, uint64_t entry, const struct iovec *iov, int iovcnt, size_t at,
			    uint8_t *tag)
{
	uint8_t *section = section_mem(ic, section_of(ic, entry));
	unsigned slot = slot_of(ic, entry);

	integrity_entry_get(&ic->l, section, slot, iov, iovcnt, at);
	if (tag)
		memcpy(tag, integrity_entry_tag(&ic->l, integrity_entry(&ic->l, section, slot)), ic->l.tag_size);
}

/* --- writes ----------------------------------------------------------------------------------- */

/* lock held.  How many entries, up to so many, are the caller's: from *first on; he is copying into their sections. */
static unsigned take_entries(struct integrity *ic, unsigned wanted, uint64_t *first)
{
	struct integrity_journal *j = ic->journal;
	unsigned per = ic->l.section_entries, n = (unsigned)MIN(wanted, ic->l.entries - (j->next - j->home));

	*first = j->next;
	for (uint64_t e = j->next; e < j->next + n; e = dm_round_down(e, per) + per) {
		if (e % per == 0)
			integrity_section_clear(&ic->l, section_mem(ic, section_of(ic, e)));
		j->copies[section_of(ic, e)]++;
	}
	j->next += n;
	return n;
}

static void copy_block(struct integrity *ic, const struct integrity_journal_write *w, unsigned nr, uint64_t entry)
{
	uint8_t *section = section_mem(ic, section_of(ic, entry));
	uint8_t *e = integrity_entry(&ic->l, section, slot_of(ic, entry)), *tag = integrity_entry_tag(&ic->l, e);
	size_t at = nr * integrity_block_bytes(ic);

	integrity_entry_put(&ic->l, section, slot_of(ic, entry), w->bio->iov, w->bio->iovcnt, at);
	if (ic->internal_hash.hash)
		integrity_tag(ic, w->block + nr, w->bio->iov, w->bio->iovcnt, at, tag);
	else if (w->tags)
		memcpy(tag, w->tags + (size_t)nr * ic->l.tag_size, ic->l.tag_size);
	else
		memset(tag, 0, ic->l.tag_size);
	put_le64(e, (w->block + nr) << ic->l.log2_spb);
}

static void copies_done(struct integrity *ic, const struct integrity_journal_write *w, uint64_t first, unsigned n)
{
	struct integrity_journal *j = ic->journal;
	unsigned per = ic->l.section_entries;

	pthread_mutex_lock(&j->lock);
	for (unsigned i = 0; i < n; i++)
		note_newest(j, w->block + w->entered + i, first + i);
	for (uint64_t e = first; e < first + n; e = dm_round_down(e, per) + per)
		if (!--j->copies[section_of(ic, e)])
			pthread_cond_broadcast(&j->copied);
	pthread_mutex_unlock(&j->lock);
}

/* lock held */
static bool is_full(const struct integrity *ic)
{
	const struct integrity_journal *j = ic->journal;

	return ic->l.entries - (j->next - j->home) <= j->threshold;
}

/* lock held */
static void wait_for_entries(struct integrity_journal *j, struct integrity_journal_write *w)
{
	w->next = NULL;
	*j->waiting_tail = w;
	j->waiting_tail = &w->next;
}

/*
 * Takes what entries there are, copies, and takes more.  False: there are none, and the write waits in the list, no
 * more the caller's.
 */
static bool enter(struct integrity *ic, struct integrity_journal_write *w, int *error)
{
	struct integrity_journal *j = ic->journal;

	*error = 0;
	while (w->entered < w->blocks) {
		uint64_t first;
		unsigned n;
		bool full;

		pthread_mutex_lock(&j->lock);
		j->used = true;
		n = take_entries(ic, w->blocks - w->entered, &first);
		full = is_full(ic);
		*error = n ? 0 : atomic_load(&ic->failed);
		if (!n && !*error)
			wait_for_entries(j, w);
		pthread_mutex_unlock(&j->lock);
		if (*error)
			return true;
		for (unsigned i = 0; i < n; i++)
			copy_block(ic, w, w->entered + i, first + i);
		if (n)
			copies_done(ic, w, first, n);
		if (full)
			dm_wq_queue(j->wq, &j->bring_home);
		if (!n)
			return false;
		w->entered += n;
	}
	dm_group_commit_soon(ic->flushes, ic->commit_ms * MS_NS);
	return true;
}

void integrity_journal_write(struct integrity *ic, struct integrity_journal_write *w)
{
	int error;

	w->entered = 0;
	if (enter(ic, w, &error))
		w->done(w, error);
}

/* Some entries have become free, or none ever will: those who wait try again. */
static void wake_waiting(struct integrity *ic)
{
	struct integrity_journal *j = ic->journal;
	struct integrity_journal_write *list;

	pthread_mutex_lock(&j->lock);
	list = j->waiting;
	j->waiting = NULL;
	j->waiting_tail = &j->waiting;
	pthread_mutex_unlock(&j->lock);
	while (list) {
		struct integrity_journal_write *w = list;
		int error;

		list = w->next;
		if (enter(ic, w, &error))
			w->done(w, error);
	}
}

static int fail(struct integrity *ic, const char *what, int error)
{
	if (error) {
		integrity_fail(ic, what, error);
		wake_waiting(ic);
	}
	return error;
}

/* --- to the disk ------------------------------------------------------------------------------ */

static uint64_t section_sector(const struct integrity *ic, uint32_t nr)
{
	return ic->l.start + SB_SECTORS + (uint64_t)nr * ic->l.section_sectors;
}

static uint32_t sections_at_once(const struct integrity *ic)
{
	return (uint32_t)MAX(WRITE_BYTES / integrity_section_bytes(&ic->l), 1);
}

int integrity_journal_write_sections(struct integrity *ic, uint8_t *mem, uint32_t first, uint32_t n)
{
	size_t bytes = integrity_section_bytes(&ic->l);
	uint32_t most = ic->journal_crypt.name ? sections_at_once(ic) : UINT32_MAX;
	g_autofree uint8_t *copy = ic->journal_crypt.name ? g_malloc(MIN(n, most) * bytes) : NULL;
	int error = 0;

	for (uint32_t i = 0; i < n && !error; i += most) {
		uint32_t now = MIN(n - i, most);
		uint8_t *from = mem + i * bytes;

		if (copy) {
			memcpy(copy, from, now * bytes);
			from = copy;
			for (uint32_t k = 0; k < now && !error; k++)
				error = integrity_section_encrypt(ic, copy + k * bytes, first + i + k);
		}
		if (!error)
			error = dm_write_sync(ic->meta, section_sector(ic, first + i),
					      (uint64_t)now * ic->l.section_sectors, from, DM_FUA | DM_META);
		if (now < most)
			break;
	}
	return error;
}

int integrity_journal_write_empty(struct integrity *ic, uint32_t first, uint32_t n, unsigned id)
{
	size_t bytes = integrity_section_bytes(&ic->l);
	uint32_t most = sections_at_once(ic);
	g_autofree uint8_t *mem = n ? g_malloc0(MIN(n, most) * bytes) : NULL;
	int error = 0;

	while (n && !error) {
		uint32_t now = MIN(MIN(n, most), ic->l.sections - first);

		for (uint32_t k = 0; k < now; k++) {
			integrity_section_clear(&ic->l, mem + k * bytes);
			integrity_section_seal(ic, mem + k * bytes, first + k, id);
		}
		error = integrity_journal_write_sections(ic, mem, first, now);
		n -= now;
		first = (first + now) % ic->l.sections;
	}
	return error;
}

int integrity_journal_erase(struct integrity *ic)
{
	return integrity_journal_write_empty(ic, 0, ic->l.sections, 0);
}

/* --- commit ----------------------------------------------------------------------------------- */

/* Closes the section begun; entries [*from, *to) are to be committed, nobody copies into them any more. */
static void close_sections(struct integrity *ic, uint64_t *from, uint64_t *to)
{
	struct integrity_journal *j = ic->journal;
	unsigned per = ic->l.section_entries;

	pthread_mutex_lock(&j->lock);
	j->next = dm_round_up(j->next, per);
	*from = j->committed;
	*to = j->next;
	for (uint64_t e = *from; e < *to; e += per)
		while (j->copies[section_of(ic, e)])
			pthread_cond_wait(&j->copied, &j->lock);
	pthread_mutex_unlock(&j->lock);
}

static int write_range(struct integrity *ic, uint64_t from, uint64_t to)
{
	unsigned per = ic->l.section_entries;
	int error = 0;

	for (uint64_t e = from; e < to; e += per)
		integrity_section_seal(ic, section_mem(ic, section_of(ic, e)), section_of(ic, e), commit_id_of(ic, e));
	while (from < to && !error) {
		uint32_t first = section_of(ic, from);
		uint32_t n = (uint32_t)MIN((to - from) / per, ic->l.sections - first);

		error = integrity_journal_write_sections(ic, section_mem(ic, first), first, n);
		from += (uint64_t)n * per;
	}
	return error;
}

int integrity_journal_commit(struct integrity *ic)
{
	struct integrity_journal *j = ic->journal;
	int error = atomic_load(&ic->failed);
	uint64_t from, to;
	bool full;

	if (error)
		return error;
	pthread_mutex_lock(&j->commit_lock);
	close_sections(ic, &from, &to);
	if (from < to)
		error = write_range(ic, from, to);
	pthread_mutex_lock(&j->lock);
	if (!error)
		j->committed = to;
	full = is_full(ic);
	pthread_mutex_unlock(&j->lock);
	pthread_mutex_unlock(&j->commit_lock);
	if (full && !error)
		dm_wq_queue(j->wq, &j->bring_home);
	return fail(ic, "writing journal", error);
}

/* --- home ------------------------------------------------------------------------------------- */

struct home {
	struct integrity *ic;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	size_t under_way; /* bytes */
	int error;
};

/* A row of blocks that follow one another. */
struct run {
	struct dm_block_sync_claim claim;
	struct dm_bio bio;
	struct iovec iov;
	struct home *home;
	unsigned n;
	uint8_t *data, *tags;
	const struct homeward *entries;
};

static void run_over(struct run *r, int error)
{
	struct home *h = r->home;
	struct integrity_journal *j = h->ic->journal;

	if (!error) {
		pthread_mutex_lock(&j->lock);
		for (unsigned i = 0; i < r->n; i++)
			forget(j, r->entries[i].block, r->entries[i].entry);
		pthread_mutex_unlock(&j->lock);
	}
	integrity_unlock_sync(h->ic, &r->claim);
	pthread_mutex_lock(&h->lock);
	if (error && !h->error)
		h->error = error;
	h->under_way -= r->iov.iov_len;
	pthread_cond_signal(&h->cond);
	pthread_mutex_unlock(&h->lock);
	free(r->data);
	g_free(r->tags);
	g_free(r);
}

static void run_written(struct dm_bio *bio)
{
	run_over(bio->private, bio->error);
}

static void wait_under_way(struct home *h, size_t most)
{
	pthread_mutex_lock(&h->lock);
	if (h->under_way > most) {
		dm_block_begin();
		while (h->under_way > most)
			pthread_cond_wait(&h->cond, &h->lock);
		dm_block_end();
	}
	pthread_mutex_unlock(&h->lock);
}

static struct run *gather(struct home *h, const struct homeward *entries, unsigned n)
{
	struct integrity *ic = h->ic;
	size_t block = integrity_block_bytes(ic);
	struct run *r = g_new0(struct run, 1);

	r->home = h;
	r->n = n;
	r->entries = entries;
	r->data = aligned_alloc(4096, dm_round_up(n * block, 4096));
	r->tags = g_malloc((size_t)n * ic->l.tag_size);
	r->iov = (struct iovec){r->data, n * block};
	for (unsigned i = 0; i < n; i++)
		integrity_journal_read(ic, entries[i].entry, &r->iov, 1, i * block,
				       r->tags + (size_t)i * ic->l.tag_size);
	return r;
}

static void send_home(struct home *h, const struct homeward *entries, unsigned n)
{
	struct integrity *ic = h->ic;
	struct run *r = gather(h, entries, n);
	int error;

	wait_under_way(h, HOME_UNDER_WAY);
	integrity_lock_sync(ic, &r->claim, entries[0].block, entries[0].block + n - 1);
	pthread_mutex_lock(&h->lock);
	h->under_way += r->iov.iov_len;
	pthread_mutex_unlock(&h->lock);
	error = integrity_tags_io_sync(ic->tags, entries[0].block, n, true, r->tags);
	if (error) {
		run_over(r, error);
		return;
	}
	r->bio = (struct dm_bio){
	    .op = DM_WRITE,
	    .dev = ic->dev,
	    .sector = integrity_data_sector(&ic->l, entries[0].block << ic->l.log2_spb),
	    .sectors = (uint64_t)n << ic->l.log2_spb,
	    .iov = &r->iov,
	    .iovcnt = 1,
	    .end = run_written,
	    .private = r,
	};
	dm_submit(&r->bio);
}

static int by_block(gconstpointer a, gconstpointer b)
{
	const struct homeward *x = a, *y = b;

	if (x->block != y->block)
		return x->block < y->block ? -1 : 1;
	return x->entry < y->entry ? -1 : x->entry > y->entry;
}

/* Of each block the last entry. */
static void keep_last(GArray *entries)
{
	struct homeward *e = (struct homeward *)(void *)entries->data;
	guint n = 0;

	for (guint i = 0; i < entries->len; i++)
		if (i + 1 == entries->len || e[i + 1].block != e[i].block)
			e[n++] = e[i];
	g_array_set_size(entries, n);
}

int integrity_journal_homeward(struct integrity *ic, GArray *entries)
{
	struct home h = {.ic = ic, .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	unsigned most = (unsigned)(HOME_BYTES / integrity_block_bytes(ic));
	const struct homeward *e;

	g_array_sort(entries, by_block);
	keep_last(entries);
	e = (const struct homeward *)(const void *)entries->data;
	for (guint i = 0, n; i < entries->len; i += n) {
		uint64_t left = integrity_run_left(&ic->l, e[i].block);

		for (n = 1; n < most && n < left && i + n < entries->len && e[i + n].block == e[i].block + n; n++)
			;
		send_home(&h, e + i, n);
	}
	wait_under_way(&h, 0);
	pthread_mutex_lock(&h.lock); /* the last one has let go of it */
	pthread_mutex_unlock(&h.lock);
	return h.error ? h.error : integrity_make_durable(ic);
}

int integrity_journal_write_home(struct integrity *ic)
{
	struct integrity_journal *j = ic->journal;
	g_autoptr(GArray) entries = g_array_new(FALSE, FALSE, sizeof(struct homeward));
	int error = atomic_load(&ic->failed);
	uint64_t from, to;

	if (error)
		return error;
	dm_block_begin();
	pthread_mutex_lock(&j->home_lock);
	dm_block_end();
	pthread_mutex_lock(&j->lock);
	from = j->home;
	to = j->committed;
	pthread_mutex_unlock(&j->lock);
	for (uint64_t e = from; e < to; e++) {
		uint64_t sector = get_le64(integrity_entry(&ic->l, section_mem(ic, section_of(ic, e)), slot_of(ic, e)));

		if (sector >> 32 != UNUSED_SECTOR >> 32)
			g_array_append_val(entries, ((struct homeward){sector >> ic->l.log2_spb, e}));
	}
	if (from < to)
		error = integrity_journal_homeward(ic, entries);
	if (!error) {
		pthread_mutex_lock(&j->lock);
		j->home = to;
		pthread_mutex_unlock(&j->lock);
	}
	pthread_mutex_unlock(&j->home_lock);
	if (error)
		return fail(ic, "copying from journal", error);
	wake_waiting(ic);
	return 0;
}

/* Few entries are free. */
static void bring_home(struct dm_work *work)
{
	struct integrity *ic = container_of(work, struct integrity_journal, bring_home)->ic;

	if (!integrity_journal_commit(ic))
		integrity_journal_write_home(ic);
}

/* --- making ----------------------------------------------------------------------------------- */

int integrity_journal_new(struct integrity *ic, GError **err)
{
	uint64_t bytes = (ic->l.initial - SB_SECTORS) << DM_SECTOR_SHIFT;
	uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	struct integrity_journal *j;

	if (bytes >= memory)
		return dm_fail(err, ENOMEM, "integrity: Journal doesn't fit into memory: %" PRIu64 " bytes of %" PRIu64,
			       bytes, memory);
	j = g_new0(struct integrity_journal, 1);
	j->ic = ic;
	j->bytes = bytes;
	j->threshold = (ic->l.entries * (100 - ic->watermark) + 50) / 100;
	j->newest = g_hash_table_new(g_direct_hash, g_direct_equal);
	j->waiting_tail = &j->waiting;
	pthread_mutex_init(&j->lock, NULL);
	pthread_cond_init(&j->copied, NULL);
	pthread_mutex_init(&j->commit_lock, NULL);
	pthread_mutex_init(&j->home_lock, NULL);
	j->bring_home.fn = bring_home;
	j->wq = dm_wq_new("integrity-home", 1);
	ic->journal = j;
	j->copies = calloc(ic->l.sections, sizeof *j->copies);
	j->mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (j->mem == MAP_FAILED)
		j->mem = NULL;
	if (!j->mem || !j->copies)
		return dm_fail(err, ENOMEM, "integrity: Could not allocate memory for journal: %" PRIu64 " bytes",
			       bytes);
	return 0;
}

void integrity_journal_free(struct integrity *ic)
{
	struct integrity_journal *j = ic->journal;

	if (!j)
		return;
	dm_wq_free(j->wq);
	g_hash_table_destroy(j->newest);
	if (j->mem)
		munmap(j->mem, j->bytes);
	free(j->copies);
	pthread_mutex_destroy(&j->lock);
	pthread_cond_destroy(&j->copied);
	pthread_mutex_destroy(&j->commit_lock);
	pthread_mutex_destroy(&j->home_lock);
	g_free(j);
	ic->journal = NULL;
}
