/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The target API: all that a file in targets/ sees.
 *
 * A target is one line of a table.  Its type is a table of functions; the engine calls ctr once, map for every bio, dtr
 * at the end.  What holds when:
 *
 *   ctr, dtr          one thread; no bios, hooks, messages or status of this table; the device may run another.
 *   map, end_io       any number of threads at once.  They wait for nothing but a short lock: what needs I/O of
 *                     its own, or another bio's end, is handed over (a work queue, hold.h, block_lock.h, later.h),
 *                     and map returns DM_MAPIO_SUBMITTED.  dm_io_sync() in map is an assertion failure.
 *   presuspend        bios still flow; stop background work from starting anew.
 *   postsuspend       no bio is in flight and none comes.
 *   preresume, resume the same; bios flow once resume has returned.
 *   message, commit   while the table is live.  Hooks (presuspend to resume, and its undo) and messages of a device
 *                     come one at a time, whatever tables it has: none begins before the other has returned.  A
 *                     suspend lets messages through while it waits for I/O.  May wait.
 *   status            any time between ctr and dtr, several at once, beside hooks, messages and bios.  Never waits:
 *                     what it reads is atomic, or under a lock that nobody holds while he waits, or changes only
 *                     between dm_status_pause() and dm_status_go_on().
 *   end_waiting       any time while the table is loaded, beside all of these.
 *
 * The engine sees to this and asserts it.
 *
 * Errors are negative errnos.  Error texts begin with the target's name.
 */
#ifndef DMFS_TARGET_H
#define DMFS_TARGET_H

#include <errno.h>
#include <glib.h>
#include <string.h>

#include <dmfs/bio.h>
#include <dmfs/error.h>
#include <dmfs/io.h>
#include <dmfs/log.h>

enum dm_mapio {
	DM_MAPIO_SUBMITTED, /* the target keeps the bio and calls dm_bio_end() on it some time, from any thread */
	DM_MAPIO_REMAPPED,  /* goes on to bio->dev, bio->sector, which map has set */
	DM_MAPIO_KILL,      /* fails with -EIO */
	DM_MAPIO_REQUEUE,   /* only in a noflush suspend: comes back through map after resume */
};

enum dm_endio {
	DM_ENDIO_DONE,       /* bio->error, which end_io may have changed, is the result */
	DM_ENDIO_INCOMPLETE, /* the target has taken the bio back and calls dm_bio_end() on it again later */
	DM_ENDIO_REQUEUE,    /* as DM_MAPIO_REQUEUE */
};

enum dm_status_type {
	DM_STATUS_INFO,  /* what `status` prints after the target's name */
	DM_STATUS_TABLE, /* what `table` prints there; loads again; keys as zeroes unless dm_status_tells_keys() */
};

/* In status: whoever asks is told keys, too.  No message and no suspend is under way then. */
bool dm_status_tells_keys(void);

enum dm_target_features {
	/* FLUSH means a FLUSH of every device the target has got and nothing else: map never sees one. */
	DM_TARGET_FLUSH_DEVICES = 1u << 0,
	DM_TARGET_SINGLETON = 1u << 1,        /* alone in its table */
	DM_TARGET_ALWAYS_WRITEABLE = 1u << 2, /* refuses read-only tables */
	DM_TARGET_IMMUTABLE = 1u << 3,        /* never beside another type in a table, never replaced by one in a device's */
	DM_TARGET_FLUSH_LAST = 1u << 4, /* map gets a FLUSH only if no other kind of target in the table has use for it */
	DM_TARGET_TAKES_KEYS = 1u << 5, /* what looks like a key is never in an error text about a line of this type */
	/* Bios go on to its devices with their tags (bio.h): it takes what they take, if that is the same for all. */
	DM_TARGET_PASSES_TAGS = 1u << 6,
	/*
	 * Its devices' zones are its own, bios for them go on, and it has report_zones; the devices are all of one
	 * model.
	 */
	DM_TARGET_ZONES = 1u << 7,
	/*
	 * A sector of it lies on its devices where iterate_devices says, at the same distance if the lengths are the
	 * same, and it writes nothing else of them: claims reach through it (claim.h).
	 */
	DM_TARGET_STRAIGHT = 1u << 9,
	DM_TARGET_MIXED_ZONES = 1u << 8, /* has use for devices with zones, whatever their models, but shows none (io_hints) */
	DM_TARGET_WILDCARD = 1u << 10, /* a table with one of it may replace an immutable target */
	/*
	 * ctr writes nothing to what another one of its type made, and the first preresume reads all of it anew: it may be
	 * loaded beside one that is live on the same devices, to be resumed when that is suspended (claim.h).
	 */
	DM_TARGET_HANDS_OVER = 1u << 11,
};

