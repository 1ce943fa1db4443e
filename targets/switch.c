/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * switch: regions of one size, each on any of several paths (switch.rst).
 *
 *   <num_paths> <region_size> <num_optional_args> [<optional_args>...] [<dev_path> <offset>]+
 *
 * There are no optional arguments, so their number is 0.  A message says where regions go:
 *
 *   set_region_mappings <index>:<path_nr> [<index>]:<path_nr> R<n>,<m> ...
 *
 * all in hexadecimal.  It is done as a whole or not at all.
 *
 * The region table is packed: an entry is a path number in the least power of two bits that hold all of them (16 paths:
 * 4), so that none crosses a 64-bit word.  map() loads one word and takes no lock; only set_region_mappings, one at a
 * time, stores any.
 *
 * In the state database a row of "regions" is a chunk of the table:
 *
 *   key     chunk number
 *   value   its CHUNK_WORDS words (the last chunk's are fewer), little endian; region r of the
 *           table is entry r % (64 / bits), from the low end, of word r / (64 / bits)
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <strings.h>
#include <unistd.h>

#include <dmfs/rounding.h>
#include <dmfs/rows.h>
#include <dmfs/target.h>

#define CHUNK_WORDS 64u

struct path {
	struct dm_dev *dev;
	uint64_t start;
};

struct switcher {
	unsigned n_paths;
	uint32_t region_sectors;
	int region_shift;     /* log2 of region_sectors, or -1 */
	unsigned entry_bits;  /* 1, 2, 4, … 32 */
	unsigned index_shift; /* log2 of the entries of a word */
	uint64_t n_regions, n_words;
	_Atomic uint64_t *words;
	pthread_mutex_t lock; /* of set_region_mappings */
	struct dm_rows *rows;
	struct path paths[];
};

/* --- the region table ------------------------------------------------------------------ */

static unsigned get_region(const struct switcher *s, uint64_t region)
{
	uint64_t word = atomic_load_explicit(&s->words[region >> s->index_shift], memory_order_relaxed);
	unsigned bit = (unsigned)(region & ((1u << s->index_shift) - 1)) * s->entry_bits;

	return (unsigned)(word >> bit & ((UINT64_C(1) << s->entry_bits) - 1));
}

static void set_region(struct switcher *s, uint64_t region, unsigned path)
{
	_Atomic uint64_t *word = &s->words[region >> s->index_shift];
	unsigned bit = (unsigned)(region & ((1u << s->index_shift) - 1)) * s->entry_bits;
	uint64_t value = atomic_load_explicit(word, memory_order_relaxed);

	value &= ~(((UINT64_C(1) << s->entry_bits) - 1) << bit);
	atomic_store_explicit(word, value | (uint64_t)path << bit, memory_order_relaxed);
}

static uint64_t region_at(const struct switcher *s, uint64_t offset)
{
	return s->region_shift >= 0 ? offset >> s->region_shift : offset / s->region_sectors;
}

/* At first region after region goes to path after path. */
static int make_table(struct switcher *s, uint64_t len, GError **err)
{
	uint64_t most = (uint64_t)MAX(sysconf(_SC_PHYS_PAGES), 1) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
	unsigned path = 0;

	s->region_shift = dm_is_pow2(s->region_sectors) ? (int)dm_log2(s->region_sectors) : -1;
	s->entry_bits = 1;
	s->index_shift = 6;
	while (UINT64_C(1) << s->entry_bits < s->n_paths) {
		s->entry_bits *= 2;
		s->index_shift--;
	}
	s->n_regions = dm_div_up(len, s->region_sectors);
	s->n_words = dm_div_up(s->n_regions, UINT64_C(1) << s->index_shift);
	if (s->n_words > most / sizeof s->words[0])
		return dm_fail(err, ENOMEM,
			       "switch: Region table too large: %" PRIu64 " regions of %u bits are more than half of the "
			       "memory, %" PRIu64 " bytes",
			       s->n_regions, s->entry_bits, most);
	s->words = g_try_malloc0_n(s->n_words, sizeof s->words[0]);
	if (!s->words)
		return dm_fail(err, ENOMEM, "switch: Cannot allocate region table of %" PRIu64 " words", s->n_words);
	for (uint64_t region = 0; region < s->n_regions; region++) {
		set_region(s, region, path);
		if (++path == s->n_paths)
			path = 0;
	}
	return 0;
}

/* --- rows -------------------------------------------------------------------------------- */

static uint64_t chunk_words(const struct switcher *s, uint64_t chunk)
{
	return MIN(CHUNK_WORDS, s->n_words - chunk * CHUNK_WORDS);
}

static int load_chunk(uint64_t key, const void *value, size_t len, void *data)
{
	struct switcher *s = data;
	uint64_t first = key * CHUNK_WORDS, words, last_region;

	if (key >= dm_div_up(s->n_words, CHUNK_WORDS))
		return -EINVAL;
	words = chunk_words(s, key);
	if (len != words * sizeof(uint64_t))
		return -EINVAL;
	for (uint64_t i = 0; i < words; i++) {
		uint64_t word;

		memcpy(&word, (const char *)value + i * sizeof word, sizeof word);
		atomic_store_explicit(&s->words[first + i], GUINT64_FROM_LE(word), memory_order_relaxed);
	}
	last_region = MIN(s->n_regions, (first + words) << s->index_shift);
	for (uint64_t region = first << s->index_shift; region < last_region; region++)
		if (get_region(s, region) >= s->n_paths)
			return -EINVAL;
	return 0;
}

static int load_rows(struct dm_target *ti, struct switcher *s, GError **err)
{
	int error;

	s->rows = dm_rows_open(ti, "regions");
	error = dm_rows_load(s->rows, load_chunk, s, err);
	if (error && err && !*err)
		dm_fail(err, -error, "switch: the saved region table is damaged");
	return error;
}

/* --- set_region_mappings ------------------------------------------------------------------- */

/* What one word of the message says: region to region + count - 1 become path, or what they find `cycle` before. */
struct mapping {
	uint64_t region, count, cycle; /* cycle 0: path */
	unsigned path;
};

/* As the kernel, what is wrong is logged too. */
#define REFUSE(err, ...)                                      \
	({                                                    \
		dm_log_warn("switch: " __VA_ARGS__);          \
		dm_fail(err, EINVAL, "switch: " __VA_ARGS__); \
	})

static int bad_word(const char *word, GError **err)
{
	return REFUSE(err, "invalid set_region_mappings argument: '%.64s'", word);
}

/* Reads hexadecimal digits, none being 0; false if they are too many for 64 bits. */
static bool parse_hex(const char **at, uint64_t *out)
{
	uint64_t n = 0;

	for (;; (*at)++) {
		int digit = g_ascii_xdigit_value(**at);

		if (digit < 0)
			break;
		if (n >> 60)
			return false;
		n = n << 4 | (unsigned)digit;
	}
	*out = n;
	return true;
}

/* R<n>,<m> behind region *last: the last n mappings once more in the next m. */
static int parse_repeat(const struct switcher *s, const char *word, uint64_t *last, struct mapping *m, GError **err)
{
	const char *at = word + 1;
	uint64_t end;

	if (*at == ',' || !parse_hex(&at, &m->cycle) || *at++ != ',' || !*at || !parse_hex(&at, &m->count) || *at)
		return bad_word(word, err);
	if (!m->cycle || m->cycle - 1 > *last)
		return REFUSE(err, "invalid set_region_mappings cycle length: %" PRIu64 " > %" PRIu64, m->cycle - 1, *last);
	if (__builtin_add_overflow(*last, m->count, &end) || end >= s->n_regions)
		return REFUSE(err, "invalid set_region_mappings region number: %" PRIu64 " + %" PRIu64 " >= %" PRIu64, *last,
			      m->count, s->n_regions);
	m->region = *last + 1;
	*last = end;
	return 0;
}

/* Reads a word; *last is the region before, and then the last of this one. */
static int parse_word(const struct switcher *s, const char *word, uint64_t *last, struct mapping *m, GError **err)
{
	const char *at = word;
	uint64_t path;

	if (*at == 'R' || *at == 'r')
		return parse_repeat(s, word, last, m, err);
	m->region = *last + 1;
	if (*at != ':' && !parse_hex(&at, &m->region))
		return bad_word(word, err);
	if (*at++ != ':' || !*at || !parse_hex(&at, &path) || *at)
		return bad_word(word, err);
	if (m->region >= s->n_regions)
		return REFUSE(err, "invalid set_region_mappings region number: %" PRIu64 " >= %" PRIu64, m->region,
			      s->n_regions);
	if (path >= s->n_paths)
		return REFUSE(err, "invalid set_region_mappings device: %" PRIu64 " >= %u", path, s->n_paths);
	m->count = 1;
	m->cycle = 0;
	m->path = (unsigned)path;
	*last = m->region;
	return 0;
}

/* The chunks a message has touched, as they were: chunk number to words. */
struct touched {
	GHashTable *chunks;
	uint64_t latest; /* chunk + 1 */
};

static void touch(struct switcher *s, struct touched *t, uint64_t region)
{
	uint64_t chunk = (region >> s->index_shift) / CHUNK_WORDS, words;
	uint64_t *before;

	if (t->latest == chunk + 1)
		return;
	t->latest = chunk + 1;
	if (g_hash_table_contains(t->chunks, &chunk))
		return;
	words = chunk_words(s, chunk);
	before = g_new(uint64_t, words);
	for (uint64_t i = 0; i < words; i++)
		before[i] = atomic_load_explicit(&s->words[chunk * CHUNK_WORDS + i], memory_order_relaxed);
	g_hash_table_insert(t->chunks, g_memdup2(&chunk, sizeof chunk), before);
}

static void apply(struct switcher *s, const struct mapping *m, struct touched *t)
{
	for (uint64_t i = 0; i < m->count; i++) {
		uint64_t region = m->region + i;

		touch(s, t, region);
		set_region(s, region, m->cycle ? get_region(s, region - m->cycle) : m->path);
	}
}

static void put_rows(struct switcher *s, struct touched *t)
{
	uint64_t words[CHUNK_WORDS];
	GHashTableIter iter;
	gpointer key;

	g_hash_table_iter_init(&iter, t->chunks);
	while (g_hash_table_iter_next(&iter, &key, NULL)) {
		uint64_t chunk = *(uint64_t *)key, n = chunk_words(s, chunk);

		for (uint64_t i = 0; i < n; i++) {
			uint64_t word = atomic_load_explicit(&s->words[chunk * CHUNK_WORDS + i], memory_order_relaxed);

			words[i] = GUINT64_TO_LE(word);
		}
		dm_rows_put(s->rows, chunk, words, n * sizeof words[0]);
	}
}

static void undo(struct switcher *s, struct touched *t)
{
	GHashTableIter iter;
	gpointer key, value;

	g_hash_table_iter_init(&iter, t->chunks);
	while (g_hash_table_iter_next(&iter, &key, &value)) {
		uint64_t chunk = *(uint64_t *)key, *before = value;

		for (uint64_t i = 0; i < chunk_words(s, chunk); i++)
			atomic_store_explicit(&s->words[chunk * CHUNK_WORDS + i], before[i], memory_order_relaxed);
	}
}

static int set_region_mappings(struct switcher *s, int argc, char **argv, GError **err)
{
	struct touched t = {0};
	struct mapping m;
	uint64_t last = 0;
	int error = 0;

	for (int i = 0; i < argc && !error; i++)
		error = parse_word(s, argv[i], &last, &m, err);
	if (error)
		return error;
	t.chunks = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
	last = 0;
	for (int i = 0; i < argc; i++) {
		parse_word(s, argv[i], &last, &m, NULL);
		apply(s, &m, &t);
	}
	put_rows(s, &t);
	error = dm_rows_commit(s->rows, err);
	if (error) {
		dm_rows_rollback(s->rows);
		undo(s, &t);
		g_prefix_error(err, "switch: the region table cannot be saved: ");
	}
	g_hash_table_destroy(t.chunks);
	return error;
}

static int switch_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct switcher *s = ti->private;
	int error;

	if (strcasecmp(argv[0], "set_region_mappings")) {
		dm_log_warn("switch: Unrecognised message received.");
		return dm_fail(err, EINVAL,
			       "switch: Unrecognised message received: '%.64s', there is only set_region_mappings", argv[0]);
	}
	pthread_mutex_lock(&s->lock);
	error = set_region_mappings(s, argc - 1, argv + 1, err);
	pthread_mutex_unlock(&s->lock);
	return error;
}

