/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the tree tells of devices, and finding the one a command is about. */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "dmfsctl.h"
#include "fields.h"

/* --- errors ---------------------------------------------------------------------------- */

bool say(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	return false;
}

bool ioctl_failed_on(const char *what, const char *name, const char *uuid, int minor, int error)
{
	g_autofree char *number = minor < 0 ? g_strdup("") : g_strdup_printf("(0:%d)", minor);
	g_autofree char *shown = !name || opt.mangling == MANGLE_NONE ? g_strdup(name) : mangle(name);

	return say("device-mapper: %s ioctl on %s %s%s failed: %s", what, shown ? shown : "", uuid ? uuid : "", number,
		   g_strerror(error == -ENOENT ? ENXIO : -error));
}

bool ioctl_failed(const char *what, const struct ident *id, int error)
{
	if (id->by_number) {
		g_autofree char *number = g_strdup_printf("(%d:%d)", (int)opt.major, (int)opt.minor);

		return say("device-mapper: %s ioctl on  %s failed: %s", what, number,
			   g_strerror(error == -ENOENT ? ENXIO : -error));
	}
	if (id->said)
		return ioctl_failed_on(what, id->name ? id->name : id->said, NULL, -1, error);
	return ioctl_failed_on(what, NULL, opt.uuid, -1, error);
}

void show_error_file(const char *name)
{
	g_autofree char *path = tree_path(ctl_root(), name, "error"), *text = NULL;
	g_auto(GStrv) lines = NULL;

	if (tree_read(path, &text))
		return;
	lines = g_strsplit(text, "\n", -1);
	for (unsigned i = 0; lines[i]; i++)
		if (*lines[i])
			say("dmfs: %s: %s", name, g_str_has_prefix(lines[i], "0: ") ? lines[i] + 3 : lines[i]);
}

/* --- names ------------------------------------------------------------------------------- */

#define NAME_BYTES 127
#define UUID_BYTES 128

char *mangle(const char *name)
{
	return tree_mangle(name);
}

char *unmangle(const char *name)
{
	GString *out = g_string_new(NULL);

	for (const char *p = name; *p; p++) {
		if (p[0] == '\\' && p[1] == 'x' && g_ascii_isxdigit(p[2]) && g_ascii_isxdigit(p[3])) {
			g_string_append_c(out, (char)(g_ascii_xdigit_value(p[2]) << 4 | g_ascii_xdigit_value(p[3])));
			p += 3;
		} else {
			g_string_append_c(out, *p);
		}
	}
	return g_string_free(out, FALSE);
}

/* What --manglename makes of it: in auto mode, what is mangled must be so altogether. */
static char *by_mode(const char *said, const char *what)
{
	g_autofree char *plain_text = opt.mangling == MANGLE_AUTO ? unmangle(said) : g_strdup(said), *again = NULL;

	again = mangle(plain_text);
	if (!strcmp(plain_text, said) || !g_ascii_strcasecmp(again, said))
		return g_steal_pointer(&plain_text);
	say("The %s \"%s\" contains mixed mangled and unmangled characters or it's already mangled improperly.", what,
	    said);
	if (g_str_has_prefix(what, "new "))
		say("Failed to mangle new device %s \"%s\"", what + strlen("new "), said);
	else
		say(*what == 'n' ? "Failed to mangle device name \"%s\"." : "Failed to mangle device uuid \"%s\".",
		    said);
	return NULL;
}

static bool name_too_long(const char *name)
{
	return strlen(name) > NAME_BYTES && !say("Name \"%s\" too long.", name);
}

char *name_to_store(const char *said, const char *what)
{
	bool is_name = g_str_has_suffix(what, "name");
	char *text;

	if (is_name && strchr(said, '/'))
		return say("Name \"%s\" invalid. It contains \"/\".", said), NULL;
	text = by_mode(said, what);
	if (!text)
		return NULL;
	if (is_name ? !name_too_long(text) : strlen(text) <= UUID_BYTES)
		return text;
	if (!is_name)
		say("Mangled form of the UUID too long for \"%s\".", said);
	g_free(text);
	return NULL;
}

