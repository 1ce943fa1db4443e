/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Locked memory for keys.
 *
 * One range of addresses is reserved at the start and becomes usable from its
 * beginning, a step at a time, as it is needed: locked, left out of core
 * dumps, empty in a forked child (and the process as a whole is not dumped any
 * more: plaintext is in other memory).  So "is it secure" is a comparison of
 * addresses, and libgcrypt's secure memory has no fixed size.
 *
 * The range is cut into extents of UNIT bytes.  The free ones are in a list by address, neighbours always merged; the
 * used ones in a hash table.  Both are only touched when a key comes or goes, under one lock.
 */
#include <dmfs/log.h>
#include <dmfs/rounding.h>
#include <dmfs/secmem.h>
#include <dmfs/error.h>
#include <gcrypt.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define UNIT ((size_t)64)
#define STEP ((size_t)32 << 10)
#define RANGE ((size_t)1 << 30)
#define BURN 32768

struct extent {
	struct extent *next;
	size_t at, len;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *base;        /* of RANGE bytes; NULL before dm_gcrypt_init() */
static size_t top;        /* how much of it is usable */
static size_t used;
static _Atomic bool unlocked; /* some of it could not be locked */
static struct extent *free_list;
static GHashTable *used_table; /* offset -> length */

static void add_free(size_t at, size_t len)
{
	struct extent **p = &free_list, *x, *next;

	while (*p && (*p)->at + (*p)->len < at)
		p = &(*p)->next;
	x = *p;
	if (x && x->at + x->len == at) {
		x->len += len;
	} else if (x && at + len == x->at) {
		x->at = at;
		x->len += len;
		return;
	} else {
		x = g_new(struct extent, 1);
		*x = (struct extent){*p, at, len};
		*p = x;
	}
	next = x->next;
	if (next && x->at + x->len == next->at) {
		x->len += next->len;
		x->next = next->next;
		g_free(next);
	}
}

/* First fit; RANGE if there is none. */
static size_t take_free(size_t len)
{
	for (struct extent **p = &free_list; *p; p = &(*p)->next) {
		struct extent *x = *p;
		size_t at = x->at;

		if (x->len < len)
			continue;
		x->at += len;
		x->len -= len;
		if (!x->len) {
			*p = x->next;
			g_free(x);
		}
		return at;
	}
	return RANGE;
}

/* Unprivileged processes may lock little; what there is of it is taken. */
static bool lock_pages(void *p, size_t len)
{
	struct rlimit lim;

	if (!mlock(p, len))
		return true;
	if (getrlimit(RLIMIT_MEMLOCK, &lim) || lim.rlim_cur == lim.rlim_max)
		return false;
	lim.rlim_cur = lim.rlim_max;
	return !setrlimit(RLIMIT_MEMLOCK, &lim) && !mlock(p, len);
}

static bool grow(size_t len)
{
	size_t bytes = dm_round_up(len, STEP);
	char *p = base + top;

	if (!top)
		prctl(PR_SET_DUMPABLE, 0);
	if (bytes > RANGE - top || mprotect(p, bytes, PROT_READ | PROT_WRITE))
		return false;
	if (!lock_pages(p, bytes) && !unlocked) {
		unlocked = true;
		dm_log_warn("not all keys could be locked in memory (%s; RLIMIT_MEMLOCK too low?), they might be swapped out", g_strerror(errno));
	}
	add_free(top, bytes);
	top += bytes;
	return true;
}

void *dm_secmem_alloc(size_t len)
{
	size_t at = RANGE;

	if (len > RANGE)
		return NULL;
	len = dm_round_up(MAX(len, 1), UNIT);
	pthread_mutex_lock(&lock);
	if (base) {
		at = take_free(len);
		if (at == RANGE && grow(len))
			at = take_free(len);
		if (at != RANGE) {
			g_hash_table_insert(used_table, GSIZE_TO_POINTER(at), GSIZE_TO_POINTER(len));
			used += len;
		}
	}
	pthread_mutex_unlock(&lock);
	if (at == RANGE)
		return NULL;
	memset(base + at, 0, len);
	return base + at;
}

static size_t length_of(const void *p)
{
	size_t len;

	pthread_mutex_lock(&lock);
	len = GPOINTER_TO_SIZE(g_hash_table_lookup(used_table, GSIZE_TO_POINTER((size_t)((const char *)p - base))));
	pthread_mutex_unlock(&lock);
	g_assert(len);
	return len;
}

void dm_secmem_free(void *p)
{
	size_t at, len;

	if (!p)
		return;
	at = (char *)p - base;
	len = length_of(p);
	explicit_bzero(p, len);
	pthread_mutex_lock(&lock);
	g_hash_table_remove(used_table, GSIZE_TO_POINTER(at));
	used -= len;
	add_free(at, len);
	pthread_mutex_unlock(&lock);
}

void __attribute__((noinline)) dm_burn_stack(void)
{
	char room[BURN];

	explicit_bzero(room, sizeof(room));
	/* copies of every length leave zeroes in the vector registers where a key's copy had left the key */
	for (volatile size_t len = 8; len <= 1024; len *= 2) {
		memcpy(room, room + BURN / 2, len);
		__asm__ volatile("" : : "r"(room) : "memory");
	}
}

bool dm_secmem_owns(const void *p)
{
	return base && (const char *)p >= base && (const char *)p < base + RANGE;
}

size_t dm_secmem_used(void)
{
	size_t n;

	pthread_mutex_lock(&lock);
	n = used;
	pthread_mutex_unlock(&lock);
	return n;
}

bool dm_secmem_locked(void)
{
	return !unlocked;
}

/* --- libgcrypt's memory ---------------------------------------------------------------------- */

static int gcry_owns(const void *p)
{
	return dm_secmem_owns(p);
}

static void gcry_release(void *p)
{
	if (dm_secmem_owns(p))
		dm_secmem_free(p);
	else
		free(p);
}

static void *gcry_resize(void *p, size_t len)
{
	size_t old;
	void *q;

	if (!dm_secmem_owns(p))
		return realloc(p, len);
	old = length_of(p);
	q = dm_secmem_alloc(len);
	if (q) {
		memcpy(q, p, MIN(old, len));
		dm_secmem_free(p);
	}
	return q;
}

/* --- once in the process --------------------------------------------------------------------- */

static GError *init_error;

static void init_once(void)
{
	void *p = mmap(NULL, RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED) {
		dm_fail(&init_error, errno, "no memory for keys: %s", g_strerror(errno));
		return;
	}
	madvise(p, RANGE, MADV_DONTDUMP);
	madvise(p, RANGE, MADV_WIPEONFORK);
	used_table = g_hash_table_new(NULL, NULL);
	base = p;
	if (gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P)) {
		/* by another library in the process, with its own kind of secure memory */
		gcry_control(GCRYCTL_AUTO_EXPAND_SECMEM, (unsigned)STEP, 0);
		return;
	}
	gcry_set_allocation_handler(malloc, dm_secmem_alloc, gcry_owns, gcry_resize, gcry_release);
	if (!gcry_check_version("1.10.0")) {
		dm_fail(&init_error, ENOSYS, "libgcrypt is %s, 1.10.0 is needed", gcry_check_version(NULL));
		return;
	}
	gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

int dm_gcrypt_init(GError **err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, init_once);
	if (!init_error)
		return 0;
	if (err)
		*err = g_error_copy(init_error);
	return -ENOMEM;
}
