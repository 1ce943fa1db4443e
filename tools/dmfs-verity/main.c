/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-verity: makes verity images, verifies them, and opens them as devices of a mounted dmfs, as an ordinary user and
 * with veritysetup's options.
 */
#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

#include "../../targets/verity/rs.h"
#include "../common/client.h"
#include "../common/commands.h"
#include "../common/tree.h"
#include "verity.h"

/* --- the commands ------------------------------------------------------------------------------------------ */

static int cmd_format(char **args, const struct options *o, GError **err)
{
	return format(args[0], args[1], o, err);
}

static int cmd_verify(char **args, const struct options *o, GError **err)
{
	struct image im;
	int r = image_load(args[0], args[1], o, &im, err);
	g_autofree char *root = r ? NULL : image_root(&im, args[2], o, err);

	if (!r)
		r = root ? verify(&im, root, o, err) : -EINVAL;
	image_clear(&im);
	return r;
}

static int cmd_open(char **args, const struct options *o, GError **err)
{
	g_autofree char *mount = client_mount(o->mount, err), *root = NULL;
	struct image im;
	int r = mount ? client_check_name(args[1], err) : -ENODEV;

	if (r)
		return r;
	if (tree_has_device(mount, args[1]))
		return fail(err, EEXIST, "there is a device %s already", args[1]);
	r = image_load(args[0], args[2], o, &im, err);
	if (!r) {
		root = image_root(&im, args[3], o, err);
		r = root ? device_open(mount, args[1], &im, root, o, err) : -EINVAL;
	}
	image_clear(&im);
	if (!r)
		printf("%s/%s/image\n", mount, args[1]);
	return r;
}

static int cmd_close(char **args, const struct options *o, GError **err)
{
	g_autofree char *mount = client_mount(o->mount, err);
	int r = mount ? client_check_name(args[0], err) : -ENODEV;

	return r ? r : device_close(mount, args[0], o, err);
}

static int cmd_status(char **args, const struct options *o, GError **err)
{
	g_autofree char *mount = client_mount(o->mount, err);
	int r = mount ? client_check_name(args[0], err) : -ENODEV;

	return r ? r : device_status(mount, args[0], err);
}

static int cmd_dump(char **args, const struct options *o, GError **err)
{
	struct image im;
	int r = image_load(NULL, args[0], o, &im, err);

	if (!r)
		image_print(&im, NULL);
	image_clear(&im);
	return r;
}

static const struct command {
	struct usage use;
	int (*fn)(char **args, const struct options *o, GError **err);
} commands[] = {
	{{"format", "DATA HASHES", 2, 2}, cmd_format},
	{{"verify", "DATA HASHES [ROOT]", 2, 3}, cmd_verify},
	{{"open", "DATA NAME HASHES [ROOT]", 3, 4}, cmd_open},
	{{"close", "NAME", 1, 1}, cmd_close},
	{{"status", "NAME", 1, 1}, cmd_status},
	{{"dump", "HASHES", 1, 1}, cmd_dump},
};

/* --- the command line ----------------------------------------------------------------------------------------- */

static gboolean take_bool(const gchar *name, const gchar *value, gpointer data, GError **err)
{
	struct options *o = data;
	const struct {
		const char *name;
		bool *where;
	} all[] = {
		{"--no-superblock", &o->no_superblock},	      {"--ignore-corruption", &o->ignore_corruption},
		{"--restart-on-corruption", &o->restart},     {"--panic-on-corruption", &o->panic},
		{"--ignore-zero-blocks", &o->ignore_zero_blocks}, {"--check-at-most-once", &o->check_once},
		{"--use-tasklets", &o->tasklets},	      {"--deferred", &o->deferred},
		{"--cancel-deferred", &o->cancel_deferred},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(all); i++)
		if (!strcmp(name, all[i].name))
			*all[i].where = true;
	return TRUE;
}

#define BOOL_ENTRY(name, help) {name, 0, G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, take_bool, help, NULL}

static int parse(int *argc, char ***argv, struct options *o, GError **err)
{
	const GOptionEntry entries[] = {
		{"mount", 'm', 0, G_OPTION_ARG_FILENAME, &o->mount, "The dmfs ($DMFS_MOUNT, or the only one)", "DIR"},
		BOOL_ENTRY("no-superblock", "Without a superblock: the options say what the image is"),
		{"format", 0, 0, G_OPTION_ARG_INT, &o->type, "1, or 0: Chromium OS's", "N"},
		{"data-block-size", 0, 0, G_OPTION_ARG_INT, &o->data_block, "512 to 4096 (4096)", "BYTES"},
		{"hash-block-size", 0, 0, G_OPTION_ARG_INT, &o->hash_block, "512 and more (4096)", "BYTES"},
		{"data-blocks", 0, 0, G_OPTION_ARG_INT64, &o->data_blocks, "How many (all)", "N"},
		{"hash-offset", 0, 0, G_OPTION_ARG_INT64, &o->hash_offset, "Of the superblock, or the tree, in HASHES (0)", "BYTES"},
		{"hash", 'h', 0, G_OPTION_ARG_STRING, &o->hash, "sha256", "HASH"},
		{"salt", 's', 0, G_OPTION_ARG_STRING, &o->salt, "Hexadecimal, or - (32 random bytes)", "HEX"},
		{"uuid", 0, 0, G_OPTION_ARG_STRING, &o->uuid, "format: instead of a random one", "UUID"},
		{"fec-device", 0, 0, G_OPTION_ARG_FILENAME, &o->fec_device, "Parity for error correction", "FILE"},
		{"fec-roots", 0, 0, G_OPTION_ARG_INT, &o->fec_roots, "Parity bytes, 2 to 24 (2)", "N"},
		{"fec-offset", 0, 0, G_OPTION_ARG_INT64, &o->fec_offset, "Where it begins (0)", "BYTES"},
		{"root-hash-file", 0, 0, G_OPTION_ARG_FILENAME, &o->root_file, "format writes the root hash there, others read it", "FILE"},
		{"root-hash-signature", 0, 0, G_OPTION_ARG_FILENAME, &o->signature, "open: of the root hash", "FILE"},
		BOOL_ENTRY("ignore-corruption", "open: corrupted blocks are told of and read"),
		BOOL_ENTRY("restart-on-corruption", "open: the device fails for good"),
		BOOL_ENTRY("panic-on-corruption", "open: the same"),
		BOOL_ENTRY("ignore-zero-blocks", "open: blocks that must be zero are not looked at"),
		BOOL_ENTRY("check-at-most-once", "open: what was good once is not looked at again"),
		BOOL_ENTRY("use-tasklets", "open: accepted"),
		BOOL_ENTRY("deferred", "close: when its last user has closed it"),
		BOOL_ENTRY("cancel-deferred", "close: not after all"),
		{0},
	};
	GOptionGroup *group = g_option_group_new("main", "", "", o, NULL);
	g_autoptr(GOptionContext) context =
		g_option_context_new("format DATA HASHES | verify DATA HASHES [ROOT] | open DATA NAME HASHES [ROOT] | "
				     "close NAME | status NAME | dump HASHES");

	g_option_group_add_entries(group, entries);
	g_option_context_set_main_group(context, group);
	g_option_context_set_summary(context, "Images that cannot be changed unnoticed, without privileges.");
	return g_option_context_parse(context, argc, argv, err) ? 0 : -EINVAL;
}

