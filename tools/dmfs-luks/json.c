/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Looking things up in JSON (json.h); nothing here recurses, whatever the text. */
#include <glib.h>
#include <stddef.h>
#include <string.h>

#include "json.h"

static const char *blanks(const char *p)
{
	return p + strspn(p, " \t\r\n");
}

/* Behind the string that begins at p, or NULL. */
static const char *skip_string(const char *p)
{
	for (p++; *p && *p != '"'; p++)
		if (*p == '\\' && p[1])
			p++;
	return *p ? p + 1 : NULL;
}

/* Behind the value that begins at p, or NULL. */
static const char *skip_value(const char *p)
{
	unsigned depth = 0;

	do {
		if (*p == '"') {
			p = skip_string(p);
			if (!p)
				return NULL;
			continue;
		}
		if (*p == '{' || *p == '[')
			depth++;
		else if (*p == '}' || *p == ']')
			depth--;
		else if (!*p)
			return NULL;
		else if (!depth)
			return p + strcspn(p, ",}] \t\r\n");
		p++;
	} while (depth);
	return p;
}

/* The first member's name of the object at p, or NULL. */
static const char *first_member(const char *p)
{
	if (!p || *p != '{')
		return NULL;
	p = blanks(p + 1);
	return *p == '"' ? p : NULL;
}

static const char *value_of(const char *name)
{
	const char *p = skip_string(name);

	p = p ? blanks(p) : NULL;
	return p && *p == ':' ? blanks(p + 1) : NULL;
}

static const char *next_member(const char *name)
{
	const char *p = value_of(name);

	p = p ? skip_value(p) : NULL;
	p = p ? blanks(p) : NULL;
	if (!p || *p != ',')
		return NULL;
	p = blanks(p + 1);
	return *p == '"' ? p : NULL;
}

const char *json_find(const char *json, const char *const *path)
{
	const char *value = json ? blanks(json) : NULL, *name;

	for (; value && *path; path++) {
		for (name = first_member(value); name; name = next_member(name))
			if (!strcmp(*path, "*") || json_is(name, *path))
				break;
		value = name ? value_of(name) : NULL;
	}
	return value;
}

char *json_text(const char *value)
{
	const char *end = value ? skip_value(value) : NULL;

	return end ? g_strndup(value, (gsize)(end - value)) : NULL;
}

unsigned json_members(const char *value)
{
	unsigned n = 0;

	for (const char *name = first_member(value); name; name = next_member(name))
		n++;
	return n;
}

int json_is(const char *value, const char *string)
{
	size_t len = strlen(string);

	return value && *value == '"' && !strncmp(value + 1, string, len) && value[1 + len] == '"';
}
