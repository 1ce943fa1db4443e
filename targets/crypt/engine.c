/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sector engine: encrypts and decrypts runs of sectors for any number of threads.
 *
 * A libgcrypt handle serves one thread at a time and is dear to set up, so there is a set of handles (a lane) per CPU,
 * made when it is first needed and kept until the key goes.  A thread takes the slot of the CPU it runs on, or, if a
 * preempted thread still has that one, the next free one; only when all are taken does it wait.  So there are never
 * more copies of key schedules than SLOTS_PER_CPU times the CPUs, and a slot's lock stays with its CPU.
 */
#include "crypt.h"

#include <dmfs/target.h>
#include <dmfs/work.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#define SLOTS_PER_CPU 2

struct crypt_slot {
	pthread_mutex_t lock;
	struct crypt_lane *lane; /* NULL until needed */
} __attribute__((aligned(64)));

/* --- lanes ----------------------------------------------------------------------------------- */

static void close_all(gcry_cipher_hd_t *hds, unsigned n)
{
	for (unsigned i = 0; hds && i < n; i++)
		gcry_cipher_close(hds[i]);
	g_free(hds);
}

static void lane_free(const struct crypt_engine *e, struct crypt_lane *lane)
{
	if (!lane)
		return;
	close_all(lane->data, e->spec.keycount);
	close_all(lane->essiv, e->spec.keycount);
	gcry_cipher_close(lane->elephant);
	dm_secmem_free(lane->lrw);
	dm_secmem_free(lane);
}

/* The block cipher under the hash of a key. */
static int open_essiv(const struct crypt_spec *spec, const uint8_t *key, size_t len, gcry_cipher_hd_t *out)
{
	gcry_md_hd_t digest;
	int r;

	if (gcry_md_open(&digest, spec->essiv.algo, GCRY_MD_FLAG_SECURE))
		return -ENOMEM;
	gcry_md_write(digest, key, len);
	r = dm_cipher_open(spec->cipher, DM_CIPHER_ECB, gcry_md_read(digest, 0), spec->essiv.size, out);
	gcry_md_close(digest);
	return r;
}

/* The MAC's key is hashed with the cipher's. */
static size_t essiv_key_size(const struct crypt_engine *e)
{
	return e->layout.subkey + e->spec.mac_size;
}

static void take_extra_key(const struct crypt_engine *e, const uint8_t *extra, struct crypt_lane *lane)
{
	if (e->spec.iv == CRYPT_IV_LMK && e->layout.extra) {
		lane->seeded = true;
		memcpy(lane->seed, extra, 16);
	} else if (e->spec.iv == CRYPT_IV_TCW) {
		memcpy(lane->seed, extra, e->spec.iv_size);
		memcpy(lane->whitening, extra + e->spec.iv_size, sizeof(lane->whitening));
	}
}

static int lane_fill(const struct crypt_engine *e, const uint8_t *key, struct crypt_lane *lane)
{
	const struct crypt_spec *spec = &e->spec;
	int r = 0;

	lane->data = g_new0(gcry_cipher_hd_t, spec->keycount);
	lane->essiv = spec->essiv.name ? g_new0(gcry_cipher_hd_t, spec->keycount) : NULL;
	if (spec->mode == DM_CIPHER_LRW) {
		lane->lrw = dm_secmem_alloc(spec->keycount * sizeof(*lane->lrw));
		r = lane->lrw ? 0 : -ENOMEM;
	}
	for (unsigned i = 0; i < spec->keycount && !r; i++) {
		const uint8_t *subkey = key + i * e->layout.subkey;

		r = dm_cipher_open(spec->cipher, spec->mode, subkey, e->layout.subkey, &lane->data[i]);
		if (!r && lane->lrw)
			crypt_lrw_init(&lane->lrw[i], subkey + e->layout.subkey - CRYPT_LRW_KEY);
		if (!r && spec->essiv.name)
			r = open_essiv(spec, subkey, essiv_key_size(e), &lane->essiv[i]);
	}
	if (!r && spec->iv == CRYPT_IV_ELEPHANT)
		r = dm_cipher_open(dm_cipher_find("aes", 3), DM_CIPHER_ECB, key + e->layout.extra_at, e->layout.extra,
				   &lane->elephant);
	if (!r)
		take_extra_key(e, key + e->layout.extra_at, lane);
	return r;
}

