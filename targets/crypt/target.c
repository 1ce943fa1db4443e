/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * crypt: transparent encryption (dm-crypt.rst).
 *
 *   <cipher> <key> <iv_offset> <dev path> <offset> [<#opt_params> <opt_params>*]
 *
 * A read goes on to the device beneath and is decrypted where it lies when it comes back, by the thread that brings it.
 * A write is encrypted into a bounce buffer by the thread that submits it, and goes out as a bio of ours.
 *
 * A large bio goes this way in pieces, one after the other, so that a piece is still in the CPU's cache when it is
 * decrypted or written.  If that is a lot of work, other cores take pieces (dmfs/spread.h): not with same_cpu_crypt,
 * and not for reads with no_read_workqueue, for writes with no_write_workqueue.  A piece is written by the thread that
 * encrypted it, which is what submit_from_crypt_cpus asks for.
 *
 * Above a device that stores tags (integrity without a hash of its own) a bio beneath carries a payload with what is
 * stored beside each sector: the tag of an authenticated mode, a random IV.  A read's lives as long as the read, a
 * write's is the bounce's.
 *
 * The key changes only by a message while the device is suspended, when no bio is on its way, and no resume comes
 * before the message is over; so the data path looks at the engine without a lock.  So does wiping begin (wipe.h).
 */
#include <inttypes.h>
#include <stdatomic.h>

#include <dmfs/rounding.h>
#include <dmfs/spread.h>
#include <dmfs/target.h>

#include "bounce.h"
#include "crypt.h"
#include "wipe.h"

#define PIECE_MAX ((size_t)128 << 10) /* bytes: with what it is written from or to, well inside a core's cache */
#define PIECE_NS 12000                /* of work */

enum options {
	OPT_DISCARDS = 1u << 0,
	OPT_SAME_CPU = 1u << 1,
	OPT_SUBMIT_FROM_CRYPT = 1u << 2,
	OPT_NO_READ_WQ = 1u << 3,
	OPT_NO_WRITE_WQ = 1u << 4,
	OPT_IV_LARGE = 1u << 5,
};

static const struct {
	const char *name;
	unsigned bit;
} option_names[] = {
	{"allow_discards", OPT_DISCARDS},
	{"same_cpu_crypt", OPT_SAME_CPU},
	{"submit_from_crypt_cpus", OPT_SUBMIT_FROM_CRYPT},
	{"no_read_workqueue", OPT_NO_READ_WQ},
	{"no_write_workqueue", OPT_NO_WRITE_WQ},
	{"iv_large_sectors", OPT_IV_LARGE}, /* printed last, behind integrity and sector_size */
};

struct crypt {
	struct dm_dev *dev;
	uint64_t start, iv_offset;
	bool zoned; /* the device has zones */
	unsigned options, sector_size;
	unsigned integrity; /* bytes for each sector, as they were given; 0: none */
	bool aead;
	char *profile; /* as it was given: aead, none */
	char *cipher;      /* as it was given */
	char *description; /* of the key in a keyring, or NULL */
	bool handed;       /* which the daemon has not read there: it came in the line */
	struct crypt_engine *engine;
	struct bounce_pool *bounces;
	struct crypt_wipe *wipe; /* NULL: nobody has asked for it */
	atomic_bool suspended;
};

struct crypt_io {
	uint64_t sector; /* what the IV of the bio's first sector is made of */
	bool decrypt;    /* when it comes back: not what went in pieces */
	uint8_t *meta;   /* what comes with it; or NULL */
	struct crypt_wipe_guest *guest; /* of a write while others are wiped; or NULL */
};

/* --- making ---------------------------------------------------------------------------------- */

static int read_sector_size(struct dm_target *ti, struct crypt *c, const char *value, GError **err)
{
	unsigned size;

	if (!dm_parse_uint(value, &size) || size < 512 || size > CRYPT_MAX_SECTOR || !dm_is_pow2(size))
		return dm_fail(err, EINVAL, "crypt: sector_size '%s' is not a power of two from 512 to %u", value,
			       CRYPT_MAX_SECTOR);
	if (c->sector_size && c->sector_size != size)
		return dm_fail(err, EINVAL, "crypt: sector_size is given as %u and as %u", c->sector_size, size);
	if (ti->len % (size >> DM_SECTOR_SHIFT))
		return dm_fail(err, EINVAL, "crypt: length %" PRIu64 " is not a multiple of sector_size %u", ti->len, size);
	c->sector_size = size;
	return 0;
}

/* integrity:BYTES:PROFILE */
static int read_integrity(struct crypt *c, const char *word, GError **err)
{
	g_auto(GStrv) parts = g_strsplit(word, ":", 3);

	if (g_strv_length(parts) != 3 || !dm_parse_uint(parts[1], &c->integrity) || !c->integrity ||
	    c->integrity > CRYPT_MAX_META)
		return dm_fail(err, EINVAL, "crypt: '%s' is not of the form integrity:BYTES:aead or integrity:BYTES:none with 1 to "
			       "%u bytes for each sector", word, CRYPT_MAX_META);
	c->aead = !g_ascii_strcasecmp(parts[2], "aead");
	if (!c->aead && g_ascii_strcasecmp(parts[2], "none"))
		return dm_fail(err, EINVAL, "crypt: integrity: '%s' is not one of aead, none", parts[2]);
	g_free(c->profile);
	c->profile = g_steal_pointer(&parts[2]);
	return 0;
}

static int read_option(struct dm_target *ti, struct crypt *c, const char *word, GError **err)
{
	for (size_t i = 0; i < G_N_ELEMENTS(option_names); i++)
		if (!g_ascii_strcasecmp(word, option_names[i].name)) {
			c->options |= option_names[i].bit;
			return 0;
		}
	if (g_str_has_prefix(word, "sector_size:"))
		return read_sector_size(ti, c, strchr(word, ':') + 1, err);
	if (g_str_has_prefix(word, "integrity:"))
		return read_integrity(c, word, err);
	return dm_fail(err, EINVAL,
		       "crypt: option '%s' is not one of allow_discards, same_cpu_crypt, submit_from_crypt_cpus, "
		       "no_read_workqueue, no_write_workqueue, integrity:BYTES:aead, integrity:BYTES:none, sector_size:BYTES, "
		       "iv_large_sectors",
		       word);
}

static int read_options(struct dm_target *ti, struct crypt *c, struct dm_args *as, GError **err)
{
	unsigned n;
	int r = dm_read_arg_group(as, 0, 8, true, "crypt", "optional parameters", &n, err);

	while (!r && n--)
		r = read_option(ti, c, dm_shift_arg(as), err);
	if (!r && as->argc)
		r = dm_fail(err, EINVAL, "crypt: '%s' and what follows is more than the number of optional parameters",
			    as->argv[0]);
	if (!c->sector_size)
		c->sector_size = DM_SECTOR_SIZE;
	return r;
}

/* Whether the device stores what is to be stored beside the sectors. */
static int check_tags(struct crypt *c, const struct dm_limits *limits, GError **err)
{
	g_autoptr(GString) name = NULL;

	if (!c->engine->meta_size ||
	    (limits->tag_bytes == c->integrity && limits->tag_block == c->sector_size &&
	     c->start % (c->sector_size >> DM_SECTOR_SHIFT) == 0))
		return 0;
	name = g_string_new(NULL);
	dm_dev_print(c->dev, name);
	if (!limits->tag_bytes)
		return dm_fail(err, EINVAL, "crypt: %s stores no tags; integrity:%u:%s takes a device that does, as target integrity "
			       "without internal_hash", name->str, c->integrity, c->profile);
	if (limits->tag_bytes != c->integrity)
		return dm_fail(err, EINVAL, "crypt: integrity:%u:%s does not fit %s, which stores tags of %u bytes", c->integrity,
			       c->profile, name->str, limits->tag_bytes);
	if (limits->tag_block != c->sector_size)
		return dm_fail(err, EINVAL, "crypt: sector_size %u does not fit %s, which stores a tag for each %u bytes",
			       c->sector_size, name->str, limits->tag_block);
	return dm_fail(err, EINVAL, "crypt: device sector %" PRIu64 " is not a multiple of sector_size %u", c->start,
		       c->sector_size);
}

/* The place of the data; the engine checks that the device holds it. */
static int read_place(struct dm_target *ti, struct crypt *c, char **argv, GError **err)
{
	struct dm_limits limits;
	int r = dm_read_u64(argv[2], 0, UINT64_MAX, "crypt", "iv_offset", &c->iv_offset, err);

	if (!r && c->iv_offset % (c->sector_size >> DM_SECTOR_SHIFT))
		r = dm_fail(err, EINVAL, "crypt: iv_offset %s is not a multiple of sector_size %u", argv[2],
			    c->sector_size);
	if (!r)
		r = dm_read_u64(argv[4], 0, UINT64_MAX, "crypt", "device sector", &c->start, err);
	if (!r)
		r = dm_get_device(ti, argv[3], dm_target_mode(ti), &c->dev, err);
	if (r)
		return r;
	dm_dev_limits(c->dev, &limits);
	c->zoned = limits.zone_model != DM_ZONES_NONE;
	c->engine->iv_offset = c->iv_offset;
	return check_tags(c, &limits, err);
}

static int make_engine(struct crypt *c, const char *key_arg, GError **err)
{
	struct dm_key key;
	struct crypt_spec spec;
	int r = crypt_spec_parse(c->cipher, c->aead, &spec, err);

	if (r)
		return r;
	if (spec.ignored)
		dm_log_warn("crypt: in cipher '%s' '%s' means nothing", c->cipher, spec.ignored);
	if (spec.iv == CRYPT_IV_RANDOM && !c->integrity)
		return dm_fail(err, EINVAL, "crypt: IV mode random needs integrity:BYTES:aead or integrity:%u:none and a device "
			       "that stores the IVs", spec.iv_size);
	r = dm_key_read("crypt", key_arg, &key, err);
	if (!r)
		r = crypt_engine_new(&spec, key.size, c->sector_size, c->options & OPT_IV_LARGE, &c->engine, err);
	if (!r && c->integrity)
		r = crypt_engine_store(c->engine, c->integrity, err);
	if (!r)
		r = crypt_engine_set_key(c->engine, &key, err);
	c->description = g_steal_pointer(&key.description);
	c->handed = key.handed;
	dm_key_clear(&key);
	return r;
}

static void crypt_free(struct crypt *c)
{
	crypt_wipe_free(c->wipe);
	crypt_engine_free(c->engine);
	bounce_pool_free(c->bounces);
	g_free(c->cipher);
	g_free(c->profile);
	g_free(c->description);
	g_free(c);
}

static void start_write(void *context, struct bounce *b, struct dm_bio *orig);

static int crypt_make(struct dm_target *ti, struct crypt *c, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc - 5, argv + 5};
	int r = read_options(ti, c, &as, err);

	c->cipher = g_strdup(argv[0]);
	if (!r)
		r = make_engine(c, argv[1], err);
	return r ? r : read_place(ti, c, argv, err);
}

