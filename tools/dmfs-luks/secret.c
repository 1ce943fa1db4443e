/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Passphrases and key files. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "luks.h"

#define MAX_PASSPHRASE 512

void secret_clear(struct secret *s)
{
	if (s->data)
		crypt_safe_free(s->data);
	*s = (struct secret){0};
}

bool secret_can_retry(const struct options *o)
{
	return !o->key_files && isatty(STDIN_FILENO);
}

/* Up to a newline or the end. */
static int read_line(int fd, struct secret *out, GError **err)
{
	char *buf = crypt_safe_alloc(MAX_PASSPHRASE + 1);
	size_t len = 0;
	ssize_t n = 0;

	if (!buf)
		return fail(err, ENOMEM, "no memory for a passphrase");
	while (len <= MAX_PASSPHRASE && (n = read(fd, buf + len, 1)) == 1 && buf[len] != '\n')
		len++;
	if (n < 0 || len > MAX_PASSPHRASE || (n == 0 && !len)) {
		int code = n < 0 ? errno : EINVAL;

		crypt_safe_free(buf);
		if (n < 0)
			return fail(err, code, "reading the passphrase: %s", g_strerror(code));
		return fail(err, EINVAL, len ? "the passphrase is longer than %d bytes: use --key-file" :
						"no passphrase: the input ended",
			    MAX_PASSPHRASE);
	}
	*out = (struct secret){buf, len};
	return 0;
}

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

/* Asks on the terminal, whose echo is on again whatever happens. */
static int ask(const char *prompt, struct secret *out, GError **err)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
	struct sigaction old[G_N_ELEMENTS(signals)], catch = {.sa_handler = on_signal};
	struct termios before, quiet;
	int r;

	if (tcgetattr(STDIN_FILENO, &before))
		return fail(err, errno, "the terminal: %s", g_strerror(errno));
	interrupted = 0;
	for (size_t i = 0; i < G_N_ELEMENTS(signals); i++)
		sigaction(signals[i], &catch, &old[i]);
	quiet = before;
	quiet.c_lflag &= ~(tcflag_t)ECHO;
	fprintf(stderr, "%s: ", prompt);
	tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet);
	r = read_line(STDIN_FILENO, out, err);
	tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
	fputc('\n', stderr);
	for (size_t i = 0; i < G_N_ELEMENTS(signals); i++)
		sigaction(signals[i], &old[i], NULL);
	if (interrupted)
		raise(interrupted);
	return r;
}

/* Keeps libcryptsetup from saying the same on its own. */
static int read_key_file(struct crypt_device *cd, const struct options *o, struct secret *out, GError **err)
{
	const char *path = o->key_files[0];
	size_t limit = o->keyfile_size ? (size_t)o->keyfile_size : 0;
	int r = crypt_keyfile_device_read(cd, !strcmp(path, "-") ? NULL : path, &out->data, &out->len,
					  (uint64_t)o->keyfile_offset, limit, 0);

	return r < 0 ? volume_fail(err, -r, path) : 0;
}

/* Exactly the key's bytes: what is longer or shorter is something else. */
int secret_get_volume_key(struct crypt_device *cd, const struct options *o, struct key *k, GError **err)
{
	const char *path = o->volume_key_file;
	struct secret s = {0};
	int r = crypt_keyfile_device_read(cd, !strcmp(path, "-") ? NULL : path, &s.data, &s.len, 0, 0, 0);

	if (r < 0)
		return volume_fail(err, -r, path);
	if (s.len != k->room)
		r = fail(err, EINVAL, "%s has %zu bytes, but the volume key has %zu", path, s.len, k->room);
	else
		memcpy(k->bytes, s.data, s.len);
	k->len = k->room;
	secret_clear(&s);
	return r;
}

int secret_get(struct crypt_device *cd, const struct options *o, const char *prompt, struct secret *out, GError **err)
{
	*out = (struct secret){0};
	if (o->key_files)
		return read_key_file(cd, o, out, err);
	return isatty(STDIN_FILENO) ? ask(prompt, out, err) : read_line(STDIN_FILENO, out, err);
}

int secret_get_new(struct crypt_device *cd, const struct options *o, const char *what, struct secret *out, GError **err)
{
	g_autofree char *first = g_strdup_printf("New passphrase for %s", what);
	g_autofree char *again = g_strdup_printf("The same again");
	struct secret second = {0};
	bool same;
	int r = secret_get(cd, o, first, out, err);

	if (r || !secret_can_retry(o))
		return r;
	r = secret_get(cd, o, again, &second, err);
	same = !r && second.len == out->len && !memcmp(second.data, out->data, out->len);
	secret_clear(&second);
	if (!same)
		secret_clear(out);
	return r ? r : same ? 0 : fail(err, EPERM, "the passphrases differ");
}
