/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The mounted control tree, as seen by an ordinary process. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../common/client.h"
#include "../common/tree.h"
#include "around.h"
#include "luks.h"

/* --- where it is -------------------------------------------------------------------------------- */

char *tree_find(const struct options *o, GError **err)
{
	GError *why = NULL;
	char *mount = client_named_mount(o->mount, &why);

	if (mount || why) {
		if (why)
			g_propagate_error(err, why);
		return mount;
	}
	around_look(NULL);
	return client_only_mount(around_mounts(), err);
}

/* --- opening ------------------------------------------------------------------------------------- */

static int open_stage(const char *mount, const char *name, const struct volume *v, const struct stage *s, bool readonly,
		      GError **err)
{
	g_autofree char *dev = g_strconcat(name, s->suffix, NULL);
	g_autofree char *uuid = g_strdup_printf("CRYPT-%s-%s-%s", v->type, v->uuid, dev);

	return client_make(mount, dev, uuid, readonly, s->table.data, s->table.len, err);
}

int tree_open(const char *mount, const char *name, const struct volume *v, bool readonly, GError **err)
{
	unsigned made;
	int r = 0;

	for (made = 0; made < v->stages->len; made++) {
		r = open_stage(mount, name, v, v->stages->pdata[made], readonly, err);
		if (r)
			break;
	}
	while (r && made-- > 0) {
		struct stage *s = v->stages->pdata[made];
		g_autofree char *dev = g_strconcat(name, s->suffix, NULL);

		client_remove(mount, dev, NULL);
	}
	return r;
}

/* --- closing and status --------------------------------------------------------------------------- */

/* Whether dmfs-luks made it: its uuid tells. */
static bool is_ours(const char *mount, const char *name)
{
	g_autofree char *uuid = client_read(mount, name, "uuid");

	return uuid && g_str_has_prefix(uuid, "CRYPT-");
}

/* CRYPT-TYPE-UUID-…: TCRYPT has no uuid. */
static bool same_volume(const char *a, const char *b)
{
	g_auto(GStrv) x = g_strsplit(a, "-", 4), y = g_strsplit(b, "-", 4);

	return g_strv_length(x) == 4 && g_strv_length(y) == 4 && !strcmp(x[0], "CRYPT") && !strcmp(y[0], "CRYPT") &&
	       !strcmp(x[1], y[1]) && !strcmp(x[2], y[2]);
}

/* Whether it is called as a part of a volume: NAME_1 or NAME_2 of a cascade, NAME_dif with the tags. */
static bool is_part_name(const char *device)
{
	size_t len = device ? strlen(device) : 0;

	return len >= 3 && !strchr(device, '/') &&
	       ((device[len - 2] == '_' && strchr("12", device[len - 1])) ||
		g_str_has_suffix(device, INTEGRITY_SUFFIX));
}

/* The device beneath if this one's table stands on it and it is a part of the volume; or NULL. */
static char *part_beneath(const char *mount, const char *name)
{
	g_autofree char *table = client_read(mount, name, "table"), *uuid = NULL, *mine = NULL;
	g_auto(GStrv) words = table ? client_split(g_strchomp(table)) : NULL;
	const char *device = words && g_strv_length(words) >= 8 && !strcmp(words[2], "crypt") ? words[6] : NULL;

	if (!is_part_name(device))
		return NULL;
	uuid = client_read(mount, device, "uuid");
	mine = client_read(mount, name, "uuid");
	return uuid && mine && same_volume(uuid, mine) ? g_strdup(device) : NULL;
}

int tree_close(const char *mount, const char *name, GError **err)
{
	g_autofree char *next = NULL;
	int r;

	if (!tree_has_device(mount, name))
		return fail(err, ENODEV, "there is no device %s in %s", name, mount);
	if (!is_ours(mount, name))
		return fail(err, EINVAL, "%s was not opened by dmfs-luks; rmdir removes any device", name);
	next = part_beneath(mount, name);
	r = client_remove(mount, name, err);
	while (!r && next) {
		g_autofree char *this = g_steal_pointer(&next);

		next = part_beneath(mount, this);
		r = client_remove(mount, this, err);
	}
	return r;
}