static int crypt_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct crypt *c;
	int r;

	if (argc < 5) {
		if (argc > 1)
			memset(argv[1], '0', strlen(argv[1]));
		return dm_fail(err, EINVAL,
			       "crypt: %d arguments, <cipher> <key> <iv_offset> <dev path> <offset> are needed", argc);
	}
	c = g_new0(struct crypt, 1);
	r = crypt_make(ti, c, argc, argv, err);
	memset(argv[1], '0', strlen(argv[1])); /* the text of the key was not needed longer than this */
	dm_burn_stack();
	if (r) {
		crypt_free(c);
		return r;
	}
	c->bounces = bounce_pool_new(start_write, ti, c->engine->meta_size, c->sector_size);
	ti->private = c;
	ti->secret = c->engine->layout.size && (!c->description || c->handed);
	ti->num_discard_bios = c->options & OPT_DISCARDS ? 1 : 0;
	ti->provisions = true;
	ti->max_io_sectors = BOUNCE_MAX >> DM_SECTOR_SHIFT;
	return 0;
}

static void crypt_dtr(struct dm_target *ti)
{
	struct crypt *c = ti->private;

	dm_put_device(ti, c->dev);
	crypt_free(c);
}

/* --- tags ------------------------------------------------------------------------------------ */

/* Bytes stored beside so many sectors. */
static size_t meta_bytes(const struct crypt *c, uint64_t sectors)
{
	return sectors / (c->sector_size >> DM_SECTOR_SHIFT) * c->engine->meta_size;
}

