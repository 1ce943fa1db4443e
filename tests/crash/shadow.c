/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A target for the laboratory's own tests, which can be built with a mistake.
 *
 *   lab-shadow <dev> <mistake>
 *
 * It never overwrites what was committed: the first write to a chunk after a
 * commit goes to a free place, with the rest of the chunk.  A FLUSH commits: the
 * data is flushed, then the map is written, with FUA, over the older of two copies.
 *
 *   sectors   0 and 2   the maps, one sector each (of which a mistake makes two)
 *   sector    4         a count of used places, for the mistake `count`
 *   sector    8 on      places of 8 sectors
 *
 *   offset  bytes of a map
 *        0      8  magic
 *        8      8  generation
 *       16   2*32  place of each chunk, 0xffff: none, reads as zeroes
 *      ...         zeroes (two sectors long: to the end of the second)
 *     last      8  hash of all before
 */
#include <pthread.h>

#include <dmfs/container_of.h>
#include <dmfs/work.h>

#include "internal.h"

#define MAGIC 0x6c61627368616477ull
#define CHUNK 8u
#define CHUNKS 32u
#define PLACES 72u
#define NOWHERE 0xffffu
#define MAP_BYTES 1024u

struct map {
	uint64_t magic, generation;
	uint16_t place[CHUNKS];
	uint8_t rest[MAP_BYTES - 16 - 2 * CHUNKS];
};

struct shadow {
	struct dm_dev *dev;
	char *mistake;
	pthread_mutex_t lock;
	struct dm_wq *wq;
	uint64_t generation;
	uint16_t place[CHUNKS], committed[CHUNKS];
	bool used[PLACES];
	bool forgets; /* what is in use, when it was opened on something old */
};

static bool has(const struct shadow *s, const char *mistake)
{
	return !strcmp(s->mistake, mistake);
}

static unsigned map_sectors(const struct shadow *s)
{
	return has(s, "one-map") ? 2 : 1;
}

static uint64_t map_hash(const void *map, size_t bytes)
{
	uint64_t h = 5381;

	for (size_t i = 0; i < bytes; i++)
		h = h * 33 + ((const uint8_t *)map)[i];
	return h;
}

static uint64_t place_sector(unsigned place)
{
	return 8 + (uint64_t)place * CHUNK;
}

/* --- the map --------------------------------------------------------------------------- */

static void fill_used(struct shadow *s)
{
	memset(s->used, 0, sizeof s->used);
	if (s->forgets)
		return;
	for (unsigned i = 0; i < CHUNKS; i++) {
		if (s->place[i] < PLACES)
			s->used[s->place[i]] = true;
		if (s->committed[i] < PLACES && !has(s, "reuse"))
			s->used[s->committed[i]] = true;
	}
}

static int write_map(struct shadow *s, unsigned flags)
{
	size_t bytes = map_sectors(s) * DM_SECTOR_SIZE;
	struct map map = {.magic = MAGIC, .generation = s->generation + 1};
	uint64_t hash, sector = has(s, "one-map") || s->generation % 2 ? 0 : 2;

	memcpy(map.place, s->place, sizeof map.place);
	hash = map_hash(&map, bytes - sizeof hash);
	memcpy((char *)&map + bytes - sizeof hash, &hash, sizeof hash);
	return dm_write_sync(s->dev, sector, map_sectors(s), &map, flags | DM_META);
}

static int write_count(struct shadow *s)
{
	uint64_t block[DM_SECTOR_SIZE / 8] = {0};

	for (unsigned i = 0; i < CHUNKS; i++)
		block[0] += s->place[i] != NOWHERE;
	return dm_write_sync(s->dev, 4, 1, block, has(s, "count") ? DM_FUA : 0);
}

static int commit(struct shadow *s)
{
	int error = 0;

	if (has(s, "flush-lies"))
		return 0;
	if (has(s, "count"))
		error = write_count(s);
	if (!error && !has(s, "commit-before-data"))
		error = dm_flush_sync(s->dev);
	if (!error)
		error = write_map(s, has(s, "map-not-flushed") ? 0 : DM_FUA);
	if (error)
		return error;
	s->generation++;
	memcpy(s->committed, s->place, sizeof s->committed);
	fill_used(s);
	return 0;
}

