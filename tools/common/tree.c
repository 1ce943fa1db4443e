/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A mounted dmfs as the tools see it (tree.h). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tree.h"

/* --- finding the mount --------------------------------------------------------------- */

/* mountinfo writes blanks and backslashes of a path as \ooo. */
static char *unescape_octal(const char *in)
{
	GString *out = g_string_new(NULL);

	while (*in) {
		if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] >= '0' && in[2] <= '7' && in[3] >= '0' &&
		    in[3] <= '7') {
			g_string_append_c(out, (char)((in[1] - '0') << 6 | (in[2] - '0') << 3 | (in[3] - '0')));
			in += 4;
		} else {
			g_string_append_c(out, *in++);
		}
	}
	return g_string_free(out, FALSE);
}

static gboolean same_string(gconstpointer a, gconstpointer b)
{
	return !strcmp(a, b);
}

/*
 * A line of mountinfo, proc(5):
 *   ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAG]... - FSTYPE SOURCE SUPEROPTIONS
 * A later mount on the same point hides the earlier.
 */
static GPtrArray *list_mounts(const char *mountinfo, const char *type)
{
	GPtrArray *found = g_ptr_array_new_with_free_func(g_free);
	g_auto(GStrv) lines = g_strsplit(mountinfo, "\n", -1);

	for (unsigned i = 0; lines[i]; i++) {
		g_auto(GStrv) words = g_strsplit(lines[i], " ", -1);
		g_autofree char *path = NULL;
		unsigned n = g_strv_length(words), dash = 6, at;

		while (dash < n && strcmp(words[dash], "-"))
			dash++;
		if (dash + 1 >= n)
			continue;
		path = unescape_octal(words[4]);
		if (g_ptr_array_find_with_equal_func(found, path, same_string, &at))
			g_ptr_array_remove_index(found, at);
		if (!strcmp(words[dash + 1], type))
			g_ptr_array_add(found, g_steal_pointer(&path));
	}
	return found;
}

GPtrArray *tree_list_mounts(const char *mountinfo)
{
	return list_mounts(mountinfo, "fuse.dmfs");
}

GPtrArray *tree_list_image_mounts(const char *mountinfo)
{
	return list_mounts(mountinfo, "fuse.dmfs-images");
}

static char *only_mount(GError **err)
{
	g_autoptr(GPtrArray) found = NULL;
	g_autoptr(GString) all = g_string_new(NULL);
	g_autofree char *text = NULL;

	if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, err))
		return NULL;
	found = tree_list_mounts(text);
	if (found->len == 1)
		return g_strdup(found->pdata[0]);
	for (unsigned i = 0; i < found->len; i++)
		g_string_append_printf(all, "%s%s", i ? ", " : "", (char *)found->pdata[i]);
	if (found->len)
		g_set_error(err, G_FILE_ERROR, G_FILE_ERROR_INVAL,
			    "%u are mounted (%s): say which with -m or DMFS_MOUNT", found->len, all->str);
	else
		g_set_error(err, G_FILE_ERROR, G_FILE_ERROR_NOENT, "none is mounted: run 'dmfs MOUNTPOINT' first");
	return NULL;
}

char *tree_find_mount(const char *wanted, GError **err)
{
	const char *from = wanted ? "-m" : "DMFS_MOUNT";
	g_autofree char *control = NULL, *real = NULL;
	char *resolved;

	if (!wanted)
		wanted = g_getenv("DMFS_MOUNT");
	if (!wanted || !*wanted)
		return only_mount(err);
	resolved = realpath(wanted, NULL);
	if (!resolved) {
		g_set_error(err, G_FILE_ERROR, g_file_error_from_errno(errno), "%s %s: %s", from, wanted,
			    g_strerror(errno));
		return NULL;
	}
	real = g_strdup(resolved);
	free(resolved);
	control = tree_path(real, NULL, "control");
	if (access(control, F_OK)) {
		g_set_error(err, G_FILE_ERROR, G_FILE_ERROR_NOENT, "%s %s: no dmfs is mounted there (%s: %s)", from, wanted,
			    control, g_strerror(errno));
		return NULL;
	}
	return g_steal_pointer(&real);
}

/* --- its files --------------------------------------------------------------------------- */

char *tree_path(const char *root, const char *name, const char *file)
{
	return g_strconcat(root, name ? "/" : "", name ? name : "", file ? "/" : "", file ? file : "", NULL);
}

/* What an open file gives from its current place on. */
static int read_all(int fd, char **text)
{
	g_autoptr(GString) all = g_string_new(NULL);
	char part[16384];
	ssize_t n;

	while ((n = read(fd, part, sizeof part)))
		if (n > 0)
			g_string_append_len(all, part, n);
		else if (errno != EINTR)
			return -errno;
	*text = g_string_free(g_steal_pointer(&all), FALSE);
	return 0;
}

static int write_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		text += n;
		len -= (size_t)n;
	}
	return 0;
}

int tree_read(const char *path, char **text)
{
	return tree_read_at(AT_FDCWD, path, text);
}

int tree_read_at(int directory, const char *file, char **text)
{
	int fd = openat(directory, file, O_RDONLY | O_CLOEXEC), error;

	if (fd < 0)
		return -errno;
	error = read_all(fd, text);
	close(fd);
	return error;
}

