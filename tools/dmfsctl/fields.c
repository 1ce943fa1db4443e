/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The columns of `info -c` (fields.h). */
#include <string.h>

#include "dmfsctl.h"
#include "fields.h"

static void set_number(struct value *v, unsigned n)
{
	v->number = n;
	g_string_append_printf(v->text, "%u", n);
}

static void get_name(const void *object, struct value *v)
{
	g_string_append(v->text, ((const struct device *)object)->shown);
}

static void get_unmangled_name(const void *object, struct value *v)
{
	g_string_append(v->text, ((const struct device *)object)->name);
}

static void get_mangled_name(const void *object, struct value *v)
{
	g_autofree char *name = mangle(((const struct device *)object)->name);

	g_string_append(v->text, name);
}

static void get_uuid(const void *object, struct value *v)
{
	g_string_append(v->text, ((const struct device *)object)->uuid);
}

static void get_mangled_uuid(const void *object, struct value *v)
{
	g_autofree char *uuid = mangle(((const struct device *)object)->uuid);

	g_string_append(v->text, uuid);
}

static void get_read_ahead(const void *object, struct value *v)
{
	set_number(v, ((const struct device *)object)->read_ahead);
}

static void get_attr(const void *object, struct value *v)
{
	const struct device *d = object;

	g_string_append_printf(v->text, "%c%c%c%c", d->live ? 'L' : '-', d->inactive ? 'I' : '-',
			       d->suspended ? 's' : '-', d->readonly ? 'r' : 'w');
}

static void get_tables(const void *object, struct value *v)
{
	const struct device *d = object;

	g_string_append(v->text, d->live && d->inactive ? "Both" : d->live ? "Live" : d->inactive ? "Inactive" : "None");
}

static void get_suspended(const void *object, struct value *v)
{
	g_string_append(v->text, ((const struct device *)object)->suspended ? "Suspended" : "Active");
}

static void get_readonly(const void *object, struct value *v)
{
	g_string_append(v->text, ((const struct device *)object)->readonly ? "Read-only" : "Writeable");
}

static void get_devno(const void *object, struct value *v)
{
	g_string_append_printf(v->text, "0:%u", ((const struct device *)object)->minor);
}

static void get_major(const void *object, struct value *v)
{
	(void)object;
	set_number(v, 0);
}

static void get_minor(const void *object, struct value *v)
{
	set_number(v, ((const struct device *)object)->minor);
}

static void get_open(const void *object, struct value *v)
{
	set_number(v, ((const struct device *)object)->open);
}

static void get_segments(const void *object, struct value *v)
{
	set_number(v, ((const struct device *)object)->targets);
}

static void get_events(const void *object, struct value *v)
{
	set_number(v, ((const struct device *)object)->events);
}

/* --- relations ----------------------------------------------------------------------------- */

static void get_device_count(const void *object, struct value *v)
{
	set_number(v, device_deps((struct device *)object)->len);
}

static void add_to_list(struct value *v, const char *word)
{
	if (v->text->len)
		g_string_append_c(v->text, ',');
	g_string_append(v->text, word);
}

static void get_devs_used(const void *object, struct value *v)
{
	GPtrArray *deps = device_deps((struct device *)object);

	for (unsigned i = 0; i < deps->len; i++) {
		struct dep *dep = deps->pdata[i];

		if (dep->mapped)
			add_to_list(v, dep->shown);
	}
}

static void get_devnos_used(const void *object, struct value *v)
{
	GPtrArray *deps = device_deps((struct device *)object);

	for (unsigned i = 0; i < deps->len; i++) {
		struct dep *dep = deps->pdata[i];
		g_autofree char *number = g_strdup_printf("%d:%d", dep->major, dep->minor);

		add_to_list(v, dep->minor < 0 ? dep->shown : number);
	}
}

static void get_blkdevs_used(const void *object, struct value *v)
{
	GPtrArray *deps = device_deps((struct device *)object);

	for (unsigned i = 0; i < deps->len; i++) {
		struct dep *dep = deps->pdata[i];
		g_autofree char *name = dep->mapped ? NULL : block_name(dep->major, dep->minor);

		add_to_list(v, name ? name : dep->shown);
	}
}

static void get_ref_count(const void *object, struct value *v)
{
	set_number(v, device_users(((const struct device *)object)->name)->len);
}

static void get_names_using(const void *object, struct value *v)
{
	GPtrArray *list = device_users(((const struct device *)object)->name);

	for (unsigned i = 0; i < list->len; i++)
		add_to_list(v, ((struct device *)list->pdata[i])->shown);
}

