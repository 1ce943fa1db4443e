/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is mounted and attached around us (around.h). */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/tree.h"
#include "around.h"

/* A file in a directory of images. */
struct view {
	char *path;
	dev_t mount;
	uint64_t inode, created; /* as of the device's image in the tree */
};

static GPtrArray *roots;       /* of every dmfs, char * */
static GPtrArray *image_roots; /* directories of images, char * */
static GPtrArray *views;
static GPtrArray *mounts; /* those that answer and are ours */
static GPtrArray *nodes, *loops;
static GString *silent; /* who has not answered */

static void node_free(gpointer p)
{
	struct node *n = p;

	g_free(n->root);
	g_free(n->name);
	g_free(n->table);
	g_free(n->deps);
	g_free(n);
}

static void view_free(gpointer p)
{
	struct view *v = p;

	g_free(v->path);
	g_free(v);
}

static void loop_free(gpointer p)
{
	struct loop_device *l = p;

	g_free(l->name);
	g_free(l->file);
	g_free(l);
}

/* --- answers -------------------------------------------------------------------------------------- */

/*
 * An answer is words that end in a zero byte:
 *   of a dmfs: DEV CONTROLLED {NAME INODE CREATED READONLY TABLE DEPS}... and an empty word
 *   of a directory of images: {NAME DEV INODE CREATED}... and an empty word
 *   of loop devices: {NAME DEV READONLY FILE MODE FILE_DEV FILE_RDEV INODE OFFSET LIMIT}... and an empty word
 */
static void say(GString *answer, const char *word)
{
	g_string_append_len(answer, word, (gssize)strlen(word) + 1);
}

static void say_number(GString *answer, uint64_t n)
{
	g_autofree char *text = g_strdup_printf("%" PRIu64, n);

	say(answer, text);
}

/* Its next word; *at stays within the answer.  NULL: there is none. */
static const char *hear(const GString *answer, size_t *at)
{
	const char *word = answer->str + *at;

	if (*at >= answer->len)
		return NULL;
	*at += strlen(word) + 1;
	return word;
}

static uint64_t hear_number(const GString *answer, size_t *at)
{
	const char *word = hear(answer, at);

	return word ? g_ascii_strtoull(word, NULL, 10) : 0;
}

static uint64_t time_of(const struct stat *st)
{
	return (uint64_t)st->st_ctim.tv_sec * G_USEC_PER_SEC * 1000 + (uint64_t)st->st_ctim.tv_nsec;
}

/* --- a dmfs --------------------------------------------------------------------------------------- */

static char *read_or_empty(const char *root, const char *name, const char *file)
{
	g_autofree char *path = tree_path(root, name, file);
	char *text;

	return tree_read(path, &text) ? g_strdup("") : text;
}

static void tell_device(GString *answer, const char *root, const char *name)
{
	g_autofree char *image = tree_path(root, name, "image"), *table = NULL, *deps = NULL, *readonly = NULL;
	struct stat st;

	if (stat(image, &st))
		return;
	readonly = read_or_empty(root, name, "readonly");
	table = read_or_empty(root, name, "table");
	deps = read_or_empty(root, name, "deps");
	say(answer, name);
	say_number(answer, st.st_ino);
	say_number(answer, time_of(&st));
	say_number(answer, *readonly == '1');
	say(answer, table);
	say(answer, deps);
}

static void tell_dmfs(GString *answer, const char *root)
{
	g_autofree char *control = tree_path(root, "control", NULL);
	g_autoptr(GPtrArray) names = NULL;
	struct stat st;
	int error;

	if (stat(root, &st))
		return;
	say_number(answer, st.st_dev);
	say_number(answer, !access(control, W_OK));
	names = tree_devices(root, &error);
	for (unsigned i = 0; names && i < names->len; i++)
		tell_device(answer, root, names->pdata[i]);
	say(answer, "");
}

static void hear_dmfs(const GString *answer, const char *root)
{
	size_t at = 0;
	dev_t mount = hear_number(answer, &at);
	const char *name;

	if (hear_number(answer, &at))
		g_ptr_array_add(mounts, g_strdup(root));
	while ((name = hear(answer, &at)) && *name) {
		struct node *n = g_new0(struct node, 1);

		n->root = g_strdup(root);
		n->name = g_strdup(name);
		n->mount = mount;
		n->inode = hear_number(answer, &at);
		n->created = hear_number(answer, &at);
		n->readonly = hear_number(answer, &at);
		n->table = g_strdup(hear(answer, &at));
		n->deps = g_strdup(hear(answer, &at));
		g_ptr_array_add(nodes, n);
	}
}

/* --- its directory of images ------------------------------------------------------------------------- */

static void tell_images(GString *answer, const char *root)
{
	g_autoptr(GDir) dir = g_dir_open(root, 0, NULL);
	const char *name;

	while (dir && (name = g_dir_read_name(dir))) {
		g_autofree char *path = tree_path(root, name, NULL);
		struct stat st;

		if (stat(path, &st))
			continue;
		say(answer, name);
		say_number(answer, st.st_dev);
		say_number(answer, st.st_ino);
		say_number(answer, time_of(&st));
	}
	say(answer, "");
}