/* --- the target ------------------------------------------------------------------------ */

static void switch_free(struct dm_target *ti, struct switcher *s)
{
	for (unsigned i = 0; i < s->n_paths; i++)
		if (s->paths[i].dev)
			dm_put_device(ti, s->paths[i].dev);
	if (s->rows)
		dm_rows_close(s->rows);
	pthread_mutex_destroy(&s->lock);
	g_free((void *)s->words);
	g_free(s);
}

/* An offset may have a '+' before it: the kernel reads it so. */
/* Said here too, for the table of regions is as large as the target: a length out of all proportion costs no memory. */
static int check_size(struct dm_target *ti, const struct path *p, const char *name, GError **err)
{
	uint64_t sectors = dm_dev_sectors(p->dev);

	if (p->start <= sectors && ti->len <= sectors - p->start)
		return 0;
	return dm_fail(err, EINVAL,
		       "switch: %s too small for target: start=%" PRIu64 ", len=%" PRIu64 ", dev_size=%" PRIu64, name,
		       p->start, ti->len, sectors);
}

static int parse_paths(struct dm_target *ti, struct switcher *s, char **argv, GError **err)
{
	int error = 0;

	for (unsigned i = 0; i < s->n_paths && !error; i++) {
		const char *offset = argv[2 * i + 1];

		error = dm_read_u64(offset + (*offset == '+'), 0, UINT64_MAX, "switch", "device starting offset",
				    &s->paths[i].start, err);
		if (!error)
			error = dm_get_device(ti, argv[2 * i], dm_target_mode(ti), &s->paths[i].dev, err);
		if (!error)
			error = check_size(ti, &s->paths[i], argv[2 * i], err);
	}
	return error;
}