static void get_devnos_using(const void *object, struct value *v)
{
	GPtrArray *list = device_users(((const struct device *)object)->name);

	for (unsigned i = 0; i < list->len; i++) {
		g_autofree char *number = g_strdup_printf("0:%u", ((struct device *)list->pdata[i])->minor);

		add_to_list(v, number);
	}
}

/* --- the table -------------------------------------------------------------------------------- */

static const struct field fields[] = {
	{"name", "name", "Name", 16, FIELD_STRING, get_name, "Name of mapped device."},
	{"name", "mangled_name", "MangledName", 16, FIELD_STRING, get_mangled_name, "Mangled name of mapped device."},
	{"name", "unmangled_name", "UnmangledName", 16, FIELD_STRING, get_unmangled_name, "Unmangled name of mapped device."},
	{"name", "uuid", "UUID", 32, FIELD_STRING, get_uuid, "Unique (optional) identifier for mapped device."},
	{"name", "mangled_uuid", "MangledUUID", 32, FIELD_STRING, get_mangled_uuid,
	 "Mangled unique (optional) identifier for mapped device."},
	{"name", "unmangled_uuid", "UnmangledUUID", 32, FIELD_STRING, get_uuid,
	 "Unmangled unique (optional) identifier for mapped device."},
	{"name", "read_ahead", "RAhead", 6, FIELD_NUMBER, get_read_ahead, "Read ahead value."},

	{"info", "blkdevname", "BlkDevName", 16, FIELD_STRING, get_name, "Name of block device: the device's own."},
	{"info", "attr", "Stat", 4, FIELD_STRING, get_attr,
	 "(L)ive, (I)nactive, (s)uspended, (r)ead-only, read-(w)rite."},
	{"info", "tables_loaded", "Tables", 6, FIELD_STRING, get_tables,
	 "Which of the live and inactive table slots are filled."},
	{"info", "suspended", "Suspended", 9, FIELD_STRING, get_suspended, "Whether the device is suspended."},
	{"info", "readonly", "Read-only", 9, FIELD_STRING, get_readonly,
	 "Whether the device is read-only or writeable."},
	{"info", "devno", "DevNo", 5, FIELD_STRING, get_devno, "Device major and minor numbers"},
	{"info", "major", "Maj", 3, FIELD_NUMBER, get_major, "Block device major number."},
	{"info", "minor", "Min", 3, FIELD_NUMBER, get_minor, "Block device minor number."},
	{"info", "open", "Open", 4, FIELD_NUMBER, get_open, "Number of references to open device, if requested."},
	{"info", "segments", "Targ", 4, FIELD_NUMBER, get_segments, "Number of segments in live table, if present."},
	{"info", "events", "Event", 6, FIELD_NUMBER, get_events, "Number of most recent event."},

	{"deps", "device_count", "#Devs", 5, FIELD_NUMBER, get_device_count, "Number of devices used by this one."},
	{"deps", "devs_used", "DevNamesUsed", 16, FIELD_STRING, get_devs_used,
	 "List of names of mapped devices used by this one."},
	{"deps", "devnos_used", "DevNosUsed", 16, FIELD_STRING, get_devnos_used,
	 "List of device numbers of devices used by this one."},
	{"deps", "blkdevs_used", "BlkDevNamesUsed", 16, FIELD_STRING, get_blkdevs_used,
	 "List of names of block devices used by this one."},
	{"deps", "device_ref_count", "#Refs", 5, FIELD_NUMBER, get_ref_count,
	 "Number of mapped devices referencing this one."},
	{"deps", "names_using_dev", "RefNames", 8, FIELD_STRING, get_names_using,
	 "List of names of mapped devices using this one."},
	{"deps", "devnos_using_dev", "RefDevNos", 9, FIELD_STRING, get_devnos_using,
	 "List of device numbers of mapped devices using this one."},
};

static const struct field_group groups[] = {
	{"name", "Mapped Device Name"},
	{"info", "Mapped Device Information"},
	{"deps", "Mapped Device Relationship Information"},
};

const struct report_type device_report_type = {
	fields, G_N_ELEMENTS(fields), groups, G_N_ELEMENTS(groups), "name,major,minor,attr,open,segments,events,uuid",
};

enum report_made fields_report(struct report **out, bool columns)
{
	struct report_options options = {
		.fields = columns ? opt.options : NULL,
		.sort = opt.sort,
		.select = opt.select,
		.separator = opt.separator,
		.noheadings = opt.noheadings,
		.nameprefixes = opt.nameprefixes,
	};

	return report_new(&device_report_type, &options, out);
}
