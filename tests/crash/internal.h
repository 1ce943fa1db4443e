/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The laboratory's own side.
 *
 *   disk.c    disks in memory: they record, fail, and can be put back
 *   trace.c   what was written in which order; disks as a power loss leaves them
 *   model.c   what each sector may hold
 *   stack.c   devices of a stack, slices
 *   io.c      the workload's requests
 *   point.c   one crash point: open, verify, new writes
 *   run.c     runs: power losses, faults
 *   main.c    the command line, processes, the sum
 *   prove.c   the laboratory's own tests, with shadow.c, a target with mistakes
 *   vfs.c     SQLite on devices, for target_state.c
 *
 * Time is counted in marks: each request of the workload sets one when it
 * begins and one when it is answered, so does each step.  A mark goes into the log
 * (as its number) and into the disk's record; the highest mark before a power loss is the time it happened.
 */
#ifndef DMFS_TESTS_CRASH_INTERNAL_H
#define DMFS_TESTS_CRASH_INTERNAL_H

#include <pthread.h>

#include "core/devices.h"
#include "lab.h"

#define NEVER UINT64_MAX

/* --- trace ------------------------------------------------------------------------------ */

enum trace_kind { TRACE_WRITE, TRACE_FLUSH, TRACE_MARK };

struct trace_io {
	enum trace_kind kind;
	bool fua;
	uint64_t sector, sectors;
	uint8_t *data; /* NULL: zeroes */
	uint64_t mark;
	/*
	 * A write stands where it was sent, a flush where it was answered.  In entries of the trace: a write was
	 * answered before entry `done` (UINT_MAX: never), a flush was sent before entry `start`.
	 */
	unsigned done, start;
	unsigned order; /* of the disk's writes: which it did first */
};

struct trace {
	GArray *ios; /* struct trace_io */
	bool log;    /* of log-writes: a write stands before the flush that came after it, not where it was sent */
};

struct trace *trace_new(void);
void trace_free(struct trace *t);
static inline struct trace_io *trace_at(const struct trace *t, unsigned i)
{
	return &g_array_index(t->ios, struct trace_io, i);
}
unsigned trace_add(struct trace *t, const struct trace_io *io);
/* Reads a log of log-writes.  NULL and an error if it is none, or broken. */
struct trace *trace_parse(const uint8_t *log, uint64_t sectors, GError **err);

struct disk;

/* The disk as it looks after a prefix of a trace. */
struct replay {
	const struct trace *trace;
	struct disk *disk;  /* as built last */
	uint8_t *durable;   /* what no power loss takes away */
	unsigned pos;       /* entries before it are in durable or tail */
	GArray *tail;       /* unsigned: writes since then, by entry */
	uint64_t time;      /* the highest mark so far */
};

enum keep {
	KEEP_ALL,  /* the prefix */
	KEEP_SOME, /* each write is kept, lost or torn, by chance */
	KEEP_ONE,  /* all but one are lost */
	LOSE_ONE,  /* one is lost or torn */
	KEEP_NONE,
	KEEPS
};

struct replay *replay_new(const struct trace *t, const uint8_t *image, uint64_t sectors);
void replay_free(struct replay *r);
void replay_advance(struct replay *r, unsigned pos);
/* How many writes a disk may have kept or not. */
unsigned replay_optional(struct replay *r);
void replay_build(struct replay *r, enum keep keep, GRand *rand);
/* Sets a byte for each sector that a disk may have kept or not, or that was written since the last mark. */
void replay_unsure(struct replay *r, uint8_t *sectors);

/* --- disk ------------------------------------------------------------------------------- */

struct disk {
	unsigned id; /* what its table says */
	uint64_t sectors;
	uint8_t *data;
	uint8_t *dirty; /* per page: differs from what it was put back to */
	pthread_mutex_t lock;
	struct trace *record; /* NULL: none is kept */
	bool slow;            /* answers later, in any order */
	/* The I/O with this number, and so many after it, fail.  0: none */
	uint64_t ios, fail_at, fail_count, failed;
	int fail_error;
	bool fail_writes_only;
	unsigned fail_parts;   /* only those of so many parts, the first that are met; 0: of all */
	const uint64_t *parts; /* begins of parts, ascending, then the end, then 0 */
	int bad_parts[2];
	unsigned nr_bad;
	uint8_t *unsure; /* a byte for each sector that a write which failed was for; NULL: none has */
	GRand *rand;
	/* Of a slow disk. */
	pthread_t thread;
	pthread_cond_t wake;
	bool stop;
	GPtrArray *waiting;
	unsigned order;
};

#define DISK_PAGE 4096u

/* May be much larger than memory: only what is written takes any. */
struct disk *disk_new(uint64_t sectors, uint32_t seed);
void disk_free(struct disk *d);
void disk_slow(struct disk *d);
void disk_mark(struct disk *d, uint64_t mark);
/* Whether an I/O of it has failed so far. */
bool disk_has_failed(struct disk *d);
void disk_touch(struct disk *d, uint64_t sector, uint64_t sectors);
/* Makes the disk equal to image again, where it is dirty. */
void disk_put_back(struct disk *d, const uint8_t *image);
extern const struct dm_target_type lab_disk_target;

/* --- model ------------------------------------------------------------------------------ */

struct op {
	enum dm_op op; /* DM_WRITE, DM_WRITE_ZEROES, DM_DISCARD */
	unsigned volume;
	uint64_t sector, sectors;
	uint64_t begin, end, durable; /* marks; NEVER */
};

