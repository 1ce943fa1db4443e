/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LUKS: where its data is, and its key.
 *
 * The data is one range, from the header's offset to the end of the file (or as long as LUKS2's segment says); IVs
 * count from the range's begin, or LUKS2's iv_tweak more, which libcryptsetup does not tell.  With authenticated
 * sectors that range is the device beneath, which stores the tags, and the data is as long as its superblock says
 * (integrity.c).
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/if_alg.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "json.h"
#include "luks.h"

/* --- LUKS2's metadata --------------------------------------------------------------------------------- */

struct layout {
	uint64_t start, sectors; /* of the file, in 512 bytes */
	uint64_t iv;		 /* of the first */
	int sector_size;
	struct integrity integrity; /* integrity_clear() */
};

static const char *segment(const char *json, const char *member)
{
	return json_find(json, (const char *const[]){"segments", "*", member, NULL});
}

/* Without the blanks between its parts. */
static char *compact(char *json)
{
	bool quoted = false;
	char *to = json;

	for (char *p = json; json && *p; p++) {
		if (*p == '"')
			quoted = !quoted;
		if (quoted || !g_ascii_isspace(*p))
			*to++ = *p;
		if (*p == '\\' && p[1])
			*to++ = *++p;
	}
	if (json)
		*to = '\0';
	return json;
}

/* What the header asks for and dmfs-luks cannot do, by name; NULL: nothing. */
static char *requirement(struct crypt_device *cd, const char *json)
{
	g_autofree char *names =
	    compact(json_text(json_find(json, (const char *const[]){"config", "requirements", "mandatory", NULL})));
	g_autofree char *type = json_text(segment(json, "type"));
	uint32_t needs = 0;

	if (crypt_persistent_flags_get(cd, CRYPT_FLAGS_REQUIREMENTS, &needs))
		needs = 0;
	if (needs & (CRYPT_REQUIREMENT_ONLINE_REENCRYPT | CRYPT_REQUIREMENT_OFFLINE_REENCRYPT) ||
	    (names && strstr(names, "reencrypt")))
		return g_strdup("a reencryption is under way: finish it with cryptsetup reencrypt");
	if ((names && strstr(names, "\"opal\"")) || (type && g_str_has_prefix(type, "\"hw-opal")))
		return g_strdup(
		    "it is encrypted by the drive itself (Opal), which dmfs-luks cannot ask for that: open it with "
		    "cryptsetup");
	if (names && strstr(names, "\"inline-hw-tags\""))
		return g_strdup(
		    "it keeps integrity tags inline, in the metadata of the drive's sectors, which no file has: open "
		    "it with cryptsetup");
	if (needs || (names && strchr(names, '"')))
		return g_strdup_printf("it has requirements that are unknown here: %s", names ? names : "of no name");
	return NULL;
}

static int check_segment(struct crypt_device *cd, const char *json, const char *file, GError **err)
{
	static const char *const segments[] = {"segments", NULL};
	g_autofree char *type = json_text(segment(json, "type")), *needs = requirement(cd, json);

	if (needs)
		return fail(err, EOPNOTSUPP, "%s: %s", file, needs);
	if (json_members(json_find(json, segments)) != 1)
		return fail(err, EOPNOTSUPP, "%s: its data has %u segments, not one", file,
			    json_members(json_find(json, segments)));
	if (!json_is(segment(json, "type"), "crypt"))
		return fail(err, EOPNOTSUPP, "%s: its data is a segment of type %s, not \"crypt\"", file,
			    type ? type : "unknown");
	return 0;
}

/* A number, which LUKS2 writes as a string. */
static bool json_number(const char *value, uint64_t *n)
{
	g_autofree char *text = json_text(value);
	char *end;

	if (!text || *text != '"' || !g_ascii_isdigit(text[1]))
		return false;
	errno = 0;
	*n = g_ascii_strtoull(text + 1, &end, 10);
	return !errno && !strcmp(end, "\"");
}

/*
 * The cipher becomes words of a table line; libcryptsetup hands it on as it is in the header, or cuts it
 * at a blank.
 */
static int check_cipher(const char *text, const char *file, GError **err)
{
	static const char extra[] = "-_:().,+";

	for (const char *p = text; *p; p++)
		if (!g_ascii_isalnum(*p) && !strchr(extra, *p))
			return fail(err, EINVAL,
				    "%s: the cipher in its header is %s, which has a byte 0x%02x that no cipher has",
				    file, text, (unsigned char)*p);
	return 0;
}

