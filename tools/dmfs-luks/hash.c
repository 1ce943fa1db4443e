/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names of hashes (hash.h). */
#include <glib.h>
#include <string.h>

#include "hash.h"

char *hash_plain(const char *spelled)
{
	GString *out = g_string_new(NULL);

	for (; *spelled; spelled++)
		if (*spelled != '-' && *spelled != '_')
			g_string_append_c(out, g_ascii_tolower(*spelled));
	return g_string_free(out, FALSE);
}

const char *hash_luks(const char *spelled)
{
	static char **names; /* they stay: the result is one of them */
	g_autofree char *plain = hash_plain(spelled);

	if (!names)
		names = g_strsplit(HASH_LUKS_NAMES, ", ", -1);
	if (!strcmp(plain, "streebog") || !strcmp(plain, "streebog512"))
		return "stribog512";
	if (!strcmp(plain, "rmd160"))
		return "ripemd160";
	for (unsigned i = 0; names[i]; i++) {
		g_autofree char *name = hash_plain(names[i]);

		if (!strcmp(plain, name))
			return names[i];
	}
	return NULL;
}
