/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a path stands on (storage.h). */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "../common/tree.h"
#include "around.h"
#include "storage.h"

#define SECTOR 512

struct walk {
	GPtrArray *extents;
};

static void extent_free(gpointer p)
{
	struct extent *e = p;

	g_free(e->what);
	g_free(e->name);
	g_free(e);
}

static void use_free(gpointer p)
{
	struct use *u = p;

	g_free(u->word);
	g_free(u);
}

static uint64_t add_up(uint64_t a, uint64_t b)
{
	return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/* --- tables ------------------------------------------------------------------------------------- */

/* Targets whose sectors are one device's, one after the other: which words of the line are that device and its start.
 */
static const struct straight {
	const char *type;
	unsigned device, start,
	    words; /* start 0: where the line itself begins; words: of a line without a second device */
} straights[] = {
    {"linear", 3, 4, 5},      {"crypt", 6, 7, UINT_MAX}, {"flakey", 3, 4, UINT_MAX},
    {"dust", 3, 4, UINT_MAX}, {"delay", 3, 4, 6},	 {"snapshot-origin", 3, 0, 4},
};

/* Targets that share a device with others by design: how many words of it are looked at all the same. */
static const struct sharing {
	const char *type;
	unsigned first, last; /* words of the devices that are theirs alone; 0: none */
} sharings[] = {
    {"thin", 0, 0},
    {"snapshot", 4, 4},
    {"clone", 3, 4},
    {"verity", 0, 0},
};

static void add_use(GPtrArray *uses, const char *word, uint64_t from, uint64_t to)
{
	struct use *u = g_new0(struct use, 1);

	*u = (struct use){g_strdup(word), from, to};
	g_ptr_array_add(uses, u);
}

/* Words of a line, without their quotes. */
static GPtrArray *words_of(const char *line)
{
	GPtrArray *words = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GString) word = g_string_new(NULL);

	for (;; line++) {
		if (*line == '\\' && line[1]) {
			g_string_append_c(word, *++line);
		} else if (*line && *line != ' ') {
			g_string_append_c(word, *line);
		} else {
			if (word->len)
				g_ptr_array_add(words, g_strdup(word->str));
			g_string_truncate(word, 0);
			if (!*line)
				return words;
		}
	}
}

static uint64_t number(const GPtrArray *words, unsigned i)
{
	uint64_t n = g_ascii_strtoull(words->pdata[i], NULL, 10);

	return n > UINT64_MAX / SECTOR ? UINT64_MAX / SECTOR : n;
}

/* from..to: bytes of the line's own. */
static bool use_straight(const GPtrArray *words, uint64_t from, uint64_t to, GPtrArray *uses)
{
	for (size_t i = 0; i < G_N_ELEMENTS(straights); i++) {
		const struct straight *s = &straights[i];
		uint64_t start;

		if (strcmp(words->pdata[2], s->type) || words->len <= MAX(s->device, s->start) || words->len > s->words)
			continue;
		start = number(words, s->start) * SECTOR;
		add_use(uses, words->pdata[s->device], add_up(start, from), add_up(start, to));
		return true;
	}
	return false;
}

static void use_line(const GPtrArray *words, char **deps, uint64_t from, uint64_t to, GPtrArray *uses)
{
	unsigned first = 3, last = words->len - 1;

	if (use_straight(words, from, to, uses))
		return;
	for (size_t i = 0; i < G_N_ELEMENTS(sharings); i++)
		if (!strcmp(words->pdata[2], sharings[i].type)) {
			first = sharings[i].first;
			last = sharings[i].last;
		}
	for (unsigned i = first; first && i <= last && i < words->len; i++)
		if (g_strv_contains((const char *const *)deps, words->pdata[i]))
			add_use(uses, words->pdata[i], 0, UINT64_MAX);
}

GPtrArray *storage_uses(const char *table, const char *deps, uint64_t from, uint64_t to)
{
	GPtrArray *uses = g_ptr_array_new_with_free_func(use_free);
	g_auto(GStrv) lines = g_strsplit(table, "\n", -1), known = g_strsplit(deps, "\n", -1);

	for (unsigned i = 0; known[i]; i++) {
		char *plain = tree_unquote(known[i]);

		g_free(known[i]);
		known[i] = plain;
	}
	for (unsigned i = 0; lines[i]; i++) {
		g_autoptr(GPtrArray) words = words_of(lines[i]);
		uint64_t start, end;

		if (words->len < 3)
			continue;
		start = number(words, 0) * SECTOR;
		end = add_up(start, number(words, 1) * SECTOR);
		if (start < to && from < end)
			use_line(words, known, MAX(from, start) - start, MIN(to, end) - start, uses);
	}
	return uses;
}