static int read_luks2(struct crypt_device *cd, const char *file, struct layout *l, GError **err)
{
	g_autofree char *cipher = NULL;
	const char *json;
	uint64_t bytes = 0;
	int r;

	if (crypt_dump_json(cd, &json, 0))
		return fail(err, EINVAL, "%s: its LUKS2 metadata cannot be read", file);
	r = check_segment(cd, json, file, err);
	if (r)
		return r;
	cipher = json_text(segment(json, "encryption"));
	if (!cipher || strlen(cipher) < 2)
		return fail(err, EINVAL, "%s: its LUKS2 metadata names no cipher", file);
	cipher[strlen(cipher) - 1] = '\0'; /* without the quotes */
	r = check_cipher(cipher + 1, file, err);
	if (r)
		return r;
	if (!json_number(segment(json, "iv_tweak"), &l->iv))
		return fail(err, EINVAL, "%s: its LUKS2 metadata has no iv_tweak that is a number", file);
	if (!json_is(segment(json, "size"), "dynamic") &&
	    (!json_number(segment(json, "size"), &bytes) || !bytes || bytes % (unsigned)l->sector_size))
		return fail(err, EINVAL, "%s: its LUKS2 metadata has a size of %" PRIu64 ", not of sectors of %d bytes",
			    file, bytes, l->sector_size);
	l->sectors = bytes / 512;
	r = integrity_of_header(cd, file, &l->integrity, err);
	if (!r && l->integrity.type && bytes)
		r = fail(err, EOPNOTSUPP, "%s: its LUKS2 metadata has a size of %" PRIu64 " for data with integrity %s",
			 file, bytes, l->integrity.type);
	return r;
}

/* --- where it is ---------------------------------------------------------------------------------------- */

/* Where the header ends, with all its key slots; bytes. */
static uint64_t header_end(struct crypt_device *cd)
{
	uint64_t metadata = 0, keyslots = 0, end = 4096, offset, length;
	int slots = crypt_keyslot_max(crypt_get_type(cd));

	if (!strcmp(crypt_get_type(cd), CRYPT_LUKS2) && !crypt_get_metadata_size(cd, &metadata, &keyslots))
		end = 2 * metadata + keyslots;
	for (int i = 0; i < slots; i++)
		if (!crypt_keyslot_area(cd, i, &offset, &length) && length < UINT64_MAX - offset)
			end = MAX(end, offset + length);
	return end;
}

static int read_luks1(struct crypt_device *cd, const char *file, struct layout *l, GError **err)
{
	g_autofree char *cipher = g_strdup_printf("%s-%s", crypt_get_cipher(cd), crypt_get_cipher_mode(cd));

	return check_cipher(cipher, file, err);
}

static int read_layout(struct crypt_device *cd, const char *file, const struct options *o, struct layout *l,
		       GError **err)
{
	struct place place = {.file = file, .header = o->header ? o->header : file, .header_to = header_end(cd)};
	uint64_t sectors;
	int r = volume_sectors(file, &sectors, err);

	*l = (struct layout){.start = crypt_get_data_offset(cd),
			     .iv = crypt_get_iv_offset(cd),
			     .sector_size = crypt_get_sector_size(cd)};
	if (!r && (l->sector_size < 512 || l->sector_size > 4096 || (l->sector_size & (l->sector_size - 1))))
		r = fail(err, EINVAL, "%s: its sectors have %d bytes, which is not a power of two from 512 to 4096",
			 place.header, l->sector_size);
	if (!r)
		r = (!strcmp(crypt_get_type(cd), CRYPT_LUKS2) ? read_luks2 : read_luks1)(cd, place.header, l, err);
	if (r)
		return r;
	if (sectors <= l->start || l->sectors > sectors - l->start)
		return fail(err, EINVAL,
			    "%s has %" PRIu64 " sectors, too few for data of %" PRIu64 " from sector %" PRIu64
			    " on: was it cut short?",
			    file, sectors, MAX(l->sectors, 1), l->start);
	l->sectors = l->sectors ? l->sectors : sectors - l->start;
	l->sectors -= l->sectors % ((unsigned)l->sector_size / 512);
	if (!l->sectors)
		return fail(err, EINVAL, "%s: no room for data", file);
	place.from = l->start * 512;
	place.to = place.from + l->sectors * 512;
	r = place_check(&place, o, err);
	if (!r && l->integrity.type)
		r = integrity_read_super(file, l->start, l->sector_size, &l->integrity, err);
	if (!r && l->integrity.provided > l->sectors)
		r = fail(err, EINVAL,
			 "%s has %" PRIu64 " sectors from sector %" PRIu64 " on, too few for %" PRIu64
			 " and their tags: was it cut short?",
			 file, l->sectors, l->start, l->integrity.provided);
	return r;
}

