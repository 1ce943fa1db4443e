/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-integrity: makes integrity volumes and opens them as devices of a mounted dmfs, as an ordinary user and with
 * integritysetup's options.
 */
#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

#include "../common/commands.h"

#include "integrity.h"

/* --- the commands ----------------------------------------------------------------------------- */

static int cmd_format(char **args, const struct options *o, GError **err)
{
	return volume_format(args[0], o, err);
}

static int cmd_open(char **args, const struct options *o, GError **err)
{
	return volume_open(args[0], args[1], o, err);
}

static int cmd_close(char **args, const struct options *o, GError **err)
{
	return volume_close(args[0], o, err);
}

static int cmd_status(char **args, const struct options *o, GError **err)
{
	return volume_status(args[0], o, err);
}

static int cmd_dump(char **args, const struct options *o, GError **err)
{
	return volume_dump(args[0], err);
}

static const struct command {
	struct usage use;
	int (*fn)(char **args, const struct options *o, GError **err);
} commands[] = {
    {{"format", "DEVICE", 1, 1}, cmd_format}, {{"open", "DEVICE NAME", 2, 2}, cmd_open}, {{"close", "NAME", 1, 1}, cmd_close},
    {{"status", "NAME", 1, 1}, cmd_status},	 {{"dump", "DEVICE", 1, 1}, cmd_dump},
};

/* --- the command line ------------------------------------------------------------------------- */

static gboolean take_bool(const gchar *name, const gchar *value, gpointer data, GError **err)
{
	struct options *o = data;
	const struct {
		const char *name, *letter;
		bool *where;
	} all[] = {
	    {"--integrity-no-journal", "-D", &o->no_journal},
	    {"--integrity-bitmap-mode", "-B", &o->bitmap},
	    {"--integrity-recovery-mode", "-R", &o->recovery},
	    {"--integrity-recalculate", "", &o->recalculate},
	    {"--integrity-recalculate-reset", "", &o->recalculate_reset},
	    {"--integrity-legacy-padding", "", &o->legacy_padding},
	    {"--integrity-legacy-hmac", "", &o->legacy_hmac},
	    {"--integrity-legacy-recalculate", "", &o->legacy_recalculate},
	    {"--allow-discards", "", &o->discards},
	    {"--no-wipe", "", &o->no_wipe},
	    {"--batch-mode", "-q", &o->batch},
	    {"--deferred", "", &o->deferred},
	    {"--cancel-deferred", "", &o->cancel_deferred},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(all); i++)
		if (!strcmp(name, all[i].name) || !strcmp(name, all[i].letter))
			*all[i].where = true;
	return TRUE;
}

#define BOOL_ENTRY(name, letter, help)                                                                                 \
	{                                                                                                              \
		name, letter, G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, take_bool, help, NULL                       \
	}

static int parse(int *argc, char ***argv, struct options *o, GError **err)
{
	const GOptionEntry entries[] = {
	    {"mount", 'm', 0, G_OPTION_ARG_FILENAME, &o->mount, "The dmfs ($DMFS_MOUNT, or the only one)", "DIR"},
	    {"data-device", 0, 0, G_OPTION_ARG_FILENAME, &o->data_device, "The data are there, DEVICE has the tags",
	     "FILE"},
	    {"integrity", 'I', 0, G_OPTION_ARG_STRING, &o->integrity, "crc32c", "HASH"},
	    {"integrity-key-file", 0, 0, G_OPTION_ARG_FILENAME, &o->integrity_key_file, "Its key, as of hmac-sha256",
	     "FILE"},
	    {"integrity-key-size", 0, 0, G_OPTION_ARG_INT, &o->integrity_key_size, "Of the file (all)", "BYTES"},
	    {"journal-integrity", 0, 0, G_OPTION_ARG_STRING, &o->journal_integrity, "Of the journal's sector numbers",
	     "HASH"},
	    {"journal-integrity-key-file", 0, 0, G_OPTION_ARG_FILENAME, &o->journal_integrity_key_file, "Its key",
	     "FILE"},
	    {"journal-integrity-key-size", 0, 0, G_OPTION_ARG_INT, &o->journal_integrity_key_size, "Of the file (all)",
	     "BYTES"},
	    {"journal-crypt", 0, 0, G_OPTION_ARG_STRING, &o->journal_crypt, "As ctr(aes)", "CIPHER"},
	    {"journal-crypt-key-file", 0, 0, G_OPTION_ARG_FILENAME, &o->journal_crypt_key_file, "Its key", "FILE"},
	    {"journal-crypt-key-size", 0, 0, G_OPTION_ARG_INT, &o->journal_crypt_key_size, "Of the file (all)",
	     "BYTES"},
	    {"tag-size", 't', 0, G_OPTION_ARG_INT, &o->tag_size, "format: of a tag (the hash's)", "BYTES"},
	    {"sector-size", 's', 0, G_OPTION_ARG_INT, &o->sector_size, "format: 512 to 4096 (512)", "BYTES"},
	    {"journal-size", 'j', 0, G_OPTION_ARG_INT64, &o->journal_size, "format: (a 128th, 64 MiB at most)",
	     "BYTES"},
	    {"interleave-sectors", 0, 0, G_OPTION_ARG_INT, &o->interleave, "format: (32768)", "N"},
	    {"buffer-sectors", 0, 0, G_OPTION_ARG_INT, &o->buffer, "(128)", "N"},
	    {"journal-watermark", 0, 0, G_OPTION_ARG_INT, &o->watermark, "(50)", "PERCENT"},
	    {"journal-commit-time", 0, 0, G_OPTION_ARG_INT, &o->commit_time, "(10000)", "MS"},
	    {"bitmap-sectors-per-bit", 0, 0, G_OPTION_ARG_INT64, &o->sectors_per_bit, "(32768)", "N"},
	    {"bitmap-flush-time", 0, 0, G_OPTION_ARG_INT, &o->flush_time, "(10000)", "MS"},
	    BOOL_ENTRY("integrity-no-journal", 'D', "Without a journal"),
	    BOOL_ENTRY("integrity-bitmap-mode", 'B', "With a bitmap instead of a journal"),
	    BOOL_ENTRY("integrity-recovery-mode", 'R', "open: nothing is checked, replayed or written"),
	    BOOL_ENTRY("integrity-recalculate", 0, "Tags are made of the data that are there"),
	    BOOL_ENTRY("integrity-recalculate-reset", 0, "open: from the beginning again"),
	    BOOL_ENTRY("integrity-legacy-padding", 0, "format: for kernels before 5.1"),
	    BOOL_ENTRY("integrity-legacy-hmac", 0, "format: for kernels before 5.12"),
	    BOOL_ENTRY("integrity-legacy-recalculate", 0, "open: recalculates in spite of keys"),
	    BOOL_ENTRY("allow-discards", 0, "open: discards are passed on"),
	    BOOL_ENTRY("no-wipe", 0, "format: the sectors get no tags yet"),
	    BOOL_ENTRY("batch-mode", 'q', "format: whatever is there"),
	    BOOL_ENTRY("deferred", 0, "close: when its last user has closed it"),
	    BOOL_ENTRY("cancel-deferred", 0, "close: not after all"),
	    {0},
	};
	GOptionGroup *group = g_option_group_new("main", "", "", o, NULL);
	g_autoptr(GOptionContext) context =
	    g_option_context_new("format DEVICE | open DEVICE NAME | close NAME | status NAME | dump DEVICE");

	g_option_group_add_entries(group, entries);
	g_option_context_set_main_group(context, group);
	g_option_context_set_summary(context,
				     "Volumes that notice what is changed or rots beneath them, without privileges.");
	return g_option_context_parse(context, argc, argv, err) ? 0 : -EINVAL;
}

