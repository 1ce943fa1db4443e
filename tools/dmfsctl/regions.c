/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Statistics regions from their texts (regions.h).
 *
 *   @stats_list   ID: START+LENGTH STEP PROGRAM AUX... [precise_timestamps] [histogram:BOUND,...]
 *   @stats_print  START+LENGTH and 13 counters, then COUNT:COUNT:... if the region has a histogram
 */
#include <inttypes.h>
#include <string.h>

#include "regions.h"

static bool take_number(const char **p, guint64 *out)
{
	char *end;

	if (!g_ascii_isdigit(**p))
		return false;
	*out = g_ascii_strtoull(*p, &end, 10);
	*p = end;
	return true;
}

static bool take_char(const char **p, char c)
{
	if (**p != c)
		return false;
	(*p)++;
	return true;
}

/* --- @stats_list ------------------------------------------------------------------------ */

static GArray *number_list(const char *text, char separator)
{
	GArray *list = g_array_new(FALSE, FALSE, sizeof(guint64));
	guint64 n;

	while (take_number(&text, &n)) {
		g_array_append_val(list, n);
		if (!take_char(&text, separator))
			break;
	}
	return list;
}

static void take_words(struct region *r, const char *text)
{
	g_auto(GStrv) words = g_strsplit(text, " ", -1);
	g_autoptr(GString) aux = g_string_new(NULL);
	guint n = g_strv_length(words);

	for (guint i = 1; i < n; i++)
		if (!strcmp(words[i], "precise_timestamps")) {
			r->precise = true;
		} else if (g_str_has_prefix(words[i], "histogram:")) {
			g_array_free(r->bounds, TRUE);
			r->bounds = number_list(words[i] + strlen("histogram:"), ',');
		} else {
			g_string_append_printf(aux, "%s%s", aux->len ? " " : "", words[i]);
		}
	r->program = g_strdup(n && strcmp(words[0], "-") ? words[0] : "");
	r->aux = g_strdup(strcmp(aux->str, "-") ? aux->str : "");
}

struct region *region_parse(const char *line)
{
	struct region *r = g_new0(struct region, 1);
	guint64 id;

	r->bounds = g_array_new(FALSE, FALSE, sizeof(guint64));
	if (take_number(&line, &id) && id <= G_MAXINT && take_char(&line, ':') && take_char(&line, ' ') &&
	    take_number(&line, &r->start) && take_char(&line, '+') && take_number(&line, &r->length) &&
	    take_char(&line, ' ') && take_number(&line, &r->step) && r->step && take_char(&line, ' ')) {
		r->id = (unsigned)id;
		take_words(r, line);
		return r;
	}
	region_free(r);
	return NULL;
}

void region_free(struct region *r)
{
	if (!r)
		return;
	if (r->areas)
		g_ptr_array_free(r->areas, TRUE);
	g_array_free(r->bounds, TRUE);
	g_free(r->program);
	g_free(r->aux);
	g_free(r);
}

unsigned region_n_areas(const struct region *r)
{
	return (unsigned)((r->length + r->step - 1) / r->step);
}

/* --- @stats_print --------------------------------------------------------------------------- */

static void free_area(gpointer data)
{
	struct area *a = data;

	g_array_free(a->histogram, TRUE);
	g_free(a);
}

static struct area *area_parse(const char *line)
{
	struct area *a = g_new0(struct area, 1);
	bool ok = take_number(&line, &a->start) && take_char(&line, '+') && take_number(&line, &a->length);

	for (unsigned i = 0; ok && i < COUNTERS; i++)
		ok = take_char(&line, ' ') && take_number(&line, &a->counter[i]);
	take_char(&line, ' ');
	a->histogram = number_list(line, ':');
	if (ok)
		return a;
	free_area(a);
	return NULL;
}

GPtrArray *areas_parse(const char *text)
{
	GPtrArray *areas = g_ptr_array_new_with_free_func(free_area);
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

	for (unsigned i = 0; lines[i]; i++) {
		struct area *a = *lines[i] ? area_parse(lines[i]) : NULL;

		if (a) {
			g_ptr_array_add(areas, a);
		} else if (*lines[i]) {
			g_ptr_array_free(areas, TRUE);
			return NULL;
		}
	}
	return areas;
}

