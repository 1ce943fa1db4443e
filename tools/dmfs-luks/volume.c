/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From a file and its passphrase to table lines: what all kinds of volumes
 * share.  libcryptsetup reads the header and gives the volume key; all it
 * would ask the kernel for is left out.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "luks.h"

/* --- libcryptsetup ------------------------------------------------------------------------------- */

static char *last_error;      /* at its error level */
static GString *last_details; /* below that, what sounds like a fault */
static bool listening;

/* What libcryptsetup says below its error level is mostly what it does. */
static bool is_fault(const char *msg)
{
	static const char *const signs[] = {"error",	 "fail",     "nvalid", "llegal",  "issing", "orrupt",
					    "ambiguous", "mismatch", "too",    "overlap", "xceed",  "nsupported",
					    "expected",	 "cannot",   "Cannot", "wrong",	  "not "};

	if (strstr(msg, "read failed (") || strstr(msg, "validation failed"))
		return false; /* which sums up what it said before */
	for (size_t i = 0; i < G_N_ELEMENTS(signs); i++)
		if (strstr(msg, signs[i]))
			return true;
	return false;
}

static void remember(int level, const char *msg, void *unused)
{
	g_autofree char *line = g_strstrip(g_strdup(msg));

	if (level == CRYPT_LOG_ERROR || level == CRYPT_LOG_NORMAL) {
		g_free(last_error);
		last_error = g_strdelimit(g_steal_pointer(&line), "\n", ' ');
	} else if (listening && is_fault(line)) {
		if (!last_details)
			last_details = g_string_new(NULL);
		if (g_str_has_suffix(line, "."))
			line[strlen(line) - 1] = '\0';
		g_strdelimit(line, "\n", ' ');
		if (!strstr(last_details->str, line))
			g_string_append_printf(last_details, "%s%s", last_details->len ? "; " : "", line);
	}
}

static void forget_messages(void)
{
	g_clear_pointer(&last_error, g_free);
	if (last_details)
		g_string_truncate(last_details, 0);
}

void volume_listen(bool closely)
{
	if (closely)
		forget_messages();
	listening = closely;
	crypt_set_debug_level(closely ? CRYPT_DEBUG_ALL : CRYPT_DEBUG_NONE);
}

char *volume_message(void)
{
	return last_error && *last_error ? g_strdup(last_error) : NULL;
}

char *volume_details(void)
{
	return last_details && last_details->len ? g_strdup(last_details->str) : NULL;
}

int volume_fail(GError **err, int code, const char *what)
{
	return fail(err, code, "%s: %s", what, last_error && *last_error ? last_error : g_strerror(code));
}

int volume_init(const char *file, const struct options *o, struct crypt_device **out, GError **err)
{
	int r;

	crypt_set_log_callback(NULL, remember, NULL);
	/* /run/cryptsetup is root's; and no kernel mapping of the file could exist */
	crypt_metadata_locking(NULL, 0);
	r = o->header ? crypt_init_data_device(out, o->header, file) : crypt_init(out, file);
	return r < 0 ? volume_fail(err, -r, file) : 0;
}

/* --- the size of a file or block device ----------------------------------------------------------- */

int volume_sectors(const char *file, uint64_t *sectors, GError **err)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK), r = 0;
	uint64_t bytes = 0;
	struct stat st;

	if (fd < 0)
		return fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (fstat(fd, &st))
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	else if (S_ISREG(st.st_mode))
		bytes = (uint64_t)st.st_size;
	else if (!S_ISBLK(st.st_mode) || ioctl(fd, BLKGETSIZE64, &bytes))
		r = fail(err, ENOTBLK, "%s is neither a file nor a block device", file);
	close(fd);
	*sectors = bytes / 512;
	return r;
}

/* --- table lines ---------------------------------------------------------------------------------- */

static void stage_free(gpointer p)
{
	struct stage *s = p;

	g_free(s->suffix);
	secret_clear(&s->table);
	g_free(s);
}

GPtrArray *volume_stages(void)
{
	return g_ptr_array_new_with_free_func(stage_free);
}

void volume_free(struct volume *v)
{
	if (!v)
		return;
	g_ptr_array_unref(v->stages);
	if (v->claim >= 0)
		close(v->claim);
	g_free(v->file);
	g_free(v->type);
	g_free(v->uuid);
	g_free(v->wipe.header);
	g_free(v);
}

void volume_set_place(struct volume *v, const char *file, uint64_t from, uint64_t to)
{
	g_free(v->file);
	v->file = g_strdup(file);
	v->from = from;
	v->to = to;
}

char *volume_quoted(const char *path)
{
	GString *out = g_string_new(NULL);

	for (; *path; path++) {
		if (strchr(" \t\n\\#\"'", *path))
			g_string_append_c(out, '\\');
		g_string_append_c(out, *path);
	}
	return g_string_free(out, FALSE);
}

struct stage *stage_new(struct volume *v, const char *suffix)
{
	struct stage *s = g_new0(struct stage, 1);

	s->suffix = g_strdup(suffix);
	g_ptr_array_add(v->stages, s);
	return s;
}

/* --- a key for a passphrase ------------------------------------------------------------------------ */

/* A line of a file that ends like that was rarely meant. */
static bool ends_in_newline(const struct options *o, const struct secret *pass)
{
	return o->key_files && pass->len > 1 && pass->data[pass->len - 1] == '\n';
}