static struct dm_tags payload(const struct crypt *c, uint8_t *meta)
{
	return (struct dm_tags){meta, c->engine->meta_size, c->sector_size >> DM_SECTOR_SHIFT};
}

/* A sector does not fit its tag. */
static void tell_tampered(struct dm_target *ti, uint64_t sector)
{
	static struct dm_log_limit limit;
	g_autofree char *words = NULL;
	g_autoptr(GString) name = NULL;

	if (!dm_log_allowed(&limit))
		return;
	name = g_string_new(NULL);
	dm_mapped_name(dm_target_mapped(ti), name);
	words = g_strdup_printf("DM_TARGET=crypt DM_ACTION=INTEGRITY_AEAD_ERROR DM_SECTOR=%" PRIu64, sector);
	dm_log_err("crypt: %s: INTEGRITY AEAD ERROR, sector %" PRIu64, name->str, sector);
	dm_target_uevent(ti, words);
}

/* What a read has brought, where it lies; sector is what its first IV is made of. */
static int decrypt(struct dm_target *ti, uint64_t sector, struct dm_bio *bio, uint8_t *meta)
{
	struct crypt *c = ti->private;
	uint64_t bad;
	int r = crypt_engine_decrypt(c->engine, sector, bio->iov, bio->iovcnt, 0, meta, bio->sectors << DM_SECTOR_SHIFT, &bad);

	if (r != -EILSEQ)
		return r ? -EIO : 0;
	tell_tampered(ti, bad);
	return -EILSEQ;
}

