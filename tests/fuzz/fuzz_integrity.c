/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An integrity volume as anybody may have written it: superblock, journal and bitmap from the input, behind right
 * commit ids, MACs and tags.  It loads or is refused; then it is read and written; nothing before its superblock
 * changes, and nothing at all while it is refused.
 *
 *   byte 0   the mode, whether there is a hash, a MAC, encryption, a metadata device
 *   then     places in the superblock that are changed: their number, and for each an offset and a byte
 *   then     sections: how many, and for each its commit id (or torn), and for each entry what it is of
 */
#include "fuzz.h"

#include <dmfs/le.h>

#include "../../targets/integrity/section.h"

#define START 8u
#define DEVICE 1024u
#define SECTIONS 5u
#define TAG 128u
#define MARK 0x5a

struct input {
	const uint8_t *data;
	size_t size;
};

static uint8_t image[DEVICE * DM_SECTOR_SIZE];

static uint8_t take(struct input *in)
{
	if (!in->size)
		return 0;
	in->size--;
	return *in->data++;
}

static uint64_t take64(struct input *in)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < 8; i++)
		n = n << 8 | take(in);
	return n;
}

static int make_alg(struct integrity_alg *a, const char *name)
{
	a->name = g_strdup(name);
	return dm_hash_new(name, &a->hash, NULL);
}

/* What the table's line below says. */
static void prepare(struct integrity *ic, unsigned how)
{
	ic->l = (struct integrity_layout){.start = START, .data_sectors = DEVICE, .meta_sectors = DEVICE, .tag_size = TAG,
					  .log2_interleave = 7, .sections = SECTIONS, .fix_padding = true, .log2_buffer = 3,
					  .journal_mac = how & 8};
	if (integrity_layout_open(&ic->l, NULL))
		abort();
	if (how & 4 && make_alg(&ic->internal_hash, "crc32c"))
		abort();
	if (how & 8 && make_alg(&ic->journal_mac, "crc32"))
		abort();
	if (how & 16) {
		ic->journal_crypt.name = g_strdup("ctr(aes)");
		if (dm_key_from_hex("fuzz", "key", "000102030405060708090a0b0c0d0e0f", &ic->journal_crypt.key, NULL))
			abort();
	}
	if (integrity_sections_new(ic, &ic->sections, NULL))
		abort();
}

static void clear(struct integrity *ic)
{
	integrity_sections_free(ic->sections);
	dm_hash_free(ic->internal_hash.hash);
	dm_hash_free(ic->journal_mac.hash);
	dm_key_clear(&ic->journal_crypt.key);
	g_free(ic->internal_hash.name);
	g_free(ic->journal_mac.name);
	g_free(ic->journal_crypt.name);
}

static void make_super(struct integrity *ic, struct input *in)
{
	struct integrity_super sb = {.log2_interleave = 7, .tag_size = TAG, .sections = SECTIONS, .provided = ic->l.provided,
				     .flags = SB_FIXED_PADDING | (ic->l.journal_mac ? SB_JOURNAL_MAC : 0), .log2_blocks_per_bit = 3};
	uint8_t *bytes = image + START * DM_SECTOR_SIZE;

	integrity_super_print(&sb, NULL, false, false, bytes);
	for (unsigned n = take(in) % 8; n; n--) {
		unsigned at = 8 + take(in) % 56;

		bytes[at] = take(in);
	}
}

static void make_entry(struct integrity *ic, uint8_t *section, unsigned slot, struct input *in)
{
	uint8_t *entry = integrity_entry(&ic->l, section, slot), data[DM_SECTOR_SIZE];
	struct iovec iov = {data, sizeof data};
	unsigned what = take(in);
	uint64_t sector = what < 200 ? what * 3 % ic->l.provided : what < 240 ? UNUSED_SECTOR : take64(in);

	memset(data, (int)what, sizeof data);
	integrity_entry_put(&ic->l, section, slot, &iov, 1, 0);
	put_le64(entry, sector);
	if (ic->internal_hash.hash)
		integrity_tag(ic, sector, &iov, 1, 0, integrity_entry_tag(&ic->l, entry));
	else
		memset(integrity_entry_tag(&ic->l, entry), (int)what, TAG);
	if (what == 199)
		entry[20] ^= 1; /* the tag is wrong */
}

