/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commands that load tables: create, load, clear, wipe_table.
 *
 * As dmsetup does with its ioctls, a table goes to the inactive slot and is then resumed, so that an error tells which
 * of the two failed.  A device that could not be made completely does not remain.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "concise.h"
#include "dmfsctl.h"

/* --- table texts ------------------------------------------------------------------------ */

/* "START LENGTH TYPE ...": whether a line has these three. */
static bool line_is_a_target(const char *p)
{
	for (int i = 0; i < 2; i++) {
		p += *p == '+';
		if (!isdigit((unsigned char)*p))
			return false;
		while (isdigit((unsigned char)*p))
			p++;
		while (isspace((unsigned char)*p))
			p++;
	}
	return *p;
}

static bool check_lines(const char *text, const char *where, bool *empty)
{
	*empty = true;
	for (unsigned nr = 1; *text; nr++) {
		size_t len = tree_line_length(text, true);
		g_autofree char *line = g_strndup(text, len);
		const char *p = g_strchug(line);

		text += len + (text[len] == '\n');
		if (!*p || *p == '#')
			continue;
		if (!line_is_a_target(p))
			return say("Invalid format on line %u of table %s.", nr, where);
		*empty = false;
	}
	return true;
}

/* As dmsetup, but that a '#' within a word is the word's: files are so named. */
static size_t comment_length(const char *text, const char *line)
{
	return *text == '#' && text > line ? strcspn(text, "\n") : 0;
}

/*
 * Scripts made for dmsetup name their devices /dev/mapper/NAME: such a word becomes the dmfs device of that name, if
 * there is one and the kernel has none.  By its path in the mount, which is never taken for a file's: a bare name may
 * be, in the device's own table.
 */
static char *translate_word(const char *word, size_t len)
{
	g_autofree char *path = g_strndup(word, len), *plain = tree_unquote(path), *device = NULL;

	if (!g_str_has_prefix(plain, "/dev/mapper/") || !access(plain, F_OK) ||
	    !tree_has_device(ctl_root(), plain + strlen("/dev/mapper/")))
		return g_steal_pointer(&path);
	device = tree_path(ctl_root(), plain + strlen("/dev/mapper/"), NULL);
	return tree_quote(device);
}

static char *translate(const char *text)
{
	GString *out = g_string_new(NULL);
	const char *begin = text;

	while (*text) {
		size_t blank = strspn(text, " \t\r\n\v\f"), len = 0;

		g_string_append_len(out, text, (gssize)blank);
		text += blank;
		text += comment_length(text, begin);
		while (text[len] && !isspace((unsigned char)text[len]))
			len += 1 + (text[len] == '\\' && text[len + 1]);
		if (len) {
			g_autofree char *word = translate_word(text, len);

			g_string_append(out, word);
		}
		text += len;
	}
	return g_string_free(out, FALSE);
}

static char *read_stdin(void)
{
	GString *all = g_string_new(NULL);
	char part[16384];
	size_t n;

	while ((n = fread(part, 1, sizeof part, stdin)))
		g_string_append_len(all, part, (gssize)n);
	if (!ferror(stdin))
		return g_string_free(all, FALSE);
	say("Read from stdin aborted: %s", g_strerror(errno));
	g_string_free(all, TRUE);
	return NULL;
}

/* From --table, a file, or the standard input; NULL: it has been said why. */
static char *get_table(const char *file, bool *empty)
{
	g_autofree char *text = NULL;
	const char *where = opt.table ? "" : file ? file : "on stdin";

	if (opt.table) {
		text = g_strdup(opt.table);
	} else if (!file) {
		text = read_stdin();
	} else if (tree_read(file, &text)) {
		say("Couldn't open '%s' for reading.", file);
		return NULL;
	}
	return text && check_lines(text, where, empty) ? translate(text) : NULL;
}

/* --- loading ------------------------------------------------------------------------------ */

static int set_readonly(const char *name, bool readonly, bool *before)
{
	g_autofree char *path = tree_path(ctl_root(), name, "readonly"), *text = NULL;
	int error = tree_read(path, &text);

	if (error)
		return error;
	*before = *text == '1';
	return *before == readonly ? 0 : tree_write_text(path, readonly ? "1\n" : "0\n");
}