struct dm_target;
struct dm_table;
struct dm_mapped; /* a dmfs device */

typedef int (*dm_iterate_fn)(struct dm_target *, struct dm_dev *, uint64_t start, uint64_t len, void *data);

struct dm_target_type {
	const char *name;
	const struct dm_target_type *alias_of; /* an old name of another type; all else is left out */
	unsigned version[3];
	unsigned features;
	size_t per_bio_size; /* bytes at bio->private in map and end_io, uninitialised */

	int (*ctr)(struct dm_target *, int argc, char **argv, GError **);
	void (*dtr)(struct dm_target *);
	enum dm_mapio (*map)(struct dm_target *, struct dm_bio *);
	enum dm_endio (*end_io)(struct dm_target *, struct dm_bio *);
	void (*presuspend)(struct dm_target *);
	void (*presuspend_undo)(struct dm_target *);
	void (*postsuspend)(struct dm_target *);
	int (*preresume)(struct dm_target *, GError **);
	void (*resume)(struct dm_target *);
	/*
	 * The daemon ends.  What is held back here until time passes or somebody does something goes on or fails, now
	 * and from now on.  At any time while the table is loaded; dtr comes later as always.
	 */
	void (*end_waiting)(struct dm_target *);
	void (*status)(struct dm_target *, enum dm_status_type, GString *);
	/*
	 * Somebody wants to know how things are on the disk: metadata is written now, before status is asked.  As
	 * status, but it may wait.
	 */
	void (*commit)(struct dm_target *);
	int (*message)(struct dm_target *, int argc, char **argv, GString *reply, GError **);
	int (*iterate_devices)(struct dm_target *, dm_iterate_fn, void *data);
	void (*io_hints)(struct dm_target *, struct dm_limits *);
	/* Data or hole; sector counts from the target's begin.  Absent: all data. */
	int (*extent)(struct dm_target *, uint64_t sector, uint64_t sectors, struct dm_extent *);
	/* As dm_dev_provisioned(); sector counts from the target's begin.  Absent: all. */
	uint64_t (*provisioned)(struct dm_target *, uint64_t sector, uint64_t sectors);
	/* DM_TARGET_ZONES: dm_target_report_zones() with what sectors are mapped to. */
	int (*report_zones)(struct dm_target *, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data);
	/*
	 * A type that takes the place of this one's lines when a table of the state database cannot be loaded at the
	 * start, to see what such a line would have seen and to keep that in rows (rows.h), which are those of that
	 * line.  It has a ctr, which gets the line's arguments and may refuse, and a dtr, when the device gets a table
	 * or goes; no more.
	 */
	const struct dm_target_type *absent;
	/*
	 * At the start, before a table of the state is resumed: whether a line of another type stands in for one that
	 * should have been there first, and the names of its devices.  Lines of types with absent come back before
	 * lines with this whose first argument is the same.
	 */
	bool (*misses)(struct dm_target *, GString *who);
};

#define DM_TARGET_LINE 64 /* bytes: a cache line.  A lookup in a large table misses the two of a target, no more. */