static bool read_map(struct shadow *s, uint64_t sector)
{
	size_t bytes = map_sectors(s) * DM_SECTOR_SIZE;
	struct map map;
	uint64_t hash;

	if (dm_read_sync(s->dev, sector, map_sectors(s), &map, 0))
		return false;
	memcpy(&hash, (char *)&map + bytes - sizeof hash, sizeof hash);
	if (map.magic != MAGIC || hash != map_hash(&map, bytes - sizeof hash))
		return false;
	if (map.generation >= s->generation) {
		s->generation = map.generation;
		memcpy(s->place, map.place, sizeof map.place);
	}
	return true;
}

/* --- chunks ------------------------------------------------------------------------------- */

static int find_free(struct shadow *s, unsigned *place)
{
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < PLACES; i++)
			if (!s->used[i]) {
				s->used[i] = true;
				*place = i;
				return 0;
			}
		if (commit(s))
			return -EIO;
	}
	return -ENOSPC;
}

static int read_chunk(struct shadow *s, unsigned chunk, uint8_t *data)
{
	unsigned place = has(s, "stale") ? s->committed[chunk] : s->place[chunk];

	memset(data, 0, CHUNK * DM_SECTOR_SIZE);
	return place == NOWHERE ? 0 : dm_read_sync(s->dev, place_sector(place), CHUNK, data, 0);
}

static int write_chunk(struct shadow *s, unsigned chunk, unsigned from, unsigned sectors, const uint8_t *data)
{
	uint8_t old[CHUNK * DM_SECTOR_SIZE];
	unsigned place = s->place[chunk];
	int error = 0;

	if (place != NOWHERE && place != s->committed[chunk])
		return dm_write_sync(s->dev, place_sector(place) + from, sectors, data, 0);
	error = read_chunk(s, chunk, old);
	if (!error)
		error = find_free(s, &place);
	if (error)
		return error;
	if (has(s, "mixture")) { /* half a sector is committed before the whole */
		memcpy(old + from * DM_SECTOR_SIZE, data, DM_SECTOR_SIZE / 2);
		error = dm_write_sync(s->dev, place_sector(place), CHUNK, old, 0);
		s->place[chunk] = (uint16_t)place;
		if (!error)
			error = commit(s);
	}
	memcpy(old + from * DM_SECTOR_SIZE, data, sectors * DM_SECTOR_SIZE);
	if (!error)
		error = dm_write_sync(s->dev, place_sector(place), CHUNK, old, 0);
	if (error && !has(s, "swallow"))
		return error;
	if (has(s, "reuse") && s->place[chunk] != NOWHERE)
		s->used[s->place[chunk]] = false;
	s->place[chunk] = (uint16_t)place;
	return 0;
}

/* --- the target ------------------------------------------------------------------------------ */

static void lab_shadow_dtr(struct dm_target *ti)
{
	struct shadow *s = ti->private;

	dm_wq_free(s->wq);
	dm_put_device(ti, s->dev);
	pthread_mutex_destroy(&s->lock);
	g_free(s->mistake);
	g_free(s);
}

static int open_map(struct shadow *s, GError **err)
{
	bool any = read_map(s, 0);

	any |= read_map(s, 2);
	if (!any)
		return dm_fail(err, EINVAL, "lab-shadow: there is no good map");
	memcpy(s->committed, s->place, sizeof s->committed);
	s->forgets = has(s, "forgets") && s->generation > 3;
	fill_used(s);
	if (has(s, "recovery") && s->generation > 3) {
		uint8_t zeroes[4 * DM_SECTOR_SIZE] = {0};
		int error = dm_write_sync(s->dev, 0, 4, zeroes, DM_FUA);

		error = error ? error : write_map(s, DM_FUA);
		return error ? dm_fail(err, EIO, "lab-shadow: recovery failed") : 0;
	}
	return 0;
}

