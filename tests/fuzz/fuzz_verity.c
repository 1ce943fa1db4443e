/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * verity images with damage anywhere, and superblocks.
 *
 * The first byte says what is made: a superblock to parse, or an image with tree and parity in memory, of which the
 * rest says which bytes are changed.  All of it is read, in several ways: what is returned is what was there
 * at first, or EIO.
 */
#include <stdlib.h>

#include "core/devices.h"
#include "core/type.h"

#include "../../targets/verity/format.h"
#include "../../targets/verity/rs.h"
#include "../../tools/common/fail.c"
#include "../../tools/dmfs-verity/superblock.c"

#define SECTORS 128u
#include "fuzz_mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define BLOCK 512u /* of data and hashes: data at block 0, then the tree, then parity */
#define BLOCKS 40u

extern const struct dm_target_type verity_target;

static struct mem mem;
static uint8_t plain[BLOCKS * BLOCK];

static void mem_identity(struct dm_dev *dev, uint64_t id[3])
{
	id[0] = 1;
	id[1] = id[2] = 0;
}

static void mem_print(struct dm_dev *dev, GString *out)
{
	g_string_append(out, "mem:a");
}

static struct dm_dev_ops named_ops; /* fuzz_mem.h's, for tables */

static int open_mem(const struct dm_opener *who, const char *uri, enum dm_mode mode, struct dm_dev **out, GError **err)
{
	*out = dm_dev_get(&mem.dev);
	return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static const struct dm_store_scheme scheme = {"mem:", open_mem};
	static const struct dm_target_type *const types[] = {&verity_target, NULL};

	dm_store_scheme_more = &scheme;
	dm_register_targets(types);
	named_ops = mem_ops;
	named_ops.identity = mem_identity;
	named_ops.print = mem_print;
	mem.dev.ops = &named_ops;
	mem.dev.mode = DM_MODE_RW;
	atomic_init(&mem.dev.refs, 1);
	for (unsigned i = 0; i < sizeof(plain); i++)
		plain[i] = (uint8_t)(i * 7 + i / 512 * 31);
	memset(plain + 5 * BLOCK, 0, 8 * BLOCK);
	return 0;
}

/* --- superblocks -------------------------------------------------------------------------------------- */

static void parse(const uint8_t *data, size_t size)
{
	uint8_t bytes[SUPERBLOCK_BYTES] = "verity";
	struct superblock sb;
	GError *err = NULL;

	memcpy(bytes, data, MIN(size, sizeof(bytes)));
	if (superblock_parse(bytes, &sb, &err)) {
		if (!err)
			abort();
		g_error_free(err);
		return;
	}
	if (sb.type > 1 || sb.salt_size > 256 || !*sb.hash || strlen(sb.hash) > 31 || strlen(sb.uuid) != 36 ||
	    sb.data_block < 512 || sb.hash_block < 512 || !sb.data_blocks)
		abort();
}

/* --- images ---------------------------------------------------------------------------------------------- */

static void make_tree(struct verity_format *f)
{
	for (unsigned level = 0; level < f->levels; level++) {
		uint64_t below = level ? f->level_blocks[level - 1] : f->data_blocks;

		for (uint64_t i = 0; i < below; i++) {
			uint64_t from = level ? f->level_start[level - 1] + i : i, to;
			size_t offset;

			verity_digest_place(f, level, i, &to, &offset);
			verity_hash_block(f, mem.data + from * BLOCK, BLOCK, mem.data + to * BLOCK + offset);
		}
	}
	verity_hash_block(f, mem.data + f->hash_start * BLOCK, BLOCK, f->root);
}

/* Behind the tree; the area is less than a codeword's data, so its blocks are a codeword each byte. */
static void make_parity(const struct verity_format *f, unsigned roots)
{
	struct rs *rs = rs_new(roots);

	for (unsigned c = 0; c < BLOCK; c++) {
		uint8_t word[RS_SIZE] = {0};

		for (uint64_t b = 0; b < f->hash_end; b++)
			word[b] = mem.data[b * BLOCK + c];
		rs_encode(rs, word, mem.data + f->hash_end * BLOCK + c * roots);
	}
	rs_free(rs);
}

