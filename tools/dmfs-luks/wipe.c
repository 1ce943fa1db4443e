/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Wiping that goes on: a volume with authenticated sectors can be used before each of them has been written once.
 *
 * How far that is, is kept in the LUKS2 header as a token, which other programs leave alone:
 *
 *   {"type":"dmfs-wipe","keyslots":[],"sector":"N","mac":"HEX"}
 *
 * Sectors before N are written.  The MAC is HMAC-SHA256 of N as it is there, by a key that is HMAC-SHA256 of "dmfs-wipe
 * " and the volume's uuid, by the volume key: who cannot read the volume cannot have sectors wiped that he has tampered
 * with, unless he puts an older header back, which is noticed as little as older sectors are.
 *
 * While it is open crypt wipes the rest (its message wipe), and a process of ours sees how far it has come and notes it
 * in the header.  That process looks now and then rather than waits in the mount, which could not be unmounted then.
 * What is noted may be behind: then sectors are looked at once more.
 */
#include <errno.h>
#include <fcntl.h>
#include <gcrypt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../common/bar.h"
#include "../common/client.h"
#include "../common/tree.h"
#include "json.h"
#include "luks.h"

#define TYPE "dmfs-wipe"
#define LOOK_US 250000
#define NOTE_US 30000000
#define NOTE_PARTS 16

/* --- the record ------------------------------------------------------------------------------------- */

static int hmac(const void *key, size_t key_len, const char *text, uint8_t out[WIPE_KEY_BYTES])
{
	gcry_mac_hd_t h;
	size_t len = WIPE_KEY_BYTES;
	int r = gcry_mac_open(&h, GCRY_MAC_HMAC_SHA256, 0, NULL) ? -ENOMEM : 0;

	if (r)
		return r;
	if (gcry_mac_setkey(h, key, key_len) || gcry_mac_write(h, text, strlen(text)) || gcry_mac_read(h, out, &len))
		r = -EIO;
	gcry_mac_close(h);
	return r;
}

static char *mac_of(const struct wipe *w, const char *sector)
{
	uint8_t mac[WIPE_KEY_BYTES];
	GString *hex = g_string_new(NULL);

	if (hmac(w->key, sizeof(w->key), sector, mac))
		memset(mac, 0, sizeof(mac));
	for (size_t i = 0; i < sizeof(mac); i++)
		g_string_append_printf(hex, "%02x", mac[i]);
	return g_string_free(hex, FALSE);
}

int wipe_key(struct wipe *w, struct crypt_device *cd, const struct key *k, GError **err)
{
	g_autofree char *text = g_strdup_printf(TYPE " %s", crypt_get_uuid(cd));
	int r = hmac(k->bytes, k->len, text, w->key);

	return r ? fail(err, -r, "HMAC-SHA256: %s", g_strerror(-r)) : 0;
}

/* The token, or -1. */
static int find(struct crypt_device *cd)
{
	int max = crypt_token_max(CRYPT_LUKS2);
	const char *type;

	for (int i = 0; i < max; i++)
		if (crypt_token_status(cd, i, &type) != CRYPT_TOKEN_INACTIVE && type && !strcmp(type, TYPE))
			return i;
	return -1;
}

bool wipe_is_record(const char *token_type)
{
	return !strcmp(token_type, TYPE);
}

/* A string's text, without its quotes. */
static char *string_of(const char *json, const char *member)
{
	char *text = json_text(json_find(json, (const char *const[]){member, NULL}));

	if (!text || *text != '"' || strlen(text) < 2) {
		g_free(text);
		return NULL;
	}
	text[strlen(text) - 1] = '\0';
	memmove(text, text + 1, strlen(text));
	return text;
}

bool wipe_read(struct wipe *w, struct crypt_device *cd, const char *file)
{
	int token = find(cd);
	const char *json;
	char *end;
	g_autofree char *sector = NULL, *mac = NULL, *right = NULL;

	w->left = false;
	if (token < 0 || crypt_token_json_get(cd, token, &json) < 0)
		return false;
	sector = string_of(json, "sector");
	mac = string_of(json, "mac");
	right = sector ? mac_of(w, sector) : NULL;
	if (!sector || !mac || strcmp(mac, right)) {
		g_printerr("%s: its header says that the volume is not wiped yet, but not with the volume's key (token "
			   "%d, " TYPE "): nothing is wiped\n",
			   file, token);
		return false;
	}
	errno = 0;
	w->sector = g_ascii_strtoull(sector, &end, 10);
	w->left = !errno && !*end;
	return w->left;
}

int wipe_note(const struct wipe *w, struct crypt_device *cd, const char *file, GError **err)
{
	g_autofree char *sector = g_strdup_printf("%" PRIu64, w->sector), *mac = mac_of(w, sector);
	g_autofree char *json =
	    g_strdup_printf("{\"type\":\"" TYPE "\",\"keyslots\":[],\"sector\":\"%s\",\"mac\":\"%s\"}", sector, mac);
	int token = find(cd), r = 0;

	if (w->left)
		r = crypt_token_json_set(cd, token < 0 ? CRYPT_ANY_TOKEN : token, json);
	else if (token >= 0)
		r = crypt_token_json_set(cd, token, NULL);
	return r < 0 ? volume_fail(err, -r, file) : 0;
}

/* --- the device ------------------------------------------------------------------------------------- */

enum look { LOOK_GONE, LOOK_GOES_ON, LOOK_FAILED, LOOK_DONE };

