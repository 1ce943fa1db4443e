/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an image is: from its superblock, or with --no-superblock from the options.
 *
 * The tree begins with the hash block behind the superblock, or at --hash-offset itself if there is none.
 * FEC covers the data and the tree; with parity on the hash device, all from the tree up to the parity.
 */
#include "../../targets/verity/format.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dmfs/io.h>

#include "verity.h"

#define DEFAULT_ROOTS 2

/* --- files ----------------------------------------------------------------------------------------------- */

static int open_image(const char *path, struct stat *st, GError **err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return fail(err, errno == ENOENT || errno == EACCES ? ENODEV : errno, "%s: %s", path, g_strerror(errno));
	if (!fstat(fd, st) && (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode)))
		return fd;
	close(fd);
	return fail(err, ENOTBLK, "%s is neither a file nor a block device", path);
}

static int size_of(const char *path, uint64_t *bytes, GError **err)
{
	struct stat st;
	int fd = open_image(path, &st, err);

	if (fd < 0)
		return fd;
	*bytes = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, bytes))
		*bytes = 0;
	close(fd);
	return 0;
}

static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	return !stat(a, &x) && !stat(b, &y) &&
	       (S_ISBLK(x.st_mode) && S_ISBLK(y.st_mode) ? x.st_rdev == y.st_rdev :
							  x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

static int read_superblock(const char *path, uint64_t offset, struct superblock *sb, GError **err)
{
	uint8_t bytes[SUPERBLOCK_BYTES];
	struct stat st;
	int fd, r = 0;

	if (offset % SUPERBLOCK_BYTES || offset > INT64_MAX)
		return fail(err, EINVAL, "--hash-offset=%" PRIu64 ": a multiple of %d is needed", offset, SUPERBLOCK_BYTES);
	fd = open_image(path, &st, err);
	if (fd < 0)
		return fd;
	if (pread(fd, bytes, sizeof(bytes), (off_t)offset) != sizeof(bytes))
		r = fail(err, EINVAL, "%s: there is no verity superblock at byte %" PRIu64, path, offset);
	close(fd);
	if (!r)
		r = superblock_parse(bytes, sb, err);
	if (r && err && *err && !g_str_has_prefix((*err)->message, path))
		g_prefix_error(err, "%s: ", path);
	return r;
}

/* --- from options ------------------------------------------------------------------------------------------ */

static int from_options(const char *data, const struct options *o, struct superblock *sb, GError **err)
{
	ssize_t salt = o->salt && strcmp(o->salt, "-") ? verity_parse_hex(o->salt, NULL) : 0;
	uint64_t bytes = 0;
	int r = 0;

	*sb = (struct superblock){
		.type = o->type < 0 ? 1 : (unsigned)o->type,
		.data_block = o->data_block ? (unsigned)o->data_block : 4096,
		.hash_block = o->hash_block ? (unsigned)o->hash_block : 4096,
		.data_blocks = (uint64_t)o->data_blocks,
	};
	if (salt < 0 || (size_t)salt > sizeof(sb->salt))
		return fail(err, EINVAL, "--salt=%s: up to %zu bytes in hexadecimal, or - for none", o->salt, sizeof(sb->salt));
	sb->salt_size = (unsigned)salt;
	if (salt)
		verity_parse_hex(o->salt, sb->salt);
	if (g_strlcpy(sb->hash, o->hash ? o->hash : "sha256", sizeof(sb->hash)) >= sizeof(sb->hash))
		return fail(err, EINVAL, "--hash=%s is too long for a hash", o->hash);
	if (!sb->data_blocks && data) {
		r = size_of(data, &bytes, err);
		sb->data_blocks = bytes / sb->data_block;
	}
	return r;
}

/* --- both ----------------------------------------------------------------------------------------------------- */

static int place_tree(struct image *im, const struct options *o, GError **err)
{
	uint64_t offset = (uint64_t)o->hash_offset;

	if (!o->no_superblock)
		im->hash_start = offset / im->sb.hash_block + (offset % im->sb.hash_block + SUPERBLOCK_BYTES + im->sb.hash_block - 1) / im->sb.hash_block;
	else if (offset % im->sb.hash_block)
		return fail(err, EINVAL, "--hash-offset=%" PRIu64 ": without a superblock a multiple of the hash block size %u is needed",
			    offset, im->sb.hash_block);
	else
		im->hash_start = offset / im->sb.hash_block;
	return 0;
}

/* The number of hash blocks, and whether all that is said of them can be. */
static int measure_tree(struct image *im, GError **err)
{
	struct verity_format f = {
		.version = im->sb.type,
		.data_block = im->sb.data_block,
		.hash_block = im->sb.hash_block,
		.data_blocks = im->sb.data_blocks,
		.hash_start = im->hash_start,
	};
	int r = dm_hash_new(im->sb.hash, &f.hash, err);

	if (!r && dm_hash_needs_key(f.hash))
		r = fail(err, EINVAL, "%s needs a key", im->sb.hash);
	if (!r)
		r = verity_format_prepare(&f, err);
	im->digest_size = f.digest_size;
	im->hash_blocks = f.hash_end - f.hash_start;
	verity_format_clear(&f);
	return r;
}

static int place_fec(struct image *im, const struct options *o, GError **err)
{
	uint64_t offset = (uint64_t)o->fec_offset;

	if (!o->fec_device)
		return 0;
	im->fec = g_canonicalize_filename(o->fec_device, NULL);
	im->fec_roots = o->fec_roots ? (unsigned)o->fec_roots : DEFAULT_ROOTS;
	if (offset % im->sb.data_block)
		return fail(err, EINVAL, "--fec-offset=%" PRIu64 ": a multiple of the block size %u is needed", offset,
			    im->sb.data_block);
	im->fec_start = offset / im->sb.data_block;
	im->fec_blocks = im->sb.data_blocks + im->hash_blocks;
	if (!same_file(im->fec, im->hashes))
		return 0;
	if (im->fec_start < im->hash_start + im->hash_blocks)
		return fail(err, EINVAL, "--fec-offset=%" PRIu64 ": the parity must be behind the hash area, which ends at byte %" PRIu64,
			    offset, (im->hash_start + im->hash_blocks) * im->sb.hash_block);
	im->fec_blocks = im->sb.data_blocks + im->fec_start - im->hash_start;
	return 0;
}

int image_load(const char *data, const char *hashes, const struct options *o, struct image *im, GError **err)
{
	int r;

	*im = (struct image){.data = data ? g_canonicalize_filename(data, NULL) : NULL,
			     .hashes = g_canonicalize_filename(hashes, NULL),
			     .hash_offset = (uint64_t)o->hash_offset};
	if (o->no_superblock)
		r = from_options(data, o, &im->sb, err);
	else
		r = read_superblock(hashes, (uint64_t)o->hash_offset, &im->sb, err);
	if (!r)
		r = place_tree(im, o, err);
	if (!r)
		r = measure_tree(im, err);
	return r ? r : place_fec(im, o, err);
}

void image_clear(struct image *im)
{
	g_free(im->data);
	g_free(im->hashes);
	g_free(im->fec);
}

char *image_root(const struct image *im, const char *argument, const struct options *o, GError **err)
{
	g_autofree char *text = NULL;

	if (argument && o->root_file) {
		fail(err, EINVAL, "the root hash is given, and --root-hash-file: one of them is enough");
		return NULL;
	}
	if (argument) {
		text = g_strdup(argument);
	} else if (!o->root_file) {
		fail(err, EINVAL, "the root hash is needed: as the last argument, or with --root-hash-file");
		return NULL;
	} else if (!g_file_get_contents(o->root_file, &text, NULL, err)) {
		return NULL;
	}
	g_strstrip(text);
	if (verity_parse_hex(text, NULL) == (ssize_t)im->digest_size)
		return g_steal_pointer(&text);
	fail(err, EINVAL, "root hash '%.160s': %u hexadecimal digits are needed for %s", text, im->digest_size * 2,
	     im->sb.hash);
	return NULL;
}

char *image_salt(const struct image *im)
{
	GString *out = g_string_new(im->sb.salt_size ? NULL : "-");

	for (unsigned i = 0; i < im->sb.salt_size; i++)
		g_string_append_printf(out, "%02x", im->sb.salt[i]);
	return g_string_free(out, FALSE);
}

/* --- its line ------------------------------------------------------------------------------------------------- */

static void add_options(const struct image *im, const struct options *o, GString *line)
{
	const struct {
		bool given;
		const char *word;
	} words[] = {
		{o->ignore_corruption, "ignore_corruption"},   {o->restart, "restart_on_corruption"},
		{o->panic, "panic_on_corruption"},	       {o->ignore_zero_blocks, "ignore_zero_blocks"},
		{o->check_once, "check_at_most_once"},	       {o->tasklets, "try_verify_in_tasklet"},
	};
	g_autoptr(GString) out = g_string_new(NULL);
	unsigned n = 0;

	for (size_t i = 0; i < G_N_ELEMENTS(words); i++)
		if (words[i].given) {
			g_string_append_printf(out, " %s", words[i].word);
			n++;
		}
	if (im->fec) {
		g_string_append(out, " use_fec_from_device ");
		dm_quote_word(im->fec, out);
		g_string_append_printf(out, " fec_blocks %" PRIu64 " fec_start %" PRIu64 " fec_roots %u", im->fec_blocks,
				       im->fec_start, im->fec_roots);
		n += 8;
	}
	if (o->signature) {
		g_autofree char *path = g_canonicalize_filename(o->signature, NULL);

		g_string_append(out, " root_hash_sig_key_desc ");
		dm_quote_word(path, out);
		n += 2;
	}
	if (n)
		g_string_append_printf(line, " %u%s", n, out->str);
}

char *image_line(const struct image *im, const char *root, const struct options *o)
{
	GString *line = g_string_new(NULL);
	g_autofree char *salt = image_salt(im);

	g_string_append_printf(line, "0 %" PRIu64 " verity %u ", im->sb.data_blocks * (im->sb.data_block / 512), im->sb.type);
	dm_quote_word(im->data, line);
	g_string_append_c(line, ' ');
	dm_quote_word(im->hashes, line);
	g_string_append_printf(line, " %u %u %" PRIu64 " %" PRIu64 " %s %s %s", im->sb.data_block, im->sb.hash_block,
			       im->sb.data_blocks, im->hash_start, im->sb.hash, root, salt);
	add_options(im, o, line);
	g_string_append_c(line, '\n');
	return g_string_free(line, FALSE);
}

static uint64_t parity_blocks(const struct image *im)
{
	return ((im->fec_blocks - 1) / (255 - im->fec_roots) + 1) * im->fec_roots;
}

void image_print(const struct image *im, const char *root)
{
	g_autofree char *salt = image_salt(im);

	printf("VERITY header information for %s\n", im->hashes);
	printf("UUID:            \t%s\n", im->sb.uuid);
	printf("Hash type:       \t%u\n", im->sb.type);
	printf("Data blocks:     \t%" PRIu64 "\n", im->sb.data_blocks);
	printf("Data block size: \t%u\n", im->sb.data_block);
	printf("Hash blocks:     \t%" PRIu64 "\n", im->hash_blocks);
	printf("Hash block size: \t%u\n", im->sb.hash_block);
	printf("Hash algorithm:  \t%s\n", im->sb.hash);
	if (im->fec) {
		printf("FEC RS roots:   \t%u\n", im->fec_roots);
		printf("FEC blocks:     \t%" PRIu64 "\n", parity_blocks(im));
	}
	printf("Salt:            \t%s\n", salt);
	if (root)
		printf("Root hash:      \t%s\n", root);
	if (!im->hash_offset)
		printf("Hash device size: \t%" PRIu64 " [bytes]\n", (im->hash_start + im->hash_blocks) * im->sb.hash_block);
	if (im->fec && !im->fec_start)
		printf("FEC device size: \t%" PRIu64 " [bytes]\n", parity_blocks(im) * im->sb.data_block);
}
