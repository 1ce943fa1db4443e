/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which header a file has, and libcryptsetup's reason if it will not load it.
 *
 * libcryptsetup tells what it finds wrong at its error level for a type that is named, and below that level, as it goes
 * from copy to copy, for the rest: both are kept.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "fve.h"
#include "luks.h"

/* --- the first bytes -------------------------------------------------------------------------------- */

static const char luks_magic[6] = "LUKS\xba\xbe", luks2_second_magic[6] = "SKUL\xba\xbe",
		  luks1_reencrypt_magic[6] = "LUKS\xde\xad";

static unsigned version_of(const uint8_t *start)
{
	return (unsigned)start[6] << 8 | start[7];
}

const char *header_kind(const uint8_t *start)
{
	if (!memcmp(start, luks_magic, 6) || !memcmp(start, luks1_reencrypt_magic, 6))
		return version_of(start) == 2 ? "LUKS2" : "LUKS1";
	return fve_is_boot(start) ? "BitLocker" : NULL;
}

/* Whether there is a second LUKS2 header, whose first may be gone: 16 KiB to 4 MiB from the begin. */
static bool has_second(int fd)
{
	char magic[6];

	for (off_t at = 0x4000; at <= 0x400000; at *= 2)
		if (pread(fd, magic, 6, at) == 6 && !memcmp(magic, luks2_second_magic, 6))
			return true;
	return false;
}

/* What libcryptsetup is asked for, where the user named no type; NULL: nothing that it knows. */
static const char *sniff(const char *file, uint8_t *start)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	const char *kind, *type = NULL;

	memset(start, 0, HEADER_SNIFF_BYTES);
	if (fd < 0)
		return NULL;
	if (pread(fd, start, HEADER_SNIFF_BYTES, 0) < 0)
		start[0] = '\0';
	kind = header_kind(start);
	if (kind)
		type = !strcmp(kind, "LUKS2") ? CRYPT_LUKS2 : !strcmp(kind, "LUKS1") ? CRYPT_LUKS1 : CRYPT_BITLK;
	else if (has_second(fd))
		type = CRYPT_LUKS2;
	close(fd);
	return type;
}

/* --- libcryptsetup's reasons -------------------------------------------------------------------------- */

#define LEAST_SECTORS 8 /* of any header */

static int load_fail(GError **err, int code, const char *file, const char *type, const uint8_t *start)
{
	bool luks = g_str_has_prefix(type, "LUKS");
	const char *what = luks ? "LUKS device" : "BITLK device";
	g_autofree char *error = volume_message(), *details = volume_details();
	uint64_t sectors;

	if (luks && !memcmp(start, luks1_reencrypt_magic, 6))
		return fail(err, EOPNOTSUPP,
			    "%s: a reencryption of LUKS1 is under way: finish it with cryptsetup reencrypt", file);
	if (error)
		return fail(err, code, "%s: %s", file, error);
	if (!volume_sectors(file, &sectors, NULL) && sectors < LEAST_SECTORS)
		return fail(err, EINVAL, "%s is too small for any header: it has %" PRIu64 " sectors of 512 bytes",
			    file, sectors);
	if (details)
		return fail(err, code, "%s is not a valid %s: %s", file, what, details);
	if (code != EINVAL)
		return fail(err, code, "%s: %s", file, g_strerror(code));
	if (luks && !memcmp(start, luks_magic, 6) && strcmp(type, "LUKS"))
		return fail(err, code, "%s is not a valid %s device: its header is LUKS%u's, or damaged", file, type,
			    version_of(start));
	return fail(err, code, "%s is not a valid %s", file, what);
}

/* A LUKS2 header that loads may have lost one of its copies. */
static void warn_of_damage(struct crypt_device *cd, const char *file)
{
	g_autofree char *details = volume_details();

	if (details && !strcmp(crypt_get_type(cd), CRYPT_LUKS2) && strstr(details, "checksum"))
		g_printerr("%s: %s; cryptsetup repair may mend it\n", file, details);
}

int header_load(struct crypt_device *cd, const char *file, const struct options *o, GError **err)
{
	uint8_t start[HEADER_SNIFF_BYTES];
	const char *found = sniff(file, start), *type = o->type ? o->type : found;
	int r;

	if (type && !strcmp(type, "LUKS") && found && g_str_has_prefix(found, "LUKS"))
		type = found; /* with a version, it has more to say */
	if (!type)
		return fail(err, EINVAL,
			    "%s has no LUKS or BitLocker header (TrueCrypt and VeraCrypt cannot be told: use "
			    "--type tcrypt)",
			    file);
	if (o->header && !strcmp(type, CRYPT_BITLK))
		return fail(err, EINVAL, "%s has a BitLocker header, which is always with its data: no --header", file);
	volume_listen(true);
	r = crypt_load(cd, type, NULL);
	volume_listen(false);
	if (r < 0)
		return load_fail(err, -r, file, type, start);
	warn_of_damage(cd, file);
	return 0;
}