static void hear_images(const GString *answer, const char *root)
{
	size_t at = 0;
	const char *name;

	while ((name = hear(answer, &at)) && *name) {
		struct view *v = g_new0(struct view, 1);

		v->path = tree_path(root, name, NULL);
		v->mount = hear_number(answer, &at);
		v->inode = hear_number(answer, &at);
		v->created = hear_number(answer, &at);
		g_ptr_array_add(views, v);
	}
}

static const struct node *node_of_view(const struct view *v)
{
	for (unsigned i = 0; i < nodes->len; i++) {
		const struct node *n = nodes->pdata[i];

		if (n->inode == v->inode && n->created == v->created)
			return n;
	}
	return NULL;
}

/* --- loop devices ---------------------------------------------------------------------------------- */

static char *loop_file(const char *loop, const char *file)
{
	g_autofree char *path = g_strdup_printf("/sys/block/%s/%s", loop, file);
	char *text;

	return tree_read(path, &text) ? NULL : g_strchomp(text);
}

static void tell_loop(GString *answer, const char *name)
{
	static const char *const numbers[] = {"loop/offset", "loop/sizelimit"};
	g_autofree char *file = loop_file(name, "loop/backing_file"), *dev = loop_file(name, "dev"),
			*readonly = loop_file(name, "ro");
	const struct node *unused;
	struct stat st = {0};

	if (!file || !dev)
		return;
	if (around_is_in_dmfs(file, &unused) || stat(file, &st))
		st = (struct stat){0};
	say(answer, name);
	say(answer, dev);
	say_number(answer, readonly && *readonly == '1');
	say(answer, file);
	say_number(answer, st.st_mode);
	say_number(answer, st.st_dev);
	say_number(answer, st.st_rdev);
	say_number(answer, st.st_ino);
	for (size_t i = 0; i < G_N_ELEMENTS(numbers); i++) {
		g_autofree char *text = loop_file(name, numbers[i]);

		say(answer, text ? text : "0");
	}
}

static void tell_loops(GString *answer, const char *unused)
{
	g_autoptr(GDir) dir = g_dir_open("/sys/block", 0, NULL);
	const char *name;

	while (dir && (name = g_dir_read_name(dir)))
		if (g_str_has_prefix(name, "loop"))
			tell_loop(answer, name);
	say(answer, "");
}

static void hear_loops(const GString *answer, const char *unused)
{
	size_t at = 0;
	const char *name, *dev;

	while ((name = hear(answer, &at)) && *name && (dev = hear(answer, &at))) {
		struct loop_device *l = g_new0(struct loop_device, 1);
		unsigned major_nr = 0, minor_nr = 0;

		if (sscanf(dev, "%u:%u", &major_nr, &minor_nr) == 2)
			l->dev = makedev(major_nr, minor_nr);
		l->name = g_strdup(name);
		l->readonly = hear_number(answer, &at);
		l->file = g_strdup(hear(answer, &at));
		l->mode = (mode_t)hear_number(answer, &at);
		l->file_dev = hear_number(answer, &at);
		l->file_rdev = hear_number(answer, &at);
		l->file_inode = hear_number(answer, &at);
		l->offset = hear_number(answer, &at);
		l->limit = hear_number(answer, &at);
		g_ptr_array_add(loops, l);
	}
}

/* --- asking ---------------------------------------------------------------------------------------- */

struct question {
	void (*tell)(GString *answer, const char *of); /* in a process of its own */
	void (*hear)(const GString *answer, const char *of);
	const char *of;
	GString *answer;
	pid_t pid;
	int fd; /* -1: all has been said */
};

static void ask(struct question *q)
{
	int fds[2];

	q->answer = g_string_new(NULL);
	q->fd = -1;
	if (pipe(fds))
		return;
	q->pid = fork();
	if (!q->pid) {
		FILE *out = fdopen(fds[1], "w");

		q->tell(q->answer, q->of);
		_exit(!out || fwrite(q->answer->str, 1, q->answer->len, out) != q->answer->len || fflush(out));
	}
	close(fds[1]);
	if (q->pid > 0)
		q->fd = fds[0];
	else
		close(fds[0]);
}

static void read_some(struct question *q)
{
	char part[65536];
	ssize_t n = read(q->fd, part, sizeof(part));

	if (n < 0 && errno == EINTR)
		return;
	if (n > 0) {
		g_string_append_len(q->answer, part, n);
	} else {
		close(q->fd);
		q->fd = -1;
	}
}