/* --- writes ---------------------------------------------------------------------------------- */

static void write_done(struct dm_bio *bio)
{
	struct bounce *b = bio->private;
	struct dm_bio *orig = b->orig;
	int error = bio->error;

	bounce_put(b);
	dm_bio_end(orig, error);
}

static void piece_done(struct dm_bio *bio);

/* orig->sector is the target's still. */
static void start_write(void *context, struct bounce *b, struct dm_bio *orig)
{
	struct dm_target *ti = context;
	struct crypt *c = ti->private;
	uint64_t offset = dm_target_offset(ti, orig->sector);
	size_t len = orig->sectors << DM_SECTOR_SHIFT;

	b->orig = orig;
	b->iov = (struct iovec){b->buf, len};
	b->bio = (struct dm_bio){
		.op = DM_WRITE,
		.flags = orig->flags,
		.dev = c->dev,
		.sector = c->start + offset,
		.sectors = orig->sectors,
		.iov = &b->iov,
		.iovcnt = 1,
		.tags = payload(c, b->meta),
		.end = write_done,
		.private = b,
	};
	if (crypt_engine_encrypt(c->engine, offset + c->iv_offset, orig->iov, orig->iovcnt, 0, b->buf, b->meta, len))
		dm_bio_end(&b->bio, -EIO);
	else if (orig->end == piece_done)
		dm_submit_now(&b->bio);
	else
		dm_submit(&b->bio);
}

/* --- large bios ------------------------------------------------------------------------------ */

struct piece {
	struct dm_bio bio; /* first.  A write's is the target's, as if it were a bio of its own; a read's goes beneath */
	struct large *large;
	struct dm_part_data data;
};

struct large {
	struct dm_parts parts; /* first */
	struct dm_target *ti;
	size_t piece;  /* bytes */
	uint8_t *meta; /* what comes with all of a read, behind the pieces; or NULL */
	struct piece pieces[];
};

static void piece_done(struct dm_bio *bio)
{
	struct piece *p = (struct piece *)bio;

	dm_part_data_clear(&p->data);
	dm_parts_end(&p->large->parts, bio->error);
}

static void piece_read(struct dm_bio *bio)
{
	struct piece *p = (struct piece *)bio;
	struct crypt *c = p->large->ti->private;
	uint64_t sector = dm_target_offset(p->large->ti, p->large->parts.whole->sector) + c->iv_offset;
	size_t at = (size_t)(p - p->large->pieces) * p->large->piece;

	if (!bio->error)
		bio->error = decrypt(p->large->ti, sector + (at >> DM_SECTOR_SHIFT), bio, bio->tags.data);
	piece_done(bio);
}

static void start_piece(void *context, unsigned nr)
{
	struct large *l = context;
	struct crypt *c = l->ti->private;
	struct dm_bio *orig = l->parts.whole;
	struct piece *p = &l->pieces[nr];
	size_t at = nr * l->piece, len = MIN(l->piece, (orig->sectors << DM_SECTOR_SHIFT) - at);

	p->large = l;
	p->bio = (struct dm_bio){
		.op = orig->op,
		.flags = orig->flags,
		.sector = orig->sector + (at >> DM_SECTOR_SHIFT),
		.sectors = len >> DM_SECTOR_SHIFT,
		.end = piece_done,
	};
	dm_part_data_init(&p->data, &p->bio, orig, at, len);
	if (orig->op == DM_WRITE) {
		bounce_submit(c->bounces, &p->bio);
	} else {
		p->bio.dev = c->dev;
		p->bio.sector = c->start + dm_target_offset(l->ti, p->bio.sector);
		p->bio.end = piece_read;
		p->bio.tags = dm_tags_from(payload(c, l->meta), at >> DM_SECTOR_SHIFT);
		dm_submit_now(&p->bio);
	}
}