static char *make_image(unsigned version, unsigned roots, unsigned options)
{
	struct verity_format f = {.version = version, .data_block = BLOCK, .hash_block = BLOCK, .data_blocks = BLOCKS,
				  .hash_start = BLOCKS};
	GString *line = g_string_new(NULL);
	g_autofree char *fec = NULL;

	memset(mem.data, 0, sizeof(mem.data));
	memcpy(mem.data, plain, sizeof(plain));
	if (dm_hash_new(version ? "sha256" : "sha1", &f.hash, NULL) || verity_format_set_salt(&f, "a1b2", NULL) ||
	    verity_format_prepare(&f, NULL))
		abort();
	make_tree(&f);
	g_string_append_printf(line, "0 %u verity %u mem:a mem:a %u %u %u %u %s ", BLOCKS * (BLOCK / 512), version, BLOCK, BLOCK, BLOCKS,
			       BLOCKS, version ? "sha256" : "sha1");
	for (unsigned i = 0; i < f.digest_size; i++)
		g_string_append_printf(line, "%02x", f.root[i]);
	if (roots) {
		make_parity(&f, roots);
		fec = g_strdup_printf(" use_fec_from_device mem:a fec_blocks %u fec_start %u fec_roots %u", (unsigned)f.hash_end,
				      (unsigned)f.hash_end, roots);
	}
	g_string_append_printf(line, " a1b2 %u%s%s%s", (roots ? 8 : 0) + !!(options & 1) + !!(options & 2), fec ? fec : "",
			       options & 1 ? " ignore_zero_blocks" : "", options & 2 ? " check_at_most_once" : "");
	verity_format_clear(&f);
	return g_string_free(line, FALSE);
}

static void damage(const uint8_t *data, size_t size)
{
	for (; size >= 4; data += 4, size -= 4) {
		size_t at = (data[0] | data[1] << 8 | (data[2] & 3) << 16) % sizeof(mem.data);
		size_t len = 1u << (data[2] >> 4); /* up to all of it in the end */

		memset(mem.data + at, data[3], MIN(len, sizeof(mem.data) - at));
	}
}

static void read_all(struct dm_dev *dev, unsigned step)
{
	static uint8_t buf[BLOCKS * BLOCK];

	for (unsigned b = 0; b < BLOCKS; b += step) {
		size_t len = MIN(step, BLOCKS - b) * BLOCK;
		int r = dm_read_sync(dev, b, len / 512, buf, 0);

		if (r ? r != -EIO : memcmp(buf, plain + b * BLOCK, len) != 0)
			abort();
	}
}

static void read_over(struct dm_bio *bio)
{
	GAsyncQueue *over = bio->private;

	g_async_queue_push(over, bio);
}

/* All of it to memory in many pieces, some of which end inside a block. */
static void read_scattered(struct dm_dev *dev, unsigned step)
{
	g_autoptr(GAsyncQueue) over = g_async_queue_new();
	static uint8_t buf[BLOCKS * BLOCK];
	struct iovec iov[BLOCKS * BLOCK / 300 + 1];
	struct dm_bio bio = {.op = DM_READ, .dev = dev, .sectors = sizeof(buf) / 512, .iov = iov, .end = read_over,
			     .private = over};

	for (size_t at = 0, len; at < sizeof(buf); at += len) {
		len = MIN(at % 3 ? 300 + step * 40 : BLOCK * step, sizeof(buf) - at);
		iov[bio.iovcnt++] = (struct iovec){buf + at, len};
	}
	dm_submit(&bio);
	g_async_queue_pop(over);
	if (bio.error ? bio.error != -EIO : memcmp(buf, plain, sizeof(buf)) != 0)
		abort();
}

static void use_image(unsigned how, const uint8_t *data, size_t size)
{
	g_autofree char *line = make_image(how & 1, (how >> 1) % 8 * 3, how >> 4);
	struct dm_opener self = dm_opener_self();
	struct dm_mapped *md;
	struct dm_table *t;

	damage(data, size);
	if (dm_create("v", -1, &md, NULL))
		abort();
	t = dm_table_new(md, DM_MODE_READ, &self);
	if (dm_table_add_line(t, line, NULL) || dm_table_complete(t, NULL) || dm_mapped_swap(md, t, NULL, NULL, NULL))
		abort();
	read_all(&md->dev, size % 2 ? 7 : BLOCKS);
	read_scattered(&md->dev, 1 + (unsigned)size % 5);
	read_all(&md->dev, 1);
	dm_remove(md, NULL);
	dm_mapped_unref(md);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] == 0xff)
		parse(data + 1, size - 1);
	else
		use_image(data[0] & 0x3f, data + 1, size - 1);
	return 0;
}