/* key: layout.size bytes. */
static int lane_new(const struct crypt_engine *e, const uint8_t *key, struct crypt_lane **out)
{
	static const uint8_t none[1];
	struct crypt_lane *lane =
	    dm_secmem_alloc(sizeof(*lane) + (e->spec.iv == CRYPT_IV_ELEPHANT ? e->sector_size : 0));
	int r;

	if (!lane)
		return -ENOMEM;
	r = lane_fill(e, key ? key : none, lane);
	dm_burn_stack();
	if (r)
		lane_free(e, lane);
	else
		*out = lane;
	return r;
}

/* --- slots ----------------------------------------------------------------------------------- */

/* Locks a slot and gives it a lane; NULL: no memory for one, or no key. */
static struct crypt_slot *slot_get(struct crypt_engine *e)
{
	unsigned first = (unsigned)MAX(sched_getcpu(), 0) % e->nr_slots, i;
	struct crypt_slot *s = NULL;

	for (i = 0; i < e->nr_slots; i++) {
		s = &e->slots[(first + i) % e->nr_slots];
		if (!pthread_mutex_trylock(&s->lock))
			break;
	}
	if (i == e->nr_slots) {
		s = &e->slots[first];
		pthread_mutex_lock(&s->lock);
	}
	if (s->lane || (e->has_key && !lane_new(e, e->key, &s->lane)))
		return s;
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static void slot_put(struct crypt_slot *s)
{
	pthread_mutex_unlock(&s->lock);
}

/* --- the engine ------------------------------------------------------------------------------ */

int crypt_engine_new(const struct crypt_spec *spec, size_t key_size, unsigned sector_size, bool iv_large,
		     struct crypt_engine **out, GError **err)
{
	struct crypt_layout layout;
	struct crypt_engine *e;
	int r = crypt_spec_layout(spec, key_size, sector_size, &layout, err);

