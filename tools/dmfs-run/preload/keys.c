/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keys in the kernel's keyrings that a table is to use.
 *
 * What is in a logon key the kernel tells nobody, so the daemon could not use it.  Here one is a user key in the
 * kernel's keyrings, whose description has MARK in front.  So it is where it was put, for who may find it there, for
 * as long as it lasts, in the kernel's memory alone; and the program is told that it is a logon key, which it cannot
 * read.  Where the kernel has no keyrings, or a container forbids them, there are no logon keys, and a program that
 * can do without (cryptsetup) does.
 *
 * A table or message that names a key of these two types is sent with the key in front (HEX:TYPE:DESCRIPTION): it is
 * the one that this program finds, as with the kernel's device mapper, and not what the daemon would find in its own
 * keyrings.  A user key that this program does not find is left for the daemon to find.
 */
#include <errno.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "run.h"

#define BLANKS " \t\n\v\f\r"
#define MARK "dmfs-run:logon:"
#define MARK_LEN (sizeof MARK - 1)
#define MAX_DESCRIPTION 4096
#define MAX_KEY 32767 /* bytes: the kernel's own limit of a user key */

#define KERNEL(...) NEXT(syscall)(__VA_ARGS__)

/* --- logon keys ------------------------------------------------------------------------------------ */

/* 0, or the negative errno of a description that a logon key cannot have: it is PREFIX:REST. */
static int mark(const char *description, char out[MAX_DESCRIPTION])
{
	if (!description)
		return -EFAULT;
	if (!strchr(description, ':') || *description == ':')
		return -EINVAL;
	return snprintf(out, MAX_DESCRIPTION, MARK "%s", description) < MAX_DESCRIPTION ? 0 : -EINVAL;
}

/* Whether this program has keyrings; asking makes it one of its own, which costs nothing. */
static bool has_keyrings(void)
{
	return KERNEL(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_THREAD_KEYRING, 1, 0, 0) >= 0;
}

static bool is_logon(const char *type)
{
	return type && !strcmp(type, "logon");
}

static long failed(int error)
{
	errno = error;
	return -1;
}

/* The kernel's "TYPE;UID;GID;PERM;DESCRIPTION" of a key; its length, or -1: there is none that is so long. */
static long key_describe(long id, char out[MAX_DESCRIPTION + 128])
{
	long n = KERNEL(SYS_keyctl, KEYCTL_DESCRIBE, id, out, MAX_DESCRIPTION + 127, 0);

	if (n <= 0 || n > MAX_DESCRIPTION + 127)
		return -1;
	out[n] = '\0';
	return n;
}

/* Whether that is of one of our logon keys; where in the text MARK is. */
static char *marked(char *text)
{
	char *at = strncmp(text, "user;", 5) ? NULL : strrchr(text, ';');

	/* a description may have semicolons, but MARK has none, and comes first */
	at = at ? strstr(text, ";" MARK) : NULL;
	return at ? at + 1 : NULL;
}

static bool id_is_logon(long id)
{
	char text[MAX_DESCRIPTION + 128];
	int before = errno;
	bool is = key_describe(id, text) > 0 && marked(text);

	errno = before;
	return is;
}

/* As "logon;UID;GID;PERM;DESCRIPTION". */
static long describe_logon(long id, char *buffer, size_t size)
{
	char text[MAX_DESCRIPTION + 128], out[MAX_DESCRIPTION + 128];
	long n = key_describe(id, text);
	char *at = n > 0 ? marked(text) : NULL;

	if (!at)
		return KERNEL(SYS_keyctl, KEYCTL_DESCRIBE, id, buffer, size, 0);
	at[0] = '\0';
	n = snprintf(out, sizeof out, "logon;%s%s", text + strlen("user;"), at + MARK_LEN) + 1;
	if (buffer && size >= (size_t)n)
		memcpy(buffer, out, (size_t)n);
	return n;
}

static long keyring_search(const long a[6])
{
	char description[MAX_DESCRIPTION];
	int error;

	if (!is_logon((const char *)a[2]))
		return KERNEL(SYS_keyctl, a[0], a[1], a[2], a[3], a[4]);
	error = mark((const char *)a[3], description);
	return error ? failed(-error) : KERNEL(SYS_keyctl, a[0], a[1], "user", description, a[4]);
}

long keys_call(long number, const long a[6])
{
	char description[MAX_DESCRIPTION];
	int error;

	if (number == SYS_keyctl) {
		switch ((int)a[0]) {
		case KEYCTL_DESCRIBE:
			return describe_logon(a[1], (char *)a[2], (size_t)a[3]);
		case KEYCTL_READ:
			return id_is_logon(a[1]) ? failed(EOPNOTSUPP) : KERNEL(number, a[0], a[1], a[2], a[3], a[4]);
		case KEYCTL_SEARCH:
			return keyring_search(a);
		default:
			return KERNEL(number, a[0], a[1], a[2], a[3], a[4]);
		}
	}
	if (!is_logon((const char *)a[0]))
		return KERNEL(number, a[0], a[1], a[2], a[3], a[4]);
	if (!has_keyrings())
		return failed(ENOSYS);
	error = mark((const char *)a[1], description);
	return error ? failed(-error) : KERNEL(number, "user", description, a[2], a[3], a[4]);
}