struct volume {
	char *name;
	uint64_t sectors;
	enum lab_initial initial;
	GArray **history; /* per sector: unsigned, ops that wrote it, by begin; NULL: none */
	GArray *undurable; /* unsigned: ops on it that no flush has covered yet */
	struct dm_mapped *md; /* while it is open */
	uint8_t *lost; /* sectors that lost() has excused; a further power loss while it comes up changes nothing about it */
	uint64_t *expect; /* new writes at a crash point: the hash of each sector, 0: anything */
};

struct model {
	pthread_mutex_t lock;
	uint32_t run; /* in each stamp */
	uint64_t now; /* the last mark */
	GPtrArray *volumes;
	GPtrArray *ops;
	GHashTable *steps; /* name -> mark, boxed */
};

void model_init(struct model *m, uint32_t run);
void model_clear(struct model *m);
struct volume *model_volume(struct model *m, const char *name);
struct volume *model_add_volume(struct model *m, const char *name, uint64_t sectors, enum lab_initial initial);
void model_copy_volume(struct model *m, struct volume *to, const struct volume *from);
/* Adds an op that begins now.  m->lock held. */
unsigned model_begin(struct model *m, struct volume *v, enum dm_op op, uint64_t sector, uint64_t sectors,
		     uint64_t mark);
/* Fills a sector so that it tells where it belongs. */
void stamp(uint8_t *data, uint32_t run, unsigned volume, uint64_t sector, unsigned op);
/*
 * Whether a sector may look so: at a power loss at `time` (settled false), or
 * when everything answered before `time` must be seen and `until` is the last begun (settled).
 * NULL, or what is wrong, to be freed.
 */
char *model_check(struct model *m, const struct volume *v, uint64_t sector, const uint8_t *data, bool settled,
		  uint64_t time, uint64_t until);
uint64_t hash_sector(const uint8_t *data);

/* --- a run ------------------------------------------------------------------------------ */

struct lab {
	const struct lab_customer *customer;
	uint32_t seed;
	struct model model;
	struct disk *disk, *log_disk;
	struct dm_mapped *log; /* the log-writes device, while recording */
	GPtrArray *slices;     /* struct dm_mapped *, lowest first: disks, log-writes, slices */
	GPtrArray *devices;    /* the customer's */
	uint64_t time;         /* of the power loss; NEVER: none */
	uint8_t *unsure;       /* a byte for each sector of the disk: lab_unsure(); NULL: none */
	bool bears;	       /* the fault is one that no request may notice */
	bool first_open, faulty, at_crash_point, after_fault;
	void *private;
	void (*clear_private)(void *);
	GPtrArray *failures; /* texts */
	pthread_mutex_t fail_lock;
	/* Counters. */
	uint64_t points, sectors_checked, requests;
};

struct lab *lab_new(const struct lab_customer *customer, uint32_t seed);
void lab_free(struct lab *lab);
/* Where a slice begins on the disk. */
uint64_t lab_slice_place(const struct lab_customer *customer, unsigned slice);
uint64_t lab_disk_sectors(const struct lab_customer *customer);
/* Devices below the customer's: the disk, log-writes if there is a log disk, the slices. */
int lab_open_slices(struct lab *lab, GError **err);
/* All devices; what cannot be removed is a failure. */
void lab_close_devices(struct lab *lab);
void lab_close_slices(struct lab *lab);
int lab_open_stack(struct lab *lab, GError **err);
struct volume *lab_open_volume(struct lab *lab, const char *name);
/* A request widened to whole logical blocks of the volume, which is open. */
void lab_whole_blocks(const struct volume *v, uint64_t *sector, uint64_t *len);
int lab_submit(struct volume *v, enum dm_op op, unsigned flags, uint64_t sector, uint64_t sectors, void *buf);
uint64_t lab_mark(struct lab *lab);      /* model.lock held */
bool lab_verify(struct lab *lab, bool settled); /* all open volumes */
/*
 * Opens the stack on a disk and looks at it all; rand: new writes too.  The devices are gone afterwards.  False: it
 * failed.
 */
bool lab_look(struct lab *lab, struct disk *disk, uint64_t time, GRand *rand);
void lab_seed_thread(uint32_t seed);

extern struct lab_customer *lab_customers;
/* Target types for the laboratory's own tests; NULL at the end. */
extern const struct dm_target_type *const lab_extra_types[];

/* shadow.c */
extern const struct dm_target_type lab_shadow_target;
int shadow_format(struct lab *lab, const char *slice, const char *mistake, GError **err);

/* A customer with a mistake, and what must be said of it; NULL: nothing. */
struct proof {
	const char *customer;
	const char *says;
	bool faults; /* found by faults, not by power losses */
};
extern const struct proof lab_proofs[]; /* customer NULL at the end */

/* What a run may do: until `deadline` (dm_now_ns()), 0: all of it. */
struct run_limits {
	uint64_t deadline;
	uint64_t io; /* faults: of this I/O alone; 0: of all */
	bool verbose;
	void (*progress)(void);
};

struct run_sum {
	uint64_t points, fault_points, sectors, runs, failures;
	char text[4000]; /* of the first failures */
};

void run_crash(const struct lab_customer *customer, uint32_t seed, const struct run_limits *limits,
	       struct run_sum *sum);
void run_faults(const struct lab_customer *customer, uint32_t seed, const struct run_limits *limits,
		struct run_sum *sum);

#endif