char *block_name(int major, int minor)
{
	g_autofree char *link = g_strdup_printf("/sys/dev/block/%d:%d", major, minor);
	char *target = major < 0 ? NULL : realpath(link, NULL), *name;

	if (!target)
		return NULL;
	name = g_path_get_basename(target);
	free(target);
	return name;
}

/* --- a device's state ------------------------------------------------------------------------ */

/* The value of a line "KEY: value". */
static char *info_value(const char *info, const char *key)
{
	g_auto(GStrv) lines = g_strsplit(info, "\n", -1);

	for (unsigned i = 0; lines[i]; i++)
		if (g_str_has_prefix(lines[i], key) && lines[i][strlen(key)] == ':') {
			const char *value = lines[i] + strlen(key) + 1;

			return g_strdup(value + strspn(value, " "));
		}
	return NULL;
}

static unsigned info_number(const char *info, const char *key)
{
	g_autofree char *value = info_value(info, key);

	return value ? (unsigned)strtoul(value, NULL, 10) : 0;
}

static void free_dep(gpointer data)
{
	struct dep *dep = data;

	g_free(dep->text);
	g_free(dep->shown);
	g_free(dep);
}

struct device *device_parse(const char *info)
{
	g_autofree char *state = info_value(info, "State"), *tables = info_value(info, "Tables present");
	g_autofree char *number = info_value(info, "Major, minor");
	struct device *d;

	if (!state || !tables || !number || !strchr(number, ','))
		return NULL;
	d = g_new0(struct device, 1);
	d->info = g_strdup(info);
	d->name = info_value(info, "Name");
	d->shown = g_strdup(d->name);
	d->uuid = info_value(info, "UUID");
	if (!d->uuid)
		d->uuid = g_strdup("");
	d->suspended = g_str_has_prefix(state, "SUSPENDED");
	d->readonly = strstr(state, "READ-ONLY");
	d->live = !!strstr(tables, "LIVE");
	d->inactive = !!strstr(tables, "INACTIVE");
	d->open = info_number(info, "Open count");
	d->events = info_number(info, "Event number");
	d->targets = info_number(info, "Number of targets");
	d->read_ahead = info_number(info, "Read Ahead");
	d->minor = (unsigned)strtoul(strchr(number, ',') + 1, NULL, 10);
	return d;
}

#define TARGETS_LINE "Number of targets: "

/* --inactive: the number of targets is the inactive table's. */
static void count_inactive_targets(struct device *d, const char *name)
{
	g_autofree char *path = tree_path(ctl_root(), name, "inactive"), *text = NULL, *before = NULL;
	g_auto(GStrv) lines = NULL;
	char *line = strstr(d->info, TARGETS_LINE), *info;

	if (!tree_read(path, &text))
		lines = tree_lines(text);
	d->targets = lines ? g_strv_length(lines) : 0;
	if (!line)
		return;
	before = g_strndup(d->info, (gsize)(line - d->info));
	line += strcspn(line, "\n");
	info = g_strdup_printf("%s" TARGETS_LINE "%u%s", before, d->targets, line);
	g_free(d->info);
	d->info = info;
}

struct device *device_get(const char *name, int *error)
{
	g_autofree char *path = tree_path(ctl_root(), name, "info"), *info = NULL;
	struct device *d;

	*error = tree_read(path, &info);
	if (*error)
		return NULL;
	d = device_parse(info);
	if (!d) {
		*error = -EIO;
		return NULL;
	}
	if (opt.inactive)
		count_inactive_targets(d, name);
	g_free(d->name); /* a name may hold what an info line cannot show */
	g_free(d->shown);
	d->name = g_strdup(name);
	d->shown = tree_shown_name(name);
	return d;
}

void device_free(struct device *d)
{
	if (!d)
		return;
	if (d->deps)
		g_ptr_array_free(d->deps, TRUE);
	g_free(d->name);
	g_free(d->shown);
	g_free(d->uuid);
	g_free(d->info);
	g_free(d);
}

/* --- what stands on what ------------------------------------------------------------------------ */

