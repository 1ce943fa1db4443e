/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-luks looking for things in what should be LUKS2's metadata. */
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>

#include "../../tools/dmfs-luks/json.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const paths[][5] = {{"config", "requirements", "mandatory", NULL},
					       {"segments", "*", "encryption", NULL},
					       {"segments", "*", "iv_tweak", NULL},
					       {NULL},
					       {"segments", NULL},
					       {"segments", "*", "type", NULL},
					       {"segments", "*", "size", NULL},
					       {"*", "*", "*", NULL}};
	g_autofree char *text = g_strndup((const char *)data, size);

	for (size_t i = 0; i < G_N_ELEMENTS(paths); i++) {
		const char *value = json_find(text, paths[i]);
		g_autofree char *copy = json_text(value);

		if (value && (value < text || value > text + strlen(text)))
			abort();
		if (copy && (!value || strncmp(value, copy, strlen(copy))))
			abort();
		if (value && (json_members(value) > size || json_is(value, "dynamic") > 1))
			abort();
	}
	return 0;
}
