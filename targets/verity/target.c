/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * verity: every block is compared with a tree of digests whose root is known (verity.rst).
 *
 *   <version> <dev> <hash_dev> <data_block_size> <hash_block_size> <num_data_blocks> <hash_start_block>
 *   <algorithm> <digest> <salt> [<#opt_params> <opt_params>]
 *
 * The device is read-only, and nothing of it is looked at when it is made: a wrong root hash fails the first read.
 */
#include <inttypes.h>

#include "verity.h"

#define ARGS 10

/* --- making ---------------------------------------------------------------------------------- */

static int read_block_size(const char *word, const char *what, struct dm_dev *dev, unsigned max, unsigned *out,
			   GError **err)
{
	struct dm_limits limits;
	unsigned min;

	dm_dev_limits(dev, &limits);
	min = MAX(limits.logical_block_size, VERITY_MIN_BLOCK);
	if (!dm_parse_uint(word, out) || *out < min || *out > max || (*out & (*out - 1)))
		return dm_fail(err, EINVAL, "verity: Invalid %s device block size '%s': a power of two from %u to %u", what,
			       word, min, max);
	return 0;
}

static int read_sizes(struct verity *v, char **argv, GError **err)
{
	int r = read_block_size(argv[3], "data", v->data_dev, VERITY_MAX_DATA_BLOCK, &v->f.data_block, err);

	if (!r)
		r = read_block_size(argv[4], "hash", v->hash_dev, VERITY_MAX_HASH_BLOCK, &v->f.hash_block, err);
	if (r)
		return r;
	if (!dm_parse_u64(argv[5], &v->f.data_blocks))
		return dm_fail(err, EINVAL, "verity: Invalid data blocks '%s', a number is needed", argv[5]);
	if (!dm_parse_u64(argv[6], &v->f.hash_start))
		return dm_fail(err, EINVAL, "verity: Invalid hash start '%s', a number of blocks is needed", argv[6]);
	return 0;
}

static int read_hash(struct verity *v, char **argv, GError **err)
{
	int r = dm_hash_new(argv[7], &v->f.hash, err);

	if (r) {
		g_prefix_error(err, "verity: Cannot initialize hash function: ");
		return r;
	}
	if (dm_hash_needs_key(v->f.hash))
		return dm_fail(err, ENOENT, "verity: Cannot initialize hash function: %s needs a key", argv[7]);
	v->hash_name = g_strdup(argv[7]);
	return 0;
}

static int read_digests(struct verity *v, char **argv, GError **err)
{
	ssize_t size = verity_parse_hex(argv[8], NULL);

	if (size != v->f.digest_size)
		return dm_fail(err, EINVAL, "verity: Invalid root digest '%.160s': %u hexadecimal digits are needed for %s",
			       argv[8], v->f.digest_size * 2, v->hash_name);
	verity_parse_hex(argv[8], v->f.root);
	return 0;
}

static int check_lengths(struct dm_target *ti, struct verity *v, GError **err)
{
	unsigned shift = v->f.data_bits - DM_SECTOR_SHIFT, hash_shift = v->f.hash_bits - DM_SECTOR_SHIFT;

	if (ti->len > v->f.data_blocks << shift)
		return dm_fail(err, EINVAL,
			       "verity: Data device is too small: %" PRIu64 " sectors, %" PRIu64 " blocks of %u bytes hold %" PRIu64,
			       ti->len, v->f.data_blocks, v->f.data_block, v->f.data_blocks << shift);
	if (ti->len & ((1u << shift) - 1))
		return dm_fail(err, EINVAL, "verity: length %" PRIu64 " is not a multiple of %u sectors, a data block",
			       ti->len, 1u << shift);
	if (v->f.hash_end > dm_dev_sectors(v->hash_dev) >> hash_shift)
		return dm_fail(err, E2BIG,
			       "verity: Hash device is too small: the tree ends at hash block %" PRIu64 ", it has %" PRIu64,
			       v->f.hash_end, dm_dev_sectors(v->hash_dev) >> hash_shift);
	return 0;
}

/* The optional words and what follows from all. */
static int finish(struct dm_target *ti, struct verity *v, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc - ARGS, argv + ARGS};
	int r = verity_read_options(ti, v, &as, err);

	if (!r)
		r = verity_check_signature(ti, argv[8], &v->signature_key, err);
	if (!r)
		r = check_lengths(ti, v, err);
	if (!r && v->fec)
		r = verity_fec_prepare(v, err);
	return r;
}