/*
 * How much a core does before another can take the next piece: at most what stays in its cache; and that where each
 * piece costs the device beneath a way of its own to the tags.
 */
static size_t piece_bytes(const struct crypt *c)
{
	size_t bytes = (size_t)PIECE_NS * 1024 / MAX(c->engine->ns_per_kib, 1) / CRYPT_MAX_SECTOR * CRYPT_MAX_SECTOR;

	return CLAMP(bytes, c->engine->meta_size ? PIECE_MAX : CRYPT_MAX_SECTOR, PIECE_MAX);
}

/*
 * Starts a bio in pieces if that is a gain.  A FUA write stays one: each piece would be made durable by itself.  So
 * does a write to a zone, which is written in order.
 */
static bool start_large(struct dm_target *ti, struct dm_bio *bio)
{
	struct crypt *c = ti->private;
	size_t len = bio->sectors << DM_SECTOR_SHIFT, piece = piece_bytes(c);
	unsigned alone = OPT_SAME_CPU | (bio->op == DM_READ ? OPT_NO_READ_WQ : OPT_NO_WRITE_WQ), pieces;
	size_t meta = bio->op == DM_READ ? meta_bytes(c, bio->sectors) : 0;
	struct large *l;
	bool help;

	if (len <= piece || (bio->flags & DM_FUA) || (c->zoned && bio->op == DM_WRITE))
		return false;
	help = !(c->options & alone) && dm_spread_pays(len / 1024 * c->engine->ns_per_kib);
	if (!help && len <= 2 * PIECE_MAX)
		return false;
	if (!help)
		piece = PIECE_MAX;
	pieces = (unsigned)dm_div_up(len, piece);
	l = g_malloc(sizeof(*l) + pieces * sizeof(l->pieces[0]) + meta);
	dm_parts_init(&l->parts, bio, pieces);
	l->meta = meta ? (uint8_t *)&l->pieces[pieces] : NULL;
	l->ti = ti;
	l->piece = piece;
	dm_spread_start(&(struct dm_spread_run){start_piece, l, pieces}, help);
	return true;
}

/* --- bios ------------------------------------------------------------------------------------ */

static enum dm_mapio go_on(struct dm_target *ti, struct dm_bio *bio)
{
	struct crypt *c = ti->private;
	struct crypt_io *io = bio->private;

	if (dm_op_has_data(bio->op) && start_large(ti, bio))
		return DM_MAPIO_SUBMITTED;
	if (bio->op == DM_WRITE) {
		bounce_submit(c->bounces, bio);
		return DM_MAPIO_SUBMITTED;
	}
	io->decrypt = bio->op == DM_READ;
	if (io->decrypt && c->engine->meta_size) {
		io->meta = g_malloc(meta_bytes(c, bio->sectors));
		bio->tags = payload(c, io->meta);
	}
	bio->sector = c->start + dm_target_offset(ti, bio->sector);
	bio->dev = c->dev;
	return DM_MAPIO_REMAPPED;
}

/* Where it was waited for that something was wiped. */
static void go_on_later(struct dm_target *ti, struct dm_bio *bio)
{
	if (go_on(ti, bio) == DM_MAPIO_REMAPPED)
		dm_submit(bio);
}

static enum dm_mapio crypt_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct crypt *c = ti->private;
	uint64_t offset = dm_target_offset(ti, bio->sector);
	struct crypt_io *io = bio->private;

	if (dm_op_has_data(bio->op) && ((offset | bio->sectors) & ((c->sector_size >> DM_SECTOR_SHIFT) - 1)))
		return DM_MAPIO_KILL;
	*io = (struct crypt_io){.sector = offset + c->iv_offset};
	if (c->wipe && dm_op_is_write(bio->op) && !crypt_wipe_enter(c->wipe, bio, go_on_later, &io->guest))
		return DM_MAPIO_SUBMITTED;
	return go_on(ti, bio);
}