/* So libcryptsetup also says of a wrong passphrase, where the last slot that it tries is unbound. */
static bool has_active_slot(struct crypt_device *cd)
{
	const char *type = crypt_get_type(cd);
	int slots = g_str_has_prefix(type, "LUKS") ? crypt_keyslot_max(type) : 0;

	for (int i = 0; i < slots; i++) {
		crypt_keyslot_info info = crypt_keyslot_status(cd, i);

		if (info == CRYPT_SLOT_ACTIVE || info == CRYPT_SLOT_ACTIVE_LAST)
			return true;
	}
	return false;
}

static int key_fail(struct crypt_device *cd, GError **err, int code, const char *file, const char *hint)
{
	g_autofree char *spec = NULL;

	if (code == ENOENT)
		return fail(err, ENOENT, "%s: no key slot of it can be used", file);
	if (code == EPERM)
		return fail(err, EPERM, "%s: no key is available with this passphrase%s", file, hint ? hint : "");
	spec = code == ENOMEM ? NULL : luks_foreign_cipher(cd);
	if (spec)
		return fail(err, code,
			    "%s: it has a key slot encrypted with %s, which neither this kernel's AF_ALG nor libgcrypt has",
			    file, spec);
	return volume_fail(err, code, file);
}

int volume_key_by_passphrase(struct crypt_device *cd, const char *file, const struct options *o, struct key *k,
			     key_fn also, void *data, GError **err)
{
	g_autofree char *prompt = g_strdup_printf("Passphrase for %s", file), *hint = NULL;
	int tries = secret_can_retry(o) ? MAX(o->tries, 1) : 1, r;

	do {
		struct secret pass;

		r = secret_get(cd, o, prompt, &pass, err);
		if (r)
			return r;
		forget_messages();
		r = crypt_volume_key_get(cd, o->key_slot, k->bytes, &k->len, pass.data ? pass.data : "", pass.len);
		if (r == -EINVAL && !strcmp(crypt_get_type(cd), CRYPT_BITLK))
			r = -EPERM; /* so it says, depending on which of the keys it tried last */
		if (r == -ENOENT && has_active_slot(cd))
			r = -EPERM;
		if (r == -EPERM && also)
			r = also(&pass, k, data);
		if (r == -EPERM && ends_in_newline(o, &pass))
			hint = g_strdup_printf("; the newline at its end counts: without it, --keyfile-size %zu",
					       pass.len - 1);
		secret_clear(&pass);
		if (r == -EPERM && tries > 1)
			g_printerr("No key is available with this passphrase.\n");
	} while (r == -EPERM && --tries > 0);
	return r < 0 ? key_fail(cd, err, -r, file, hint) : 0;
}

/* --- any ------------------------------------------------------------------------------------------ */

/* Without dashes, and without anything else that a header could have in it. */
static char *plain_uuid(const char *uuid)
{
	GString *out = g_string_new(NULL);

	for (const char *p = uuid ? uuid : ""; *p; p++)
		if (g_ascii_isalnum(*p))
			g_string_append_c(out, *p);
	return g_string_free(out, FALSE);
}

/* How the file is opened has been checked; o: with absolute paths. */
static int unlock(const char *path, const char *name, const struct options *o, struct volume *v, GError **err)
{
	bool tcrypt = o->type && !strcmp(o->type, CRYPT_TCRYPT);
	struct crypt_device *cd = NULL;
	int r = volume_init(path, o, &cd, err);

	if (r)
		return r;
	if (tcrypt)
		r = tcrypt_open(cd, path, name, o, v, err);
	else
		r = header_load(cd, o->header ? o->header : path, o, err);
	if (!r && !tcrypt)
		r = !strcmp(crypt_get_type(cd), CRYPT_BITLK) ? bitlk_open(cd, path, o, v, err)
							     : luks_open(cd, path, name, o, v, err);
	if (!r) {
		v->type = g_strdup(tcrypt ? CRYPT_TCRYPT : crypt_get_type(cd));
		v->uuid = plain_uuid(tcrypt ? NULL : crypt_get_uuid(cd));
	}
	crypt_free(cd);
	return r;
}

static char *absolute(const char *file, GError **err)
{
	char *path = realpath(file, NULL);

	if (!path)
		fail(err, errno, "%s: %s", file, g_strerror(errno));
	return path;
}

int volume_open(const char *file, const char *name, const struct options *o, struct volume **out, GError **err)
{
	g_autofree char *path = absolute(file, err), *header = path && o->header ? absolute(o->header, err) : NULL;
	struct options with_paths = *o;
	uint64_t sectors;
	struct volume *v;
	int claim, r;

	if (!path || (o->header && !header))
		return -EINVAL;
	with_paths.header = header;
	/* libcryptsetup would wait for a FIFO's writer */
	r = volume_sectors(path, &sectors, err);
	if (!r && header)
		r = volume_sectors(header, &sectors, err);
	if (!r)
		r = place_claim(path, o->readonly, o->shared, PLACE_CLOSE_FIRST, &claim, err);
	if (r)
		return r;
	v = g_new0(struct volume, 1);
	v->claim = claim;
	v->stages = volume_stages();
	r = unlock(path, name, &with_paths, v, err);
	if (r)
		volume_free(v);
	else
		*out = v;
	return r;
}
