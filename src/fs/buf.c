/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Buffers of requests (buf.h): mapped memory, of which some that are free are kept. */
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

#include "buf.h"
#include "fs.h"

#define PAGE 4096
#define HUGE_PAGE ((size_t)2 << 20)
#define FREE_BUFS 8

G_STATIC_ASSERT(PAGE + DMFS_DATA_ROOM <= HUGE_PAGE);

static struct {
	pthread_mutex_t lock;
	struct dmfs_buf *list;
	unsigned n, most;
} spare = {.lock = PTHREAD_MUTEX_INITIALIZER, .most = FREE_BUFS};

static atomic_size_t charged;

bool dmfs_buf_full(size_t bytes)
{
	return atomic_load_explicit(&charged, memory_order_relaxed) + bytes > dmfs_options.max_waiting;
}

void dmfs_buf_charge(struct dmfs_buf *buf, size_t bytes)
{
	if (buf)
		buf->charged += bytes;
	atomic_fetch_add_explicit(&charged, bytes, memory_order_relaxed);
}

void dmfs_buf_uncharge(size_t bytes)
{
	if (bytes)
		atomic_fetch_sub_explicit(&charged, bytes, memory_order_relaxed);
}

static char *map_pages(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* Small pages: only what is touched takes memory. */
static void buf_map(struct dmfs_buf *buf)
{
	buf->map_size = PAGE + DMFS_DATA_ROOM;
	buf->map = map_pages(buf->map_size);
	if (buf->map == MAP_FAILED)
		g_error("no memory for a request buffer");
	buf->data = buf->map + PAGE;
}

/*
 * One huge page, for a worker that has seen a large request: copies to and from it miss the TLB no more.  Where there
 * are none it is small pages again.
 */
static void buf_map_huge(struct dmfs_buf *buf)
{
	char *map = map_pages(2 * HUGE_PAGE), *page;

	if (map == MAP_FAILED)
		return;
	page = (char *)(((uintptr_t)map + HUGE_PAGE - 1) & ~((uintptr_t)HUGE_PAGE - 1));
	madvise(page, HUGE_PAGE, MADV_HUGEPAGE);
	munmap(buf->map, buf->map_size);
	buf->map = map;
	buf->map_size = 2 * HUGE_PAGE;
	buf->data = page + PAGE;
}

void dmfs_buf_ready(struct dmfs_buf *buf)
{
	if (!buf->large || buf->huge)
		return;
	buf->huge = true;
	buf_map_huge(buf);
}

struct dmfs_buf *dmfs_buf_new(void)
{
	struct dmfs_buf *buf;

	pthread_mutex_lock(&spare.lock);
	buf = spare.list;
	if (buf) {
		spare.list = buf->next;
		spare.n--;
	}
	pthread_mutex_unlock(&spare.lock);
	if (buf)
		return buf;
	buf = g_new0(struct dmfs_buf, 1);
	buf_map(buf);
	return buf;
}

void dmfs_buf_free(struct dmfs_buf *buf)
{
	dmfs_buf_uncharge(buf->charged);
	buf->charged = 0;
	pthread_mutex_lock(&spare.lock);
	if (spare.n < spare.most) {
		buf->next = spare.list;
		spare.list = buf;
		spare.n++;
		buf = NULL;
	}
	pthread_mutex_unlock(&spare.lock);
	if (!buf)
		return;
	munmap(buf->map, buf->map_size);
	g_free(buf);
}

void dmfs_buf_end(void)
{
	pthread_mutex_lock(&spare.lock);
	spare.most = 0;
	pthread_mutex_unlock(&spare.lock);
	for (struct dmfs_buf *buf; (buf = spare.list);) {
		spare.list = buf->next;
		dmfs_buf_free(buf);
	}
}