static int minor_of(const char *name)
{
	g_autofree char *path = tree_path(ctl_root(), name, "dev"), *text = NULL;

	if (tree_read(path, &text) || !strchr(text, ':'))
		return -1;
	return (int)strtoul(strchr(text, ':') + 1, NULL, 10);
}

static struct dep *make_dep(const char *word)
{
	struct dep *dep = g_new0(struct dep, 1);
	struct stat st;

	dep->text = tree_unquote(word);
	dep->major = dep->minor = -1;
	if (*dep->text != '/' && tree_has_device(ctl_root(), dep->text)) {
		dep->mapped = true;
		dep->major = 0;
		dep->minor = minor_of(dep->text);
	} else if (*dep->text == '/' && !stat(dep->text, &st) && S_ISBLK(st.st_mode)) {
		dep->major = (int)major(st.st_rdev);
		dep->minor = (int)minor(st.st_rdev);
	}
	dep->shown = dep->mapped ? tree_shown_name(dep->text) : tree_shown_path(dep->text);
	return dep;
}

static GPtrArray *parse_deps(const char *text)
{
	GPtrArray *deps = g_ptr_array_new_with_free_func(free_dep);
	g_auto(GStrv) lines = tree_lines(text);

	for (unsigned i = 0; lines[i]; i++)
		if (*lines[i])
			g_ptr_array_add(deps, make_dep(lines[i]));
	return deps;
}

GPtrArray *device_deps(struct device *d)
{
	g_autofree char *path = NULL, *text = NULL;

	if (d->deps)
		return d->deps;
	path = tree_path(ctl_root(), d->name, "deps");
	d->deps = parse_deps(tree_read(path, &text) ? "" : text);
	return d->deps;
}

int device_flushed_status(const char *name, char **text)
{
	return tree_message(ctl_root(), name, "@flush status", text);
}

int device_inactive(const char *name, const char *what, char **text)
{
	g_autofree char *message = g_strconcat("@inactive ", what, NULL);

	return tree_message(ctl_root(), name, message, text);
}

GPtrArray *device_inactive_deps(struct device *d)
{
	g_autofree char *text = NULL;

	return parse_deps(device_inactive(d->name, "deps", &text) ? "" : text);
}

/* Whom each device is used by: name -> GPtrArray of struct device, read once. */
static GHashTable *users;

static void note_user(struct device *user, const char *used)
{
	GPtrArray *list = g_hash_table_lookup(users, used);

	if (!list) {
		list = g_ptr_array_new();
		g_hash_table_insert(users, g_strdup(used), list);
	}
	g_ptr_array_add(list, user);
}

GPtrArray *device_users(const char *name)
{
	static GPtrArray none;
	GPtrArray *list;
	int error;

	if (!users) {
		g_autoptr(GPtrArray) names = tree_devices(ctl_root(), &error);

		users = g_hash_table_new(g_str_hash, g_str_equal);
		for (unsigned i = 0; names && i < names->len; i++) {
			struct device *d = device_get(names->pdata[i], &error);

			for (unsigned j = 0; d && j < device_deps(d)->len; j++)
				if (((struct dep *)d->deps->pdata[j])->mapped)
					note_user(d, ((struct dep *)d->deps->pdata[j])->text);
		}
	}
	list = g_hash_table_lookup(users, name);
	return list ? list : &none;
}

/* --- all devices ------------------------------------------------------------------------------------ */

/* Takes away those not selected, and sorts the rest. */
static bool filter(GPtrArray *list)
{
	struct report *r;

	if (!opt.select && !opt.sort)
		return true;
	if (fields_report(&r, false) != REPORT_OK)
		return false;
	for (unsigned i = 0; i < list->len;)
		if (report_selects(r, list->pdata[i]))
			i++;
		else
			g_ptr_array_remove_index(list, i);
	report_sort_objects(r, list);
	report_free(r);
	return true;
}

