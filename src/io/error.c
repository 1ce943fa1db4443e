/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Errors with a text (error.h). */
#include <stdio.h>
#include <string.h>

#include <dmfs/error.h>

GQuark dm_error_quark(void)
{
	return g_quark_from_static_string("dm-error");
}

/*
 * Texts name what the user wrote, and he may have written anything: what is not printable becomes \xNN, so that a text
 * stays one line and a terminal stays as it is.
 */
static char *printable(char *text)
{
	GString *out = NULL;
	const char *p = text;

	while ((unsigned char)*p >= ' ' && *p != 0x7f)
		p++;
	if (!*p)
		return text;
	out = g_string_sized_new(4 * strlen(text) + 1); /* at once: growing would leave a copy behind */
	g_string_append_len(out, text, p - text);
	for (; *p; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			g_string_append_printf(out, "\\x%02x", *p);
		else
			g_string_append_c(out, *p);
	}
	explicit_bzero(text, strlen(text));
	g_free(text);
	return g_string_free(out, FALSE);
}

/* There may be a key in it, which the caller will hide: only the error has it then. */
static char *format(const char *fmt, va_list ap)
{
	va_list again;
	char *text;
	int len;

	va_copy(again, ap);
	len = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	text = g_malloc((gsize)MAX(len, 0) + 1);
	*text = '\0';
	vsnprintf(text, (size_t)MAX(len, 0) + 1, fmt, ap);
	return text;
}

int dm_fail(GError **err, int code, const char *fmt, ...)
{
	if (err && !*err) {
		g_autofree char *text = NULL;
		va_list ap;

		va_start(ap, fmt);
		text = printable(format(fmt, ap));
		va_end(ap);
		*err = g_error_new_literal(DM_ERROR, code, text);
		explicit_bzero(text, strlen(text));
	}
	return -code;
}
