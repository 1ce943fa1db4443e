/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How far work is, from status lines (progress.h).  The words after the type:
 *
 *   mirror          N DEV{N} SYNCED/TOTAL ...
 *   raid            LEVEL N HEALTH SYNCED/TOTAL ACTION ...
 *   snapshot-merge  ALLOCATED/TOTAL METADATA: done when nothing but metadata is allocated
 *   clone           BLOCK USED/TOTAL REGION HYDRATED/TOTAL HYDRATING ...
 *   integrity       MISMATCHES PROVIDED RECALCULATED, the last "-" when there is nothing to do
 *   crypt           wiping WIPED/TOTAL [failed]
 *   cache           ten words, DIRTY, ...: with the cleaner policy, dirty blocks are what is left
 */
#include <string.h>

#include "../common/tree.h"
#include "progress.h"

struct ratio {
	guint64 part, whole;
};

static bool parse_ratio(const char *word, struct ratio *r)
{
	char *end;

	if (!g_ascii_isdigit(*word))
		return false;
	r->part = g_ascii_strtoull(word, &end, 10);
	if (*end != '/' || !g_ascii_isdigit(end[1]))
		return false;
	r->whole = g_ascii_strtoull(end + 1, &end, 10);
	return !*end;
}

static bool parse_number(const char *word, guint64 *n)
{
	char *end;

	*n = g_ascii_strtoull(word, &end, 10);
	return g_ascii_isdigit(*word) && !*end;
}

static guint64 minus(guint64 a, guint64 b)
{
	return a > b ? a - b : 0;
}

static void add(struct progress *p, const char *what, guint64 left, guint64 total)
{
	p->what = what;
	p->left += left;
	p->total += total;
}

static void add_ratio(struct progress *p, const char *what, const char *word)
{
	struct ratio r;

	if (parse_ratio(word, &r))
		add(p, what, minus(r.whole, r.part), r.whole);
}

static void mirror(struct progress *p, char **words, guint n)
{
	guint64 legs;

	if (n && parse_number(words[0], &legs) && legs < n - 1)
		add_ratio(p, "resync", words[1 + legs]);
}

static void raid(struct progress *p, char **words, guint n)
{
	static const char *const actions[] = {"resync", "recover", "reshape", "check", "repair"};
	const char *what = NULL;

	if (n < 5)
		return;
	for (unsigned i = 0; i < G_N_ELEMENTS(actions); i++)
		if (!strcmp(actions[i], words[4]))
			what = actions[i];
	add_ratio(p, what ? what : "resync", words[3]);
	if (what && !p->left)
		p->left = 1; /* all is done, and yet to be noted: an array that is not idle takes no `check` */
}

static void merge(struct progress *p, char **words, guint n)
{
	struct ratio r;
	guint64 metadata;

	if (n >= 2 && parse_ratio(words[0], &r) && parse_number(words[1], &metadata)) {
		add(p, "merge", minus(r.part, metadata), 0);
	} else {
		p->what = "merge";
		p->failed = true;
	}
}

static void hydration(struct progress *p, char **words, guint n)
{
	if (n >= 5)
		add_ratio(p, "hydration", words[3]);
}

static void integrity(struct progress *p, char **words, guint n)
{
	guint64 provided, done;

	if (n >= 3 && parse_number(words[1], &provided) && parse_number(words[2], &done))
		add(p, "recalculation", minus(provided, done), provided);
}

static void wiping(struct progress *p, char **words, guint n)
{
	if (n < 2 || strcmp(words[0], "wiping"))
		return;
	add_ratio(p, "wiping", words[1]);
	p->failed |= n > 2;
}

static void cache(struct progress *p, char **words, guint n)
{
	guint64 dirty;

	for (guint i = 11; i < n; i++)
		if (!strcmp(words[i], "cleaner") && parse_number(words[10], &dirty))
			add(p, "cleaning", dirty, 0);
}

void progress_add(struct progress *p, const char *type, const char *rest)
{
	static const struct {
		const char *type;
		void (*add)(struct progress *, char **, guint);
	} types[] = {
		{"mirror", mirror}, {"raid", raid},	      {"snapshot-merge", merge},
		{"clone", hydration}, {"integrity", integrity}, {"cache", cache},
		{"crypt", wiping},
	};
	g_auto(GStrv) words = tree_words(rest);

	for (unsigned i = 0; i < G_N_ELEMENTS(types); i++)
		if (!strcmp(types[i].type, type))
			types[i].add(p, words, g_strv_length(words));
}

void progress_of_status(struct progress *p, const char *status)
{
	g_auto(GStrv) lines = tree_lines(status);

	*p = (struct progress){0};
	for (unsigned i = 0; lines[i]; i++) {
		g_auto(GStrv) words = g_strsplit(g_strstrip(lines[i]), " ", 4);

		if (g_strv_length(words) == 4)
			progress_add(p, words[2], words[3]);
	}
}

double progress_fraction(const struct progress *p, guint64 first_left)
{
	guint64 total = p->total ? p->total : first_left;

	if (!p->left || !total)
		return 1;
	return p->left >= total ? 0 : (double)(total - p->left) / (double)total;
}
