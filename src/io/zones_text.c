/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The text of zones files (zones_text.h). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <dmfs/error.h>
#include <dmfs/rounding.h>

#include "zones_text.h"

#define MAGIC "# dmfs zones "
#define SUM_DIGITS 16

/* --- printing ------------------------------------------------------------------------------- */

static const char *condition_name(unsigned condition)
{
	static const char *const names[] = {"nw", "em", "oi", "oe", "cl", "x5", "x6", "x7",
					    "x8", "x9", "xA", "xB", "xC", "ro", "fu", "ol"};

	return names[condition & 15];
}

static const char *type_name(unsigned type)
{
	static const char *const names[] = {"RESERVED", "CONVENTIONAL", "SEQ_WRITE_REQUIRED", "SEQ_WRITE_PREFERRED"};

	return names[type & 3];
}

void zones_print_line(const struct dm_zone *zone, GString *out)
{
	uint64_t wptr = zone->type == DM_ZONE_CONVENTIONAL ? 0 : zone->wp - zone->start;

	g_string_append_printf(out,
			       "  start: 0x%09" PRIx64 ", len 0x%06" PRIx64 ", cap 0x%06" PRIx64 ", wptr 0x%06" PRIx64
			       " reset:0 non-seq:0, zcond:%2u(%s) [type: %u(%s)]\n",
			       zone->start, zone->sectors, zone->capacity, wptr, (unsigned)zone->condition,
			       condition_name(zone->condition), (unsigned)zone->type, type_name(zone->type));
}

void zones_print_zone(const struct zones *z, unsigned i, struct zones_zone zone, GString *out)
{
	struct dm_zone full = {
	    .type = zone.type,
	    .condition = zone.condition,
	    .start = zones_start(z, i),
	    .sectors = zones_length(z, i),
	    .capacity = zone.capacity,
	    .wp = zones_start(z, i) + zone.wp,
	};

	zones_print_line(&full, out);
}

void zones_print_head(const struct zones *z, GString *out)
{
	g_string_append_printf(out,
			       MAGIC "1\n# model %s\n# max-open %u\n# max-active %u\n# logical-block %u\n"
				     "# reads-beyond-wptr %s\n",
			       z->model == DM_ZONES_HOST_AWARE ? "host-aware" : "host-managed", z->max_open,
			       z->max_active, z->logical_block, z->reads_fail ? "fail" : "zeroes");
}

/* The first digits of the SHA-256. */
static void checksum(const void *data, size_t len, char out[SUM_DIGITS + 1])
{
	g_autofree char *sum = g_compute_checksum_for_data(G_CHECKSUM_SHA256, data, len);

	memcpy(out, sum, SUM_DIGITS);
	out[SUM_DIGITS] = '\0';
}

void zones_print_commit(unsigned number, size_t from, GString *out)
{
	char sum[SUM_DIGITS + 1];

	g_string_append_printf(out, "# commit %u", number);
	checksum(out->str + from, out->len - from, sum);
	g_string_append_printf(out, " %s\n", sum);
}

/* --- reading --------------------------------------------------------------------------------- */

/* What is read, line by line. */
struct reader {
	const char *name, *at, *end;
	unsigned line; /* number of the one at `at` */
	struct zones *z;
	GArray *zones; /* struct zones_zone */
	GError **err;
};

static int G_GNUC_PRINTF(2, 3) refuse(struct reader *r, const char *fmt, ...)
{
	g_autofree char *what = NULL;
	va_list ap;

	va_start(ap, fmt);
	what = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	return dm_fail(r->err, EINVAL, "%s: line %u: %s", r->name, r->line, what);
}

/* The next line without its newline, up to size - 1 bytes of it; false at the end, or if the newline is missing. */
static bool next_line(struct reader *r, char *out, size_t size)
{
	const char *newline = memchr(r->at, '\n', (size_t)(r->end - r->at));
	size_t len = newline ? MIN((size_t)(newline - r->at), size - 1) : 0;

	if (!newline)
		return false;
	memcpy(out, r->at, len);
	out[len] = '\0';
	r->at = newline + 1;
	r->line++;
	return true;
}

