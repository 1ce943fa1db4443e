/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-luks: opens LUKS volumes (and BitLocker's and VeraCrypt's) as devices of a mounted
 * dmfs, as an ordinary user.
 */
#include <errno.h>
#include <gcrypt.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "../common/client.h"
#include "../common/commands.h"
#include "../common/tree.h"
#include "around.h"
#include "luks.h"

/* --- the commands --------------------------------------------------------------------------------- */

static int cmd_open(char **args, const struct options *o, GError **err)
{
	g_autofree char *mount = tree_find(o, err);
	g_autoptr(GError) unwiped = NULL;
	struct volume *v = NULL;
	int r;

	if (!mount)
		return -ENODEV;
	r = client_check_name(args[1], err);
	if (!r && tree_has_device(mount, args[1]))
		r = fail(err, EEXIST, "there is a device %s already", args[1]);
	if (!r) {
		around_look(mount);
		r = volume_open(args[0], args[1], o, &v, err);
	}
	if (!r && !o->readonly && !o->shared) {
		around_look(mount); /* it may have been a while */
		r = place_unused(v->file, v->from, v->to, PLACE_CLOSE_FIRST, err);
		if (!r)
			place_warn(v->file);
	}
	if (!r)
		r = tree_open(mount, args[1], v, o->readonly, err);
	if (!r && v->wipe.left && !o->readonly && !o->shared && !o->no_wipe && wipe_go_on(v, mount, args[1], &unwiped))
		g_printerr("%s: it is open, but what was never written in it is not wiped: %s\n", args[1], unwiped->message);
	volume_free(v);
	if (!r)
		printf("%s/%s/image\n", mount, args[1]);
	return r;
}

static int cmd_close(char **args, const struct options *o, GError **err)
{
	g_autofree char *mount = tree_find(o, err);
	int r = mount ? client_check_name(args[0], err) : -ENODEV;

	return r ? r : tree_close(mount, args[0], err);
}

static int cmd_status(char **args, const struct options *o, GError **err)
{
	g_autofree char *mount = tree_find(o, err);
	int r = mount ? client_check_name(args[0], err) : -ENODEV;

	return r ? r : tree_status(mount, args[0], err);
}

static int cmd_wait_wipe(char **args, const struct options *o, GError **err)
{
	g_autofree char *mount = tree_find(o, err);
	int r = mount ? client_check_name(args[0], err) : -ENODEV;

	return r ? r : wipe_wait(mount, args[0], err);
}

static int cmd_format(char **args, const struct options *o, GError **err)
{
	return volume_format(args[0], o, err);
}

static const struct command {
	struct usage use;
	int (*fn)(char **args, const struct options *o, GError **err);
} commands[] = {
	{{"open", "FILE NAME", 2, 2}, cmd_open},
	{{"close", "NAME", 1, 1}, cmd_close},
	{{"status", "NAME", 1, 1}, cmd_status},
	{{"format", "FILE", 1, 1}, cmd_format},
	{{"wait-wipe", "NAME", 1, 1}, cmd_wait_wipe},
};

/* --- the command line ------------------------------------------------------------------------------ */

static int settle(struct options *o, char *type, GError **err)
{
	if (type) {
		g_autofree char *upper = g_ascii_strup(type, -1);

		if (strcmp(upper, CRYPT_LUKS1) && strcmp(upper, CRYPT_LUKS2) && strcmp(upper, CRYPT_TCRYPT) &&
		    strcmp(upper, CRYPT_BITLK) && strcmp(upper, "LUKS"))
			return fail(err, EINVAL, "type '%s' is not one of luks, luks1, luks2, bitlk, tcrypt", type);
		o->type = g_steal_pointer(&upper);
	}
	if (o->keyfile_size < 0 || o->keyfile_offset < 0 || o->pim < 0 || o->key_bits < 0 || o->key_bits % 8 ||
	    o->sector_size < 0 || o->iter_time < 0 || o->pbkdf_memory < 0 || o->pbkdf_parallel < 0 ||
	    o->pbkdf_iterations < 0)
		return fail(err, EINVAL, "numbers of options must not be negative, and --key-size is in bits, a multiple of 8");
	if (o->key_files && o->key_files[1] && (!o->type || strcmp(o->type, CRYPT_TCRYPT)))
		return fail(err, EINVAL, "several key files are only for --type tcrypt");
	return 0;
}

