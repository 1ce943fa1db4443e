/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dm-io: a bio to each of several regions, and one answer with an error a region.
 *
 * Synchronous: the regions' bios go out from the calling thread, one after the other (a backing store does the system
 * call right there), and the caller waits for those that are still under way.  Asynchronous: a queue's threads submit
 * them, so that the caller never does a system call.
 */
#include <assert.h>
#include <glib.h>
#include <pthread.h>

#include <dmfs/bio.h>

#include <dmfs/container_of.h>
#include <dmfs/io.h>
#include <dmfs/work.h>

#define ASYNC_THREADS 32
#define ON_STACK 16 /* regions */

struct io;

struct part {
	struct dm_bio bio;
	struct dm_work work;
	struct io *io;
};

struct io {
	pthread_mutex_t lock;
	pthread_cond_t done;
	unsigned nr, remaining;
	dm_io_notify fn;
	void *context;
	struct part parts[];
};

static void io_init(struct io *io, enum dm_op op, unsigned flags, unsigned nr, const struct dm_region *where,
		    const struct iovec *iov, int iovcnt, void (*end)(struct dm_bio *))
{
	pthread_mutex_init(&io->lock, NULL);
	pthread_cond_init(&io->done, NULL);
	io->nr = io->remaining = nr;
	for (unsigned i = 0; i < nr; i++) {
		io->parts[i].io = io;
		io->parts[i].bio = (struct dm_bio){
			.op = op,
			.flags = flags,
			.dev = where[i].dev,
			.sector = where[i].sector,
			.sectors = where[i].sectors,
			.iov = (struct iovec *)iov,
			.iovcnt = iovcnt,
			.end = end,
			.private = &io->parts[i],
		};
	}
}

/* Each region's error, if somebody wants to know, and the lowest one's. */
static int gather_errors(const struct io *io, int *errors)
{
	int error = 0;

	for (unsigned i = 0; i < io->nr; i++) {
		if (errors)
			errors[i] = io->parts[i].bio.error;
		if (!error)
			error = io->parts[i].bio.error;
	}
	return error;
}

static void sync_end(struct dm_bio *bio)
{
	struct part *part = bio->private;
	struct io *io = part->io;

	pthread_mutex_lock(&io->lock);
	if (--io->remaining == 0)
		pthread_cond_signal(&io->done);
	pthread_mutex_unlock(&io->lock);
}

int dm_io_sync(enum dm_op op, unsigned flags, unsigned nr, const struct dm_region *where, const struct iovec *iov,
	       int iovcnt, int *errors)
{
	size_t bytes = sizeof(struct io) + nr * sizeof(struct part);
	g_autofree void *many = nr > ON_STACK ? g_malloc(bytes) : NULL;
	struct io *io = many ? many : g_alloca(bytes);

	assert(!dm_in_map());
	assert(nr > 0 && (op != DM_READ || nr == 1));
	io_init(io, op, flags, nr, where, iov, iovcnt, sync_end);
	for (unsigned i = 0; i < nr; i++)
		dm_submit_now(&io->parts[i].bio);
	pthread_mutex_lock(&io->lock);
	if (io->remaining) {
		dm_block_begin();
		while (io->remaining)
			pthread_cond_wait(&io->done, &io->lock);
		dm_block_end();
	}
	pthread_mutex_unlock(&io->lock);
	pthread_mutex_destroy(&io->lock);
	pthread_cond_destroy(&io->done);
	return gather_errors(io, errors);
}

static void async_end(struct dm_bio *bio)
{
	struct part *part = bio->private;
	struct io *io = part->io;
	g_autofree int *errors = NULL;
	bool last;
	int error;

	pthread_mutex_lock(&io->lock);
	last = --io->remaining == 0;
	pthread_mutex_unlock(&io->lock);
	if (!last)
		return;
	errors = g_new(int, io->nr);
	error = gather_errors(io, errors);
	io->fn(error, errors, io->context);
	pthread_mutex_destroy(&io->lock);
	pthread_cond_destroy(&io->done);
	g_free(io);
}

static void async_submit(struct dm_work *work)
{
	struct part *part = container_of(work, struct part, work);

	dm_submit(&part->bio);
}

static struct dm_wq *async_wq;

static void make_async_wq(void)
{
	async_wq = dm_wq_new("dm-io", ASYNC_THREADS);
}

static struct dm_wq *async_queue(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_async_wq);
	return async_wq;
}

void dm_io_async(enum dm_op op, unsigned flags, unsigned nr, const struct dm_region *where, const struct iovec *iov,
		 int iovcnt, dm_io_notify fn, void *context)
{
	struct io *io = g_malloc(sizeof *io + nr * sizeof io->parts[0]);
	struct dm_wq *wq = async_queue();

	assert(nr > 0 && (op != DM_READ || nr == 1));
	io_init(io, op, flags, nr, where, iov, iovcnt, async_end);
	io->fn = fn;
	io->context = context;
	for (unsigned i = 0; i < nr; i++) {
		io->parts[i].work = (struct dm_work){.fn = async_submit};
		dm_wq_queue(wq, &io->parts[i].work);
	}
}

static int simple(enum dm_op op, unsigned flags, struct dm_dev *dev, uint64_t sector, uint64_t sectors, void *buf)
{
	struct dm_region where = {dev, sector, sectors};
	struct iovec iov = {buf, sectors << DM_SECTOR_SHIFT};

	return dm_io_sync(op, flags, 1, &where, &iov, dm_op_has_data(op), NULL);
}

int dm_read_sync(struct dm_dev *dev, uint64_t sector, uint64_t sectors, void *buf, unsigned flags)
{
	return simple(DM_READ, flags, dev, sector, sectors, buf);
}

int dm_write_sync(struct dm_dev *dev, uint64_t sector, uint64_t sectors, const void *buf, unsigned flags)
{
	return simple(DM_WRITE, flags, dev, sector, sectors, (void *)buf);
}

int dm_flush_sync(struct dm_dev *dev)
{
	return simple(DM_FLUSH, 0, dev, 0, 0, NULL);
}