/* A number after these words, which begin with a letter or blanks; blanks may be more or fewer. */
static bool take(const char **p, const char *words, unsigned base, uint64_t *out)
{
	const char *s = *p;
	char *end;

	for (; *words; words++) {
		if (*words == ' ') {
			s += strspn(s, " \t");
			continue;
		}
		if (*s != *words)
			return false;
		s++;
	}
	if (base == 16 ? !g_ascii_isxdigit(*s) : !g_ascii_isdigit(*s))
		return false;
	errno = 0;
	*out = g_ascii_strtoull(s, &end, base);
	*p = end;
	return !errno;
}

/* "(nw)": a name for what the number before it says already. */
static void skip_name(const char **p)
{
	if (**p == '(')
		*p += strcspn(*p, ")") + (strchr(*p, ')') != NULL);
}

struct line {
	uint64_t start, len, cap, wptr, condition, type;
};

static bool split_line(const char *text, struct line *l)
{
	uint64_t unused;

	if (!take(&text, " start: 0x", 16, &l->start) || !take(&text, ", len 0x", 16, &l->len))
		return false;
	if (!take(&text, ", cap 0x", 16, &l->cap))
		l->cap = l->len;
	if (!take(&text, ", wptr 0x", 16, &l->wptr) || !take(&text, " reset:", 10, &unused) ||
	    !take(&text, " non-seq:", 10, &unused) || !take(&text, ", zcond: ", 10, &l->condition))
		return false;
	skip_name(&text);
	return take(&text, " [type: ", 10, &l->type);
}

static bool known_condition(uint64_t condition)
{
	return (condition >= DM_ZONE_EMPTY && condition <= DM_ZONE_CLOSED) ||
	       (condition >= DM_ZONE_READONLY && condition <= DM_ZONE_OFFLINE);
}

/* The zone that a line tells of, when its place is right. */
static int make_zone(struct reader *r, const struct line *l, struct zones_zone *out)
{
	if (l->type < DM_ZONE_CONVENTIONAL || l->type > DM_ZONE_SEQUENTIAL_PREFERRED)
		return refuse(r, "zone type %" PRIu64 " is not 1, 2 or 3", l->type);
	if (!l->cap || l->cap > l->len)
		return refuse(r, "a capacity of 0x%" PRIx64 " sectors in a zone of 0x%" PRIx64, l->cap, l->len);
	*out = (struct zones_zone){.capacity = (uint32_t)l->cap, .type = (uint8_t)l->type};
	if (l->type == DM_ZONE_CONVENTIONAL)
		return l->condition ? refuse(r, "a conventional zone of condition %" PRIu64 ", not 0", l->condition)
				    : 0;
	if (!known_condition(l->condition))
		return refuse(r, "zone condition %" PRIu64 " is not known", l->condition);
	if (l->condition < DM_ZONE_READONLY && l->wptr > l->cap)
		return refuse(r, "a write pointer at 0x%" PRIx64 ", beyond the capacity 0x%" PRIx64, l->wptr, l->cap);
	if (l->condition == DM_ZONE_EMPTY && l->wptr)
		return refuse(r, "an empty zone whose write pointer is at 0x%" PRIx64, l->wptr);
	out->condition = (uint8_t)l->condition;
	out->wp = l->condition < DM_ZONE_READONLY ? (uint32_t)l->wptr : (uint32_t)MIN(l->wptr, l->len);
	if (l->condition == DM_ZONE_FULL)
		out->wp = (uint32_t)l->len;
	else if (l->condition < DM_ZONE_READONLY) /* the power was off */
		out->condition = !l->wptr ? DM_ZONE_EMPTY : l->wptr == l->cap ? DM_ZONE_FULL : DM_ZONE_CLOSED;
	if (out->condition == DM_ZONE_FULL)
		out->wp = (uint32_t)l->len;
	return 0;
}