struct dm_target {
	const struct dm_target_type *type;
	struct dm_table *table;
	uint64_t begin, len;   /* sectors of the device; set before ctr */
	void *private;         /* the target's context */
	/* ctr may set what follows. */
	/*
	 * Bios are split at multiples of this, counted from begin; 0: no splitting.  It may become 0, atomically,
	 * during I/O.
	 */
	uint32_t max_io_sectors;
	uint32_t per_bio_size;          /* at first the type's */
	uint32_t num_flush_bios;        /* at first 1; 0: FLUSH skips the target */
	uint32_t num_discard_bios;      /* at first 0: discards fail with -EOPNOTSUPP */
	uint32_t num_write_zeroes_bios; /* at first 0: write-zeroes arrive as writes of zeroes */
	bool provisions; /* takes DM_PROVISION, split as writes are, in as many bios as write-zeroes (at least 1); else it does nothing */
	bool split_discards;     /* discards and write-zeroes too are split at max_io_sectors */
	bool discards_supported; /* discards are taken even if no device beneath takes them */
	/*
	 * The arguments hold a key: the table is never stored, a restart needs it again.  message, too, may set it, of
	 * a type with DM_TARGET_TAKES_KEYS that has no claims.
	 */
	bool secret : 1;
	bool claims : 1; /* the engine's: it has some (claim.h) */
	/* Room for a small context, for ctr to point private to; it goes when the target goes. */
	char room[DM_TARGET_LINE] __attribute__((aligned(DM_TARGET_LINE)));
};

G_STATIC_ASSERT(offsetof(struct dm_target, room) == DM_TARGET_LINE);

/* Sector of a bio relative to the target's begin. */
static inline uint64_t dm_target_offset(const struct dm_target *ti, uint64_t sector)
{
	return sector - ti->begin;
}

/*
 * Finds and opens the device an argument names (design: a dmfs device, an absolute path, a path relative to the writer,
 * MAJ:MIN), with the credentials of who wrote the table or sends the message.  Only from ctr and message.  The table
 * keeps it; put it in dtr or before (from dtr, message, or a thread of the target's own).  A FLUSH goes to devices
 * taken later only if the target sees to that (not with DM_TARGET_FLUSH_DEVICES).
 */
int dm_get_device(struct dm_target *ti, const char *name, enum dm_mode mode, struct dm_dev **dev, GError **err);
void dm_put_device(struct dm_target *ti, struct dm_dev *dev);
/*
 * The device an argument of a message means, of those that the table has already: by the name that the table shows,
 * or by any other as for dm_get_device().  No reference; it stays while the target does not put it.
 */
int dm_find_device(struct dm_target *ti, const char *name, struct dm_dev **dev, GError **err);
/*
 * The content of a small regular file, named and opened in the same way; not one of this mount.  -ENOENT, -EACCES,
 * -EINVAL, -EFBIG: more than max bytes.  Only from ctr.
 */
int dm_read_file(struct dm_target *ti, const char *path, size_t max, GBytes **out, GError **err);
enum dm_mode dm_table_mode(struct dm_table *table); /* DM_MODE_READ for a read-only device */
static inline enum dm_mode dm_target_mode(struct dm_target *ti)
{
	return dm_table_mode(ti->table);
}

/* The device the target's table was loaded for; the dmfs device behind a dm_dev, or NULL.  Stable, for use as keys. */
struct dm_mapped *dm_target_mapped(struct dm_target *ti);
struct dm_mapped *dm_dev_mapped(struct dm_dev *dev);
/* Its name at the moment, into out. */
void dm_mapped_name(struct dm_mapped *md, GString *out);
/* Its capacity now: the live table's length, or what its target says (dm_target_set_capacity()). */
uint64_t dm_mapped_sectors(struct dm_mapped *md);
/*
 * How much of its device there is, for a target alone in its table (DM_TARGET_SINGLETON) whose data become more or
 * less by themselves, as a reshape's: at most the target's length, which it is at first.  From ctr on, any thread.
 * Bios beyond it fail from now on; those that have been mapped are not waited for.  The front end learns of it
 * soon: the image's size, an event.
 */
