/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Just enough JSON to ask LUKS2's metadata, as libcryptsetup prints it, for a
 * value: no tree is built.
 */
#ifndef DMFS_LUKS_JSON_H
#define DMFS_LUKS_JSON_H

/*
 * The text of the value behind the member names (NULL at the end); "*" is the first member of an object.  NULL: there
 * is none, or it is no JSON.  The result points into the text, at the value's first byte.
 */
const char *json_find(const char *json, const char *const *path);
/* A copy of the value's text, quotes, brackets and all; NULL: there is no value, or it does not end. */
char *json_text(const char *value);
/* How many members the object at a value has. */
unsigned json_members(const char *value);
/* Whether the value is this string. */
int json_is(const char *value, const char *string);

#endif