/* The next zone of the disk. */
static int add_zone(struct reader *r, const struct line *l)
{
	struct zones *z = r->z;
	struct zones_zone zone;
	int error;

	if (!r->zones->len) {
		if (!dm_is_pow2(l->len) || l->len < ZONES_MIN_SECTORS || l->len > 1u << 31)
			return refuse(r, "zones of 0x%" PRIx64 " sectors: a power of two from %u to 2^31 is needed",
				      l->len, ZONES_MIN_SECTORS);
		z->zone_sectors = (uint32_t)l->len;
	}
	if (l->start != z->sectors)
		return refuse(r, "a zone at sector 0x%" PRIx64 ", the one before ends at 0x%" PRIx64, l->start,
			      z->sectors);
	if (z->sectors % z->zone_sectors)
		return refuse(r, "a zone after one that is shorter than 0x%" PRIx32 " sectors", z->zone_sectors);
	if (!l->len || l->len > z->zone_sectors || l->len % ZONES_MIN_SECTORS)
		return refuse(r, "a zone of 0x%" PRIx64 " sectors among those of 0x%" PRIx32, l->len, z->zone_sectors);
	if (l->len > ((uint64_t)INT64_MAX >> DM_SECTOR_SHIFT) - z->sectors || r->zones->len == INT32_MAX)
		return refuse(r, "the zones end beyond 2^63 bytes");
	error = make_zone(r, l, &zone);
	if (error)
		return error;
	z->sectors += l->len;
	g_array_append_val(r->zones, zone);
	return 0;
}

/* "# KEY VALUE"; other comments are comments. */
static int read_comment(struct reader *r, const char *line)
{
	g_auto(GStrv) words = g_strsplit_set(g_strstrip(g_strdelimit((char *)line, "\t\r", ' ')), " ", 4);
	struct {
		const char *key;
		unsigned *number;
	} numbers[] = {
	    {"max-open", &r->z->max_open}, {"max-active", &r->z->max_active}, {"logical-block", &r->z->logical_block}};
	const char *key = words[0] && words[1] ? words[1] : "", *value = *key && words[2] ? words[2] : "";
	guint64 n;

	if (g_str_has_prefix(line, MAGIC))
		return strcmp(line + strlen(MAGIC), "1") ? refuse(r, "version '%s' is not 1", line + strlen(MAGIC)) : 0;
	if (!strcmp(key, "model") && strcmp(value, "host-managed") && strcmp(value, "host-aware"))
		return refuse(r, "model '%s' is not host-managed or host-aware", value);
	if (!strcmp(key, "model"))
		r->z->model = !strcmp(value, "host-aware") ? DM_ZONES_HOST_AWARE : DM_ZONES_HOST_MANAGED;
	if (!strcmp(key, "reads-beyond-wptr") && strcmp(value, "zeroes") && strcmp(value, "fail"))
		return refuse(r, "reads beyond the write pointer give zeroes or fail, not '%s'", value);
	if (!strcmp(key, "reads-beyond-wptr"))
		r->z->reads_fail = !strcmp(value, "fail");
	for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++) {
		if (strcmp(key, numbers[i].key))
			continue;
		if (!g_ascii_string_to_unsigned(value, 10, 0, UINT32_MAX, &n, NULL))
			return refuse(r, "%s '%s' is not a number", key, value);
		*numbers[i].number = (unsigned)n;
	}
	return 0;
}

/* All zones, up to the first batch: of what follows that is known by its first line, for it goes back. */
static int read_base(struct reader *r)
{
	char text[256];
	struct line l;
	int error = 0;

	while (!error) {
		const char *before = r->at;

		if (!next_line(r, text, sizeof text)) /* an end without a newline is what a crash has left, or else
							 there are too few zones */
			break;
		if (g_str_has_prefix(text, "# commit "))
			return refuse(r, "ends a batch, and no zone was changed in it");
		if (text[0] == '#') {
			error = r->zones->len ? 0 : read_comment(r, text);
		} else if (text[strspn(text, " \t\r")] && !split_line(text, &l)) {
			return refuse(r, "is no line of `blkzone report`: '%.40s'", text);
		} else if (text[strspn(text, " \t\r")]) {
			if (l.start < r->z->sectors) { /* that of a zone that was there */
				r->at = before;
				r->line--;
				break;
			}
			error = add_zone(r, &l);
		}
	}
	return error;
}