/* --- devices of a dmfs ---------------------------------------------------------------------------- */

static char *what_of_node(const struct node *n)
{
	return g_strdup_printf("dmfs %u:%u %s", major(n->mount), minor(n->mount), n->name);
}

/* --- block devices -------------------------------------------------------------------------------- */

/* A file of sysfs, of the block device; NULL: there is none. */
static char *sysfs(dev_t dev, const char *file)
{
	g_autofree char *path = g_strdup_printf("/sys/dev/block/%u:%u/%s", major(dev), minor(dev), file);
	char *text = NULL;

	return tree_read(path, &text) ? NULL : g_strchomp(text);
}

static uint64_t sysfs_number(dev_t dev, const char *file)
{
	g_autofree char *text = sysfs(dev, file);

	return text ? g_ascii_strtoull(text, NULL, 10) : 0;
}

/* Its node in /dev, mostly; for people. */
static char *block_name(dev_t dev)
{
	g_autofree char *text = sysfs(dev, "uevent");
	g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);

	for (unsigned i = 0; lines[i]; i++)
		if (g_str_has_prefix(lines[i], "DEVNAME="))
			return g_strconcat("/dev/", lines[i] + strlen("DEVNAME="), NULL);
	return g_strdup_printf("block device %u:%u", major(dev), minor(dev));
}

static bool parse_dev(const char *text, dev_t *dev)
{
	char *colon;
	guint64 major_nr = text ? g_ascii_strtoull(text, &colon, 10) : 0;

	if (!text || *colon != ':')
		return false;
	*dev = makedev((unsigned)major_nr, (unsigned)g_ascii_strtoull(colon + 1, NULL, 10));
	return true;
}

static bool disk_of(dev_t dev, dev_t *disk)
{
	g_autofree char *partition = sysfs(dev, "partition"), *whole = partition ? sysfs(dev, "../dev") : NULL;

	return parse_dev(whole, disk);
}

bool storage_partition(const char *path, char **disk, uint64_t *start)
{
	struct stat st;
	dev_t whole;

	if (stat(path, &st) || !S_ISBLK(st.st_mode) || !disk_of(st.st_rdev, &whole))
		return false;
	*disk = block_name(whole);
	*start = sysfs_number(st.st_rdev, "start");
	return true;
}

/* --- the way down --------------------------------------------------------------------------------- */

static void walk_path(struct walk *w, const char *path, uint64_t from, uint64_t to);

/* Whether it is new; what: taken over. */
static bool add_extent(struct walk *w, char *what, const char *name, uint64_t from, uint64_t to)
{
	struct extent *e;

	for (unsigned i = 0; i < w->extents->len; i++) {
		const struct extent *old = w->extents->pdata[i];

		if (!strcmp(old->what, what) && old->from <= from && old->to >= to) {
			g_free(what);
			return false;
		}
	}
	e = g_new0(struct extent, 1);
	*e = (struct extent){what, g_strdup(name), from, to};
	g_ptr_array_add(w->extents, e);
	return true;
}

static void walk_node(struct walk *w, const struct node *n, uint64_t from, uint64_t to);

/* What a table calls a device. */
static void walk_word(struct walk *w, const struct node *from_node, const struct use *u)
{
	if (*u->word == '/') {
		walk_path(w, u->word, u->from, u->to);
	} else if (strstr(u->word, "://")) {
		add_extent(w, g_strdup(u->word), u->word, u->from, u->to);
	} else {
		for (unsigned i = 0; i < around_nodes()->len; i++) {
			const struct node *n = around_nodes()->pdata[i];

			if (n->mount == from_node->mount && !strcmp(n->name, u->word)) {
				walk_node(w, n, u->from, u->to);
				break;
			}
		}
	}
}

static void walk_uses(struct walk *w, const struct node *n, uint64_t from, uint64_t to)
{
	g_autoptr(GPtrArray) uses = storage_uses(n->table, n->deps, from, to);

	for (unsigned i = 0; i < uses->len; i++)
		walk_word(w, n, uses->pdata[i]);
}

static void walk_node(struct walk *w, const struct node *n, uint64_t from, uint64_t to)
{
	g_autofree char *name = tree_path(n->root, n->name, NULL);

	if (add_extent(w, what_of_node(n), name, from, to))
		walk_uses(w, n, from, to);
}