int tree_write(const char *path, const char *text, size_t len)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), error;

	if (fd < 0)
		return -errno;
	error = write_all(fd, text, len);
	if (close(fd) && !error)
		error = -errno;
	return error;
}

int tree_write_text(const char *path, const char *text)
{
	return tree_write(path, text, strlen(text));
}

int tree_message(const char *root, const char *name, const char *text, char **reply)
{
	g_autofree char *path = tree_path(root, name, "message");
	int fd = open(path, O_RDWR | O_CLOEXEC), error;

	if (fd < 0)
		return -errno;
	error = write_all(fd, text, strlen(text));
	if (!error && lseek(fd, 0, SEEK_SET) < 0)
		error = -errno;
	if (!error)
		error = read_all(fd, reply);
	close(fd);
	return error;
}

static gint by_name(gconstpointer a, gconstpointer b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_directory(const char *root, const struct dirent *e)
{
	g_autofree char *path = NULL;
	struct stat st;

	if (e->d_type != DT_UNKNOWN)
		return e->d_type == DT_DIR;
	path = tree_path(root, e->d_name, NULL);
	return !stat(path, &st) && S_ISDIR(st.st_mode);
}

GPtrArray *tree_devices(const char *root, int *error)
{
	GPtrArray *names;
	struct dirent *e;
	DIR *dir = opendir(root);

	if (!dir) {
		*error = -errno;
		return NULL;
	}
	names = g_ptr_array_new_with_free_func(g_free);
	while ((e = readdir(dir)))
		if (e->d_name[0] != '.' && is_directory(root, e))
			g_ptr_array_add(names, g_strdup(e->d_name));
	closedir(dir);
	g_ptr_array_sort(names, by_name);
	return names;
}

bool tree_has_device(const char *root, const char *name)
{
	g_autofree char *path = NULL;
	struct stat st;

	if (!*name || *name == '.' || strchr(name, '/'))
		return false;
	path = tree_path(root, name, NULL);
	return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* --- words ---------------------------------------------------------------------------------- */

char *tree_quote(const char *word)
{
	GString *out = g_string_new(NULL);

	for (const char *p = word; *p; p++) {
		if (g_ascii_isspace(*p) || strchr("\\\"'#", *p))
			g_string_append_c(out, '\\');
		g_string_append_c(out, *p);
	}
	return g_string_free(out, FALSE);
}

char *tree_unquote(const char *word)
{
	GString *out = g_string_new(NULL);

	for (const char *p = word; *p; p++) {
		if (*p == '\\' && p[1])
			p++;
		g_string_append_c(out, *p);
	}
	return g_string_free(out, FALSE);
}

size_t tree_line_length(const char *text, bool comments)
{
	bool blank = true, comment = false;
	size_t i;

	for (i = 0; text[i] && text[i] != '\n'; i++) {
		comment |= comments && blank && text[i] == '#';
		blank = g_ascii_isspace(text[i]);
		if (text[i] == '\\' && text[i + 1] && !comment)
			i++;
	}
	return i;
}

char **tree_lines(const char *text)
{
	GPtrArray *lines = g_ptr_array_new();

	while (*text) {
		size_t len = tree_line_length(text, false);

		g_ptr_array_add(lines, g_strndup(text, len));
		text += len + (text[len] == '\n');
	}
	g_ptr_array_add(lines, NULL);
	return (char **)g_ptr_array_free(lines, FALSE);
}

char **tree_words(const char *line)
{
	GPtrArray *words = g_ptr_array_new();

	for (;;) {
		size_t len = 0;

		while (g_ascii_isspace(*line))
			line++;
		if (!*line)
			break;
		while (line[len] && !g_ascii_isspace(line[len]))
			len += 1 + (line[len] == '\\' && line[len + 1]);
		g_ptr_array_add(words, g_strndup(line, len));
		line += len;
	}
	g_ptr_array_add(words, NULL);
	return (char **)g_ptr_array_free(words, FALSE);
}

/* --- what is shown --------------------------------------------------------------------------- */

static bool has_control(const char *text)
{
	for (; *text; text++)
		if (g_ascii_iscntrl(*text))
			return true;
	return false;
}

/* Characters that need no \xNN, which are those that udev takes. */
static bool plain(char c)
{
	return g_ascii_isalnum(c) || (c && strchr("#+-.:=@_", c));
}

char *tree_mangle(const char *name)
{
	GString *out = g_string_new(NULL);

	for (const char *p = name; *p; p++)
		if (plain(*p))
			g_string_append_c(out, *p);
		else
			g_string_append_printf(out, "\\x%02x", (unsigned char)*p);
	return g_string_free(out, FALSE);
}

char *tree_shown_name(const char *name)
{
	return has_control(name) ? tree_mangle(name) : g_strdup(name);
}

char *tree_shown_path(const char *path)
{
	GString *out;

	if (!has_control(path))
		return g_strdup(path);
	out = g_string_new(NULL);
	for (const char *p = path; *p; p++)
		if (g_ascii_iscntrl(*p) || *p == '\\')
			g_string_append_printf(out, "\\x%02x", (unsigned char)*p);
		else
			g_string_append_c(out, *p);
	return g_string_free(out, FALSE);
}