/* --- units -------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	guint64 ns;
} time_units[] = {{"ns", 1}, {"us", 1000}, {"ms", 1000000}, {"s", 1000000000}, {"", 1}};

/* A bound in nanoseconds; without a unit it is in the last bound's, at first ns. */
static bool take_time(const char **p, guint64 *scale, guint64 *ns)
{
	size_t len;

	if (!take_number(p, ns))
		return false;
	len = strcspn(*p, ",");
	for (unsigned i = 0; len && i < G_N_ELEMENTS(time_units); i++)
		if (strlen(time_units[i].name) == len && !strncmp(*p, time_units[i].name, len)) {
			*scale = time_units[i].ns;
			*p += len;
			len = 0;
		}
	return !len && g_uint64_checked_mul(ns, *ns, *scale);
}

/* The unit that is written before a bound without one counts from the end: "1,2,3ms" is all in ms. */
static guint64 first_scale(const char *text)
{
	const char *unit = text + strspn(text, "0123456789,");

	for (unsigned i = 0; *unit && i + 1 < G_N_ELEMENTS(time_units); i++)
		if (!strncmp(unit, time_units[i].name, strlen(time_units[i].name)))
			return time_units[i].ns;
	return 1;
}

bool bounds_parse(const char *text, bool *precise, char **out)
{
	g_autoptr(GArray) bounds = g_array_new(FALSE, FALSE, sizeof(guint64));
	guint64 scale = first_scale(text), ns, last = 0, unit;
	GString *list;

	do {
		if (!take_time(&text, &scale, &ns) || ns <= last)
			return false;
		last = ns;
		*precise |= ns % 1000000;
		g_array_append_val(bounds, ns);
	} while (take_char(&text, ','));
	if (*text)
		return false;
	unit = *precise ? 1 : 1000000;
	list = g_string_new(NULL);
	for (unsigned i = 0; i < bounds->len; i++)
		g_string_append_printf(list, "%s%" PRIu64, i ? "," : "", g_array_index(bounds, guint64, i) / unit);
	*out = g_string_free(list, FALSE);
	return true;
}

bool size_parse(const char *text, guint64 *sectors)
{
	static const char units[] = "kmgtpe";
	const char *unit;
	guint64 n;

	if (!take_number(&text, &n))
		return false;
	unit = *text ? strchr(units, g_ascii_tolower(*text)) : NULL;
	if (unit) {
		if (!g_uint64_checked_mul(&n, n, 2) || n > G_MAXUINT64 >> 10 * (unit - units))
			return false;
		n <<= 10 * (unit - units);
		text++;
	} else if (*text == 's') {
		text++;
	}
	*sectors = n;
	return !*text;
}

void size_print(GString *out, guint64 bytes, const char *units)
{
	static const char letters[] = "bkmgtpe";
	unsigned at = 0;
	double n = (double)bytes;

	if (units && (*units == 's' || *units == 'b' || *units == 'S' || *units == 'B')) {
		g_string_append_printf(out, "%" PRIu64, g_ascii_tolower(*units) == 's' ? bytes / 512 : bytes);
		return;
	}
	if (!bytes) {
		g_string_append_c(out, '0');
		return;
	}
	if (units && g_ascii_tolower(*units) != 'h') {
		const char *unit = strchr(letters, g_ascii_tolower(*units));

		at = unit && *unit ? (unsigned)(unit - letters) : 0;
	} else {
		for (double m = n; m >= 1024 && letters[at + 1]; m /= 1024)
			at++;
	}
	for (unsigned i = 0; i < at; i++)
		n /= 1024;
	g_string_append_printf(out, at ? "%.2f%c" : "%.0f%c", n, letters[at]);
}

void time_print(GString *out, guint64 ns)
{
	unsigned at = 0;

	while (ns && at < 3 && !(ns % time_units[at + 1].ns))
		at++;
	g_string_append_printf(out, "%" PRIu64 "%s", ns / time_units[at].ns, ns ? time_units[at].name : "s");
}