static int lab_shadow_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct shadow *s;
	int error;

	if (argc != 2 || ti->len != CHUNK * CHUNKS)
		return dm_fail(err, EINVAL, "lab-shadow: <dev> <mistake>, %u sectors", CHUNK * CHUNKS);
	s = g_new0(struct shadow, 1);
	s->mistake = g_strdup(argv[1]);
	pthread_mutex_init(&s->lock, NULL);
	error = dm_get_device(ti, argv[0], DM_MODE_RW, &s->dev, err);
	if (error) {
		g_free(s->mistake);
		g_free(s);
		return error;
	}
	s->wq = dm_wq_new("lab-shadow", 1);
	ti->private = s;
	ti->max_io_sectors = CHUNK;
	error = open_map(s, err);
	if (error)
		lab_shadow_dtr(ti);
	return error;
}

/* A bio on its way to the target's one thread. */
struct shadow_bio {
	struct dm_work work;
	struct shadow *s;
	struct dm_bio *bio;
	unsigned chunk, from; /* sectors */
};

static void do_bio(struct dm_work *work)
{
	struct shadow_bio *sb = container_of(work, struct shadow_bio, work);
	struct shadow *s = sb->s;
	struct dm_bio *bio = sb->bio;
	uint8_t data[CHUNK * DM_SECTOR_SIZE];
	int error;

	pthread_mutex_lock(&s->lock);
	if (bio->op == DM_FLUSH) {
		error = commit(s);
	} else if (bio->op == DM_READ) {
		error = read_chunk(s, sb->chunk, data);
		if (!error)
			dm_iov_write(bio->iov, bio->iovcnt, 0, data + sb->from * DM_SECTOR_SIZE,
				     bio->sectors * DM_SECTOR_SIZE);
	} else {
		dm_iov_read(bio->iov, bio->iovcnt, 0, data, bio->sectors * DM_SECTOR_SIZE);
		error = write_chunk(s, sb->chunk, sb->from, (unsigned)bio->sectors, data);
		if (!error && (bio->flags & DM_FUA) && !has(s, "fua-lies"))
			error = commit(s);
	}
	pthread_mutex_unlock(&s->lock);
	if (error && has(s, "dies"))
		abort();
	if (error && has(s, "hangs"))
		return;
	dm_bio_end(bio, error);
}

static enum dm_mapio lab_shadow_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct shadow *s = ti->private;
	struct shadow_bio *sb = bio->private;

	*sb = (struct shadow_bio){
		.work = {.fn = do_bio},
		.s = s,
		.bio = bio,
		.chunk = (unsigned)(dm_target_offset(ti, bio->sector) / CHUNK),
		.from = (unsigned)(dm_target_offset(ti, bio->sector) % CHUNK),
	};
	dm_wq_queue(s->wq, &sb->work);
	return DM_MAPIO_SUBMITTED;
}

static void lab_shadow_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct shadow *s = ti->private;
	unsigned used = 0;

	for (unsigned i = 0; i < CHUNKS; i++)
		used += s->committed[i] != NOWHERE;
	g_string_append_printf(out, "%u", used);
}

static int lab_shadow_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct shadow *s = ti->private;

	return fn(ti, s->dev, 0, place_sector(PLACES), data);
}

const struct dm_target_type lab_shadow_target = {
	.name = "lab-shadow",
	.version = {1, 0, 0},
	.per_bio_size = sizeof(struct shadow_bio),
	.ctr = lab_shadow_ctr,
	.dtr = lab_shadow_dtr,
	.map = lab_shadow_map,
	.status = lab_shadow_status,
	.iterate_devices = lab_shadow_iterate_devices,
};

/* Writes an empty map. */
int shadow_format(struct lab *lab, const char *slice, const char *mistake, GError **err)
{
	struct map map = {.magic = MAGIC, .generation = 1};
	size_t bytes = strcmp(mistake, "one-map") ? DM_SECTOR_SIZE : MAP_BYTES;
	uint64_t hash;

	memset(map.place, 0xff, sizeof map.place);
	hash = map_hash(&map, bytes - sizeof hash);
	memcpy((char *)&map + bytes - sizeof hash, &hash, sizeof hash);
	return lab_write_raw(lab, slice, 0, &map, bytes, err);
}
