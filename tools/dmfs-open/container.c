/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Disks in containers: qcow2, VMDK, VDI, VHDX and VHD, which a qemu-nbd gives out on a socket of its own.  It ends by
 * itself when the device does, which is its last client, and --close sees to it.
 *
 * What a qcow2 names as beneath it must be a file: QEMU would take "nbd:..." or "json:{...}" for more than that, and the
 * name comes from whoever made the image.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <dmfs/le.h>

#include "../common/tree.h"
#include "open.h"

#define MAX_BACKING 1023u

static char *qcow2_backing(const struct src *s, const uint8_t *header)
{
	uint64_t at = GUINT64_FROM_BE(*(const guint64 *)(const void *)(header + 8));
	uint32_t len = get_be32(header + 16);
	char *name;

	if (!at || !len || len > MAX_BACKING)
		return NULL;
	name = g_malloc0(len + 1);
	if (!src_read(s, at, name, len))
		return name;
	g_free(name);
	return NULL;
}

const char *container_kind(const struct src *s, char **backing)
{
	_Alignas(8) uint8_t p[512] = {0};

	*backing = NULL;
	if (src_read(s, 0, p, sizeof(p)))
		return NULL;
	if (!memcmp(p, "QFI\xfb", 4) && get_be32(p + 4) >= 2) {
		*backing = qcow2_backing(s, p);
		return "qcow2";
	}
	if (!memcmp(p, "QFI\xfb", 4))
		return "qcow";
	if (!memcmp(p, "KDMV", 4) || !memcmp(p, "COWD", 4) || !memcmp(p, "# Disk DescriptorFile", 21))
		return "vmdk";
	if (get_le32(p + 64) == 0xbeda107fu)
		return "vdi";
	if (!memcmp(p, "vhdxfile", 8))
		return "vhdx";
	if (!memcmp(p, "conectix", 8)) /* a fixed VHD, which has that at its end only, reads as it is */
		return "vpc";
	return NULL;
}

/* Letters and a colon before any slash. */
static bool is_protocol(const char *name)
{
	size_t len = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-");

	return len && name[len] == ':';
}

/* "virtual size: 64 MiB (67108864 bytes)" */
static uint64_t virtual_size(const char *kind, const char *file, char **why)
{
	g_autofree char *program = run_find("qemu-img"), *out = NULL;
	char *argv[] = {program, (char *)"info", (char *)"-U", (char *)"-f", (char *)kind, (char *)file, NULL};
	const char *at;

	if (!program) {
		*why = g_strdup("qemu-img is not installed (package qemu-utils)");
		return 0;
	}
	if (run(argv, true, &out, why))
		return 0;
	at = strstr(out, "virtual size: ");
	at = at ? strchr(at, '(') : NULL;
	return at ? g_ascii_strtoull(at + 1, NULL, 10) : 0;
}

static int serve(bool readonly, const char *kind, const char *file, const char *sock, const char *pid_file, char **why)
{
	g_autofree char *program = run_find("qemu-nbd");
	g_autoptr(GPtrArray) argv = g_ptr_array_new();
	const char *const words[] = {"--fork", "-e", "16", "-f", kind, "-k", sock, "--pid-file", pid_file, file, NULL};

	if (!program) {
		*why = g_strdup("qemu-nbd is not installed (package qemu-utils)");
		return -ENOENT;
	}
	g_ptr_array_add(argv, program);
	if (readonly)
		g_ptr_array_add(argv, (gpointer) "-r");
	for (size_t i = 0; i < G_N_ELEMENTS(words); i++)
		g_ptr_array_add(argv, (gpointer)words[i]);
	return run((char *const *)argv->pdata, true, NULL, why);
}

/* One that nobody has connected to does not end by itself. */
static void stop(const char *pid_file)
{
	g_autofree char *text = NULL;
	pid_t pid;

	if (!g_file_get_contents(pid_file, &text, NULL, NULL))
		return;
	unlink(pid_file);
	pid = (pid_t)g_ascii_strtoll(text, NULL, 10);
	if (pid > 1)
		kill(pid, SIGTERM);
}

static void locked(struct plan *p, struct node *n, const char *kind, const char *why)
{
	node_note(p, n, "%s: not opened: %s", kind, why && *why ? why : "qemu-nbd cannot read it");
	p->failed = true;
}

void container_open(struct plan *p, struct node *n, const char *kind, const char *backing)
{
	g_autofree char *image = node_image(p, n), *why = NULL, *sock = NULL, *pid_file = NULL, *uri = NULL, *word = NULL;
	g_autofree char *wanted = g_strdup_printf("%s-%s", n->name, kind), *base = NULL, *escaped = NULL;
	const char *file = n->path ? n->path : image, *dir;
	g_autoptr(GError) err = NULL;
	struct node *c;
	uint64_t bytes;

	if (backing && is_protocol(backing)) {
		why = g_strdup_printf("what it stands on, '%s', is no file", backing);
		locked(p, n, kind, why);
		return;
	}
	if (backing)
		node_note(p, n, "it stands on the file %s", backing);
	bytes = virtual_size(kind, file, &why);
	dir = bytes >= 512 ? run_dir(&err) : NULL;
	if (!dir) {
		locked(p, n, kind, err ? err->message : why);
		return;
	}
	base = g_strdup_printf("%u.sock", n->seq);
	sock = g_build_filename(dir, base, NULL);
	pid_file = g_strconcat(sock, ".pid", NULL);
	if (serve(!p->o->write || n->readonly, kind, file, sock, pid_file, &why)) {
		locked(p, n, kind, why);
		return;
	}
	c = node_new(p, NODE_CONTAINER, "disk", wanted);
	node_stand_on(c, n);
	c->sectors = bytes / 512;
	escaped = g_uri_escape_string(sock, "/", FALSE);
	uri = g_strdup_printf("nbd+unix:///?socket=%s", escaped);
	word = tree_quote(uri);
	c->table = g_strdup_printf("0 %" PRIu64 " linear %s 0\n", c->sectors, word);
	if (node_make(p, c, "NBD", !p->o->write))
		stop(pid_file);
}