static int read_line(struct dm_target *ti, struct verity *v, int argc, char **argv, GError **err)
{
	int r;

	if (dm_target_mode(ti) & DM_MODE_WRITE)
		return dm_fail(err, EINVAL, "verity: Device must be readonly: write 1 to `readonly` before loading this");
	if (argc < ARGS)
		return dm_fail(err, EINVAL,
			       "verity: Not enough arguments: %d, <version> <dev> <hash_dev> <data_block_size> "
			       "<hash_block_size> <num_data_blocks> <hash_start_block> <algorithm> <digest> <salt> are %d",
			       argc, ARGS);
	if (!dm_parse_uint(argv[0], &v->f.version) || v->f.version > 1)
		return dm_fail(err, EINVAL, "verity: Invalid version '%s', 0 or 1", argv[0]);
	r = dm_get_device(ti, argv[1], DM_MODE_READ, &v->data_dev, err);
	if (!r)
		r = dm_get_device(ti, argv[2], DM_MODE_READ, &v->hash_dev, err);
	if (!r)
		r = read_sizes(v, argv, err);
	if (!r)
		r = read_hash(v, argv, err);
	if (r)
		return r;
	r = verity_format_prepare(&v->f, err);
	if (!r)
		r = verity_format_set_salt(&v->f, argv[9], err);
	if (r) {
		g_prefix_error(err, "verity: ");
		return r;
	}
	r = read_digests(v, argv, err);
	return r ? r : finish(ti, v, argc, argv, err);
}

/* Measures the hash, and hashes zeroes while about it. */
static void measure(struct verity *v)
{
	g_autofree uint8_t *zeroes = g_malloc0(v->f.data_block);
	uint8_t digests[16 * DM_HASH_MAX_SIZE];
	uint64_t best = UINT64_MAX;
	const void *data[16];

	for (unsigned i = 0; i < G_N_ELEMENTS(data); i++)
		data[i] = zeroes;
	for (int i = 0; i < 3; i++) {
		uint64_t start = dm_now_ns();

		verity_hash_many(&v->f, data, v->f.data_block, G_N_ELEMENTS(data), digests);
		best = MIN(best, dm_now_ns() - start);
	}
	v->ns_per_block = best / G_N_ELEMENTS(data);
	memcpy(v->zero_digest, digests, v->f.digest_size);
}

static void verity_free(struct dm_target *ti, struct verity *v)
{
	if (v->tree)
		verity_tree_settle(v->tree);
	dm_wq_free(v->mending);
	dm_wq_free(v->wq);
	verity_tree_free(v->tree);
	dm_put_device(ti, v->data_dev);
	dm_put_device(ti, v->hash_dev);
	if (v->fec)
		dm_put_device(ti, v->fec->dev);
	verity_fec_free(v->fec);
	verity_validated_free(v->validated);
	verity_format_clear(&v->f);
	g_free(v->hash_name);
	g_free(v->signature_key);
	g_free(v);
}

static int verity_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct verity *v = g_new0(struct verity, 1);
	unsigned cpus = g_get_num_processors();
	int r;

	v->ti = ti;
	r = read_line(ti, v, argc, argv, err);
	if (r) {
		verity_free(ti, v);
		return r;
	}
	measure(v);
	v->tree = verity_tree_new(v);
	v->wq = dm_wq_new("verity", cpus);
	v->mending = dm_wq_new("verity-fec", cpus);
	ti->private = v;
	ti->per_bio_size = (uint16_t)verity_per_bio_size();
	ti->num_flush_bios = 0;
	return 0;
}

static void verity_dtr(struct dm_target *ti)
{
	verity_free(ti, ti->private);
}

/* --- status ---------------------------------------------------------------------------------- */

static void print_hex(const uint8_t *bytes, size_t n, GString *out)
{
	for (size_t i = 0; i < n; i++)
		g_string_append_printf(out, "%02x", bytes[i]);
}

static void verity_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct verity *v = ti->private;

	if (type == DM_STATUS_INFO) {
		g_string_append_c(out, atomic_load(&v->corrupted) ? 'C' : 'V');
		return;
	}
	g_string_append_printf(out, "%u ", v->f.version);
	dm_dev_print(v->data_dev, out);
	g_string_append_c(out, ' ');
	dm_dev_print(v->hash_dev, out);
	g_string_append_printf(out, " %u %u %" PRIu64 " %" PRIu64 " %s ", v->f.data_block, v->f.hash_block,
			       v->f.data_blocks, v->f.hash_start, v->hash_name);
	print_hex(v->f.root, v->f.digest_size, out);
	g_string_append_c(out, ' ');
	if (v->f.salt_size)
		print_hex(v->f.salt, v->f.salt_size, out);
	else
		g_string_append_c(out, '-');
	verity_print_options(v, out);
}

static int verity_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct verity *v = ti->private;

	return fn(ti, v->data_dev, 0, ti->len, data);
}

static void verity_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct verity *v = ti->private;

	limits->logical_block_size = MAX(limits->logical_block_size, v->f.data_block);
	limits->physical_block_size = MAX(limits->physical_block_size, v->f.data_block);
	limits->io_min = MAX(limits->io_min, v->f.data_block);
}

const struct dm_target_type verity_target = {
	.name = "verity",
	.version = {1, 9, 0},
	.features = DM_TARGET_IMMUTABLE,
	.ctr = verity_ctr,
	.dtr = verity_dtr,
	.map = verity_map,
	.end_io = verity_end_io,
	.status = verity_status,
	.iterate_devices = verity_iterate_devices,
	.io_hints = verity_io_hints,
};
