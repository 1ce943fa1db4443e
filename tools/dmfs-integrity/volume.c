/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Volumes: made, opened, closed, described. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../common/bar.h"
#include "../common/client.h"
#include "../common/tree.h"
#include "integrity.h"

#define UUID_PREFIX "CRYPT-INTEGRITY-" /* as cryptsetup's */
#define WIPE_BYTES ((size_t)1 << 20)

/* The writer's directory is not the daemon's: devices are named by their whole paths. */
static char *whole_path(const char *device)
{
	return g_path_is_absolute(device) ? g_strdup(device) : g_canonicalize_filename(device, NULL);
}

/* --- format ----------------------------------------------------------------------------------- */

/* The superblock's place becomes zeroes, for that is what is formatted; old: what was there. */
static int clear_super(const char *device, bool whatever, guint8 old[SB_BYTES], GError **err)
{
	static const guint8 zeroes[SB_BYTES];
	int fd = open(device, O_RDWR | O_CLOEXEC), r = 0;

	if (fd < 0)
		return fail(err, errno, "%s: %s", device, g_strerror(errno));
	if (pread(fd, old, SB_BYTES, 0) != SB_BYTES)
		r = fail(err, EINVAL, "%s is too small, or cannot be read", device);
	else if (memcmp(old, zeroes, SB_BYTES) && !whatever)
		r = fail(
		    err, EEXIST,
		    "%s does not begin with zeroes: there is something on it; --batch-mode formats it all the same",
		    device);
	else if (pwrite(fd, zeroes, SB_BYTES, 0) != SB_BYTES || fsync(fd))
		r = fail(err, EIO, "%s cannot be written: %s", device, g_strerror(errno));
	close(fd);
	return r;
}

/* The table was refused, so nothing was formatted. */
static void restore_super(const char *device, const guint8 old[SB_BYTES])
{
	int fd = open(device, O_RDWR | O_CLOEXEC);

	if (fd < 0 || pwrite(fd, old, SB_BYTES, 0) != SB_BYTES)
		fprintf(stderr, "dmfs-integrity: %s: its first %u bytes are zeroes now\n", device, SB_BYTES);
	if (fd >= 0)
		close(fd);
}

static int write_zeroes(int fd, uint8_t *zeroes, guint64 bytes, GError **err)
{
	guint64 at, len;

	for (at = 0; at < bytes && !bar_interrupted(); at += len) {
		bar_show(at / 512, bytes / 512);
		len = MIN(bytes - at, WIPE_BYTES);
		if (pwrite(fd, zeroes, len, (off_t)at) != (ssize_t)len)
			return fail(err, EIO, "wiping fails at byte %" G_GUINT64_FORMAT ": %s", at, g_strerror(errno));
	}
	if (fsync(fd))
		return fail(err, errno, "wiping: %s", g_strerror(errno));
	bar_show(at / 512, bytes / 512);
	if (at < bytes)
		return fail(err, EINTR,
			    "interrupted after %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT
			    " MiB: the volume opens, and "
			    "with --integrity-recalculate the rest gets its tags then",
			    at >> 20, bytes >> 20);
	return 0;
}

/* Zeroes all over the volume, so that each sector has a tag. */
static int wipe(const char *mount, const char *name, guint64 bytes, GError **err)
{
	g_autofree char *path = tree_path(mount, name, "image");
	void *zeroes = aligned_alloc(4096, WIPE_BYTES);
	int fd = open(path, O_WRONLY | O_CLOEXEC), r;

	if (fd < 0)
		r = fail(err, errno, "%s: %s", path, g_strerror(errno));
	else
		r = write_zeroes(fd, memset(zeroes, 0, WIPE_BYTES), bytes, err);
	if (fd >= 0)
		close(fd);
	free(zeroes);
	return r;
}

/* The device is there with the table that has formatted it: now all of it. */
static int wipe_all(const char *mount, const char *name, const char *device, const struct options *o, GError **err)
{
	struct integrity_super sb;
	char *line = NULL;
	int r = super_load(device, &sb, err);

	if (r || o->no_wipe)
		return r;
	line = table_line(device, &sb, sb.provided, o, err);
	r = line ? client_write(mount, name, "table", line, strlen(line), err) : -EINVAL;
	table_free(line);
	return r ? r : wipe(mount, name, sb.provided * 512, err);
}

int volume_format(const char *device, const struct options *o, GError **err)
{
	g_autofree char *mount = client_mount(o->mount, err), *path = whole_path(device);
	g_autofree char *name = g_strdup_printf("dmfs-integrity-%d", (int)getpid());
	g_autofree char *uuid = g_strconcat(UUID_PREFIX, name, NULL);
	g_autoptr(GError) later = NULL;
	guint8 old[SB_BYTES];
	char *line;
	int r, closed;

	if (!mount)
		return -ENODEV;
	line = table_line(path, NULL, 8, o, err);
	if (!line)
		return -EINVAL;
	bar_begin("wiping"); /* the device that is made must go, too */
	r = clear_super(path, o->batch, old, err);
	if (!r) {
		r = client_make(mount, name, uuid, false, line, strlen(line), err);
		if (r)
			restore_super(path, old);
	}
	table_free(line);
	if (r) {
		bar_end();
		return r;
	}
	r = wipe_all(mount, name, path, o, err);
	closed = client_remove(mount, name, &later);
	bar_end();
	return r ? r : closed ? fail(err, -closed, "%s", later->message) : 0;
}

/* --- open, close ------------------------------------------------------------------------------ */

