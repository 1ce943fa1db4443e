/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The text in which LVM2 writes its metadata (lvm.conf(5) describes the syntax).
 *
 *     section { ... }      key = value      key = [value, value, ...]      # to the end of the line
 *
 * A value is a number (with a sign or a fraction, which is dropped) or "text", in which a backslash quotes the next
 * byte.  Sections nest, MAX_DEPTH deep at most.  Of two items with one name in a section the first counts.
 */
#include <errno.h>
#include <string.h>

#include "open.h"

#define MAX_DEPTH 32u

struct lexer {
	const char *at, *end, *begin;
};

static void value_clear(gpointer p)
{
	g_free(((struct lvm_value *)p)->string);
}

void lvm_item_free(struct lvm_item *item)
{
	if (!item)
		return;
	g_free(item->key);
	if (item->items)
		g_ptr_array_unref(item->items);
	if (item->index)
		g_hash_table_unref(item->index);
	if (item->values)
		g_array_unref(item->values);
	g_free(item);
}

static struct lvm_item *item_new(char *key, bool section)
{
	struct lvm_item *item = g_new0(struct lvm_item, 1);

	item->key = key;
	if (section) {
		item->items = g_ptr_array_new_with_free_func((GDestroyNotify)lvm_item_free);
		item->index = g_hash_table_new(g_str_hash, g_str_equal);
	} else {
		item->values = g_array_new(FALSE, TRUE, sizeof(struct lvm_value));
		g_array_set_clear_func(item->values, value_clear);
	}
	return item;
}

static int wrong(const struct lexer *l, GError **err, const char *what)
{
	return fail(err, EINVAL, "byte %zu of the metadata: %s", (size_t)(l->at - l->begin), what);
}

static void skip_blanks(struct lexer *l)
{
	while (l->at < l->end) {
		if (*l->at == '#') {
			while (l->at < l->end && *l->at != '\n')
				l->at++;
		} else if (g_ascii_isspace(*l->at)) {
			l->at++;
		} else {
			return;
		}
	}
}

/* Whether the next byte that counts is c; then it is passed. */
static bool take(struct lexer *l, char c)
{
	skip_blanks(l);
	if (l->at == l->end || *l->at != c)
		return false;
	l->at++;
	return true;
}

static bool is_key_byte(char c)
{
	return g_ascii_isalnum(c) || strchr("_.-+/", c);
}

static char *take_key(struct lexer *l)
{
	const char *from;

	skip_blanks(l);
	from = l->at;
	while (l->at < l->end && *l->at && is_key_byte(*l->at))
		l->at++;
	return l->at > from ? g_strndup(from, (gsize)(l->at - from)) : NULL;
}

static int take_string(struct lexer *l, struct lvm_value *out, GError **err)
{
	g_autoptr(GString) text = g_string_new(NULL);

	for (; l->at < l->end && *l->at != '"'; l->at++) {
		if (*l->at == '\\' && l->at + 1 < l->end)
			l->at++;
		if (!*l->at)
			return wrong(l, err, "a zero byte in a text");
		g_string_append_c(text, *l->at);
	}
	if (l->at == l->end)
		return wrong(l, err, "a text does not end");
	l->at++;
	*out = (struct lvm_value){.text = true, .string = g_strdup(text->str)};
	return 0;
}

static int take_number(struct lexer *l, struct lvm_value *out, GError **err)
{
	bool minus = l->at < l->end && *l->at == '-';
	int64_t n = 0;

	l->at += minus;
	if (l->at == l->end || !g_ascii_isdigit(*l->at))
		return wrong(l, err, "no value where one should be");
	for (; l->at < l->end && g_ascii_isdigit(*l->at); l->at++)
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *l->at - '0', &n))
			return wrong(l, err, "a number is too large");
	if (l->at < l->end && *l->at == '.')
		for (l->at++; l->at < l->end && g_ascii_isdigit(*l->at);)
			l->at++;
	*out = (struct lvm_value){.number = minus ? -n : n};
	return 0;
}