/* A line of a table: "START LENGTH crypt CIPHER KEY IV_OFFSET DEVICE START [OPTIONS]". */
static void print_crypt(char **w)
{
	unsigned n = g_strv_length(w);
	const char *sector = "512";

	for (unsigned i = 9; i < n; i++)
		if (g_str_has_prefix(w[i], "sector_size:"))
			sector = strchr(w[i], ':') + 1;
	printf("  cipher:      %s\n", w[3]);
	if (*w[4] == ':')
		printf("  key:         %s (keyring)\n", w[4] + 1);
	else
		printf("  keysize:     %zu bits\n", strspn(w[4], "0") * 4);
	printf("  device:      %s\n", w[6]);
	printf("  sector size: %s\n", sector);
	if (n > 9) {
		g_autofree char *flags = g_strjoinv(" ", w + 9);

		printf("  flags:       %s\n", flags);
	}
}

/* What its lines have in common is told once: BitLocker has several. */
static void print_table(char *table)
{
	g_auto(GStrv) lines = g_strsplit(g_strchomp(table), "\n", -1);
	bool seen = false, one = lines[0] && !lines[1];
	uint64_t end = 0;

	for (unsigned i = 0; lines[i]; i++) {
		g_auto(GStrv) w = client_split(lines[i]);
		unsigned n = g_strv_length(w);
		bool crypt = n >= 8 && !strcmp(w[2], "crypt");

		if (n < 3)
			continue;
		end = g_ascii_strtoull(w[0], NULL, 10) + g_ascii_strtoull(w[1], NULL, 10);
		if (crypt && !seen)
			print_crypt(w);
		seen |= crypt;
		if (crypt && one)
			printf("  offset:      %s sectors\n", w[7]);
		else if (crypt)
			printf("  segment:     %s sectors at %s, at %s of the device\n", w[1], w[0], w[7]);
		else
			printf("  segment:     %s sectors at %s, %s\n", w[1], w[0], w[2]);
	}
	if (end)
		printf("  size:        %" PRIu64 " sectors\n", end);
}

/* "START LENGTH integrity DEVICE START TAG MODE …" and its status "… MISMATCHES PROVIDED …" */
static void print_beneath(const char *mount, const char *name)
{
	g_autofree char *dif = part_beneath(mount, name), *table = dif ? client_read(mount, dif, "table") : NULL;
	g_autofree char *wiped = NULL;
	g_auto(GStrv) w = table ? client_split(g_strchomp(table)) : NULL;
	static const char *const modes[] = {"J", "journal", "D", "no journal", "B", "bitmap", "R", "recovery"};
	const char *mode;

	if (!w || g_strv_length(w) < 7 || strcmp(w[2], "integrity"))
		return;
	mode = w[6];
	for (unsigned i = 0; i < G_N_ELEMENTS(modes); i += 2)
		if (!strcmp(w[6], modes[i]))
			mode = modes[i + 1];
	wiped = wipe_shown(mount, name);
	if (wiped)
		printf("  wiping:      %s\n", wiped);
	printf("  integrity:   %s bytes beside each sector, on %s (%s)\n", w[5], dif, mode);
	printf("  data device: %s at %s sectors\n", w[3], w[4]);
}

int tree_status(const char *mount, const char *name, GError **err)
{
	g_autofree char *uuid = NULL, *table = NULL, *info = NULL, *image = NULL;
	g_auto(GStrv) words = NULL;

	if (!tree_has_device(mount, name)) {
		printf("%s/%s is inactive.\n", mount, name);
		return fail(err, ENODEV, "there is no device %s in %s", name, mount);
	}
	uuid = client_read(mount, name, "uuid");
	table = client_read(mount, name, "table");
	info = client_read(mount, name, "info");
	if (!uuid || !table || !info)
		return fail(err, EIO, "%s/%s cannot be read", mount, name);
	image = g_build_filename(mount, name, "image", NULL);
	words = g_strsplit(uuid, "-", 4);
	printf("%s is active%s.\n", image, strstr(info, "SUSPENDED") ? " and suspended" : "");
	printf("  type:        %s\n", g_strv_length(words) >= 3 && !strcmp(words[0], "CRYPT") ? words[1] : "unknown");
	print_table(table);
	print_beneath(mount, name);
	printf("  mode:        %s\n", strstr(info, "READ-ONLY") ? "readonly" : "read/write");
	return 0;
}