int volume_open(const char *device, const char *name, const struct options *o, GError **err)
{
	g_autofree char *mount = client_mount(o->mount, err), *uuid = g_strconcat(UUID_PREFIX, name, NULL);
	g_autofree char *path = whole_path(device);
	struct integrity_super sb;
	char *line;
	int r = mount ? client_check_name(name, err) : -ENODEV;

	if (!r && tree_has_device(mount, name))
		r = fail(err, EEXIST, "there is a device %s already", name);
	if (!r)
		r = super_load(path, &sb, err);
	if (r)
		return r;
	line = table_line(path, &sb, sb.provided, o, err);
	r = line ? client_make(mount, name, uuid, false, line, strlen(line), err) : -EINVAL;
	table_free(line);
	if (!r)
		printf("%s/%s/image\n", mount, name);
	return r;
}

int volume_close(const char *name, const struct options *o, GError **err)
{
	g_autofree char *mount = client_mount(o->mount, err), *word = NULL, *text = NULL, *path = NULL;
	int r = mount ? client_check_name(name, err) : -ENODEV;

	if (!r)
		r = client_check_maker(mount, name, "dmfs-integrity", UUID_PREFIX, err);
	if (r)
		return r;
	if (o->cancel_deferred) {
		g_autofree char *reply = NULL;

		r = tree_message(mount, name, "@cancel_deferred_remove", &reply);
	} else if (o->deferred) {
		word = tree_quote(name);
		text = g_strdup_printf("remove %s deferred\n", word);
		path = tree_path(mount, "control", NULL);
		r = tree_write_text(path, text);
	} else {
		return client_remove(mount, name, err);
	}
	return r ? fail(err, -r, "%s: %s", name, g_strerror(-r)) : 0;
}

/* --- telling ---------------------------------------------------------------------------------- */

/* The value behind "WORD:" among a table's words, or NULL; up to the colon behind the algorithm, where a key begins. */
static char *value_of(char **words, const char *word, bool alg)
{
	g_autofree char *prefix = g_strconcat(word, ":", NULL);

	for (unsigned i = 8; i < g_strv_length(words); i++)
		if (g_str_has_prefix(words[i], prefix)) {
			const char *value = words[i] + strlen(prefix);

			return g_strndup(value, alg ? strcspn(value, ":") : strlen(value));
		}
	return NULL;
}

static void print_value(char **words, const char *label, const char *word, bool alg)
{
	g_autofree char *value = value_of(words, word, alg);

	if (value)
		printf("  %-20s%s\n", label, value);
}

int volume_status(const char *name, const struct options *o, GError **err)
{
	g_autofree char *mount = client_mount(o->mount, err), *table = NULL, *status = NULL;
	g_auto(GStrv) t = NULL, s = NULL;
	int r = mount ? client_check_name(name, err) : -ENODEV;

	if (r)
		return r;
	if (!tree_has_device(mount, name)) {
		printf("%s/%s is inactive.\n", mount, name);
		return fail(err, ENODEV, "there is no device %s in %s", name, mount);
	}
	table = client_read(mount, name, "table");
	status = client_read(mount, name, "status");
	t = client_split(table ? table : "");
	s = client_split(status ? status : "");
	if (g_strv_length(t) < 8 || g_strv_length(s) < 6 || strcmp(t[2], "integrity"))
		return fail(err, EINVAL, "%s is not an integrity device", name);
	printf("%s/%s is active.\n", mount, name);
	print_value(t, "integrity:", "internal_hash", true);
	printf("  %-20s%s bytes\n", "tag size:", t[5]);
	print_value(t, "sector size:", "block_size", false);
	printf("  %-20s%s\n", "device:", t[3]);
	print_value(t, "metadata device:", "meta_device", false);
	printf("  %-20s%s sectors\n", "size:", t[1]);
	printf("  %-20s%s\n", "mode:",
	       *t[6] == 'J'   ? "read/write, journal"
	       : *t[6] == 'B' ? "read/write, bitmap"
	       : *t[6] == 'D' ? "read/write, no journal"
			      : "recovery");
	print_value(t, "journal sectors:", "journal_sectors", false);
	print_value(t, "journal watermark:", "journal_watermark", false);
	print_value(t, "journal commit time:", "commit_time", false);
	print_value(t, "journal integrity:", "journal_mac", true);
	print_value(t, "journal crypt:", "journal_crypt", true);
	printf("  %-20s%s\n", "failed checks:", s[3]);
	printf("  %-20s%s\n", "recalculated up to:", s[5]);
	return 0;
}

int volume_dump(const char *device, GError **err)
{
	static const char *const flags[] = {"have_journal_mac", "recalculating", "dirty_bitmap", "fix_padding",
					    "fix_hmac"};
	struct integrity_super sb;
	int r = super_load(device, &sb, err);

	if (r)
		return r;
	printf("Info for integrity device %s.\n", device);
	printf("superblock_version %u\n", sb.version);
	printf("log2_interleave_sectors %u\n", sb.log2_interleave);
	printf("integrity_tag_size %u\n", sb.tag_size);
	printf("journal_sections %u\n", sb.sections);
	printf("provided_data_sectors %" PRIu64 "\n", sb.provided);
	printf("sector_size %u\n", sb.log2_spb < 8 ? 512u << sb.log2_spb : 0);
	printf("log2_blocks_per_bitmap %u\n", sb.log2_blocks_per_bit);
	if (sb.flags & SB_RECALCULATING)
		printf("recalc_sector %" PRIu64 "\n", sb.recalc);
	printf("flags");
	for (unsigned i = 0; i < G_N_ELEMENTS(flags); i++)
		if (sb.flags >> i & 1)
			printf(" %s", flags[i]);
	printf("\n");
	return 0;
}
