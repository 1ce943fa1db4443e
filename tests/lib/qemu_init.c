/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The first process of a guest of qemu_guest.py: loads the modules of its archive, in order, mounts the host's file
 * system and the work directory, and runs the script there.  Its exit status goes to the work directory; then the guest
 * is over.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MODULE_INIT_COMPRESSED_FILE
#define MODULE_INIT_COMPRESSED_FILE 4
#endif

static void over(const char *what)
{
	if (what)
		printf("qemu_init: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void load(const char *name)
{
	int fd = open(name, O_RDONLY), flags = strcmp(name + strlen(name) - 3, ".ko") ? MODULE_INIT_COMPRESSED_FILE : 0;

	if (fd < 0 || (syscall(SYS_finit_module, fd, "", flags) && errno != EEXIST))
		printf("qemu_init: %s: %s\n", name, strerror(errno));
	close(fd);
}

static void load_all(void)
{
	char name[256];
	FILE *f = fopen("/modules/order", "r");

	while (f && fscanf(f, "%255s", name) == 1)
		load(name);
	if (f)
		fclose(f);
}

static void must_mount(const char *what, const char *where, const char *type, unsigned long flags, const char *options)
{
	if (mount(what, where, type, flags, options))
		over(where);
}

int main(void)
{
	char work[1024] = "/host", script[1100], path[1100];
	int fd, status = 0;
	pid_t pid;
	FILE *f;

	mkdir("/dev", 0755);
	mkdir("/host", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	dup2(fd, 0), dup2(fd, 1), dup2(fd, 2);
	load_all();
	f = fopen("/work", "r");
	if (!f || fscanf(f, "%1000s", work + strlen(work)) != 1)
		over("/work");
	must_mount("root", "/host", "9p", MS_RDONLY, "trans=virtio,version=9p2000.L,msize=262144,cache=loose");
	must_mount("work", work, "9p", 0, "trans=virtio,version=9p2000.L,msize=262144");
	must_mount("dev", "/host/dev", "devtmpfs", 0, NULL);
	must_mount("proc", "/host/proc", "proc", 0, NULL);
	must_mount("sys", "/host/sys", "sysfs", 0, NULL);
	must_mount("run", "/host/run", "tmpfs", 0, NULL);
	mount("config", "/host/sys/kernel/config", "configfs", 0, NULL);
	if (chroot("/host") || chdir(work + strlen("/host")))
		over("chroot");
	snprintf(script, sizeof script, "%s/script", work + strlen("/host"));
	snprintf(path, sizeof path, "%s/status", work + strlen("/host"));
	setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("DM_DISABLE_UDEV", "1", 1);
	setenv("LC_ALL", "C", 1);
	pid = fork();
	if (!pid) {
		execl("/bin/bash", "bash", script, NULL);
		_exit(127);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	f = fopen(path, "w");
	if (f) {
		fprintf(f, "%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 255);
		fclose(f);
	}
	over(NULL);
	return 0;
}