GPtrArray *device_list(bool chosen)
{
	g_autoptr(GPtrArray) names = NULL, list = NULL;
	int error = 0;

	names = tree_devices(ctl_root(), &error);
	if (!names) {
		say("%s: %s", ctl_root(), g_strerror(-error));
		return NULL;
	}
	list = g_ptr_array_new_with_free_func((GDestroyNotify)device_free);
	for (unsigned i = 0; i < names->len; i++) {
		struct device *d = device_get(names->pdata[i], &error);

		if (d)
			g_ptr_array_add(list, d);
		else if (error != -ENOENT && error != -ENXIO && error != -ENODEV) /* not just removed */
			return say("%s: %s", (char *)names->pdata[i], g_strerror(-error)), NULL;
	}
	return !chosen || filter(list) ? g_steal_pointer(&list) : NULL;
}

/* --- whom a command is about ---------------------------------------------------------------------------- */

bool named_by_option(void)
{
	return opt.uuid || opt.major >= 0;
}

/* MOUNTPOINT/NAME, MOUNTPOINT/NAME/image and, for scripts made for dmsetup, /dev/mapper/NAME are NAME. */
static char *strip_directories(const char *argument)
{
	const char *root = ctl_root();
	g_autofree char *path = NULL;
	char *real;

	if (g_str_has_prefix(argument, "/dev/mapper/"))
		return g_strdup(argument + strlen("/dev/mapper/"));
	if (!strchr(argument, '/'))
		return g_strdup(argument);
	real = realpath(argument, NULL);
	path = g_strdup(real ? real : argument);
	free(real);
	if (!g_str_has_prefix(path, root) || path[strlen(root)] != '/')
		return g_strdup(argument);
	if (g_str_has_suffix(path, "/image"))
		path[strlen(path) - strlen("/image")] = '\0';
	return g_strdup(path + strlen(root) + 1);
}

char *device_of_uuid(const char *uuid)
{
	g_autofree char *plain_uuid = unmangle(uuid);
	g_autoptr(GPtrArray) names = NULL;
	int error;

	names = tree_devices(ctl_root(), &error);
	for (unsigned i = 0; names && i < names->len; i++) {
		g_autofree char *path = tree_path(ctl_root(), names->pdata[i], "uuid"), *text = NULL;

		if (tree_read(path, &text))
			continue;
		g_strchomp(text);
		if (*text && (!strcmp(text, uuid) || !strcmp(text, plain_uuid)))
			return g_strdup(names->pdata[i]);
	}
	return NULL;
}

static char *by_number(int64_t major, int64_t minor)
{
	g_autoptr(GPtrArray) names = NULL;
	int error;

	names = tree_devices(ctl_root(), &error);
	for (unsigned i = 0; major == 0 && names && i < names->len; i++)
		if (minor_of(names->pdata[i]) == minor)
			return g_strdup(names->pdata[i]);
	return NULL;
}

static enum ident_result by_argument(const char *argument, struct ident *id)
{
	g_autofree char *name = strip_directories(argument);

	id->said = argument;
	if (strchr(argument, '/') && !tree_has_device(ctl_root(), name)) {
		say("Device %s not found", argument);
		return IDENT_BAD;
	}
	if (opt.mangling == MANGLE_AUTO && strstr(name, "\\x") && !tree_has_device(ctl_root(), name))
		id->name = unmangle(name);
	else
		id->name = g_steal_pointer(&name);
	return name_too_long(id->name) ? IDENT_BAD : IDENT_OK;
}

enum ident_result ident_find(const char *argument, struct ident *id)
{
	*id = (struct ident){NULL, NULL, false};
	if (!ctl_root())
		return IDENT_BAD;
	if (argument)
		return by_argument(argument, id);
	if (opt.uuid) {
		id->name = device_of_uuid(opt.uuid);
		return IDENT_OK;
	}
	if (opt.major < 0)
		return IDENT_NONE;
	id->by_number = true;
	id->name = by_number(opt.major, opt.minor);
	return IDENT_OK;
}

bool ident_need(const char *argument, struct ident *id)
{
	enum ident_result result = ident_find(argument, id);

	if (result == IDENT_NONE)
		return say("No device specified.");
	return result == IDENT_OK;
}

void ident_clear(struct ident *id)
{
	g_free(id->name);
	id->name = NULL;
}
