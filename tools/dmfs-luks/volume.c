/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From a file and its passphrase to table lines.
 *
 * libcryptsetup reads the header and gives the volume key; all it would ask
 * the kernel for is left out.  LUKS' data is one range, from the header's
 * offset to the end of the file (or as long as LUKS2's segment says); IVs
 * count from the range's begin.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "luks.h"

/* --- libcryptsetup ------------------------------------------------------------------------------- */

static GString *last_message;

static void remember(int level, const char *msg, void *unused)
{
	if (level != CRYPT_LOG_ERROR && level != CRYPT_LOG_NORMAL)
		return;
	if (!last_message)
		last_message = g_string_new(NULL);
	g_string_assign(last_message, msg);
	while (last_message->len && g_ascii_isspace(last_message->str[last_message->len - 1]))
		g_string_truncate(last_message, last_message->len - 1);
}

static void forget_message(void)
{
	if (last_message)
		g_string_truncate(last_message, 0);
}

int volume_fail(GError **err, int code, const char *what)
{
	if (code == EPERM)
		return fail(err, EPERM, "%s: no key is available with this passphrase", what);
	if (last_message && last_message->len)
		return fail(err, code, "%s: %s", what, last_message->str);
	return fail(err, code, "%s: %s", what, g_strerror(code));
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

void volume_free(struct volume *v)
{
	if (!v)
		return;
	g_ptr_array_unref(v->stages);
	g_free(v->type);
	g_free(v->uuid);
	g_free(v);
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

int stage_line(struct stage *s, const char *head, const char *key, size_t key_len, const char *tail, GError **err)
{
	static const char digits[] = "0123456789abcdef";
	size_t at = s->table.len, head_len = strlen(head), tail_len = strlen(tail);
	size_t len = at + head_len + (key_len ? 2 * key_len : 1) + tail_len;
	char *p = crypt_safe_alloc(len + 1);

	if (!p)
		return fail(err, ENOMEM, "no memory for a key");
	if (at)
		memcpy(p, s->table.data, at);
	memcpy(p + at, head, head_len);
	at += head_len;
	if (key && !key_len)
		p[at++] = '-';
	for (size_t i = 0; key && i < key_len; i++) {
		p[at++] = digits[(unsigned char)key[i] >> 4];
		p[at++] = digits[key[i] & 15];
	}
	memcpy(p + at, tail, tail_len + 1);
	secret_clear(&s->table);
	s->table = (struct secret){p, at + tail_len};
	return 0;
}

/* --- LUKS ----------------------------------------------------------------------------------------- */

static int check_luks2(struct crypt_device *cd, const char *file, uint64_t *fixed_sectors, GError **err)
{
	static const char *const segments[] = {"segments", NULL}, *const type[] = {"segments", "*", "type", NULL},
				*const size[] = {"segments", "*", "size", NULL};
	struct crypt_params_integrity ip = {0};
	const char *json, *value;
	uint32_t needs = 0;

	if (!crypt_persistent_flags_get(cd, CRYPT_FLAGS_REQUIREMENTS, &needs) && needs)
		return fail(err, EOPNOTSUPP, "%s: %s", file,
			    needs & (CRYPT_REQUIREMENT_ONLINE_REENCRYPT | CRYPT_REQUIREMENT_OFFLINE_REENCRYPT) ?
				    "a reencryption is under way: finish it with cryptsetup reencrypt" :
				    "it has requirements that are unknown here");
	if (!crypt_get_integrity_info(cd, &ip) && (ip.tag_size || (ip.integrity && *ip.integrity)))
		return fail(err, EOPNOTSUPP, "%s: it has authenticated sectors (integrity %s), which are not supported", file,
			    ip.integrity ? ip.integrity : "");
	if (crypt_dump_json(cd, &json, 0) || json_members(json_find(json, segments)) != 1 ||
	    !json_is(json_find(json, type), "crypt"))
		return fail(err, EOPNOTSUPP, "%s: its data is not one segment of type crypt", file);
	value = json_find(json, size);
	if (value && *value == '"' && !json_is(value, "dynamic"))
		*fixed_sectors = g_ascii_strtoull(value + 1, NULL, 10) / 512;
	return 0;
}

static void activation_options(struct crypt_device *cd, const struct options *o, int sector_size, GString *tail)
{
	static const struct {
		uint32_t flag;
		const char *word;
	} words[] = {
		{CRYPT_ACTIVATE_ALLOW_DISCARDS, "allow_discards"},
		{CRYPT_ACTIVATE_SAME_CPU_CRYPT, "same_cpu_crypt"},
		{CRYPT_ACTIVATE_SUBMIT_FROM_CRYPT_CPUS, "submit_from_crypt_cpus"},
		{CRYPT_ACTIVATE_NO_READ_WORKQUEUE, "no_read_workqueue"},
		{CRYPT_ACTIVATE_NO_WRITE_WORKQUEUE, "no_write_workqueue"},
	};
	g_autoptr(GString) list = g_string_new(NULL);
	uint32_t flags = 0;
	unsigned n = 0;

	if (crypt_persistent_flags_get(cd, CRYPT_FLAGS_ACTIVATION, &flags))
		flags = 0; /* LUKS1 keeps none */
	if (o->allow_discards)
		flags |= CRYPT_ACTIVATE_ALLOW_DISCARDS;
	for (size_t i = 0; i < G_N_ELEMENTS(words); i++)
		if (flags & words[i].flag) {
			g_string_append_printf(list, " %s", words[i].word);
			n++;
		}
	if (sector_size != 512) {
		g_string_append_printf(list, " sector_size:%d", sector_size);
		n++;
	}
	if (n)
		g_string_append_printf(tail, " %u%s", n, list->str);
}

/* A token that the system can resolve on its own, as cryptsetup tries first, too. */
static int key_by_token(struct crypt_device *cd, const struct options *o, char *key, size_t *len)
{
	struct crypt_keyslot_context *kc = NULL;
	int r = crypt_keyslot_context_init_by_token(cd, o->token_id, NULL, NULL, 0, NULL, &kc);

	if (!r)
		r = crypt_volume_key_get_by_keyslot_context(cd, o->key_slot, key, len, kc);
	crypt_keyslot_context_free(kc);
	return r;
}

static bool has_tokens(struct crypt_device *cd)
{
	int max = crypt_token_max(CRYPT_LUKS2);

	for (int i = 0; i < max; i++) {
		crypt_token_info t = crypt_token_status(cd, i, NULL);

		if (t == CRYPT_TOKEN_INTERNAL || t == CRYPT_TOKEN_EXTERNAL)
			return true;
	}
	return false;
}

/* Whether the kernel lends its ciphers; then libcryptsetup has more than AES. */
static bool has_af_alg(void)
{
	int fd = socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* A key slot whose cipher libcryptsetup has not itself; or NULL. */
static char *foreign_cipher(struct crypt_device *cd)
{
	const char *type = crypt_get_type(cd);
	bool luks2 = !strcmp(type, CRYPT_LUKS2);
	int slots = g_str_has_prefix(type, "LUKS") ? crypt_keyslot_max(type) : 0;

	for (int i = 0; i < slots; i++) {
		crypt_keyslot_info info = crypt_keyslot_status(cd, i);
		size_t bytes;
		const char *spec = luks2 ? crypt_keyslot_get_encryption(cd, i, &bytes) : NULL;
		g_autofree char *luks1 = luks2 ? NULL : g_strdup_printf("%s-%s", crypt_get_cipher(cd), crypt_get_cipher_mode(cd));

		if (info != CRYPT_SLOT_ACTIVE && info != CRYPT_SLOT_ACTIVE_LAST)
			continue;
		spec = luks2 ? spec : luks1;
		if (spec && strcmp(spec, "aes-xts-plain64") && !g_str_has_prefix(spec, "aes-cbc-plain"))
			return g_strdup(spec);
	}
	return NULL;
}

static int key_fail(struct crypt_device *cd, GError **err, int code, const char *file)
{
	g_autofree char *spec = NULL;

	if (code == ENOENT)
		return fail(err, ENOENT, "%s: no key slot of it can be used", file);
	spec = code == EPERM || code == ENOMEM || has_af_alg() ? NULL : foreign_cipher(cd);
	if (spec)
		return fail(err, code, "%s: it has a key slot encrypted with %s, for which libcryptsetup needs AF_ALG "
				       "(algif_skcipher), and this kernel does not give that", file, spec);
	return volume_fail(err, code, file);
}

int volume_key_by_passphrase(struct crypt_device *cd, const char *file, const struct options *o, char *key, size_t *len,
			     key_fn also, void *data, GError **err)
{
	g_autofree char *prompt = g_strdup_printf("Passphrase for %s", file);
	int tries = secret_can_retry(o) ? MAX(o->tries, 1) : 1, r;

	do {
		struct secret pass;

		r = secret_get(cd, o, prompt, &pass, err);
		if (r)
			return r;
		forget_message();
		r = crypt_volume_key_get(cd, o->key_slot, key, len, pass.data ? pass.data : "", pass.len);
		if (r == -EINVAL && !strcmp(crypt_get_type(cd), CRYPT_BITLK))
			r = -EPERM; /* so it says, depending on which of the keys it tried last */
		if (r == -EPERM && also)
			r = also(&pass, key, len, data);
		secret_clear(&pass);
		if (r == -EPERM && tries > 1)
			g_printerr("No key is available with this passphrase.\n");
	} while (r == -EPERM && --tries > 0);
	return r < 0 ? key_fail(cd, err, -r, file) : 0;
}

static int luks_key(struct crypt_device *cd, const char *file, const struct options *o, char *key, size_t *len,
		    GError **err)
{
	bool luks2 = !strcmp(crypt_get_type(cd), CRYPT_LUKS2);
	int r;

	if (o->key_slot != CRYPT_ANY_SLOT && crypt_keyslot_status(cd, o->key_slot) <= CRYPT_SLOT_INACTIVE)
		return fail(err, EINVAL, "%s: key slot %d is not active", file, o->key_slot);
	if (luks2 && !o->key_files && (o->token_only || o->token_id != CRYPT_ANY_TOKEN || has_tokens(cd))) {
		r = key_by_token(cd, o, key, len);
		if (r >= 0)
			return 0;
		if (o->token_only)
			return fail(err, -r, "%s: no token gives a key: %s", file, g_strerror(-r));
	} else if (o->token_only) {
		return fail(err, EINVAL, "%s: it is %s, which has no tokens", file, crypt_get_type(cd));
	}
	return volume_key_by_passphrase(cd, file, o, key, len, NULL, NULL, err);
}

static int luks_stage(struct crypt_device *cd, const char *file, const struct options *o, const char *key, size_t key_len,
		      uint64_t fixed, struct volume *v, GError **err)
{
	g_autofree char *head = NULL, *path = volume_quoted(file);
	g_autoptr(GString) tail = g_string_new(NULL);
	uint64_t offset = crypt_get_data_offset(cd), sectors;
	int sector_size = crypt_get_sector_size(cd), r = volume_sectors(file, &sectors, err);

	if (r)
		return r;
	if (sectors <= offset || (fixed && fixed > sectors - offset))
		return fail(err, EINVAL, "%s has %" PRIu64 " sectors, too few for data of %" PRIu64 " from sector %" PRIu64
					 " on: was it cut short?", file, sectors, MAX(fixed, 1), offset);
	sectors = fixed ? fixed : sectors - offset;
	sectors -= sectors % ((unsigned)sector_size / 512);
	if (!sectors)
		return fail(err, EINVAL, "%s: no room for data", file);
	head = g_strdup_printf("0 %" PRIu64 " crypt %s-%s ", sectors, crypt_get_cipher(cd), crypt_get_cipher_mode(cd));
	g_string_append_printf(tail, " %" PRIu64 " %s %" PRIu64, crypt_get_iv_offset(cd), path, offset);
	activation_options(cd, o, sector_size, tail);
	g_string_append_c(tail, '\n');
	if (!strcmp(crypt_get_cipher(cd), "cipher_null"))
		key_len = 0;
	return stage_line(stage_new(v, ""), head, key, key_len, tail->str, err);
}

static int luks_open(struct crypt_device *cd, const char *file, const struct options *o, struct volume *v, GError **err)
{
	uint64_t fixed = 0;
	size_t len;
	char *key;
	int r = 0;

	if (!strcmp(crypt_get_type(cd), CRYPT_LUKS2))
		r = check_luks2(cd, file, &fixed, err);
	if (r)
		return r;
	len = (size_t)MAX(crypt_get_volume_key_size(cd), 1);
	key = crypt_safe_alloc(len);
	if (!key)
		return fail(err, ENOMEM, "no memory for a key");
	r = luks_key(cd, file, o, key, &len, err);
	if (!r)
		r = luks_stage(cd, file, o, key, len, fixed, v, err);
	crypt_safe_free(key);
	return r;
}

/* --- any ------------------------------------------------------------------------------------------ */

static int load_header(struct crypt_device *cd, const char *file, const struct options *o, GError **err)
{
	bool bitlk = o->type && !strcmp(o->type, CRYPT_BITLK);
	int r = bitlk ? -EINVAL : crypt_load(cd, o->type, NULL);

	if (r < 0 && (bitlk || !o->type) && !o->header) {
		forget_message(); /* LUKS' is of no interest; BitLocker's is, if it is one */
		r = crypt_load(cd, CRYPT_BITLK, NULL);
		if (r < 0 && !bitlk && !(last_message && last_message->len))
			return fail(err, EINVAL, "%s has no LUKS or BitLocker header (TrueCrypt and VeraCrypt cannot be told: "
						 "use --type tcrypt)", file);
	}
	return r < 0 ? volume_fail(err, -r, o->header ? o->header : file) : 0;
}

static char *without_dashes(const char *uuid)
{
	g_auto(GStrv) parts = g_strsplit(uuid ? uuid : "", "-", -1);

	return g_strjoinv("", parts);
}

int volume_open(const char *file, const char *name, const struct options *o, struct volume **out, GError **err)
{
	g_autofree char *path = realpath(file, NULL);
	bool tcrypt = o->type && !strcmp(o->type, CRYPT_TCRYPT);
	struct crypt_device *cd = NULL;
	uint64_t sectors;
	struct volume *v;
	int r;

	if (!path)
		return fail(err, errno, "%s: %s", file, g_strerror(errno));
	/* libcryptsetup would wait for a FIFO's writer */
	r = volume_sectors(path, &sectors, err);
	if (!r && o->header)
		r = volume_sectors(o->header, &sectors, err);
	if (!r)
		r = volume_init(path, o, &cd, err);
	if (r)
		return r;
	v = g_new0(struct volume, 1);
	v->stages = g_ptr_array_new_with_free_func(stage_free);
	if (tcrypt)
		r = tcrypt_open(cd, path, name, o, v, err);
	else
		r = load_header(cd, path, o, err);
	if (!r && !tcrypt)
		r = !strcmp(crypt_get_type(cd), CRYPT_BITLK) ? bitlk_open(cd, path, o, v, err) :
							       luks_open(cd, path, o, v, err);
	if (!r) {
		v->type = g_strdup(tcrypt ? CRYPT_TCRYPT : crypt_get_type(cd));
		v->uuid = without_dashes(tcrypt ? NULL : crypt_get_uuid(cd));
	}
	crypt_free(cd);
	if (r)
		volume_free(v);
	else
		*out = v;
	return r;
}