/* A batch: true if it is whole and its zones have been taken over. */
static bool read_batch(struct reader *r)
{
	const char *from = r->at, *before = from;
	g_autoptr(GArray) changes = g_array_new(FALSE, FALSE, sizeof(struct line));
	char text[256] = "";
	struct line l;
	char sum[SUM_DIGITS + 1], found[SUM_DIGITS + 1] = "";
	uint64_t number;

	while (next_line(r, text, sizeof text) && split_line(text, &l)) {
		struct zones_zone *zone =
		    l.start < r->z->sectors ? &g_array_index(r->zones, struct zones_zone, l.start / r->z->zone_sectors)
					    : NULL;

		if (!zone || l.start % r->z->zone_sectors || l.cap != zone->capacity || l.type != zone->type)
			return false;
		g_array_append_val(changes, l);
		before = r->at;
	}
	if (sscanf(text, "# commit %" SCNu64 " %16s", &number, found) != 2 || number != r->z->commits + 1)
		return false;
	before += (size_t)(strrchr(text, ' ') - text);
	checksum(from, (size_t)(before - from), sum);
	if (strcmp(sum, found))
		return false;
	for (unsigned i = 0; i < changes->len; i++) {
		l = g_array_index(changes, struct line, i);
		if (make_zone(r, &l, &g_array_index(r->zones, struct zones_zone, l.start / r->z->zone_sectors)))
			return false;
	}
	return true;
}

static int check_whole(struct reader *r)
{
	struct zones *z = r->z;
	enum dm_zone_type wrong = z->model == DM_ZONES_HOST_AWARE ? DM_ZONE_SEQUENTIAL : DM_ZONE_SEQUENTIAL_PREFERRED;

	if (!r->zones->len)
		return dm_fail(r->err, EINVAL, "%s: has no zones", r->name);
	if (z->logical_block < DM_SECTOR_SIZE || z->logical_block > 4096 || !dm_is_pow2(z->logical_block))
		return dm_fail(r->err, EINVAL, "%s: logical blocks of %u bytes, not 512, 1024, 2048 or 4096", r->name,
			       z->logical_block);
	for (unsigned i = 0; i < r->zones->len; i++)
		if (g_array_index(r->zones, struct zones_zone, i).type == wrong)
			return dm_fail(r->err, EINVAL, "%s: zone %u is of type %s, which no %s disk has", r->name, i,
				       type_name(wrong),
				       z->model == DM_ZONES_HOST_AWARE ? "host-aware" : "host-managed");
	return 0;
}

/* A report alone does not say the model: its zones do. */
static void guess_model(struct reader *r)
{
	for (unsigned i = 0; i < r->zones->len && r->z->model == DM_ZONES_NONE; i++)
		if (g_array_index(r->zones, struct zones_zone, i).type == DM_ZONE_SEQUENTIAL_PREFERRED)
			r->z->model = DM_ZONES_HOST_AWARE;
	if (r->z->model == DM_ZONES_NONE)
		r->z->model = DM_ZONES_HOST_MANAGED;
}

int zones_parse(const char *text, size_t len, const char *name, struct zones *z, GError **err)
{
	struct reader r = {.name = name, .at = text, .end = text + len, .z = z, .err = err};
	int error;

	*z = (struct zones){.logical_block = DM_SECTOR_SIZE};
	r.zones = g_array_new(FALSE, FALSE, sizeof(struct zones_zone));
	if (memchr(text, '\0', len)) {
		/* A crash may leave zeroes at the end of what was being appended. */
		r.end = memchr(text, '\0', len);
		while (r.end > text && r.end[-1] != '\n')
			r.end--;
	}
	error = read_base(&r);
	guess_model(&r);
	if (!error)
		error = check_whole(&r);
	z->base_bytes = z->bytes = (size_t)(r.at - text);
	while (!error && r.at < r.end && read_batch(&r)) {
		z->bytes = (size_t)(r.at - text);
		z->commits++;
	}
	z->n = r.zones->len;
	z->zone = (struct zones_zone *)(void *)g_array_free(r.zones, FALSE);
	if (error)
		zones_clear(z);
	return error;
}

void zones_clear(struct zones *z)
{
	g_clear_pointer(&z->zone, g_free);
}