/* Nothing is accepted and then ignored. */
static int check_options(const struct command *c, const struct options *o, GError **err)
{
	bool opens = c->fn == cmd_open, formats = c->fn == cmd_format, closes = c->fn == cmd_close;
	bool numbers_are_right = o->tag_size >= 0 && o->sector_size >= 0 && o->journal_size >= 0 &&
				 o->interleave >= 0 && o->buffer >= 0 && o->watermark >= 0 && o->commit_time >= 0 &&
				 o->flush_time >= 0 && o->sectors_per_bit >= 0;
	const struct {
		bool given, allowed;
		const char *what;
	} rules[] = {
	    {o->tag_size || o->sector_size || o->journal_size || o->interleave || o->legacy_padding || o->legacy_hmac ||
		 o->no_wipe || o->batch,
	     formats,
	     "--tag-size, --sector-size, --journal-size, --interleave-sectors, --integrity-legacy-padding, "
	     "--integrity-legacy-hmac, --no-wipe, --batch-mode: only for format"},
	    {o->data_device || o->integrity || o->integrity_key_file || o->journal_integrity ||
		 o->journal_integrity_key_file || o->journal_crypt || o->journal_crypt_key_file ||
		 o->integrity_key_size || o->journal_integrity_key_size || o->journal_crypt_key_size || o->no_journal ||
		 o->bitmap || o->recalculate || o->buffer || o->watermark || o->commit_time || o->flush_time ||
		 o->sectors_per_bit,
	     formats || opens, "this option is only for format and open"},
	    {o->recovery || o->recalculate_reset || o->legacy_recalculate || o->discards, opens,
	     "--integrity-recovery-mode, --integrity-recalculate-reset, --integrity-legacy-recalculate, "
	     "--allow-discards: only "
	     "for open"},
	    {o->no_journal + o->bitmap + o->recovery > 1, false,
	     "--integrity-no-journal, --integrity-bitmap-mode, --integrity-recovery-mode: one of them"},
	    {o->deferred || o->cancel_deferred, closes, "--deferred, --cancel-deferred: only for close"},
	    {o->deferred && o->cancel_deferred, false, "--deferred, --cancel-deferred: one of them"},
	    {!numbers_are_right, false, "numbers of options must not be negative"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(rules); i++)
		if (rules[i].given && !rules[i].allowed)
			return fail(err, EINVAL, "%s", rules[i].what);
	return 0;
}

static void options_clear(struct options *o)
{
	char **all[] = {&o->mount,
			&o->data_device,
			&o->integrity,
			&o->integrity_key_file,
			&o->journal_integrity,
			&o->journal_integrity_key_file,
			&o->journal_crypt,
			&o->journal_crypt_key_file};

	for (size_t i = 0; i < G_N_ELEMENTS(all); i++)
		g_free(*all[i]);
}

int main(int argc, char **argv)
{
	struct options o = {0};
	g_autoptr(GError) err = NULL;
	const struct command *c;
	int r;

	setlocale(LC_ALL, "");
	r = parse(&argc, &argv, &o, &err);
	c = r ? NULL : find_command("dmfs-integrity", commands, G_N_ELEMENTS(commands), sizeof *commands,
			     "format, open, close, status or dump", argc, argv, &err);
	if (!r)
		r = c ? check_options(c, &o, &err) : -EINVAL;
	if (!r)
		r = c->fn(argv + 2, &o, &err);
	options_clear(&o);
	if (err)
		say_error("dmfs-integrity", err->message);
	return exit_status(r);
}