static enum dm_endio crypt_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct crypt_io *io = bio->private;

	if (io->decrypt && !bio->error)
		bio->error = decrypt(ti, io->sector, bio, io->meta);
	g_free(io->meta);
	if (io->guest)
		crypt_wipe_leave(io->guest);
	return DM_ENDIO_DONE;
}

/* --- suspending, and the key ------------------------------------------------------------------ */

static void crypt_presuspend(struct dm_target *ti)
{
	struct crypt *c = ti->private;

	if (c->wipe)
		crypt_wipe_stop(c->wipe);
}

static void crypt_postsuspend(struct dm_target *ti)
{
	struct crypt *c = ti->private;

	if (c->wipe)
		crypt_wipe_wait(c->wipe);
	atomic_store(&c->suspended, true);
}

static int crypt_preresume(struct dm_target *ti, GError **err)
{
	struct crypt *c = ti->private;

	if (c->engine->has_key)
		return 0;
	return dm_fail(err, EAGAIN, "crypt: aborting resume - crypt key is not set.");
}

static void crypt_resume(struct dm_target *ti)
{
	struct crypt *c = ti->private;

	atomic_store(&c->suspended, false);
	if (c->wipe)
		crypt_wipe_start(c->wipe);
}

/* What status shows of the key; takes the description. */
static void set_description(struct dm_target *ti, char *description)
{
	struct crypt *c = ti->private;
	char *old;

	dm_status_pause(ti, NULL);
	old = c->description;
	c->description = description;
	dm_status_go_on(ti, NULL);
	g_free(old);
}

static int message_set(struct dm_target *ti, const char *arg, GError **err)
{
	struct crypt *c = ti->private;
	struct dm_key key;
	int r = dm_key_read("crypt", arg, &key, err);

	if (r)
		return r;
	r = crypt_engine_set_key(c->engine, &key, err);
	if (!r)
		set_description(ti, g_steal_pointer(&key.description));
	dm_key_clear(&key);
	return r;
}

static int key_message(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct crypt *c = ti->private;
	int r = 0;

	if (!atomic_load(&c->suspended)) {
		r = dm_fail(err, EINVAL, "crypt: not suspended during key manipulation.");
	} else if (argc == 3 && !g_ascii_strcasecmp(argv[1], "set")) {
		r = message_set(ti, argv[2], err);
	} else if (argc == 2 && !g_ascii_strcasecmp(argv[1], "wipe")) {
		crypt_engine_wipe_key(c->engine);
		set_description(ti, NULL);
	} else {
		r = dm_fail(err, EINVAL, "crypt: the messages are 'key set KEY' and 'key wipe'");
	}
	return r;
}

/* "wipe SECTOR" */
static int wipe_message(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct crypt *c = ti->private;
	struct crypt_wipe_place place = {ti, c->dev, c->start, c->iv_offset, c->engine};
	struct crypt_wipe *old = c->wipe, *new;
	uint64_t from, at;
	int r;

	if (argc != 2)
		return dm_fail(err, EINVAL, "crypt: the message is 'wipe SECTOR'");
	if (!c->aead)
		return dm_fail(err, EINVAL,
			       "crypt: wipe: only of an authenticated mode it is known which sectors were never written");
	if (dm_target_mode(ti) == DM_MODE_READ)
		return dm_fail(err, EROFS, "crypt: wipe: the device is read-only");
	if (!atomic_load(&c->suspended))
		return dm_fail(err, EINVAL, "crypt: wipe: only while the device is suspended");
	if (old && crypt_wipe_left(old, &at))
		return dm_fail(err, EBUSY, "crypt: wipe: this is done already, up to sector %" PRIu64, at);
	r = dm_read_u64(argv[1], 0, ti->len, "crypt", "wipe: sector", &from, err);
	if (!r && from % (c->sector_size >> DM_SECTOR_SHIFT))
		r = dm_fail(err, EINVAL, "crypt: wipe: sector %s is not a multiple of sector_size %u", argv[1],
			    c->sector_size);
	if (r)
		return r;
	new = crypt_wipe_new(&place, from);
	dm_status_pause(ti, NULL);
	c->wipe = new;
	dm_status_go_on(ti, NULL);
	crypt_wipe_free(old);
	return 0;
}

