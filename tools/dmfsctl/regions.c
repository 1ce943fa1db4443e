/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Statistics regions from their texts (regions.h).
 *
 *   @stats_list   ID: START+LENGTH STEP PROGRAM AUX... [precise_timestamps] [histogram:BOUND,...]
 *   AUX           [DMS_GROUP=ALIAS:REGION[-REGION],...#]USERDATA
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

#define GROUP_TAG "DMS_GROUP="

/* What is of a group in aux is taken out of it. */
static void take_group(struct region *r, const char *aux)
{
	const char *alias = g_str_has_prefix(aux, GROUP_TAG) ? aux + strlen(GROUP_TAG) : NULL;
	const char *end = alias ? strchr(alias, '#') : NULL, *members;

	for (members = end; members && members > alias && members[-1] != ':';)
		members--;
	if (members && members > alias) {
		r->alias = g_strndup(alias, (gsize)(members - 1 - alias));
		r->members = g_strndup(members, (gsize)(end - members));
		aux = end + 1;
	}
	r->aux = g_strdup(strcmp(aux, "-") ? aux : "");
}

char *aux_print(const char *members, const char *alias, const char *userdata)
{
	const char *data = userdata && *userdata ? userdata : "-";

	return members ? g_strdup_printf(GROUP_TAG "%s:%s#%s", alias ? alias : "", members, data) : g_strdup(data);
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
	take_group(r, aux->str);
}

struct region *region_parse(const char *line)
{
	struct region *r = g_new0(struct region, 1);
	guint64 id;

	r->bounds = g_array_new(FALSE, FALSE, sizeof(guint64));
	r->group = -1;
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
	g_free(r->members);
	g_free(r->alias);
	g_free(r->group_alias);
	g_free(r);
}

/* --- groups ------------------------------------------------------------------------------ */

struct region *regions_find(GPtrArray *list, guint64 id)
{
	for (unsigned i = 0; i < list->len; i++) {
		struct region *r = list->pdata[i];

		if (r->id == id)
			return r;
	}
	return NULL;
}

guint regions_most(GPtrArray *list)
{
	guint most = 1;

	for (unsigned i = 0; i < list->len; i++)
		most = MAX(most, ((struct region *)list->pdata[i])->id + 1);
	return most;
}

void regions_group(GPtrArray *list)
{
	guint most = regions_most(list);

	for (unsigned i = 0; i < list->len; i++) {
		struct region *leader = list->pdata[i];
		g_autoptr(GArray) ids = leader->members ? id_list_parse(leader->members, most) : NULL;

		for (unsigned j = 0; ids && j < ids->len; j++) {
			struct region *r = regions_find(list, g_array_index(ids, guint64, j));

			if (!r || r->group >= 0)
				continue;
			r->group = leader->id;
			r->group_alias = g_strdup(leader->alias);
		}
	}
}

static gint by_number(gconstpointer a, gconstpointer b)
{
	guint64 x = *(const guint64 *)a, y = *(const guint64 *)b;

	return (x > y) - (x < y);
}

/* "3" or "3-5" */
static bool take_range(const char **p, GArray *ids, guint most)
{
	guint64 first, last;

	if (!take_number(p, &first))
		return false;
	last = first;
	if (take_char(p, '-') && (!take_number(p, &last) || last < first))
		return false;
	if (last >= most) /* there is none such, which is all that needs to be told */
		first = last;
	for (guint64 i = 0, id = first; i <= last - first; i++, id++)
		g_array_append_val(ids, id);
	return true;
}

GArray *id_list_parse(const char *text, guint most)
{
	g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(guint64));

	do {
		if (!take_range(&text, ids, most))
			return NULL;
	} while (take_char(&text, ','));
	if (*text)
		return NULL;
	g_array_sort(ids, by_number);
	for (guint i = 1; i < ids->len;)
		if (g_array_index(ids, guint64, i) == g_array_index(ids, guint64, i - 1))
			g_array_remove_index(ids, i);
		else
			i++;
	return g_steal_pointer(&ids);
}

char *id_list_print(const GArray *ids)
{
	GString *out = g_string_new(NULL);

	for (guint i = 0, j; i < ids->len; i = j) {
		guint64 first = g_array_index(ids, guint64, i);

		for (j = i + 1; j < ids->len && g_array_index(ids, guint64, j) == first + (j - i);)
			j++;
		g_string_append_printf(out, "%s%" PRIu64, i ? "," : "", first);
		if (j > i + 1)
			g_string_append_printf(out, "-%" PRIu64, first + (j - i) - 1);
	}
	return g_string_free(out, FALSE);
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

static const char letters[] = "bkmgtpe";

/* The bytes of a unit: b, s, and k, m, ... of 1024, K, M, ... of 1000; 0: no unit. */
static guint64 unit_bytes(char unit)
{
	const char *at = unit ? strchr(letters, g_ascii_tolower(unit)) : NULL;
	guint64 bytes = 1;

	if (g_ascii_tolower(unit) == 's')
		return 512;
	for (; at && at > letters; at--)
		bytes *= g_ascii_isupper(unit) ? 1000 : 1024;
	return at ? bytes : 0;
}

bool size_parse(const char *text, guint64 *sectors)
{
	guint64 n, bytes = 512;

	if (!take_number(&text, &n))
		return false;
	if (*text) {
		bytes = unit_bytes(*text++);
		if (bytes > 1 && bytes != 512 && g_ascii_tolower(*text) == 'b')
			text++;
	}
	if (*text || !bytes || !g_uint64_checked_mul(&bytes, bytes, n))
		return false;
	*sectors = bytes / 512;
	return *sectors || !n;
}

/* "k", "3M": how many bytes, 0 if it is no such thing. */
static guint64 units_bytes(const char *units)
{
	guint64 n = 1, bytes;

	if (g_ascii_isdigit(*units) && !take_number(&units, &n))
		return 0;
	bytes = unit_bytes(*units);
	return bytes && !units[1] && g_uint64_checked_mul(&bytes, bytes, n) ? bytes : 0;
}

static bool is_human(const char *units)
{
	return !units || !g_ascii_strcasecmp(units, "h");
}

bool units_valid(const char *units)
{
	return is_human(units) || units_bytes(units);
}

static void human_print(GString *out, guint64 bytes, bool si)
{
	double n = (double)bytes, base = si ? 1000 : 1024;
	unsigned at = 0;

	for (; n >= base && letters[at + 1]; at++)
		n /= base;
	g_string_append_printf(out, at ? "%.2f%c" : "%.0f%c", n, si ? g_ascii_toupper(letters[at]) : letters[at]);
}

void size_print(GString *out, guint64 bytes, const char *units)
{
	guint64 unit = is_human(units) ? 0 : units_bytes(units);

	if (!bytes)
		g_string_append_c(out, '0');
	else if (!unit)
		human_print(out, bytes, units && *units == 'H');
	else if (!units[1] && strchr("bBsS", *units))
		g_string_append_printf(out, "%" PRIu64, bytes / unit);
	else
		g_string_append_printf(out, "%.2f", (double)bytes / (double)unit);
}

void time_print(GString *out, guint64 ns, bool suffix)
{
	unsigned at = 0;

	if (!suffix) {
		g_string_append_printf(out, "%" PRIu64, ns);
		return;
	}
	while (ns && at < 3 && !(ns % time_units[at + 1].ns))
		at++;
	g_string_append_printf(out, "%" PRIu64 "%s", ns / time_units[at].ns, ns ? time_units[at].name : "s");
}