static void make_section(struct integrity *ic, uint32_t nr, struct input *in)
{
	size_t bytes = integrity_section_bytes(&ic->l);
	uint8_t *section = image + (START + SB_SECTORS) * DM_SECTOR_SIZE + nr * bytes;
	unsigned id = take(in);

	integrity_section_clear(&ic->l, section);
	for (unsigned slot = 0; slot < ic->l.section_entries; slot++)
		make_entry(ic, section, slot, in);
	integrity_section_seal(ic, section, nr, id % COMMIT_IDS);
	if (id & 0x40) { /* torn: some sectors are of another time around */
		g_autofree uint8_t *other = g_memdup2(section, bytes);
		unsigned n = take(in) % ic->l.section_sectors;

		integrity_section_seal(ic, other, nr, id / 4 % COMMIT_IDS);
		memcpy(section, other, (size_t)n * DM_SECTOR_SIZE);
	}
	if ((id & 0xb0) == 0xb0)
		section[take(in) * 2] ^= 1;
	if (integrity_section_encrypt(ic, section, nr))
		abort();
}

static void make_image(unsigned how, struct input *in)
{
	struct integrity ic = {0};

	memset(image, MARK, sizeof image);
	prepare(&ic, how);
	make_super(&ic, in);
	for (uint32_t nr = 0; nr < SECTIONS; nr++)
		make_section(&ic, nr, in);
	clear(&ic);
}

static char *make_line(unsigned how, uint64_t sectors)
{
	GString *line = g_string_new(NULL);
	unsigned n = 0;
	g_autoptr(GString) words = g_string_new(NULL);

	if (how & 4 && ++n)
		g_string_append(words, " internal_hash:crc32c");
	if (how & 8 && ++n)
		g_string_append(words, " journal_mac:crc32");
	if (how & 16 && ++n)
		g_string_append(words, " journal_crypt:ctr(aes):000102030405060708090a0b0c0d0e0f");
	if (how & 32 && ++n)
		g_string_append(words, " commit_time:0");
	g_string_printf(line, "0 %u integrity f0 %u %u %c %u%s", (unsigned)sectors, START, TAG, "JDBR"[how & 3], n, words->str);
	return g_string_free(line, FALSE);
}

static void use(struct dm_mapped *md, struct input *in)
{
	static uint8_t buf[64 * DM_SECTOR_SIZE];
	uint64_t sectors = dm_mapped_sectors(md);

	for (unsigned i = 0; i < 8 && sectors; i++) {
		unsigned what = take(in), n = 1 + what % 64;
		uint64_t at = take(in) * 2 % sectors;

		n = (unsigned)MIN(n, sectors - at);
		if (what & 0x80)
			dm_write_sync(&md->dev, at, n, buf, what & 0x40 ? DM_FUA : 0);
		else
			dm_read_sync(&md->dev, at, n, buf, 0);
	}
	dm_flush_sync(&md->dev);
}

static void put_image(int fd)
{
	if (ftruncate(fd, 0) || ftruncate(fd, sizeof image) || pwrite(fd, image, sizeof image, 0) != sizeof image)
		abort();
}

static void check(int fd, bool refused)
{
	static uint8_t now[sizeof image];
	size_t same = refused ? sizeof image : START * DM_SECTOR_SIZE;

	if (pread(fd, now, sizeof now, 0) != sizeof now || memcmp(now, image, same))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned how = take(&in);
	g_autofree char *path = fuzz_file(0), *line = make_line(how, 64), *text = NULL;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct dm_mapped *md;
	struct dm_table *t;
	bool live;

	if (fd < 0 || dm_create("i", -1, &md, NULL))
		abort();
	make_image(how, &in);
	put_image(fd);
	text = fuzz_text((const uint8_t *)line, strlen(line));
	t = fuzz_build(md, text);
	live = t && !dm_mapped_swap(md, t, NULL, NULL, NULL);
	if (live)
		use(md, &in);
	dm_remove(md, NULL);
	dm_mapped_unref(md);
	check(fd, !live);
	close(fd);
	return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	fuzz_start();
	return 0;
}