void dm_target_set_capacity(struct dm_target *ti, uint64_t sectors);
/* Whether the device is suspended, or being suspended (with noflush): bios for it wait. */
bool dm_mapped_suspending(struct dm_mapped *md);
bool dm_target_suspending(struct dm_target *ti);
bool dm_target_noflush(struct dm_target *ti);
/*
 * Stops new bios of another dmfs device and waits for those in flight, without its targets' hooks; and the
 * reverse.  They nest.  Not from map or end_io; not for a device whose bios wait for the caller.
 */
void dm_mapped_quiesce(struct dm_mapped *md);
void dm_mapped_unquiesce(struct dm_mapped *md);

/*
 * While another device is frozen whoever wants to suspend or resume it, or to swap its table, waits (interruptibly)
 * until it is thawed as often.  Any thread; neither waits.
 */
void dm_mapped_freeze(struct dm_mapped *md);
void dm_mapped_thaw(struct dm_mapped *md);

/*
 * Around a change of what status() reads with no lock of the target's own, as when one target hands over to another:
 * between the two neither target's device is asked for its status.  b may be NULL or of the same device.  They do not
 * nest, and nothing between them waits.  Locks that status() takes are taken after it.
 */
void dm_status_pause(struct dm_target *a, struct dm_target *b);
void dm_status_go_on(struct dm_target *a, struct dm_target *b);

/*
 * A bio that the target has got from map() and not ended: as if map() had returned DM_MAPIO_REQUEUE now.  In a noflush
 * suspend it comes back through map after the resume, of this table or the next.  If that suspend was given up meanwhile
 * it comes back at once.  Only for what was seen in a noflush suspend: else it would go round for ever.  end_io is not
 * called.  Any thread; the bio is not the target's any more.
 */
void dm_bio_requeue(struct dm_bio *bio);

/*
 * Raises a dm event: counts in `info`, wakes `events`, poll and waiters.
 * action: DM_ACTION, e.g. "PATH_FAILED", or NULL; words: "KEY=value" pairs
 * already escaped, separated by a blank, or NULL.  Any thread, no locks of the table needed.
 */
void dm_target_event(struct dm_target *ti, const char *action, const char *words);
/* Appends a value for such words: blanks, and what could be taken for the end of a line, are \xHH. */
void dm_event_value(GString *out, const char *value);
/* A uevent that is no dm event, as of the kernel's block layer: `events` and poll see it, `info` does not count it. */
void dm_target_uevent(struct dm_target *ti, const char *words);

/*
 * Arguments.  Numbers are unsigned decimal, nothing before or after them, range checked.
 */
bool dm_parse_u64(const char *s, uint64_t *out);
bool dm_parse_uint(const char *s, unsigned *out);
/*
 * The same with an error text naming who, what and the value: "linear: device sector 'x' is not a number of sectors".
 */
int dm_read_u64(const char *s, uint64_t min, uint64_t max, const char *who, const char *what, uint64_t *out,
		GError **err);
int dm_read_uint(const char *s, unsigned min, unsigned max, const char *who, const char *what, unsigned *out,
		 GError **err);

/* A cursor over argv, for optional arguments and groups of them: "<#args> <arg>*". */
struct dm_args {
	int argc;
	char **argv;
};
/* The next argument, or NULL. */
const char *dm_shift_arg(struct dm_args *as);
/*
 * Reads a group's count (min to max) into *count and checks that as many arguments follow.  With no arguments left the
 * count is 0 if optional.
 */
int dm_read_arg_group(struct dm_args *as, unsigned min, unsigned max, bool optional, const char *who,
		      const char *what, unsigned *count, GError **err);

#endif