static int parse(int *argc, char ***argv, struct options *o, GError **err)
{
	char *type = NULL;
	gboolean token_only = FALSE, readonly = FALSE, shared = FALSE, discards = FALSE, batch = FALSE, hidden = FALSE,
		 backup = FALSE, system = FALSE, no_vera = FALSE, no_journal = FALSE, no_wipe = FALSE, wipe_later = FALSE;
	const GOptionEntry entries[] = {
		{"mount", 'm', 0, G_OPTION_ARG_FILENAME, &o->mount, "The dmfs ($DMFS_MOUNT, or the only one)", "DIR"},
		{"type", 0, 0, G_OPTION_ARG_STRING, &type, "luks, luks1, luks2, bitlk, tcrypt", "TYPE"},
		{"key-file", 'd', 0, G_OPTION_ARG_FILENAME_ARRAY, &o->key_files, "Read the passphrase from it; - is standard input", "FILE"},
		{"keyfile-size", 'l', 0, G_OPTION_ARG_INT64, &o->keyfile_size, "Take that many bytes of it", "N"},
		{"keyfile-offset", 0, 0, G_OPTION_ARG_INT64, &o->keyfile_offset, "Skip that many bytes of it", "N"},
		{"key-slot", 'S', 0, G_OPTION_ARG_INT, &o->key_slot, "This key slot only", "N"},
		{"volume-key-file", 0, 0, G_OPTION_ARG_FILENAME, &o->volume_key_file,
		 "The volume key itself, instead of a passphrase", "FILE"},
		{"header", 0, 0, G_OPTION_ARG_FILENAME, &o->header, "The header is in another file", "FILE"},
		{"readonly", 'r', 0, G_OPTION_ARG_NONE, &readonly, "Open it for reading only", NULL},
		{"shared", 0, 0, G_OPTION_ARG_NONE, &shared, "Also if something else writes to the file", NULL},
		{"allow-discards", 0, 0, G_OPTION_ARG_NONE, &discards, "Let discards reach the file", NULL},
		{"integrity-no-journal", 0, 0, G_OPTION_ARG_NONE, &no_journal,
		 "Tags without a journal: faster, a crash breaks sectors; format: for good", NULL},
		{"tries", 'T', 0, G_OPTION_ARG_INT, &o->tries, "How often to ask for the passphrase (3)", "N"},
		{"token-only", 0, 0, G_OPTION_ARG_NONE, &token_only, "Use a LUKS2 token, never a passphrase", NULL},
		{"token-id", 0, 0, G_OPTION_ARG_INT, &o->token_id, "Use this LUKS2 token", "N"},
		{"tcrypt-hidden", 0, 0, G_OPTION_ARG_NONE, &hidden, "tcrypt: the hidden volume", NULL},
		{"tcrypt-backup", 0, 0, G_OPTION_ARG_NONE, &backup, "tcrypt: by the backup header", NULL},
		{"tcrypt-system", 0, 0, G_OPTION_ARG_NONE, &system, "tcrypt: a disk with an encrypted system", NULL},
		{"disable-veracrypt", 0, 0, G_OPTION_ARG_NONE, &no_vera, "tcrypt: TrueCrypt only", NULL},
		{"veracrypt-pim", 0, 0, G_OPTION_ARG_INT, &o->pim, "tcrypt: the volume's PIM", "N"},
		{"size", 0, 0, G_OPTION_ARG_STRING, &o->size, "format: make the file that long (100M)", "SIZE"},
		{"cipher", 'c', 0, G_OPTION_ARG_STRING, &o->cipher, "format: aes-xts-plain64", "CIPHER"},
		{"key-size", 's', 0, G_OPTION_ARG_INT, &o->key_bits, "format: of the volume key (512 for xts, 256)", "BITS"},
		{"hash", 'h', 0, G_OPTION_ARG_STRING, &o->hash, "format: for the key slot (sha256); tcrypt: try this one only", "HASH"},
		{"sector-size", 0, 0, G_OPTION_ARG_INT, &o->sector_size, "format: 512 to 4096", "BYTES"},
		{"integrity", 'I', 0, G_OPTION_ARG_STRING, &o->integrity,
		 "format: authenticate sectors: aead, poly1305, hmac-sha256, ...", "TYPE"},
		{"integrity-no-wipe", 0, 0, G_OPTION_ARG_NONE, &no_wipe,
		 "format, open: do not wipe: what was never written cannot be read", NULL},
		{"integrity-wipe-later", 0, 0, G_OPTION_ARG_NONE, &wipe_later,
		 "format: wiped in the background, when it is open", NULL},
		{"pbkdf", 0, 0, G_OPTION_ARG_STRING, &o->pbkdf, "format: argon2id, argon2i, pbkdf2", "NAME"},
		{"iter-time", 'i', 0, G_OPTION_ARG_INT, &o->iter_time, "format: how long unlocking takes (2000)", "MS"},
		{"pbkdf-memory", 0, 0, G_OPTION_ARG_INT, &o->pbkdf_memory, "format: and how much memory", "KIB"},
		{"pbkdf-parallel", 0, 0, G_OPTION_ARG_INT, &o->pbkdf_parallel, "format: and how many threads", "N"},
		{"pbkdf-force-iterations", 0, 0, G_OPTION_ARG_INT, &o->pbkdf_iterations, "format: without measuring", "N"},
		{"uuid", 0, 0, G_OPTION_ARG_STRING, &o->uuid, "format: instead of a random one", "UUID"},
		{"label", 0, 0, G_OPTION_ARG_STRING, &o->label, "format: of a LUKS2 volume", "TEXT"},
		{"batch", 'q', 0, G_OPTION_ARG_NONE, &batch, "format: overwrite without asking", NULL},
		{0},
	};
	g_autoptr(GOptionContext) context = g_option_context_new("open FILE NAME | close NAME | status NAME | format FILE | wait-wipe NAME");
	int r = 0;

	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context, "Encrypted volumes as devices of a mounted dmfs, without privileges.");
	if (!g_option_context_parse(context, argc, argv, err))
		r = -EINVAL;
	o->token_only = token_only;
	o->readonly = readonly;
	o->shared = shared;
	o->allow_discards = discards;
	o->batch = batch;
	o->no_journal = no_journal;
	o->no_wipe = no_wipe;
	o->wipe_later = wipe_later;
	o->tcrypt_hidden = hidden;
	o->tcrypt_backup = backup;
	o->tcrypt_system = system;
	o->no_veracrypt = no_vera;
	if (!r)
		r = settle(o, type, err);
	g_free(type);
	return r;
}