static int crypt_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	int r;

	if (argc >= 1 && !g_ascii_strcasecmp(argv[0], "wipe"))
		return wipe_message(ti, argc, argv, err);
	if (argc < 2 || g_ascii_strcasecmp(argv[0], "key"))
		r = dm_fail(err, EINVAL,
			    "crypt: unrecognised message received; there are 'key set KEY', 'key wipe', 'wipe SECTOR'");
	else
		r = key_message(ti, argc, argv, err);
	for (int i = 1; i < argc; i++)
		memset(argv[i], '0', strlen(argv[i]));
	dm_burn_stack();
	return r;
}

/* --- status ---------------------------------------------------------------------------------- */

static void print_key(struct crypt *c, GString *out)
{
	size_t size = c->engine->layout.size;

	if (c->description) {
		g_string_append_printf(out, ":%zu:%s", size, c->description);
	} else if (size) {
		/* a message may be changing it, unless whoever asks is told */
		dm_key_print(dm_status_tells_keys() ? c->engine->key : NULL, size, out);
	} else {
		g_string_append_c(out, '-');
	}
}

static void print_options(struct crypt *c, GString *out)
{
	bool large = c->sector_size != DM_SECTOR_SIZE;
	unsigned n = __builtin_popcount(c->options) + large + (c->integrity != 0);

	if (!n)
		return;
	g_string_append_printf(out, " %u", n);
	for (size_t i = 0; i < G_N_ELEMENTS(option_names); i++) {
		if (c->integrity && option_names[i].bit == OPT_IV_LARGE)
			g_string_append_printf(out, " integrity:%u:%s", c->integrity, c->profile);
		if (large && option_names[i].bit == OPT_IV_LARGE)
			g_string_append_printf(out, " sector_size:%u", c->sector_size);
		if (c->options & option_names[i].bit)
			g_string_append_printf(out, " %s", option_names[i].name);
	}
}

/* Also when all is wiped: N/N. */
static void print_wipe(struct dm_target *ti, GString *out)
{
	struct crypt *c = ti->private;
	uint64_t at;

	if (!c->wipe)
		return;
	crypt_wipe_left(c->wipe, &at);
	g_string_append_printf(out, "wiping %" PRIu64 "/%" PRIu64 "%s", at, ti->len,
			       crypt_wipe_failed(c->wipe) ? " failed" : "");
}

static void crypt_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct crypt *c = ti->private;

	if (type == DM_STATUS_INFO) {
		print_wipe(ti, out);
		return;
	}
	g_string_append_printf(out, "%s ", c->cipher);
	print_key(c, out);
	g_string_append_printf(out, " %" PRIu64 " ", c->iv_offset);
	dm_dev_print(c->dev, out);
	g_string_append_printf(out, " %" PRIu64, c->start);
	print_options(c, out);
}

static int crypt_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct crypt *c = ti->private;

	return fn(ti, c->dev, c->start, ti->len, data);
}

static void crypt_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct crypt *c = ti->private;

	limits->logical_block_size = MAX(limits->logical_block_size, c->sector_size);
	limits->physical_block_size = MAX(limits->physical_block_size, c->sector_size);
	limits->io_min = MAX(limits->io_min, c->sector_size);
	limits->max_append_sectors = 0; /* a sector is encrypted by its number, which an append does not know yet */
}

static int crypt_report_zones(struct dm_target *ti, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct crypt *c = ti->private;

	return dm_target_report_zones(ti, c->dev, c->start, sector, max, fn, data);
}

const struct dm_target_type crypt_target = {
	.name = "crypt",
	.version = {1, 24, 0},
	.features = DM_TARGET_FLUSH_DEVICES | DM_TARGET_TAKES_KEYS | DM_TARGET_ZONES | DM_TARGET_STRAIGHT,
	.per_bio_size = sizeof(struct crypt_io),
	.ctr = crypt_ctr,
	.dtr = crypt_dtr,
	.map = crypt_map,
	.end_io = crypt_end_io,
	.presuspend = crypt_presuspend,
	.presuspend_undo = crypt_resume,
	.postsuspend = crypt_postsuspend,
	.preresume = crypt_preresume,
	.resume = crypt_resume,
	.status = crypt_status,
	.message = crypt_message,
	.iterate_devices = crypt_iterate_devices,
	.io_hints = crypt_io_hints,
	.report_zones = crypt_report_zones,
};