/* What the header says of how it is activated, and the command line. */
static uint32_t activation_flags(struct crypt_device *cd, const struct options *o)
{
	uint32_t flags = 0;

	if (crypt_persistent_flags_get(cd, CRYPT_FLAGS_ACTIVATION, &flags))
		flags = 0; /* LUKS1 keeps none */
	return flags | (o->allow_discards ? CRYPT_ACTIVATE_ALLOW_DISCARDS : 0) |
	       (o->no_journal ? CRYPT_ACTIVATE_NO_JOURNAL : 0);
}

static void activation_options(uint32_t flags, const struct layout *l, GString *tail)
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
	unsigned n = 0;

	for (size_t i = 0; i < G_N_ELEMENTS(words); i++)
		if (flags & words[i].flag) {
			g_string_append_printf(list, " %s", words[i].word);
			n++;
		}
	if (l->integrity.type) {
		g_string_append_printf(list, " integrity:%u:%s", l->integrity.tag_size,
				       integrity_profile(l->integrity.type));
		n++;
	}
	if (l->sector_size != 512) {
		g_string_append_printf(list, " sector_size:%d", l->sector_size);
		n++;
	}
	if (n)
		g_string_append_printf(tail, " %u%s", n, list->str);
}

static int add_line(struct crypt_device *cd, const char *file, uint32_t flags, const struct key *k,
		    const struct layout *l, struct volume *v, GError **err)
{
	g_autofree char *path = volume_quoted(file);
	g_autofree char *head =
	    g_strdup_printf("0 %" PRIu64 " crypt %s-%s ", l->sectors, crypt_get_cipher(cd), crypt_get_cipher_mode(cd));
	g_autoptr(GString) tail = g_string_new(NULL);

	g_string_append_printf(tail, " %" PRIu64 " %s %" PRIu64, l->iv, path, l->start);
	activation_options(flags, l, tail);
	g_string_append_c(tail, '\n');
	return stage_line(stage_new(v, ""), head, k, tail->str, err);
}

/* NAME on NAME_dif. */
static int add_two(struct crypt_device *cd, const char *file, const char *name, uint32_t flags, const struct key *k,
		   const struct layout *l, struct volume *v, GError **err)
{
	g_autofree char *spec = g_strdup_printf("%s-%s", crypt_get_cipher(cd), crypt_get_cipher_mode(cd)), *head = NULL;
	g_autofree char *cipher = integrity_table_cipher(l->integrity.type, spec);
	g_autofree char *dif = g_strconcat(name, INTEGRITY_SUFFIX, NULL), *quoted = volume_quoted(dif);
	g_autoptr(GString) tail = g_string_new(NULL);
	int r = integrity_add_stage(v, file, l->start, l->sector_size, flags & CRYPT_ACTIVATE_NO_JOURNAL ? 'D' : 'J',
				    &l->integrity, false, err);

	if (r)
		return r;
	head = g_strdup_printf("0 %" PRIu64 " crypt %s ", l->integrity.provided, cipher);
	g_string_append_printf(tail, " %" PRIu64 " %s 0", l->iv, quoted);
	activation_options(flags & ~(uint32_t)CRYPT_ACTIVATE_ALLOW_DISCARDS, l, tail);
	g_string_append_c(tail, '\n');
	return stage_line(stage_new(v, ""), head, k, tail->str, err);
}

static int check_flags(const char *file, const struct options *o, const struct layout *l, GError **err)
{
	if (l->integrity.type && o->allow_discards)
		return fail(err, EINVAL, "%s: --allow-discards: a discard would leave sectors whose tags are wrong",
			    file);
	if (!l->integrity.type && o->no_journal)
		return fail(err, EINVAL, "%s: --integrity-no-journal: it has no tags, and so no journal", file);
	return 0;
}

/* --- the key -------------------------------------------------------------------------------------------- */

/*
 * Whether AF_ALG, the kernel's or ours, has the cipher of CIPHER-MODE[-IV], from which libcryptsetup has all but AES.
 */
static bool has_cipher(const char *spec)
{
	g_auto(GStrv) parts = g_strsplit(spec, "-", 3);
	struct sockaddr_alg sa = {.salg_family = AF_ALG, .salg_type = "skcipher"};
	int fd = socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	bool has;

	if (fd < 0)
		return false;
	g_snprintf((char *)sa.salg_name, sizeof(sa.salg_name), "%s(%s)", parts[0] && parts[1] ? parts[1] : "ecb",
		   parts[0] ? parts[0] : "");
	has = !bind(fd, (struct sockaddr *)&sa, sizeof(sa));
	close(fd);
	return has;
}

