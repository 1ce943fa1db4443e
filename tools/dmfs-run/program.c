/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether a program can be given a library: the dynamic linker does it, so not if there is none (static), and not for
 * one that gets more rights than its caller (setuid, setgid, with capabilities), which ignores LD_PRELOAD.
 */
#include "program.h"

#include <elf.h>
#include <fcntl.h>
#include <glib.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define HEAD 4096
#define SCRIPTS_DEEP 4

/* Whether a program header of the given type stands in the first bytes of the file. */
static bool has_interpreter(const unsigned char *head, size_t len)
{
	Elf64_Ehdr e;

	if (len < sizeof e)
		return true;
	memcpy(&e, head, sizeof e);
	if (e.e_ident[EI_CLASS] != ELFCLASS64)
		return true; /* asked for below */
	for (unsigned i = 0; i < e.e_phnum; i++) {
		size_t at = (size_t)e.e_phoff + i * sizeof(Elf64_Phdr);
		Elf64_Phdr p;

		if (at + sizeof p > len)
			return true;
		memcpy(&p, head + at, sizeof p);
		if (p.p_type == PT_INTERP)
			return true;
	}
	return false;
}

static char *script_interpreter(const unsigned char *head, size_t len)
{
	g_autofree char *line = g_strndup((const char *)head + 2, len - 2);
	char *p = line + strspn(line, " \t");

	p[strcspn(p, " \t\r\n")] = '\0';
	return g_strdup(p);
}

static char *why_not(const char *path, unsigned deep)
{
	unsigned char head[HEAD];
	struct stat st;
	ssize_t len;
	int fd;

	if (stat(path, &st))
		return NULL;
	if ((st.st_mode & S_ISUID && st.st_uid != geteuid()) || (st.st_mode & S_ISGID && st.st_gid != getegid()))
		return g_strdup_printf("%s is setuid or setgid: such a program takes no preloaded library, "
				       "and would see the kernel's devices",
				       path);
	if (geteuid() && getxattr(path, "security.capability", NULL, 0) > 0)
		return g_strdup_printf("%s has capabilities of its own: such a program takes no preloaded library, "
				       "and would see the kernel's devices",
				       path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	len = read(fd, head, sizeof head);
	close(fd);
	if (len > 4 && !memcmp(head, ELFMAG, SELFMAG)) {
		if (head[EI_CLASS] != (sizeof(void *) == 8 ? ELFCLASS64 : ELFCLASS32))
			return g_strdup_printf("%s is a program for another word size than dmfs-run's library", path);
		if (!has_interpreter(head, (size_t)len))
			return g_strdup_printf("%s is statically linked: such a program takes no preloaded library, "
					       "and would see the kernel's devices",
					       path);
	} else if (len > 2 && head[0] == '#' && head[1] == '!' && deep) {
		g_autofree char *interpreter = script_interpreter(head, (size_t)len);

		return why_not(interpreter, deep - 1);
	}
	return NULL;
}

char *program_why_not(const char *path)
{
	return why_not(path, SCRIPTS_DEEP);
}