static int check_numbers(const struct options *o, GError **err)
{
	if (o->type < -1 || o->type > 1)
		return fail(err, EINVAL, "--format=%d: 0 or 1", o->type);
	if (o->data_block && (o->data_block < 512 || o->data_block > 4096 || (o->data_block & (o->data_block - 1))))
		return fail(err, EINVAL, "--data-block-size=%d: a power of two from 512 to 4096", o->data_block);
	if (o->hash_block && (o->hash_block < 512 || (o->hash_block & (o->hash_block - 1))))
		return fail(err, EINVAL, "--hash-block-size=%d: a power of two from 512", o->hash_block);
	if (o->fec_roots && (o->fec_roots < RS_MIN_ROOTS || o->fec_roots > RS_MAX_ROOTS))
		return fail(err, EINVAL, "--fec-roots=%d: %d to %d", o->fec_roots, RS_MIN_ROOTS, RS_MAX_ROOTS);
	if (o->data_blocks < 0 || o->hash_offset < 0 || o->fec_offset < 0)
		return fail(err, EINVAL, "numbers of options must not be negative");
	return 0;
}

/* Nothing is accepted and then ignored. */
static int check_options(const struct command *c, const struct options *o, GError **err)
{
	bool opens = c->fn == cmd_open, formats = c->fn == cmd_format, closes = c->fn == cmd_close;
	bool dumps = c->fn == cmd_dump, verifies = c->fn == cmd_verify, images = opens || formats || verifies;
	const struct {
		bool given, allowed;
		const char *what;
	} rules[] = {
		{o->type >= 0 || o->data_block || o->hash_block || o->data_blocks || o->hash || o->salt,
		 formats || (images && o->no_superblock),
		 "--format, --data-block-size, --hash-block-size, --data-blocks, --hash, --salt: only for format, and where "
		 "there is no superblock"},
		{o->no_superblock, images, "--no-superblock: only for format, verify and open"},
		{o->hash_offset || o->fec_device, images || dumps, "--hash-offset, --fec-device: only for format, verify, open and dump"},
		{o->root_file, images, "--root-hash-file: only for format, verify and open"},
		{o->fec_roots || o->fec_offset, o->fec_device, "--fec-roots, --fec-offset: only with --fec-device"},
		{o->uuid, formats && !o->no_superblock, "--uuid: only for format, with a superblock"},
		{o->signature || o->ignore_corruption || o->restart || o->panic || o->ignore_zero_blocks || o->check_once ||
			 o->tasklets,
		 opens, "--root-hash-signature, --...-corruption, --ignore-zero-blocks, --check-at-most-once, --use-tasklets: only for open"},
		{o->ignore_corruption + o->restart + o->panic > 1, false,
		 "--ignore-corruption, --restart-on-corruption, --panic-on-corruption: one of them"},
		{o->deferred || o->cancel_deferred, closes, "--deferred, --cancel-deferred: only for close"},
		{o->deferred && o->cancel_deferred, false, "--deferred, --cancel-deferred: one of them"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(rules); i++)
		if (rules[i].given && !rules[i].allowed)
			return fail(err, EINVAL, "%s", rules[i].what);
	return check_numbers(o, err);
}

static void options_clear(struct options *o)
{
	g_free(o->mount);
	g_free(o->hash);
	g_free(o->salt);
	g_free(o->uuid);
	g_free(o->fec_device);
	g_free(o->root_file);
	g_free(o->signature);
}

int main(int argc, char **argv)
{
	struct options o = {.type = -1};
	g_autoptr(GError) err = NULL;
	const struct command *c;
	int r;

	setlocale(LC_ALL, "");
	r = parse(&argc, &argv, &o, &err);
	c = r ? NULL : find_command("dmfs-verity", commands, G_N_ELEMENTS(commands), sizeof *commands,
			     "format, verify, open, close, status or dump", argc, argv, &err);
	if (!r)
		r = c ? check_options(c, &o, &err) : -EINVAL;
	if (!r)
		r = c->fn(argv + 2, &o, &err);
	options_clear(&o);
	if (err)
		say_error("dmfs-verity", err->message);
	return exit_status(r);
}