char *luks_foreign_cipher(struct crypt_device *cd)
{
	const char *type = crypt_get_type(cd);
	bool luks2 = !strcmp(type, CRYPT_LUKS2);
	int slots = g_str_has_prefix(type, "LUKS") ? crypt_keyslot_max(type) : 0;

	for (int i = 0; i < slots; i++) {
		crypt_keyslot_info info = crypt_keyslot_status(cd, i);
		size_t bytes;
		const char *spec = luks2 ? crypt_keyslot_get_encryption(cd, i, &bytes) : NULL;
		g_autofree char *luks1 =
		    luks2 ? NULL : g_strdup_printf("%s-%s", crypt_get_cipher(cd), crypt_get_cipher_mode(cd));

		if (info != CRYPT_SLOT_ACTIVE && info != CRYPT_SLOT_ACTIVE_LAST)
			continue;
		spec = luks2 ? spec : luks1;
		if (spec && !has_cipher(spec))
			return g_strdup(spec);
	}
	return NULL;
}

static int check_slot(struct crypt_device *cd, const char *file, int slot, GError **err)
{
	int slots = crypt_keyslot_max(crypt_get_type(cd));
	crypt_keyslot_info info;

	if (slot == CRYPT_ANY_SLOT)
		return 0;
	if (slot < 0 || slot >= slots)
		return fail(err, EINVAL, "%s: there is no key slot %d: a %s header has 0 to %d", file, slot,
			    crypt_get_type(cd), slots - 1);
	info = crypt_keyslot_status(cd, slot);
	if (info == CRYPT_SLOT_UNBOUND)
		return fail(err, EINVAL, "%s: key slot %d is unbound: the key in it is not the volume's", file, slot);
	if (info == CRYPT_SLOT_INVALID || info == CRYPT_SLOT_INACTIVE)
		return fail(err, EINVAL, "%s: key slot %d is not active", file, slot);
	return 0;
}

static int try_token(struct crypt_device *cd, const char *file, const struct options *o, struct key *k, bool *done,
		     GError **err)
{
	g_autofree char *why = NULL;
	int r = token_key(cd, o, k);

	*done = r >= 0;
	if (*done)
		return 0;
	if (!o->token_only && o->token_id == CRYPT_ANY_TOKEN)
		return 0; /* the passphrase will do, without a word */
	why = token_why_not(cd, o, k);
	k->len = k->room;
	if (o->token_only)
		return fail(err, -r, "%s: no token gives a key: %s", file, why);
	g_printerr("%s: %s\n", file, why);
	return 0;
}

static int get_key(struct crypt_device *cd, const char *file, const struct options *o, struct key *k, GError **err)
{
	bool luks2 = !strcmp(crypt_get_type(cd), CRYPT_LUKS2), named = o->token_only || o->token_id != CRYPT_ANY_TOKEN;
	bool done = false;
	int r;

	if (o->volume_key_file)
		return secret_get_volume_key(cd, o, k, err);
	r = check_slot(cd, file, o->key_slot, err);
	if (!r && named && !luks2)
		r = fail(err, EINVAL, "%s: it is %s, which has no tokens", file, crypt_get_type(cd));
	if (!r && (named || (luks2 && !o->key_files && token_any(cd))))
		r = try_token(cd, file, o, k, &done, err);
	return r || done ? r : volume_key_by_passphrase(cd, file, o, k, NULL, NULL, err);
}

int luks_open(struct crypt_device *cd, const char *file, const char *name, const struct options *o, struct volume *v,
	      GError **err)
{
	return luks_open_with(cd, file, name, o, NULL, v, err);
}

int luks_open_with(struct crypt_device *cd, const char *file, const char *name, const struct options *o,
		   struct key *given, struct volume *v, GError **err)
{
	g_autoptr(key) own = NULL;
	struct key *k = given;
	struct layout layout;
	uint32_t flags = activation_flags(cd, o);
	int r = read_layout(cd, file, o, &layout, err);

	if (!r)
		r = check_flags(file, o, &layout, err);
	if (!r) {
		volume_set_place(v, file, layout.start * 512, (layout.start + layout.sectors) * 512);
	}
	if (!r && !given) {
		k = own = key_new((size_t)MAX(crypt_get_volume_key_size(cd), 1), err);
		r = k ? get_key(cd, file, o, k, err) : -ENOMEM;
	}
	if (!r)
		r = key_prove_luks(k, cd, file, err);
	if (!r) {
		k->unused = !strcmp(crypt_get_cipher(cd), "cipher_null");
		r = layout.integrity.type ? add_two(cd, file, name, flags, k, &layout, v, err)
					  : add_line(cd, file, flags, k, &layout, v, err);
	}
	if (!r && layout.integrity.type && !given) {
		v->wipe.header = g_strdup(o->header ? o->header : file);
		r = wipe_key(&v->wipe, cd, k, err);
		if (!r)
			wipe_read(&v->wipe, cd, v->wipe.header);
	}
	integrity_clear(&layout.integrity);
	return r;
}
