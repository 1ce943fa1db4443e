/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The crash laboratory: power loss at every write, and an error at every I/O.
 *
 * A customer is one file, target_NAME.c, that says how to build the target's
 * stack above slices of a disk, what to do with it, and what must hold
 * afterwards.  The laboratory does the rest:
 *
 *   1. It makes a disk in memory, puts log-writes above it, and cuts that into
 *      the customer's slices: dmfs devices named as the customer says.
 *   2. prepare() formats them, open() builds the stack, workload() uses it
 *      through the lab_ calls below; then the stack is closed.  Every write to
 *      a volume carries its volume, sector, number and checksum in each sector.
 *   3. For each prefix of the log, and for sampled sets of the writes a disk
 *      may have kept or lost since the last FLUSH, some torn, the disk is made to look so; open() builds
 *      the stack on it with nothing else left from before; and then:
 *        - open() must succeed;
 *        - every sector of every volume is read: it must hold what a FLUSH or
 *          FUA that had been answered covered, or something written later;
 *          never an older value, a mixture, or what belongs elsewhere;
 *        - check() must find the target's own invariants;
 *        - at some of the points, new writes must work and stay, over another
 *          open; and power is lost again during the recovery itself.
 *   4. The same workload runs with I/O number 1, 2, 3, … failing (once, or from
 *      then on; EIO or ENOSPC; all of the disk, that slice of it, or that and another).  Requests may fail then, but
 *what was answered must hold as above, at once and after the fault is gone and the stack opened anew.
 *
 * A customer of one linear device, whole:
 *
 *	static int open_linear(struct lab *lab, GError **err)
 *	{
 *		int error = lab_device(lab, "vol", err, "0 1024 linear low 512", "1024 512 linear low 0", NULL);
 *
 *		return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
 *	}
 *
 *	static void use_linear(struct lab *lab)
 *	{
 *		lab_random_io(lab, 200, "vol", NULL);
 *	}
 *
 *	LAB_CUSTOMER(linear) = {
 *		.slices = {{"low", 1536}},
 *		.open = open_linear,
 *		.workload = use_linear,
 *	};
 *
 * Volumes should be small (up to 2048 sectors): each crash point reads them in full.
 * The workload may be run many times, with other random numbers each time: it must take
 * all its choices from lab_random().  Nothing outside the laboratory may be touched; time may pass as it likes.
 *
 * To see a failure again, and what the disk was told before it:
 *
 *	build/tests/crash/crash --full --seed SEED --seeds 1 [--crash | --faults [--io N]] -v NAME
 *
 * Errors are negative errnos and GErrors.  "The model" is what the laboratory
 * knows of each sector of each volume: all that was written to it, when it
 * began and was answered, and from when on it was durable.
 */
#ifndef DMFS_TESTS_CRASH_LAB_H
#define DMFS_TESTS_CRASH_LAB_H

#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include <dmfs/target.h>

#define LAB_MAX_SLICES 8

struct lab;

struct lab_slice {
	const char *name; /* of the dmfs device it becomes */
	uint64_t sectors;
};

struct lab_customer {
	const char *name; /* set by LAB_CUSTOMER() */
	struct lab_slice slices[LAB_MAX_SLICES];

	/* Formats the slices, which are all zeroes.  No power loss here.  May be NULL. */
	int (*prepare)(struct lab *, GError **);
	/*
	 * Builds the stack, with lab_device() and lab_volume().  Called before
	 * workload(), and at every crash point: what was there by then
	 * lab_reached() tells.  The lab closes the stack: all devices, in reverse order.
	 */
	int (*open)(struct lab *, GError **);
	/*
	 * Before the lab removes the devices: what open() made besides them.  Also after open() has failed.  May be
	 * NULL.
	 */
	void (*close)(struct lab *);
	void (*workload)(struct lab *);
	/*
	 * At a crash point, when volumes have been found good: the target's own
	 * invariants (status, messages, metadata on the slices).  May be NULL.
	 */
	int (*check)(struct lab *, GError **);
	/*
	 * After an injected fault, when the disk works again: whether this volume's
	 * reads (or open(), with NULL) may fail still, e.g. a snapshot that became
	 * invalid.  May be NULL: they may not.
	 */
	bool (*excuse)(struct lab *, const char *volume);
	/*
	 * After a power loss: whether this sector of a volume may hold anything, as what it depends on may be older or
	 * newer than it (parity without a device: the write hole).  lab_unsure() tells.  May be NULL.
	 */
	bool (*lost)(struct lab *, const char *volume, uint64_t sector);
	/*
	 * Run for faults; shorter than workload(), since it runs once for every I/O it
	 * does, times the kinds of faults.  May be NULL: workload().
	 */
	void (*fault_workload)(struct lab *);

	bool goes_back;     /* after a fault, volumes may be as at their last flush even while they are used */
	unsigned bears;	    /* so many slices may fail, and no request does; more than one: two at once are tried */
	bool no_new_writes; /* volumes cannot be written at a crash point: skip that step */
	bool hidden;        /* only run when named: for the laboratory's own tests */
	struct lab_customer *next;
};