static int switch_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	unsigned n_paths, region_sectors, n_optional;
	struct switcher *s;
	int error;

	if (argc < 3)
		return dm_fail(err, EINVAL,
			       "switch: %d arguments, <num_paths> <region_size> <num_optional_args> are the least", argc);
	error = dm_read_uint(argv[0], 1, UINT32_MAX, "switch", "number of paths", &n_paths, err);
	if (!error)
		error = dm_read_uint(argv[1], 1, UINT32_MAX, "switch", "region size", &region_sectors, err);
	if (!error)
		error = dm_read_uint(argv[2], 0, 0, "switch", "number of optional args", &n_optional, err);
	if (error)
		return error;
	if ((uint64_t)argc - 3 != 2 * (uint64_t)n_paths)
		return dm_fail(err, EINVAL,
			       "switch: Incorrect number of path arguments: %u paths need %" PRIu64 ", there are %d", n_paths,
			       2 * (uint64_t)n_paths, argc - 3);
	s = g_malloc0(sizeof *s + n_paths * sizeof s->paths[0]);
	s->n_paths = n_paths;
	s->region_sectors = region_sectors;
	pthread_mutex_init(&s->lock, NULL);
	error = parse_paths(ti, s, argv + 3, err);
	if (!error)
		error = make_table(s, ti->len, err);
	if (!error)
		error = load_rows(ti, s, err);
	if (error) {
		switch_free(ti, s);
		return error;
	}
	ti->private = s;
	ti->max_io_sectors = region_sectors;
	ti->num_discard_bios = 1; /* not split: any path will do */
	ti->provisions = true;
	return 0;
}