/* --- keys of tables -------------------------------------------------------------------------------- */

static void add_hex(struct text *out, const unsigned char *data, size_t len)
{
	char two[3];

	for (size_t i = 0; i < len; i++) {
		snprintf(two, sizeof two, "%02x", data[i]);
		text_add(out, two, 2);
	}
	explicit_bzero(two, sizeof two);
}

/* The content of a key, as hexadecimal digits; size: how many bytes it must have, 0: any number. */
static int put_content(struct text *out, long id, size_t size)
{
	unsigned char *data = malloc(MAX_KEY);
	long n = data ? KERNEL(SYS_keyctl, KEYCTL_READ, id, data, MAX_KEY, 0) : -1;
	int error = !data ? -ENOMEM : n < 0 ? -errno : !n || n > MAX_KEY || (size && (size_t)n != size) ? -EINVAL : 0;

	if (!error)
		add_hex(out, data, (size_t)n);
	if (data)
		explicit_bzero(data, MAX_KEY);
	free(data);
	return error ? error : out->failed ? -ENOMEM : 0;
}

/* The id of a key of a type, or a negative errno. */
static long key_find(const char *type, const char *description)
{
	char logon[MAX_DESCRIPTION];
	long id;

	if (is_logon(type)) {
		int error = mark(description, logon);

		if (error)
			return error;
		description = logon;
	}
	id = KERNEL(SYS_request_key, "user", description, NULL, 0);
	return id < 0 ? -errno : id;
}

/*
 * A word ":SIZE:TYPE:DESCRIPTION" becomes "HEX:TYPE:DESCRIPTION"; any other stays, and so does what the daemon has its
 * own words about.
 */
static int put_key(struct text *out, const char *word, size_t len)
{
	char type[8], description[PATH_MAX];
	int n = 0, error;
	size_t size;
	long id;

	if (*word != ':' || sscanf(word, ":%zu:%7[a-z]:%n", &size, type, &n) != 2 || !n || (size_t)n >= len ||
	    (strcmp(type, "user") && strcmp(type, "logon")) || !size ||
	    !word_unquote(word + n, len - (size_t)n, description)) {
		text_add(out, word, len);
		return 0;
	}
	id = key_find(type, description);
	if (id < 0 && !is_logon(type)) {
		text_add(out, word, len);
		return 0;
	}
	if (id < 0)
		return id == -ENOSYS || id == -EPERM ? -EOPNOTSUPP : (int)id;
	error = put_content(out, id, size);
	text_printf(out, ":%s:", type);
	text_add(out, word + n, len - (size_t)n);
	return error;
}

/* A word "DESCRIPTION" of a user key becomes "HEX:user:DESCRIPTION" if there is one; with a `/` in front it is none. */
static int put_named(struct text *out, const char *word, size_t len)
{
	char description[PATH_MAX];
	long id = *word != '/' && word_unquote(word, len, description) ? key_find("user", description) : -1;
	int error = 0;

	if (id >= 0) {
		error = put_content(out, id, 0);
		text_str(out, ":user:");
	}
	text_add(out, word, len);
	return error;
}

static bool is(const char *word, size_t len, const char *what)
{
	return len == strlen(what) && !strncasecmp(word, what, len);
}

/* Whether word nr is a key, or (named) the name of one, the word before it being this. */
enum role { ROLE_OTHER, ROLE_KEY, ROLE_NAMED };

static enum role role_of(const char *type, unsigned nr, const char *before, size_t len)
{
	if (!strcmp(type, "crypt"))
		return nr == 1 ? ROLE_KEY : ROLE_OTHER;
	return !strcmp(type, "verity") && nr > 9 && is(before, len, "root_hash_sig_key_desc") ? ROLE_NAMED : ROLE_OTHER;
}

int keys_in(struct text *out, const char *type, const char *params)
{
	const char *before = "";
	size_t before_len = 0;
	int error = 0;

	for (unsigned nr = 0; !error; nr++) {
		size_t blanks = strspn(params, BLANKS), len = word_length(params + blanks, strlen(params + blanks));
		enum role role = role_of(type, nr, before, before_len);

		text_add(out, params, blanks);
		params += blanks;
		if (!len)
			break;
		if (role == ROLE_KEY)
			error = put_key(out, params, len);
		else if (role == ROLE_NAMED)
			error = put_named(out, params, len);
		else
			text_add(out, params, len);
		before = params;
		before_len = len;
		params += len;
	}
	return error ? error : out->failed ? -ENOMEM : 0;
}

int keys_in_message(struct text *out, const char *words)
{
	const char *first = words + strspn(words, BLANKS);
	size_t len = word_length(first, strlen(first));
	const char *set = first + len + strspn(first + len, BLANKS), *key;
	int error;

	if (!is(first, len, "key") || !is(set, word_length(set, strlen(set)), "set")) {
		text_str(out, words);
		return out->failed ? -ENOMEM : 0;
	}
	key = set + 3 + strspn(set + 3, BLANKS);
	text_add(out, words, (size_t)(key - words));
	len = word_length(key, strlen(key));
	error = put_key(out, key, len);
	text_str(out, key + len);
	return error ? error : out->failed ? -ENOMEM : 0;
}
