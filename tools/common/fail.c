/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Errors of tools (fail.h). */
#include <errno.h>
#include <stdio.h>

#include "fail.h"

int fail(GError **err, int code, const char *fmt, ...)
{
	va_list ap;

	if (err && !*err) {
		va_start(ap, fmt);
		*err = g_error_new_valist(g_quark_from_static_string("dmfs-tool"), code, fmt, ap);
		va_end(ap);
	}
	return -code;
}

void say_error(const char *tool, const char *message)
{
	g_autoptr(GString) out = g_string_new(NULL);

	for (const char *p = message; *p;) {
		gunichar c = g_utf8_get_char_validated(p, -1);
		const char *next = c == (gunichar)-1 || c == (gunichar)-2 ? p + 1 : g_utf8_next_char(p);

		if (next == p + 1 && !g_ascii_isprint(*p))
			g_string_append_printf(out, "\\%03o", (unsigned char)*p);
		else if (next > p + 1 && !g_unichar_isprint(c))
			g_string_append_printf(out, "\\u%04x", c);
		else
			g_string_append_len(out, p, next - p);
		p = next;
	}
	fprintf(stderr, "%s: %s\n", tool, out->str);
}

int exit_status(int r)
{
	switch (-r) {
	case 0:
		return 0;
	case EPERM:
		return 2;
	case ENOMEM:
		return 3;
	case ENODEV:
	case ENOTBLK:
		return 4;
	case EEXIST:
	case EBUSY:
		return 5;
	default:
		return 1;
	}
}