/* Defines a customer and makes it known. */
#define LAB_CUSTOMER(id)                                                    \
	static struct lab_customer lab_customer_##id;                       \
	static void __attribute__((constructor)) lab_register_##id(void)    \
	{                                                                   \
		lab_customer_##id.name = #id;                               \
		lab_register(&lab_customer_##id);                           \
	}                                                                   \
	static struct lab_customer lab_customer_##id

void lab_register(struct lab_customer *customer);

/* A number below n, from the run's seed; and what the customer wants to keep over a run (zeroed at its begin). */
unsigned lab_random(struct lab *lab, unsigned n);
void *lab_private(struct lab *lab, size_t size);
/* The same, with a function that clears it at the run's end. */
void *lab_private_full(struct lab *lab, size_t size, void (*clear)(void *));
/* Whether this is the customer of that name, for functions that several share. */
bool lab_is(struct lab *lab, const char *name);
/* open(): the first, before the workload? */
bool lab_first_open(struct lab *lab);

/* --- devices: open() and the workload ----------------------------------------------- */

/* Creates a dmfs device and loads and resumes its table, given as lines, NULL at the end. */
int lab_device(struct lab *lab, const char *name, GError **err, const char *line, ...) G_GNUC_NULL_TERMINATED;
/* Loads another table into a device and swaps it in. */
int lab_load(struct lab *lab, const char *name, GError **err, const char *line, ...) G_GNUC_NULL_TERMINATED;
int lab_suspend(struct lab *lab, const char *name, GError **err);
int lab_resume(struct lab *lab, const char *name, GError **err);
int lab_remove(struct lab *lab, const char *name, GError **err);
/* Sends a message; reply may be NULL. */
int lab_message(struct lab *lab, const char *name, GString *reply, GError **err, const char *fmt, ...)
	G_GNUC_PRINTF(5, 6);
/* A device's status lines; NULL if there is no such device.  g_free(). */
char *lab_status(struct lab *lab, const char *name);
/*
 * Waits until a device's status contains the text (looking again at each of its events); -ETIME after a minute without
 * a change.
 */
int lab_wait_status(struct lab *lab, const char *name, const char *text, GError **err);
/* The same; -EIO once may_be(), asked at each of its events, says that it will never be so. */
int lab_wait_status_while(struct lab *lab, const char *name, const char *text, bool (*may_be)(struct lab *),
			  GError **err);
/* Raw access to a slice or device, without the model: to format and to look at metadata.  Bytes. */
int lab_read_raw(struct lab *lab, const char *name, uint64_t offset, void *buf, size_t len, GError **err);
int lab_write_raw(struct lab *lab, const char *name, uint64_t offset, const void *buf, size_t len, GError **err);

/*
 * Whether the power failed before a write to this sector of a slice was durable, or the request that it belongs to
 * was answered, or such a write failed.  For customers that have lost(), whose workload is one thread.
 */
bool lab_unsure(struct lab *lab, const char *slice, uint64_t sector);

/* --- volumes -------------------------------------------------------------------------- */

enum lab_initial {
	LAB_ZEROES,  /* sectors never written read as zeroes */
	LAB_ANYTHING /* they read as anything but what belongs to another place */
};

/* The device is a volume: it is read and compared at each crash point.  Its size is the table's. */
int lab_volume(struct lab *lab, const char *name, enum lab_initial initial, GError **err);
/*
 * From now on `name` holds what `from` holds now: the model of the one becomes
 * a copy of the other's.  For a snapshot just taken, a merge just begun.  Call it where no write to `from`
 * is under way.  `name` need not be open yet.
 */
void lab_inherit(struct lab *lab, const char *name, const char *from);
/* Notes that something has happened, or is about to: lab_reached() is true at crash points from here on. */
void lab_step(struct lab *lab, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
/* In open() and check(): whether the power failed after that step.  In the workload: whether it was noted. */
bool lab_reached(struct lab *lab, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/*
 * I/O of the workload, from any thread; sectors.  0 or a negative errno; without a fault injected any
 * error but -EOPNOTSUPP for a discard fails the run.  flags: DM_FUA, DM_PREFLUSH, DM_META.
 */
int lab_write(struct lab *lab, const char *volume, uint64_t sector, uint64_t sectors, unsigned flags);
int lab_zero(struct lab *lab, const char *volume, uint64_t sector, uint64_t sectors);
int lab_discard(struct lab *lab, const char *volume, uint64_t sector, uint64_t sectors);
int lab_flush(struct lab *lab, const char *volume);
/* Reads and compares with the model: the newest value, nothing else. */
int lab_read(struct lab *lab, const char *volume, uint64_t sector, uint64_t sectors);
/*
 * So many random requests of all kinds to the volumes named (NULL at the end): writes of 1 to 64 sectors, some
 * FUA, reads, flushes, discards, write-zeroes.
 */
void lab_random_io(struct lab *lab, unsigned count, const char *volume, ...) G_GNUC_NULL_TERMINATED;
/* Runs fn(lab, i, data) in n threads at once, i from 0, and waits for them. */
void lab_threads(struct lab *lab, unsigned n, void (*fn)(struct lab *, unsigned i, void *data), void *data);
/* Closes the whole stack as at a clean end and opens it again. */
int lab_reopen(struct lab *lab);

/*
 * Fails the run with a text; the workload goes on.  lab_ok() is for calls that must succeed unless a fault is injected.
 */
void lab_fail(struct lab *lab, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
bool lab_ok(struct lab *lab, int error, GError **err);
/* Whether faults are injected in this run: what fails then is no failure. */
bool lab_faulty(struct lab *lab);

#endif