static int take_value(struct lexer *l, GArray *values, GError **err)
{
	struct lvm_value v;
	int r = take(l, '"') ? take_string(l, &v, err) : take_number(l, &v, err);

	if (!r)
		g_array_append_val(values, v);
	return r;
}

static int take_values(struct lexer *l, struct lvm_item *item, GError **err)
{
	if (!take(l, '['))
		return take_value(l, item->values, err);
	item->array = true;
	if (take(l, ']'))
		return 0;
	do {
		int r;

		skip_blanks(l);
		if (item->values->len && l->at < l->end && *l->at == ']')
			break;
		r = take_value(l, item->values, err);
		if (r)
			return r;
	} while (take(l, ','));
	return take(l, ']') ? 0 : wrong(l, err, "an array does not end");
}

static int take_items(struct lexer *l, struct lvm_item *in, unsigned depth, GError **err)
{
	for (;;) {
		g_autofree char *key = NULL;
		struct lvm_item *item;
		bool section;
		int r;

		skip_blanks(l);
		if (l->at == l->end || *l->at == '}' || !*l->at)
			return 0;
		key = take_key(l);
		if (!key)
			return wrong(l, err, "no name where one should be");
		section = take(l, '{');
		if (!section && !take(l, '='))
			return wrong(l, err, "neither { nor = after a name");
		if (section && depth == MAX_DEPTH)
			return wrong(l, err, "sections are too deep");
		item = item_new(g_steal_pointer(&key), section);
		g_ptr_array_add(in->items, item);
		if (!g_hash_table_contains(in->index, item->key))
			g_hash_table_insert(in->index, item->key, item);
		if (!section)
			skip_blanks(l);
		r = section ? take_items(l, item, depth + 1, err) : take_values(l, item, err);
		if (!r && section && !take(l, '}'))
			r = wrong(l, err, "a section does not end");
		if (r)
			return r;
	}
}

struct lvm_item *lvm_text_parse(const char *text, size_t len, GError **err)
{
	struct lexer l = {text, text + len, text};
	struct lvm_item *root = item_new(g_strdup(""), true);
	int r = take_items(&l, root, 0, err);

	if (!r && l.at < l.end && *l.at)
		r = wrong(&l, err, "a } too much");
	if (!r)
		return root;
	lvm_item_free(root);
	return NULL;
}

/* --- asking ------------------------------------------------------------------------------------------ */

static struct lvm_item *item_of(const struct lvm_item *in, const char *key)
{
	return in && in->items ? g_hash_table_lookup(in->index, key) : NULL;
}

struct lvm_item *lvm_section(const struct lvm_item *in, const char *key)
{
	struct lvm_item *item = item_of(in, key);

	return item && item->items ? item : NULL;
}

const GArray *lvm_values(const struct lvm_item *in, const char *key)
{
	struct lvm_item *item = item_of(in, key);

	return item ? item->values : NULL;
}

static const struct lvm_value *single(const struct lvm_item *in, const char *key)
{
	const GArray *values = lvm_values(in, key);

	return values && values->len == 1 ? &g_array_index(values, struct lvm_value, 0) : NULL;
}

const char *lvm_string(const struct lvm_item *in, const char *key)
{
	const struct lvm_value *v = single(in, key);

	return v && v->text ? v->string : NULL;
}

int lvm_number(const struct lvm_item *in, const char *key, uint64_t *out)
{
	const struct lvm_value *v = single(in, key);

	if (!v)
		return -ENOENT;
	if (v->text || v->number < 0)
		return -EINVAL;
	*out = (uint64_t)v->number;
	return 0;
}

bool lvm_has_word(const struct lvm_item *in, const char *key, const char *word)
{
	const GArray *values = lvm_values(in, key);

	for (unsigned i = 0; values && i < values->len; i++) {
		const struct lvm_value *v = &g_array_index(values, struct lvm_value, i);

		if (v->text && !strcmp(v->string, word))
			return true;
	}
	return false;
}