/* inode: of the image, which no other device ever gets; 0: not known yet. */
static enum look look(const char *mount, const char *name, ino_t *inode, uint64_t *at, uint64_t *all)
{
	g_autofree char *path = tree_path(mount, name, "image"), *status = NULL;
	struct stat st;
	int end = 0;

	if (stat(path, &st) || (*inode && st.st_ino != *inode))
		return LOOK_GONE;
	status = client_read(mount, name, "status");
	if (!status || sscanf(status, "%*u %*u crypt wiping %" SCNu64 "/%" SCNu64 "%n", at, all, &end) != 2)
		return LOOK_GONE;
	if (!*inode)
		*inode = st.st_ino;
	return *at == *all ? LOOK_DONE : strstr(status + end, "failed") ? LOOK_FAILED : LOOK_GOES_ON;
}

char *wipe_shown(const char *mount, const char *name)
{
	uint64_t at, all;
	ino_t inode = 0;
	enum look l = look(mount, name, &inode, &at, &all);

	if (l == LOOK_GONE)
		return NULL;
	if (l == LOOK_DONE)
		return g_strdup("done");
	return g_strdup_printf("%u %%, %" PRIu64 " of %" PRIu64 " sectors%s",
			       (unsigned)((double)at / (double)all * 100), at, all,
			       l == LOOK_FAILED ? "; stopped by an error" : "");
}

int wipe_wait(const char *mount, const char *name, GError **err)
{
	uint64_t at = 0, all = 0;
	ino_t inode = 0;
	enum look l = look(mount, name, &inode, &at, &all);

	if (!tree_has_device(mount, name))
		return fail(err, ENODEV, "there is no device %s in %s", name, mount);
	bar_begin("wiping");
	while (l == LOOK_GOES_ON && !bar_interrupted()) {
		bar_show(at, all);
		g_usleep(LOOK_US);
		l = look(mount, name, &inode, &at, &all);
	}
	if (l == LOOK_DONE)
		bar_show(all, all);
	bar_end();
	if (l == LOOK_GOES_ON)
		return fail(err, EINTR, "%s: not waited for any more; its wiping goes on", name);
	if (l == LOOK_FAILED)
		return fail(err, EIO, "%s: wiping has been stopped at sector %" PRIu64 " by an error, see the log",
			    name, at);
	if (l == LOOK_GONE && inode)
		return fail(err, ENODEV, "%s was closed before it was wiped; the next open goes on with it", name);
	return 0;
}

/* --- behind the user ---------------------------------------------------------------------------------- */

/*
 * Whoever formats or opens it has the file locked, and finds the device; so the header is that of the device as long as
 * that is there.  False: somebody has it now.
 */
static bool note_if_there(const struct wipe *w, const char *mount, const char *name, ino_t inode)
{
	int fd = open(w->header, O_RDONLY | O_CLOEXEC);
	struct crypt_device *cd = NULL;
	uint64_t at, all;
	bool noted = false;

	if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB) && look(mount, name, &inode, &at, &all) != LOOK_GONE &&
	    !volume_init(w->header, &(struct options){0}, &cd, NULL))
		noted = !crypt_load(cd, CRYPT_LUKS2, NULL) && !wipe_note(w, cd, w->header, NULL);
	crypt_free(cd);
	if (fd >= 0)
		close(fd);
	return noted;
}

static void keep(struct wipe *w, const char *mount, const char *name)
{
	gint64 noted = g_get_monotonic_time(), now;
	uint64_t at, all, was = w->sector;
	ino_t inode = 0;
	enum look l;

	while ((l = look(mount, name, &inode, &at, &all)) != LOOK_GONE) {
		bool over = l == LOOK_DONE || l == LOOK_FAILED;

		now = g_get_monotonic_time();
		w->sector = at;
		w->left = l != LOOK_DONE;
		if (over || at - was > all / NOTE_PARTS || (at > was && now - noted > NOTE_US)) {
			if (note_if_there(w, mount, name, inode) && over)
				return;
			noted = now;
			was = at;
		}
		g_usleep(LOOK_US);
	}
}

/* Files that the shell, or whoever started us, has open and waits or locks with; ours are closed by an exec. */
static void close_inherited(void)
{
	g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
	const char *name;

	while (dir && (name = g_dir_read_name(dir))) {
		int fd = atoi(name);

		if (fd > 2 && !fcntl(fd, F_GETFD))
			close(fd);
	}
}

/* In a process of its own, which has nothing of the user's terminal or directory. */
static void keep_behind(struct volume *v, const char *mount, const char *name)
{
	g_autofree char *root = realpath(mount, NULL);
	struct wipe w = v->wipe;
	pid_t pid = fork();
	int null;

	if (pid)
		return; /* or there is none: then what was noted stays */
	w.header = g_strdup(w.header);
	volume_free(v);
	null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	if (null > 2)
		close(null);
	close_inherited();
	setsid();
	if (!chdir("/") && root)
		keep(&w, root, name);
	_exit(0);
}

int wipe_go_on(struct volume *v, const char *mount, const char *name, GError **err)
{
	g_autofree char *message = g_strdup_printf("wipe %" PRIu64, v->wipe.sector);
	int r = client_write(mount, name, "suspend", "1", 1, err), resumed;

	if (r)
		return r;
	r = client_write(mount, name, "message", message, strlen(message), err);
	resumed = client_write(mount, name, "suspend", "0", 1, err);
	if (!r && !resumed)
		keep_behind(v, mount, name);
	return r ? r : resumed;
}