	if (!r)
		r = dm_gcrypt_init(err);
	if (r)
		return r;
	e = g_new0(struct crypt_engine, 1);
	e->spec = *spec;
	e->spec.ignored = NULL; /* pointed into a string of the caller's */
	e->layout = layout;
	e->sector_size = sector_size;
	e->sector_shift = g_bit_nth_lsf(sector_size, -1) - DM_SECTOR_SHIFT;
	e->iv_large = iv_large;
	e->nr_slots = MAX(sysconf(_SC_NPROCESSORS_ONLN), 1) * SLOTS_PER_CPU;
	e->slots = g_aligned_alloc0(e->nr_slots, sizeof(*e->slots), 64);
	for (unsigned i = 0; i < e->nr_slots; i++)
		pthread_mutex_init(&e->slots[i].lock, NULL);
	*out = e;
	return 0;
}

int crypt_engine_store(struct crypt_engine *e, unsigned meta_size, GError **err)
{
	unsigned iv = e->spec.iv == CRYPT_IV_RANDOM ? e->spec.iv_size : 0, tag;

	if (e->spec.auth && meta_size <= iv)
		return dm_fail(err, EINVAL,
			       "crypt: integrity: %u bytes for each sector have no room for a tag beside an IV of %u",
			       meta_size, iv);
	if (!e->spec.auth && iv && meta_size != iv)
		return dm_fail(err, EINVAL, "crypt: integrity: %u bytes for each sector, the IV has %u", meta_size, iv);
	tag = e->spec.auth ? meta_size - iv : 0;
	if (tag && crypt_check_tag(&e->spec, meta_size, tag, err))
		return -EINVAL;
	e->tag_size = tag;
	e->meta_size = tag + iv;
	return 0;
}

void crypt_engine_wipe_key(struct crypt_engine *e)
{
	for (unsigned i = 0; i < e->nr_slots; i++) {
		lane_free(e, e->slots[i].lane);
		e->slots[i].lane = NULL;
	}
	dm_hash_free(e->mac);
	e->mac = NULL;
	dm_secmem_free(e->key);
	e->key = NULL;
	e->has_key = false;
}

void crypt_engine_free(struct crypt_engine *e)
{
	if (!e)
		return;
	crypt_engine_wipe_key(e);
	for (unsigned i = 0; i < e->nr_slots; i++)
		pthread_mutex_destroy(&e->slots[i].lock);
	g_aligned_free(e->slots);
	g_free(e);
}

/* The best of a few runs over one big sector: others may have the CPU in between. */
static unsigned measure(struct crypt_engine *e)
{
	uint8_t *buf = g_malloc0(CRYPT_MAX_SECTOR),
		*meta = g_malloc0((size_t)CRYPT_MAX_SECTOR / DM_SECTOR_SIZE * CRYPT_MAX_META);
	struct iovec iov = {buf, CRYPT_MAX_SECTOR};
	uint64_t best = UINT64_MAX;

	for (unsigned i = 0; i < 4; i++) {
		uint64_t t = dm_now_ns();

		crypt_engine_encrypt(e, 0, &iov, 1, 0, buf, meta, CRYPT_MAX_SECTOR);
		best = MIN(best, dm_now_ns() - t);
	}
	g_free(meta);
	g_free(buf);
	return (unsigned)MIN(best / (CRYPT_MAX_SECTOR / 1024), UINT_MAX);
}

static int make_mac(const struct crypt_engine *e, const struct dm_key *key, struct dm_hash **out, GError **err)
{
	g_autoptr(GError) why = NULL;

	if (e->spec.auth != CRYPT_AUTH_MAC)
		return 0;
	if (!dm_hash_new(e->spec.mac, out, &why) &&
	    !dm_hash_set_key(*out, key->data + e->layout.extra_at, e->layout.extra, &why))
		return 0;
	dm_hash_free(*out);
	*out = NULL;
	return dm_fail(err, EINVAL, "crypt: authenc: %s", why->message);
}

int crypt_engine_set_key(struct crypt_engine *e, const struct dm_key *key, GError **err)
{
	struct crypt_lane *lane = NULL;
	struct dm_hash *mac = NULL;
	uint8_t *copy = NULL;
	int r;

	if (key->size != e->layout.size)
		return dm_fail(err, EINVAL, "crypt: the key has %zu bytes, it must have %zu", key->size,
			       e->layout.size);
	if (make_mac(e, key, &mac, err))
		return -EINVAL;
	/* the first lane is made now: it tells whether the key is good */
	r = lane_new(e, key->data, &lane);
	if (r)
		dm_hash_free(mac);
	if (r == -ENOMEM)
		return dm_fail(err, ENOMEM, "crypt: no locked memory for the keys");
	if (r)
		return dm_fail(err, -r, "crypt: %s refuses the key%s", e->spec.cipher->name,
			       e->spec.essiv.name ? " or its hash" : "");
	if (key->size) {
		copy = dm_secmem_alloc(key->size);
		if (!copy) {
			lane_free(e, lane);
			dm_hash_free(mac);
			return dm_fail(err, ENOMEM, "crypt: no locked memory for the key");
		}
		memcpy(copy, key->data, key->size);
	}
	crypt_engine_wipe_key(e);
	e->mac = mac;
	e->key = copy;
	e->has_key = true;
	e->slots[0].lane = lane;
	e->ns_per_kib = measure(e);
	return 0;
}

/* --- runs of sectors ------------------------------------------------------------------------- */

/* A position in an iov. */
struct cursor {
	const struct iovec *iov;
	int left;
	size_t at;
};

static void cursor_set(struct cursor *c, const struct iovec *iov, int iovcnt, size_t offset)
{
	*c = (struct cursor){iov, iovcnt, offset};
	while (c->left && c->at >= c->iov->iov_len) {
		c->at -= c->iov->iov_len;
		c->iov++;
		c->left--;
	}
}

/* Bytes in one piece from here, 0 at the end. */
static size_t cursor_piece(const struct cursor *c)
{
	return c->left ? c->iov->iov_len - c->at : 0;
}

typedef int (*sector_fn)(const struct crypt_engine *, struct crypt_lane *, const struct crypt_unit *, const uint8_t *,
			 uint8_t *);

/* Sectors that go through one lane. */
struct job {
	const struct crypt_engine *e;
	struct crypt_lane *lane;
	sector_fn fn;
	uint64_t sector; /* of 512 bytes: the next one */
	uint8_t *meta;	 /* the next one's, or NULL */
};

/* Whole sectors that lie in one piece. */
static int run_piece(struct job *j, const uint8_t *src, uint8_t *dst, size_t len)
{
	const struct crypt_engine *e = j->e;
	unsigned step = e->sector_size >> DM_SECTOR_SHIFT, keys = e->spec.keycount - 1;
	unsigned shift = e->iv_large ? e->sector_shift : 0;

	for (size_t at = 0; at < len; at += e->sector_size) {
		struct crypt_unit u = {j->sector & keys, j->sector >> shift, j->sector - e->iv_offset, j->meta};
		int r = j->fn(e, j->lane, &u, src + at, dst + at);

		if (r)
			return r;
		j->sector += step;
		if (j->meta)
			j->meta += e->meta_size;
	}
	return 0;
}

/* dst NULL: in place.  The job stops at the sector that fails. */
static int run(struct job *j, const struct iovec *iov, int iovcnt, size_t offset, uint8_t *dst, size_t len)
{
	uint8_t split[CRYPT_MAX_SECTOR];
	bool used_split = false;
	struct cursor c;
	int r = 0;

	cursor_set(&c, iov, iovcnt, offset);
	for (size_t done = 0, n; done < len && !r; done += n) {
		size_t piece = MIN(cursor_piece(&c), len - done);

		n = piece - piece % j->e->sector_size;
		if (n) {
			uint8_t *p = (uint8_t *)c.iov->iov_base + c.at;

			r = run_piece(j, p, dst ? dst + done : p, n);
		} else { /* a sector across several entries of the iov */
			n = j->e->sector_size;
			used_split = true;
			dm_iov_read(iov, iovcnt, offset + done, split, n);
			r = run_piece(j, split, dst ? dst + done : split, n);
			if (!dst && !r)
				dm_iov_write(iov, iovcnt, offset + done, split, n);
		}
		cursor_set(&c, c.iov, c.left, c.at + n);
	}
	if (used_split)
		explicit_bzero(split, sizeof(split));
	return r;
}

int crypt_engine_encrypt(struct crypt_engine *e, uint64_t sector, const struct iovec *iov, int iovcnt, size_t offset,
			 uint8_t *dst, uint8_t *meta, size_t len)
{
	struct crypt_slot *slot = slot_get(e);
	struct job j = {e, NULL, e->spec.auth ? crypt_sector_seal : crypt_sector_encrypt, sector, meta};
	int r;

	if (!slot)
		return -ENOMEM;
	j.lane = slot->lane;
	r = run(&j, iov, iovcnt, offset, dst, len);
	slot_put(slot);
	return r;
}

int crypt_engine_decrypt(struct crypt_engine *e, uint64_t sector, const struct iovec *iov, int iovcnt, size_t offset,
			 uint8_t *meta, size_t len, uint64_t *bad)
{
	struct crypt_slot *slot = slot_get(e);
	struct job j = {e, NULL, e->spec.auth ? crypt_sector_open : crypt_sector_decrypt, sector, meta};
	int r;

	if (!slot)
		return -ENOMEM;
	j.lane = slot->lane;
	r = run(&j, iov, iovcnt, offset, NULL, len);
	slot_put(slot);
	if (r == -EILSEQ)
		*bad = j.sector - e->iv_offset;
	return r;
}
