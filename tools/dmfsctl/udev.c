/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * udev's cookies.
 *
 * A dmfs has no udev to wait for: there are no cookies, so all of them are complete and none is waited for.  What the
 * commands say of their arguments is what dmsetup says.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dmfsctl.h"

/* What is in a cookie above these bits are the flags, for udev's rules. */
#define FLAGS_SHIFT 16

static const char *const flag_names[] = {
	"DISABLE_DM_RULES", "DISABLE_SUBSYSTEM_RULES", "DISABLE_DISK_RULES", "DISABLE_OTHER_RULES",
	"LOW_PRIORITY", "DISABLE_LIBRARY_FALLBACK", "PRIMARY_SOURCE",
};

static bool take_cookie(const char *text, uint32_t *cookie)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(text, &end, 0);
	if (!g_ascii_isdigit(*text) || *end || errno || !n || n > UINT32_MAX)
		return say("Incorrect cookie value.");
	*cookie = (uint32_t)n;
	return true;
}

bool cmd_udevflags(int argc, char **argv)
{
	uint32_t cookie;

	(void)argc;
	if (!take_cookie(*argv, &cookie))
		return false;
	for (unsigned i = 0; i < 16; i++)
		if (!(cookie >> FLAGS_SHIFT & 1u << i))
			continue;
		else if (i < G_N_ELEMENTS(flag_names))
			printf("DM_UDEV_%s_FLAG='1'\n", flag_names[i]);
		else if (i < 8)
			printf("DM_UDEV_FLAG%u='1'\n", i);
		else
			printf("DM_SUBSYSTEM_UDEV_FLAG%u='1'\n", i - 8);
	return true;
}

bool cmd_udevcookies(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	puts("Cookie       Semid      Value      Last semop time           Last change time");
	return true;
}

bool cmd_udevcreatecookie(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	return true;
}

bool cmd_udevreleasecookie(int argc, char **argv)
{
	const char *text = argc ? *argv : g_getenv("DM_UDEV_COOKIE");
	uint32_t cookie;

	if (!text)
		return say("No udev transaction cookie given.");
	return take_cookie(text, &cookie);
}

bool cmd_udevcomplete(int argc, char **argv)
{
	uint32_t cookie;

	(void)argc;
	if (!take_cookie(*argv, &cookie))
		return false;
	printf("DM_COOKIE_COMPLETED=0x%-10" PRIx32 "\n", cookie);
	return true;
}

/* Without asking first, as there is nothing to lose. */
bool cmd_udevcomplete_all(int argc, char **argv)
{
	if (argc && strspn(*argv, "0123456789") != strlen(*argv))
		return say("Failed to read age_in_minutes parameter.");
	puts("0 semaphores with keys prefixed by 3405 (0xd4d) destroyed. 0 skipped.");
	return true;
}