/* A negative errno as the kernel's would be: a path in a table that is not there is a device that is not there. */
static int load_inactive(const char *name, const char *table, bool readonly)
{
	g_autofree char *path = tree_path(ctl_root(), name, "inactive");
	bool before, unused;
	int error = set_readonly(name, readonly, &before);

	if (error)
		return error;
	error = tree_write_text(path, table);
	if (error)
		set_readonly(name, before, &unused);
	if (error == -ENOENT && tree_has_device(ctl_root(), name))
		error = -ENODEV;
	return error;
}

int write_suspend(const char *name, const char *word)
{
	g_autofree char *path = tree_path(ctl_root(), name, "suspend");

	return tree_write_text(path, word);
}

bool cmd_load(int argc, char **argv)
{
	AUTO_IDENT id = {0};
	g_autofree char *table = NULL;
	bool empty;
	int error;

	if (opt.notable)
		return say("--notable only available when creating new device.");
	if (!named_by_option() && !argc)
		return say("Please specify device.");
	if (named_by_option() && argc > 1)
		return say("Too many command line arguments.");
	if (!ident_need(named_by_option() ? NULL : *argv++, &id))
		return false;
	table = get_table(*argv, &empty);
	if (!table)
		return false;
	if (!id.name)
		return ioctl_failed("reload", &id, -ENXIO);
	error = empty ? -EINVAL : load_inactive(id.name, table, opt.readonly);
	if (empty && !tree_has_device(ctl_root(), id.name))
		error = -ENXIO;
	if (error) {
		ioctl_failed("reload", &id, error);
		if (!empty)
			show_error_file(id.name);
		return false;
	}
	return !opt.verbose || show_info(id.name);
}

bool cmd_clear(int argc, char **argv)
{
	AUTO_IDENT id = {0};
	g_autofree char *path = NULL;
	int fd;

	(void)argc;
	if (!ident_need(*argv, &id))
		return false;
	if (!id.name)
		return ioctl_failed("clear", &id, -ENXIO);
	path = tree_path(ctl_root(), id.name, "inactive");
	fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (fd < 0 || close(fd))
		return ioctl_failed("clear", &id, -errno);
	return !opt.verbose || show_info(id.name);
}

/* --- wipe_table ------------------------------------------------------------------------------- */

/* The sectors of a table as it reads. */
static guint64 table_sectors(const char *text)
{
	g_auto(GStrv) lines = tree_lines(text);
	guint64 sectors = 0;

	for (unsigned i = 0; lines[i]; i++) {
		char *end;
		guint64 start = g_ascii_strtoull(lines[i], &end, 10), len = g_ascii_strtoull(end, NULL, 10);

		if (*lines[i])
			sectors = start + len;
	}
	return sectors;
}

bool wipe_table(const struct ident *id, bool noflush)
{
	g_autofree char *path = NULL, *text = NULL, *table = NULL;
	guint64 sectors = 0;
	int error = -ENXIO;

	if (id->name) {
		path = tree_path(ctl_root(), id->name, "table");
		error = tree_read(path, &text);
	}
	if (error)
		ioctl_failed("table", id, error);
	else
		sectors = table_sectors(text);
	if (!error && !sectors)
		error = -EINVAL;
	table = g_strdup_printf("0 %" G_GUINT64_FORMAT " error\n", sectors);
	if (!error)
		error = load_inactive(id->name, table, false);
	if (error)
		return ioctl_failed("reload", id, error);
	error = write_suspend(id->name, noflush ? "0 noflush\n" : "0\n");
	if (!error)
		return true;
	ioctl_failed("resume", id, error);
	show_error_file(id->name);
	return false;
}

bool cmd_wipe_table(int argc, char **argv)
{
	AUTO_IDENT id = {0};

	(void)argc;
	return ident_need(*argv, &id) && wipe_table(&id, opt.noflush || opt.force);
}

/* --- create -------------------------------------------------------------------------------------- */

