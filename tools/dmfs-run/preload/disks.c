/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Disks: files, given with -d or named by a table, that have a number and a name in /dev.
 *
 *	disk/MINOR -> what a table calls it     made by symlink(2), which decides who has a number
 *	dev/NAME -> disk/MINOR's target         NAME is the file's, or with -2, -3, ... if that is taken
 *	name/MINOR -> NAME
 *
 * A process knows those that were there when it began, and those that it meets; the list only grows, and readers take
 * no lock.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

struct known {
	struct known *_Atomic next;
	struct disk disk;
};

static struct known *_Atomic first;

static struct known *find_minor(unsigned minor_nr)
{
	struct known *k = atomic_load(&first);

	while (k && k->disk.minor != minor_nr)
		k = atomic_load(&k->next);
	return k;
}

static void identify(struct disk *d)
{
	struct stat st;

	d->dev = d->ino = 0;
	if (*d->target == '/' && !NEXT(stat)(d->target, &st) && S_ISREG(st.st_mode)) {
		d->dev = st.st_dev;
		d->ino = st.st_ino;
	}
}

/* What the shadow says of a number, into the list. */
static struct known *learn(unsigned minor_nr)
{
	struct known *k = find_minor(minor_nr), *new;
	char path[PATH_MAX];

	if (k)
		return k;
	new = calloc(1, sizeof *new);
	if (!new)
		return NULL;
	new->disk.minor = minor_nr;
	if (!path_format(path, "%s/disk/%u", run.shadow, minor_nr) ||
	    !link_read(path, new->disk.target, sizeof new->disk.target)) {
		free(new);
		return NULL;
	}
	path_format(path, "%s/name/%u", run.shadow, minor_nr);
	if (!link_read(path, new->disk.name, sizeof new->disk.name))
		snprintf(new->disk.name, sizeof new->disk.name, "disk%u", minor_nr);
	identify(&new->disk);
	k = atomic_load(&first);
	do
		atomic_store(&new->next, k);
	while (!atomic_compare_exchange_weak(&first, &k, new));
	return new;
}

void disks_load(void)
{
	char path[PATH_MAX];
	DIR *dir;
	struct dirent *e;

	path_format(path, "%s/disk", run.shadow);
	dir = NEXT(opendir)(path);
	while (dir && (e = readdir(dir)))
		if (e->d_name[0] != '.')
			learn((unsigned)strtoul(e->d_name, NULL, 10));
	if (dir)
		closedir(dir);
}

/* The name in /dev: the first that is free. */
static void give_name(unsigned minor_nr, const char *target)
{
	const char *base = strrchr(target, '/');
	char name[256], path[PATH_MAX], real[PATH_MAX];
	struct stat st;

	base = base && base[1] ? base + 1 : "disk";
	for (unsigned n = 1; n < 1000; n++) {
		if (n == 1)
			snprintf(name, sizeof name - 8, "%s", base);
		else
			snprintf(name, sizeof name, "%.240s-%u", base, n);
		if (!path_format(real, "/dev/%s", name) || !NEXT(lstat)(real, &st))
			continue;
		path_format(path, "%s/dev/%s", run.shadow, name);
		if (!NEXT(symlink)(target, path))
			break;
	}
	path_format(path, "%s/name/%u", run.shadow, minor_nr);
	if (NEXT(symlink)(name, path))
		return;
}

static struct known *find_target(const char *target)
{
	struct known *k = atomic_load(&first);
	struct disk wanted;

	for (; k; k = atomic_load(&k->next))
		if (!strcmp(k->disk.target, target))
			return k;
	if (strlen(target) >= sizeof wanted.target)
		return NULL;
	strcpy(wanted.target, target);
	identify(&wanted);
	for (k = atomic_load(&first); k && wanted.ino; k = atomic_load(&k->next))
		if (k->disk.dev == wanted.dev && k->disk.ino == wanted.ino)
			return k;
	return NULL;
}

int disk_add(const char *target, unsigned *minor_nr)
{
	struct known *k = find_target(target);
	char path[PATH_MAX];

	if (strlen(target) >= sizeof k->disk.target)
		return -ENAMETOOLONG;
	if (!k) {
		disks_load();
		k = find_target(target);
	}
	for (unsigned n = 0; !k && n < 1u << 20; n++) {
		if (!path_format(path, "%s/disk/%u", run.shadow, n))
			return -ENAMETOOLONG;
		if (!NEXT(symlink)(target, path)) {
			give_name(n, target);
			k = learn(n);
			shadow_sync_now();
		} else if (errno != EEXIST) {
			return -errno;
		}
	}
	if (!k)
		return -ENOSPC;
	*minor_nr = k->disk.minor;
	return 0;
}

bool disk_by_minor(unsigned minor_nr, struct disk *out)
{
	struct known *k = learn(minor_nr);

	if (k)
		*out = k->disk;
	return k;
}

unsigned disk_of_file(dev_t dev, ino_t ino)
{
	for (struct known *k = atomic_load(&first); k; k = atomic_load(&k->next))
		if (k->disk.ino == ino && k->disk.dev == dev)
			return k->disk.minor;
	return DISK_NONE;
}

void disks_each(bool (*fn)(const struct disk *d, void *data), void *data)
{
	for (struct known *k = atomic_load(&first); k && fn(&k->disk, data); k = atomic_load(&k->next))
		;
}