/* Nothing is accepted and then ignored. */
static int check_options(const struct command *c, const struct options *o, GError **err)
{
	bool opens = c->fn == cmd_open, formats = c->fn == cmd_format;
	bool tcrypt = o->type && !strcmp(o->type, CRYPT_TCRYPT), bitlk = o->type && !strcmp(o->type, CRYPT_BITLK);
	bool slots = o->key_slot != CRYPT_ANY_SLOT, tokens = o->token_only || o->token_id != CRYPT_ANY_TOKEN;
	const struct {
		bool given, allowed;
		const char *what;
	} rules[] = {
		{o->size || o->cipher || o->key_bits || o->sector_size || o->pbkdf || o->iter_time || o->pbkdf_memory ||
			 o->pbkdf_parallel || o->pbkdf_iterations || o->uuid || o->label || o->batch || o->integrity ||
			 o->wipe_later,
		 formats, "--size, --cipher, --key-size, --sector-size, --pbkdf..., --iter-time, --uuid, --label, --integrity, --integrity-wipe-later, --batch: only for format"},
		{o->no_wipe, opens || (formats && o->integrity),
		 "--integrity-no-wipe: only for open, and for format only with --integrity"},
		{o->wipe_later, o->integrity && !o->no_wipe,
		 "--integrity-wipe-later: only with --integrity, and without --integrity-no-wipe"},
		{o->no_journal, opens || (formats && o->integrity),
		 "--integrity-no-journal: only for open, and for format with --integrity"},
		{o->readonly || o->shared || o->allow_discards || tokens || o->volume_key_file, opens,
		 "--readonly, --shared, --allow-discards, --token-..., --volume-key-file: only for open"},
		{o->tcrypt_hidden || o->tcrypt_backup || o->tcrypt_system || o->no_veracrypt || o->pim, opens && tcrypt,
		 "--tcrypt-..., --veracrypt-pim, --disable-veracrypt: only for open --type tcrypt"},
		{o->hash, formats || (opens && tcrypt), "--hash: only for format, and for open --type tcrypt"},
		{o->type || o->header || o->key_files || slots, opens || formats, "--type, --header, --key-...: only for open and format"},
		{slots || tokens || o->volume_key_file, !tcrypt && !bitlk,
		 "--key-slot, --token-..., --volume-key-file: only for LUKS"},
		{o->volume_key_file, !slots && !tokens && !o->key_files,
		 "--volume-key-file: without --key-slot, --token-... and --key-file, which it is instead of"},
		{o->header, !bitlk, "--header: not for BitLocker"},
		{o->keyfile_size || o->keyfile_offset, o->key_files && !tcrypt,
		 "--keyfile-size, --keyfile-offset: only with --key-file, and not for tcrypt"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(rules); i++)
		if (rules[i].given && !rules[i].allowed)
			return fail(err, EINVAL, "%s", rules[i].what);
	return 0;
}

static void options_clear(struct options *o)
{
	g_free(o->mount);
	g_free(o->type);
	g_free(o->header);
	g_strfreev(o->key_files);
	g_free(o->volume_key_file);
	g_free(o->cipher);
	g_free(o->hash);
	g_free(o->pbkdf);
	g_free(o->uuid);
	g_free(o->label);
	g_free(o->size);
	g_free(o->integrity);
}

int main(int argc, char **argv)
{
	struct options o = {.key_slot = CRYPT_ANY_SLOT, .token_id = CRYPT_ANY_TOKEN, .tries = 3};
	const struct rlimit none = {0, 0};
	g_autoptr(GError) err = NULL;
	const struct command *c;
	int r;

	setlocale(LC_ALL, "");
	gcry_check_version(NULL);
	gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
	prctl(PR_SET_DUMPABLE, 0);
	setrlimit(RLIMIT_CORE, &none);
	r = parse(&argc, &argv, &o, &err);
	c = r ? NULL : find_command("dmfs-luks", commands, G_N_ELEMENTS(commands), sizeof *commands,
			     "open FILE NAME, close NAME, status NAME, format FILE or wait-wipe NAME", argc, argv, &err);
	if (!r)
		r = c ? check_options(c, &o, &err) : -EINVAL;
	if (!r)
		r = c->fn(argv + 2, &o, &err);
	options_clear(&o);
	if (err)
		say_error("dmfs-luks", err->message);
	return exit_status(r);
}