static int make_directory(const char *name, int64_t minor)
{
	g_autofree char *path = NULL, *command = NULL, *quoted = NULL;

	if (minor < 0) {
		path = tree_path(ctl_root(), name, NULL);
		return mkdir(path, 0700) ? -errno : 0;
	}
	path = tree_path(ctl_root(), NULL, "control");
	quoted = tree_quote(name);
	command = g_strdup_printf("create %s %d\n", quoted, (int)minor);
	return tree_write_text(path, command);
}

static int set_uuid(const char *name, const char *uuid)
{
	g_autofree char *path = tree_path(ctl_root(), name, "uuid");

	return uuid && *uuid ? tree_write_text(path, uuid) : 0;
}

/* -U, -G and -M are the image's. */
static bool set_owner(const char *name)
{
	g_autofree char *path = tree_path(ctl_root(), name, "image");

	if ((opt.uid >= 0 || opt.gid >= 0) && chown(path, (uid_t)opt.uid, (gid_t)opt.gid))
		return say("%s: chown: %s", path, g_strerror(errno));
	if (opt.mode >= 0 && chmod(path, (mode_t)opt.mode))
		return say("%s: chmod: %s", path, g_strerror(errno));
	return true;
}

static bool load_and_resume(const char *name, const char *table, bool readonly)
{
	int error, minor = -1;
	struct device *d = device_get(name, &error);
	const char *step = "reload";

	if (d)
		minor = (int)d->minor;
	device_free(d);
	error = load_inactive(name, table, readonly);
	if (!error) {
		step = "resume";
		error = write_suspend(name, "0\n");
	}
	if (!error)
		return true;
	ioctl_failed_on(step, name, NULL, minor, error);
	show_error_file(name);
	return false;
}

/* table NULL: none. */
static bool create(const struct concise_device *want, const char *table)
{
	g_autofree char *name = name_to_store(want->name, "name"), *path = NULL, *uuid = NULL;
	int error;

	uuid = name && want->uuid ? name_to_store(want->uuid, "UUID") : NULL;
	if (!name || (want->uuid && !uuid))
		return false;
	if (!*name || *name == '.') /* these name no directory, or another one */
		return ioctl_failed_on("create", name, uuid, (int)want->minor, -EINVAL);
	error = make_directory(name, want->minor);
	if (error)
		return ioctl_failed_on("create", name, want->uuid, (int)want->minor, error == -EEXIST ? -EBUSY : error);
	error = set_uuid(name, uuid);
	if (error)
		ioctl_failed_on("create", name, want->uuid, (int)want->minor, error);
	if (!error && set_owner(name) && (!table || load_and_resume(name, table, want->readonly)))
		return true;
	path = tree_path(ctl_root(), name, NULL);
	if (rmdir(path))
		say("%s remains: %s", name, g_strerror(errno));
	return false;
}

static bool create_one(const struct concise_device *want, void *unused)
{
	bool empty;
	g_autofree char *table = NULL;

	(void)unused;
	if (!check_lines(want->table, "", &empty))
		return false;
	table = translate(want->table);
	return create(want, empty ? NULL : table);
}

static bool create_concise(int argc, char **argv)
{
	g_autofree char *text = NULL;

	if (opt.table || opt.notable || opt.minor >= 0 || opt.uuid || opt.inactive)
		return say("--concise is incompatible with --[no]table, --minor, --uuid and --inactive.");
	if (argc > 1)
		return say("dmsetup create --concise takes at most one argument");
	text = argc ? g_strdup(argv[0]) : read_stdin();
	return text && concise_parse(text, create_one, NULL);
}

bool cmd_create(int argc, char **argv)
{
	struct concise_device want = {.uuid = opt.uuid, .minor = opt.minor, .readonly = opt.readonly};
	g_autofree char *table = NULL;
	bool empty = true;

	if (!ctl_root())
		return false;
	if (opt.concise)
		return create_concise(argc, argv);
	if (!argc)
		return say("Please provide a name for the new device.");
	want.name = argv[0];
	if (opt.readahead && strcmp(opt.readahead, "auto"))
		say("--readahead %s: a dmfs device has no read-ahead of its own", opt.readahead);
	if (!opt.notable) {
		table = get_table(argv[1], &empty);
		if (!table)
			return false;
	}
	if (!create(&want, empty ? NULL : table))
		return false;
	return !opt.verbose || show_info(want.name);
}
