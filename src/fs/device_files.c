/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A device's files of one value or one printed text: suspend, error, info, deps, dev, uuid, readonly. */
#include <errno.h>
#include <string.h>

#include "files.h"
#include "image.h"

static struct dm_mapped *md_of(struct dmfs_handle *h)
{
	return h->device->md;
}

/* --- suspend: "0", "1", "1 noflush" --------------------------------------------------- */

static int suspend_text(struct dmfs_handle *h, GString *out)
{
	g_string_append(out, dm_mapped_suspended(md_of(h)) ? "1\n" : "0\n");
	return 0;
}

static int suspend_write(struct dmfs_handle *h, fuse_req_t req, char *text, size_t len, GError **err)
{
	g_autoptr(GPtrArray) words = dm_split_words(text);
	char **w = (char **)words->pdata;
	unsigned n = words->len - 1;
	bool noflush = n == 2 && !strcmp(w[1], "noflush");

	if ((n == 1 || noflush) && !strcmp(w[0], "1"))
		return dm_mapped_suspend(md_of(h), noflush ? DM_SUSPEND_NOFLUSH : 0, dmfs_interrupted, req, err);
	if ((n == 1 || noflush) && !strcmp(w[0], "0"))
		return dm_mapped_resume(md_of(h), noflush ? DM_SUSPEND_NOFLUSH : 0, dmfs_interrupted, req, err);
	return dm_fail(err, EINVAL, "suspend takes 0, 1 or '1 noflush'");
}

const struct dmfs_file dmfs_suspend_file = {
	.name = "suspend",
	.mode = 0600,
	.read_text = suspend_text,
	.write_text = suspend_write,
};

/* --- texts ------------------------------------------------------------------------------ */

static int error_text(struct dmfs_handle *h, GString *out)
{
	dm_mapped_get_error(md_of(h), out);
	return 0;
}

static int deps_text(struct dmfs_handle *h, GString *out)
{
	struct dm_table *t = dm_mapped_live(md_of(h));

	if (t)
		dm_table_print_deps(t, out);
	dm_table_unref(t);
	return 0;
}

static int dev_text(struct dmfs_handle *h, GString *out)
{
	g_string_append_printf(out, "0:%u\n", md_of(h)->minor);
	return 0;
}

/*
 * A name or uuid as a value of a line: if there are control characters in it, all but a few are \xNN, as in dmsetup's
 * mangled names.
 */
static char *one_line(char *text)
{
	const char *p = text;
	GString *out;

	while (*p && !g_ascii_iscntrl(*p))
		p++;
	if (!*p)
		return text;
	out = g_string_new(NULL);
	for (p = text; *p; p++)
		if (g_ascii_isalnum(*p) || strchr("#+-.:=@_", *p))
			g_string_append_c(out, *p);
		else
			g_string_append_printf(out, "\\x%02x", (unsigned char)*p);
	g_free(text);
	return g_string_free(out, FALSE);
}

/* As `dmsetup info NAME`. */
static int info_text(struct dmfs_handle *h, GString *out)
{
	struct dm_mapped *md = md_of(h);
	struct dm_table *live = dm_mapped_live(md), *inactive = dm_mapped_inactive(md);
	g_autofree char *name = one_line(dm_mapped_dup_name(md)), *uuid = one_line(dm_mapped_dup_uuid(md));
	bool readonly = live && !(live->mode & DM_MODE_WRITE);
	unsigned opens;
	bool deferred;

	dm_topology_lock();
	opens = md->opens + g_hash_table_size(md->used_by);
	deferred = md->remove_unused;
	dm_topology_unlock();
	g_string_append_printf(out, "Name:              %s\n", name);
	g_string_append_printf(out, "State:             %s%s%s\n", dm_mapped_suspended(md) ? "SUSPENDED" : "ACTIVE",
			       readonly ? " (READ-ONLY)" : "", deferred ? " (DEFERRED REMOVE)" : "");
	if (live || inactive)
		g_string_append_printf(out, "Read Ahead:        256\n");
	g_string_append_printf(out, "Tables present:    %s%s%s\n", live ? "LIVE" : "", live && inactive ? " & " : "",
			       inactive ? "INACTIVE" : live ? "" : "None");
	g_string_append_printf(out, "Open count:        %u\n", opens);
	g_string_append_printf(out, "Event number:      %u\n", atomic_load(&md->event_nr));
	g_string_append_printf(out, "Major, minor:      0, %u\n", md->minor);
	g_string_append_printf(out, "Number of targets: %u\n", live ? live->n : 0);
	if (*uuid)
		g_string_append_printf(out, "UUID: %s\n", uuid);
	dm_table_unref(live);
	dm_table_unref(inactive);
	return 0;
}

const struct dmfs_file dmfs_error_file = {.name = "error", .mode = 0400, .read_text = error_text};
const struct dmfs_file dmfs_deps_file = {.name = "deps", .mode = 0400, .read_text = deps_text};
const struct dmfs_file dmfs_dev_file = {.name = "dev", .mode = 0400, .read_text = dev_text};
const struct dmfs_file dmfs_info_file = {.name = "info", .mode = 0400, .read_text = info_text};

/* --- uuid ---------------------------------------------------------------------------------- */

static int uuid_text(struct dmfs_handle *h, GString *out)
{
	g_autofree char *uuid = dm_mapped_dup_uuid(md_of(h));

	if (*uuid)
		g_string_append_printf(out, "%s\n", uuid);
	return 0;
}

static int uuid_write(struct dmfs_handle *h, fuse_req_t req, char *text, size_t len, GError **err)
{
	if (g_str_has_suffix(text, "\n"))
		text[strlen(text) - 1] = '\0';
	if (strchr(text, '\n'))
		return dm_fail(err, EINVAL, "the uuid has a newline in it");
	return dm_set_uuid(md_of(h), text, err);
}

const struct dmfs_file dmfs_uuid_file = {
	.name = "uuid",
	.mode = 0600,
	.read_text = uuid_text,
	.write_text = uuid_write,
};

/* --- readonly -------------------------------------------------------------------------------- */

bool dmfs_device_readonly(struct dmfs_device *d)
{
	struct dm_table *t = dm_mapped_live(d->md);
	bool readonly = t ? !(t->mode & DM_MODE_WRITE) : atomic_load(&d->md->readonly);

	dm_table_unref(t);
	return readonly;
}

static int readonly_text(struct dmfs_handle *h, GString *out)
{
	g_string_append(out, atomic_load(&md_of(h)->readonly) ? "1\n" : "0\n");
	return 0;
}

static int readonly_write(struct dmfs_handle *h, fuse_req_t req, char *text, size_t len, GError **err)
{
	const char *word = dmfs_strip(text);

	if (strcmp(word, "0") && strcmp(word, "1"))
		return dm_fail(err, EINVAL, "readonly takes 0 or 1");
	return dm_mapped_set_readonly(md_of(h), *word == '1', err);
}

const struct dmfs_file dmfs_readonly_file = {
	.name = "readonly",
	.mode = 0600,
	.read_text = readonly_text,
	.write_text = readonly_write,
};