/* The file of a loop device, if this is one. */
static void walk_loop(struct walk *w, dev_t dev, uint64_t from, uint64_t to)
{
	g_autofree char *file = sysfs(dev, "loop/backing_file");
	uint64_t offset = sysfs_number(dev, "loop/offset"), limit = sysfs_number(dev, "loop/sizelimit");

	if (file)
		walk_path(w, file, add_up(offset, from), add_up(offset, limit ? MIN(to, limit) : to));
}

static void walk_block(struct walk *w, dev_t dev, uint64_t from, uint64_t to)
{
	g_autofree char *name = block_name(dev);
	dev_t disk;

	if (!add_extent(w, g_strdup_printf("block %u:%u", major(dev), minor(dev)), name, from, to))
		return;
	if (disk_of(dev, &disk)) {
		uint64_t start = sysfs_number(dev, "start") * SECTOR, size = sysfs_number(dev, "size") * SECTOR;

		walk_block(w, disk, add_up(start, from), add_up(start, MIN(to, size)));
	}
	walk_loop(w, dev, from, to);
}

static void walk_stat(struct walk *w, const char *name, const struct stat *st, uint64_t from, uint64_t to)
{
	const struct node *n = around_node_of(st->st_dev, st->st_ino);

	if (S_ISBLK(st->st_mode))
		walk_block(w, st->st_rdev, from, to);
	else if (n)
		walk_node(w, n, from, to);
	else
		add_extent(w,
			   g_strdup_printf("file %u:%u %" G_GUINT64_FORMAT, major(st->st_dev), minor(st->st_dev),
					   (uint64_t)st->st_ino),
			   name, from, to);
}

static void walk_path(struct walk *w, const char *path, uint64_t from, uint64_t to)
{
	const struct node *n;
	struct stat st;

	if (around_is_in_dmfs(path, &n) && n)
		walk_node(w, n, from, to);
	else if (!around_is_in_dmfs(path, &n) && !stat(path, &st))
		walk_stat(w, path, &st, from, to);
}

GPtrArray *storage_extents(const char *path, uint64_t from, uint64_t to)
{
	struct walk w = {g_ptr_array_new_with_free_func(extent_free)};

	walk_path(&w, path, from, to);
	return w.extents;
}

/* --- the same storage ------------------------------------------------------------------------------ */

const struct extent *storage_overlap(const GPtrArray *a, const GPtrArray *b)
{
	for (unsigned i = 0; i < a->len; i++) {
		const struct extent *x = a->pdata[i];

		for (unsigned k = 0; k < b->len; k++) {
			const struct extent *y = b->pdata[k];

			if (!strcmp(x->what, y->what) && x->from < y->to && y->from < x->to)
				return x;
		}
	}
	return NULL;
}

static bool is_among(const GPtrArray *extents, const char *what)
{
	for (unsigned i = 0; i < extents->len; i++)
		if (!strcmp(((const struct extent *)extents->pdata[i])->what, what))
			return true;
	return false;
}

/* A device of a dmfs, by its own table: what is further down is the business of those there. */
static bool node_uses(const struct node *n, const GPtrArray *extents)
{
	g_autofree char *what = what_of_node(n);
	g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(extent_free);
	struct walk w = {found};

	if (n->readonly || is_among(extents, what))
		return false;
	walk_uses(&w, n, 0, UINT64_MAX);
	return storage_overlap(found, extents);
}

static bool loop_uses(const struct loop_device *l, const GPtrArray *extents)
{
	const struct stat st = {
	    .st_mode = l->mode, .st_dev = l->file_dev, .st_rdev = l->file_rdev, .st_ino = l->file_inode};
	g_autofree char *what = g_strdup_printf("block %u:%u", major(l->dev), minor(l->dev));
	g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(extent_free);
	uint64_t to = l->limit ? add_up(l->offset, l->limit) : UINT64_MAX;
	struct walk w = {found};
	const struct node *n;

	if (l->readonly || is_among(extents, what))
		return false;
	if (l->mode)
		walk_stat(&w, l->file, &st, l->offset, to);
	else if (around_is_in_dmfs(l->file, &n) && n)
		walk_node(&w, n, l->offset, to);
	return storage_overlap(found, extents);
}

char *storage_other_user(const GPtrArray *extents)
{
	const GPtrArray *nodes = around_nodes(), *loops = around_loops();

	for (unsigned i = 0; i < nodes->len; i++) {
		const struct node *n = nodes->pdata[i];

		if (node_uses(n, extents))
			return tree_path(n->root, n->name, NULL);
	}
	for (unsigned i = 0; i < loops->len; i++) {
		const struct loop_device *l = loops->pdata[i];

		if (loop_uses(l, extents))
			return g_strconcat("/dev/", l->name, NULL);
	}
	return NULL;
}
