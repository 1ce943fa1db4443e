/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices in the text of a table.
 *
 * A program names them MAJ:MIN or by a path in /dev; dmfs takes a path in the mount, 0:MINOR, or a file's path.
 * Back, dmfs (asked for numbers) says 0:MINOR and absolute paths, and a program is told MAJ:MIN of both.
 * A word may have a name before the device (meta_device:DEV, as the integrity target's options do).
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

static const char *const prefixes[] = {"meta_device:", NULL};

static size_t prefix_length(const char *word)
{
	for (unsigned i = 0; prefixes[i]; i++)
		if (!strncmp(word, prefixes[i], strlen(prefixes[i])))
			return strlen(prefixes[i]);
	return 0;
}

/* All of the word is MAJ:MIN. */
static bool is_number(const char *word, unsigned *major_nr, unsigned *minor_nr)
{
	int n = 0;

	return isdigit((unsigned char)*word) && sscanf(word, "%u:%u%n", major_nr, minor_nr, &n) == 2 && !word[n] &&
	       !strchr(word, '+') && !strchr(word, ' ');
}

size_t word_length(const char *s, size_t len)
{
	size_t n = 0;

	while (n < len && !isspace((unsigned char)s[n]))
		n += 1 + (s[n] == '\\' && n + 1 < len);
	return n < len ? n : len;
}

bool word_unquote(const char *s, size_t len, char out[PATH_MAX])
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		if (s[i] == '\\' && i + 1 < len)
			i++;
		if (n + 1 >= PATH_MAX)
			return false;
		out[n++] = s[i];
	}
	out[n] = '\0';
	return true;
}

/* --- in -------------------------------------------------------------------------------------------- */

/* What dmfs calls a device that a program calls so; false: it is the word itself. */
static bool device_in(struct text *out, const char *word)
{
	char to[PATH_MAX];
	unsigned major_nr, minor_nr;
	const char *path;

	if (is_number(word, &major_nr, &minor_nr)) {
		struct disk disk;

		if (major_nr == run.dm_major) {
			text_printf(out, "0:%u", minor_nr);
			return true;
		}
		if (major_nr != run.disk_major || !disk_by_minor(minor_nr, &disk))
			return false;
		tree_quote(out, disk.target);
		return true;
	}
	if (*word != '/' || !place_is_virtual(word))
		return false;
	path = place(word, to, PLACE_LOOK);
	if (path == word)
		return false;
	if (!strncmp(path, run.shadow, run.shadow_len)) { /* a link, such as /dev/VG/LV */
		char *real = NEXT(realpath)(path, NULL);

		if (real && strlen(real) < sizeof to)
			path = strcpy(to, real);
		free(real);
	}
	tree_quote(out, path);
	return true;
}

/*
 * Adds parameters, each word behind its prefix as put() has it, if it knows it; a newline between words, which would
 * end the line, as `newline`.
 */
static void add_words(struct text *out, const char *params, size_t len, const char *newline,
		      bool (*put)(struct text *out, const char *word))
{
	while (len) {
		char word[PATH_MAX];
		size_t n = word_length(params, len), prefix;

		if (!n) {
			text_add(out, *params == '\n' ? newline : params, 1);
			params++;
			len--;
			continue;
		}
		prefix = prefix_length(params);
		if (prefix > n)
			prefix = 0;
		text_add(out, params, prefix);
		if (!word_unquote(params + prefix, n - prefix, word) || !put(out, word))
			text_add(out, params + prefix, n - prefix);
		explicit_bzero(word, n < sizeof word ? n : sizeof word); /* it may be a key */
		params += n;
		len -= n;
	}
}

void words_in(struct text *out, const char *params)
{
	add_words(out, params, strlen(params), " ", device_in);
}

/* --- out ------------------------------------------------------------------------------------------- */

static bool is_url(const char *word)
{
	size_t n = 0;

	while (isalnum((unsigned char)word[n]) || word[n] == '+' || word[n] == '-')
		n++;
	return n > 1 && !strncmp(word + n, "://", 3);
}

static bool unquoted_to_dev(const char *word, dev_t *dev)
{
	unsigned major_nr, minor_nr;
	struct stat st;

	if (is_number(word, &major_nr, &minor_nr)) {
		if (major_nr)
			return false;
		*dev = makedev(run.dm_major, minor_nr);
		return true;
	}
	if (*word != '/' && !is_url(word))
		return false;
	if (*word == '/' && !NEXT(stat)(word, &st) && S_ISBLK(st.st_mode)) {
		*dev = st.st_rdev;
		return true;
	}
	if (disk_add(word, &minor_nr))
		return false;
	*dev = makedev(run.disk_major, minor_nr);
	return true;
}

bool word_to_dev(const char *word, dev_t *dev)
{
	char plain[PATH_MAX];

	return word_unquote(word, strlen(word), plain) && unquoted_to_dev(plain, dev);
}

static bool device_out(struct text *out, const char *word)
{
	dev_t dev;

	if (!unquoted_to_dev(word, &dev))
		return false;
	text_printf(out, "%u:%u", major(dev), minor(dev));
	return true;
}

void words_out(struct text *out, const char *params, size_t len)
{
	add_words(out, params, len, "\n", device_out);
}
