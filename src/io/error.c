/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Errors with a text (target.h). */
#include <dmfs/target.h>

GQuark dm_error_quark(void)
{
	return g_quark_from_static_string("dm-error");
}

int dm_fail(GError **err, int code, const char *fmt, ...)
{
	if (err && !*err) {
		va_list ap;

		va_start(ap, fmt);
		*err = g_error_new_valist(DM_ERROR, code, fmt, ap);
		va_end(ap);
	}
	return -code;
}
