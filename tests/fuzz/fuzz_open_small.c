/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-open reading what should be superblocks of verity and integrity, and containers' headers. */
#include "fuzz_open.h"

#define try try_verity
#include "../../tools/dmfs-open/verity.c"
#undef try
#include "../../tools/dmfs-open/container.c"
#include "../../tools/dmfs-open/integrity.c"
#include "../../tools/dmfs-open/src.c"

/* What opens devices is not reached. */
#define UNREACHED(type, name, ...)                                                                                             \
	type name(__VA_ARGS__)                                                                                                 \
	{                                                                                                                      \
		abort();                                                                                                       \
	}
UNREACHED(char *, run_find, const char *program)
UNREACHED(int, run, char *const *argv, bool quiet, char **out, char **why)
UNREACHED(const char *, run_dir, GError **err)
UNREACHED(char *, node_image, const struct plan *p, const struct node *n)
UNREACHED(void, node_note, struct plan *p, struct node *n, const char *fmt, ...)
UNREACHED(int, node_make, struct plan *p, struct node *n, const char *id, bool readonly)
UNREACHED(int, node_try, struct plan *p, struct node *n, const char *id, bool readonly, GError **err)
UNREACHED(struct node *, node_new, struct plan *p, enum node_kind kind, const char *type, const char *name)
UNREACHED(void, node_stand_on, struct node *n, struct node *parent)
UNREACHED(char *, plan_name, struct plan *p, const char *wanted)
UNREACHED(int, client_remove, const char *mount, const char *name, GError **err)

char *tree_quote(const char *word)
{
	return g_strdup(word);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct src s = fuzz_src(data, size);
	g_autoptr(GPtrArray) notes = fuzz_notes();
	g_autofree char *backing = NULL, *table = NULL;
	struct integrity_sb integrity;
	struct verity_sb verity;

	if (!verity_read(&s, &verity, notes) && (strlen(verity.uuid) != 36 || !verity.data_blocks))
		abort();
	if (!integrity_read(&s, &integrity, notes)) {
		if (integrity.sectors > size / 512 || integrity.tag > 256)
			abort();
		table = integrity_table(&integrity, "d", "crc32c", 'R');
	}
	container_kind(&s, &backing);
	if (backing)
		is_protocol(backing);
	return 0;
}
