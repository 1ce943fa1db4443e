/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lets user-mode Linux run on processors whose extended state is larger than it knows (AMX): preloaded into it.
 *
 * It sets the floating-point registers of its processes by ptrace(2) with a buffer of the size it was built for; a host
 * kernel takes only the whole state.  So the call goes through a buffer that is large enough.  What lies
 * beyond the guest's buffer is in its initial state, and the bits of the header that say otherwise are cleared.
 *
 * The state has the standard layout: 512 bytes of legacy area, then a header of 64 bytes whose first 8 say which
 * components hold something; CPUID leaf 0xd tells where each is.
 */
#include <cpuid.h>
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define HEADER 512
#define COMPONENTS 63

static char state[64 * 1024] __attribute__((aligned(64))); /* one thread calls */

/* The same answer for the one size the guest has: CPUID is slow in a virtual machine. */
static uint64_t components_within(size_t size)
{
	static uint64_t mask;
	unsigned bytes, offset, c, d;

	if (mask)
		return mask;
	mask = 3; /* x87 and SSE: the legacy area */
	for (unsigned i = 2; i < COMPONENTS; i++)
		if (__get_cpuid_count(0xd, i, &bytes, &offset, &c, &d) && bytes && offset && offset + bytes <= size)
			mask |= UINT64_C(1) << i;
	return mask;
}

static long set_whole(long (*real)(int, ...), int pid, void *type, struct iovec *iov)
{
	static size_t size; /* of the whole state, once known */
	struct iovec whole = {state, size ? size : sizeof state};
	uint64_t held;

	if (!size && real(PTRACE_GETREGSET, pid, type, &whole))
		return -1;
	size = whole.iov_len;
	if (iov->iov_len >= size || iov->iov_len < HEADER + 64)
		return real(PTRACE_SETREGSET, pid, type, iov);
	memset(state + iov->iov_len, 0, whole.iov_len - iov->iov_len);
	memcpy(state, iov->iov_base, iov->iov_len);
	memcpy(&held, state + HEADER, sizeof held);
	held &= components_within(iov->iov_len);
	memcpy(state + HEADER, &held, sizeof held);
	return real(PTRACE_SETREGSET, pid, type, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
	static long (*real)(int, ...);
	void *addr, *data;
	va_list args;
	int pid;

	va_start(args, request);
	pid = va_arg(args, int);
	addr = va_arg(args, void *);
	data = va_arg(args, void *);
	va_end(args);
	if (!real)
		real = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && (uintptr_t)addr == NT_X86_XSTATE)
		return set_whole(real, pid, addr, data);
	return real((int)request, pid, addr, data);
}