static void wait_for_answers(struct question *questions, unsigned n)
{
	gint64 end = g_get_monotonic_time() + AROUND_SECONDS * G_USEC_PER_SEC, left;
	g_autofree struct pollfd *polled = g_new0(struct pollfd, n);

	while ((left = end - g_get_monotonic_time()) > 0) {
		bool waiting = false;

		for (unsigned i = 0; i < n; i++) {
			polled[i] = (struct pollfd){.fd = questions[i].fd, .events = POLLIN};
			waiting |= questions[i].fd >= 0;
		}
		if (!waiting || poll(polled, n, (int)(left / 1000) + 1) < 0)
			break;
		for (unsigned i = 0; i < n; i++)
			if (polled[i].revents)
				read_some(&questions[i]);
	}
}

/* One that still has not answered is left alone: where it hangs, it may not even be killed. */
static void conclude(struct question *q)
{
	if (q->fd >= 0) {
		g_string_append_printf(silent, "%s%s", silent->len ? ", " : "",
				       q->of ? q->of : "what a loop device is on");
		kill(q->pid, SIGKILL);
		close(q->fd);
	} else if (q->pid > 0) {
		waitpid(q->pid, NULL, 0);
		q->hear(q->answer, q->of);
	}
	g_string_free(q->answer, TRUE);
}

static void ask_all(const char *but)
{
	g_autofree struct question *questions = g_new0(struct question, roots->len + image_roots->len + 1);
	unsigned n = 0;

	for (unsigned i = 0; i < roots->len; i++)
		if (g_strcmp0(roots->pdata[i], but))
			questions[n++] = (struct question){.tell = tell_dmfs, .hear = hear_dmfs, .of = roots->pdata[i]};
	for (unsigned i = 0; i < image_roots->len; i++)
		questions[n++] =
		    (struct question){.tell = tell_images, .hear = hear_images, .of = image_roots->pdata[i]};
	questions[n++] = (struct question){.tell = tell_loops, .hear = hear_loops};
	for (unsigned i = 0; i < n; i++)
		ask(&questions[i]);
	wait_for_answers(questions, n);
	for (unsigned i = 0; i < n; i++)
		conclude(&questions[i]);
}

/* --- the view -------------------------------------------------------------------------------------- */

static void forget(const char *root)
{
	for (unsigned i = nodes->len; i-- > 0;)
		if (!strcmp(((struct node *)nodes->pdata[i])->root, root))
			g_ptr_array_remove_index(nodes, i);
	for (unsigned i = mounts->len; i-- > 0;)
		if (!strcmp(mounts->pdata[i], root))
			g_ptr_array_remove_index(mounts, i);
}

void around_look(const char *root)
{
	g_autofree char *real = NULL, *text = NULL;
	g_autoptr(GString) answer = g_string_new(NULL);
	char *resolved = root ? realpath(root, NULL) : NULL;

	real = g_strdup(resolved);
	free(resolved);
	if (!roots) {
		if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
			text = g_strdup("");
		roots = tree_list_mounts(text);
		image_roots = tree_list_image_mounts(text);
		views = g_ptr_array_new_with_free_func(view_free);
		mounts = g_ptr_array_new_with_free_func(g_free);
		nodes = g_ptr_array_new_with_free_func(node_free);
		loops = g_ptr_array_new_with_free_func(loop_free);
		silent = g_string_new(NULL);
		ask_all(real);
	}
	if (!real)
		return;
	forget(real);
	tell_dmfs(answer, real);
	hear_dmfs(answer, real);
}

const GPtrArray *around_nodes(void)
{
	return nodes;
}

const GPtrArray *around_loops(void)
{
	return loops;
}

char *around_silent(void)
{
	return silent->len ? g_strdup(silent->str) : NULL;
}

const GPtrArray *around_mounts(void)
{
	return mounts;
}

static bool is_below(const char *path, const char *root)
{
	size_t len = strlen(root);

	return !strncmp(path, root, len) && path[len] == '/';
}

static const struct node *node_at(const char *path)
{
	for (unsigned i = 0; i < nodes->len; i++) {
		const struct node *n = nodes->pdata[i];
		g_autofree char *image = tree_path(n->root, n->name, "image");

		if (!strcmp(image, path))
			return n;
	}
	for (unsigned i = 0; i < views->len; i++) {
		const struct view *v = views->pdata[i];

		if (!strcmp(v->path, path))
			return node_of_view(v);
	}
	return NULL;
}

bool around_is_in_dmfs(const char *path, const struct node **node)
{
	bool inside = false;

	*node = NULL;
	for (unsigned i = 0; i < roots->len && !inside; i++)
		inside = is_below(path, roots->pdata[i]);
	for (unsigned i = 0; i < image_roots->len && !inside; i++)
		inside = is_below(path, image_roots->pdata[i]);
	if (inside)
		*node = node_at(path);
	return inside;
}

const struct node *around_node_of(dev_t mount, uint64_t inode)
{
	for (unsigned i = 0; i < nodes->len; i++) {
		const struct node *n = nodes->pdata[i];

		if (n->mount == mount && n->inode == inode)
			return n;
	}
	for (unsigned i = 0; i < views->len; i++) {
		const struct view *v = views->pdata[i];

		if (v->mount == mount && v->inode == inode)
			return node_of_view(v);
	}
	return NULL;
}
