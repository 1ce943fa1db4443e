/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dm-init strings: all devices come, or none; what is printed creates the same again. */
#include "core/concise.h"
#include "fuzz.h"

extern const struct dm_target_type linear_target, striped_target, zero_target, error_target;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	/* Those that show all they were given. */
	static const struct dm_target_type *const plain[] = {&linear_target, &striped_target, &zero_target,
							     &error_target, NULL};

	fuzz_start();
	dm_register_targets(plain);
	return 0;
}

static unsigned count(void)
{
	g_autoptr(GPtrArray) list = dm_list_devices();

	return list->len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = fuzz_text(data, size);
	g_autoptr(GString) first = g_string_new(NULL), second = g_string_new(NULL);
	struct dm_opener self = fuzz_opener();

	if (dm_concise_create(text, &self, NULL)) {
		if (count())
			abort();
		return 0;
	}
	dm_concise_print(first);
	dm_remove_all();
	if (count())
		abort();
	for (char *p = first->str; (p = strstr(p, "\n"));)
		*p = ';';
	if (dm_concise_create(first->str, &self, NULL))
		abort();
	dm_concise_print(second);
	for (char *p = second->str; (p = strstr(p, "\n"));)
		*p = ';';
	dm_remove_all();
	if (strcmp(first->str, second->str))
		abort();
	return 0;
}