static void switch_dtr(struct dm_target *ti)
{
	switch_free(ti, ti->private);
}

static enum dm_mapio switch_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct switcher *s = ti->private;
	uint64_t offset = dm_target_offset(ti, bio->sector);
	struct path *path = &s->paths[get_region(s, region_at(s, offset))];

	bio->dev = path->dev;
	bio->sector = path->start + offset;
	return DM_MAPIO_REMAPPED;
}

static void switch_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct switcher *s = ti->private;

	if (type == DM_STATUS_INFO)
		return;
	g_string_append_printf(out, "%u %" PRIu32 " 0", s->n_paths, s->region_sectors);
	for (unsigned i = 0; i < s->n_paths; i++) {
		g_string_append_c(out, ' ');
		dm_dev_print(s->paths[i].dev, out);
		g_string_append_printf(out, " %" PRIu64, s->paths[i].start);
	}
}

static int switch_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct switcher *s = ti->private;
	int error = 0;

	for (unsigned i = 0; i < s->n_paths && !error; i++)
		error = fn(ti, s->paths[i].dev, s->paths[i].start, ti->len, data);
	return error;
}

static int switch_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct switcher *s = ti->private;
	struct path *path = &s->paths[get_region(s, region_at(s, sector))];

	sectors = MIN(sectors, s->region_sectors - sector % s->region_sectors);
	return dm_dev_extent(path->dev, path->start + sector, sectors, out);
}

static uint64_t switch_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct switcher *s = ti->private;
	uint64_t most = 0;

	for (unsigned i = 0; i < s->n_paths; i++) /* they lead to the same storage */
		most = MAX(most, dm_dev_provisioned(s->paths[i].dev, s->paths[i].start + sector, sectors));
	return most;
}

const struct dm_target_type switch_target = {
	.name = "switch",
	.version = {1, 1, 0},
	.features = DM_TARGET_FLUSH_DEVICES | DM_TARGET_STRAIGHT,
	.ctr = switch_ctr,
	.dtr = switch_dtr,
	.map = switch_map,
	.message = switch_message,
	.status = switch_status,
	.iterate_devices = switch_iterate_devices,
	.extent = switch_extent,
	.provisioned = switch_provisioned,
};
