/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Errors with a text (error.h). */
#include <dmfs/error.h>

GQuark dm_error_quark(void)
{
	return g_quark_from_static_string("dm-error");
}

/*
 * Texts name what the user wrote, and he may have written anything: what is
 * not printable becomes \xNN, so that a text stays one line and a terminal stays as it is.
 */
static char *printable(char *text)
{
	GString *out = NULL;
	const char *p = text;

	while ((unsigned char)*p >= ' ' && *p != 0x7f)
		p++;
	if (!*p)
		return text;
	out = g_string_new_len(text, p - text);
	for (; *p; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			g_string_append_printf(out, "\\x%02x", *p);
		else
			g_string_append_c(out, *p);
	}
	g_free(text);
	return g_string_free(out, FALSE);
}

int dm_fail(GError **err, int code, const char *fmt, ...)
{
	if (err && !*err) {
		g_autofree char *text = NULL;
		va_list ap;

		va_start(ap, fmt);
		text = printable(g_strdup_vprintf(fmt, ap));
		va_end(ap);
		*err = g_error_new_literal(DM_ERROR, code, text);
	}
	return -code;
}
