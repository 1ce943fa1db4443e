/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs of a customer: power losses, and faults.
 *
 * A workload leaves two traces: the log, which log-writes has put in its own
 * order, and the disk's own record, where writes stand as they were sent.  The
 * first gives prefixes; the second also what else a disk may have kept.
 */
#include <stdio.h>

#include <dmfs/work.h>

#include "internal.h"

#define LOG_SECTORS (1u << 22) /* 2 GiB of address space */
#define MAX_FAILURES 3u
#define RECOVERY_POINTS 6u
#define SHOWN 24u

struct run {
	struct lab *lab;
	const struct run_limits *limits;
	struct run_sum *sum;
	GRand *rand;
	const char *name; /* of what is replayed */
	unsigned failures, told;
	double point_ns; /* what a point costs, about */
};

static void add_text(struct run_sum *sum, const char *fmt, ...)
{
	size_t used = strlen(sum->text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(sum->text + used, sizeof sum->text - used, fmt, ap);
	va_end(ap);
}

/* Tells the failures since the last time; true if there are some. */
static bool tell(struct run *run, const char *fmt, ...)
{
	struct lab *lab = run->lab;
	g_autofree char *where = NULL;
	va_list ap;

	if (run->told == lab->failures->len)
		return false;
	va_start(ap, fmt);
	where = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	add_text(run->sum, "%s, seed %u, %s:\n", lab->customer->name, lab->seed, where);
	for (; run->told < lab->failures->len; run->told++)
		add_text(run->sum, "    %s\n", (char *)lab->failures->pdata[run->told]);
	run->failures++;
	run->sum->failures++;
	return true;
}

static bool is_over(const struct run *run)
{
	return run->failures >= MAX_FAILURES || (run->limits->deadline && dm_now_ns() >= run->limits->deadline);
}

static int prepare(struct lab *lab, GError **err)
{
	int error = lab_open_slices(lab, err);

	if (!error && lab->customer->prepare)
		error = lab->customer->prepare(lab, err);
	lab_close_devices(lab);
	lab_close_slices(lab);
	return error;
}

/* --- power losses ------------------------------------------------------------------------ */

static void forget_lost(struct lab *lab)
{
	for (unsigned i = 0; i < lab->model.volumes->len; i++)
		g_clear_pointer(&((struct volume *)lab->model.volumes->pdata[i])->lost, g_free);
}

/* What lab_unsure() tells from now on: of this power loss alone, or of what came before it too. */
static void set_unsure(struct lab *lab, struct replay *r, bool more)
{
	if (!lab->customer->lost)
		return;
	if (!more) {
		g_clear_pointer(&lab->unsure, g_free);
		forget_lost(lab);
	}
	if (!lab->unsure)
		lab->unsure = g_malloc0(lab_disk_sectors(lab->customer));
	replay_unsure(r, lab->unsure);
}

static void look_at(struct run *run, struct disk *disk, uint64_t time, bool write)
{
	uint64_t began = dm_now_ns();

	lab_look(run->lab, disk, time, write ? run->rand : NULL);
	run->point_ns += 0.05 * ((double)(dm_now_ns() - began) - run->point_ns);
	run->sum->points++;
	run->limits->progress();
}

/* Power is lost again while the stack comes up. */
static void look_at_recovery(struct run *run, struct replay *r, unsigned pos)
{
	struct disk *disk = r->disk;
	g_autofree uint8_t *image = g_memdup2(disk->data, disk->sectors * DM_SECTOR_SIZE);
	struct replay *again;
	struct trace *trace;

	disk->record = trace_new();
	look_at(run, disk, r->time, false);
	trace = disk->record;
	disk->record = NULL;
	if (trace->ios->len && run->told == run->lab->failures->len) {
		again = replay_new(trace, image, disk->sectors);
		for (unsigned i = 0; i < RECOVERY_POINTS && again->pos < trace->ios->len && !is_over(run); i++) {
			unsigned left = trace->ios->len - again->pos;

			replay_advance(again, again->pos + 1 + (left > 1 ? g_rand_int(run->rand) % left : 0));
			replay_build(again, g_rand_int(run->rand) % KEEPS, run->rand);
			set_unsure(run->lab, again, true);
			look_at(run, again->disk, r->time, g_rand_int(run->rand) % 4 == 0);
			tell(run, "%s, point %u, and again %u of %u into the recovery", run->name, pos, again->pos,
			     trace->ios->len);
		}
		replay_free(again);
	}
	trace_free(trace);
	tell(run, "%s, point %u", run->name, pos);
}

/* With -v: what the disk was told before a point that failed, newest last. */
static void show_tail(const struct run *run, const struct replay *r)
{
	const struct lab_customer *c = run->lab->customer;

	for (unsigned i = r->pos > SHOWN ? r->pos - SHOWN : 0; run->limits->verbose && i < r->pos; i++) {
		const struct trace_io *io = trace_at(r->trace, i);
		unsigned slice = 0;

		if (io->kind == TRACE_MARK) {
			fprintf(stderr, "    %6u mark %" PRIu64 "\n", i, io->mark);
			continue;
		}
		if (io->kind == TRACE_FLUSH) {
			fprintf(stderr, "    %6u flush (sent before %u)\n", i, io->start);
			continue;
		}
		while (slice + 1 < LAB_MAX_SLICES && c->slices[slice + 1].name && io->sector >= lab_slice_place(c, slice + 1))
			slice++;
		fprintf(stderr, "    %6u %s%s %s sector %" PRIu64 " +%" PRIu64 "%s\n", i, io->data ? "write" : "zero",
			io->fua ? " FUA" : "", c->slices[slice].name, io->sector - lab_slice_place(c, slice), io->sectors,
			io->done > r->pos ? " (under way)" : "");
	}
}

static void look_at_point(struct run *run, struct replay *r, bool samples)
{
	static const char *const names[] = {"all writes kept", "some writes kept", "one write kept", "one write lost",
					    "all writes lost"};
	unsigned optional = replay_optional(r);

	replay_build(r, KEEP_ALL, run->rand);
	set_unsure(run->lab, r, false);
	if (g_rand_int(run->rand) % 16 == 0)
		look_at_recovery(run, r, r->pos);
	else
		look_at(run, r->disk, r->time, g_rand_int(run->rand) % 8 == 0);
	if (tell(run, "%s, point %u of %u, %s", run->name, r->pos, r->trace->ios->len, names[KEEP_ALL]))
		show_tail(run, r);
	if (!samples || !optional)
		return;
	for (unsigned i = 0; i < (optional > 1 ? 2 : 1); i++) {
		enum keep keep = optional > 1 ? 1 + g_rand_int(run->rand) % (KEEPS - 1) : KEEP_SOME;

		replay_build(r, keep, run->rand);
		set_unsure(run->lab, r, false);
		look_at(run, r->disk, r->time, g_rand_int(run->rand) % 16 == 0);
		if (tell(run, "%s, point %u of %u, %s of %u", run->name, r->pos, r->trace->ios->len, names[keep],
			 optional))
			show_tail(run, r);
	}
}

/* Whether what was just replayed can make a difference. */
static bool is_point(const struct trace *t, unsigned pos)
{
	return !pos || pos == t->ios->len || trace_at(t, pos - 1)->kind != TRACE_MARK ||
	       trace_at(t, pos)->kind != TRACE_MARK;
}

static void replay_trace(struct run *run, const struct trace *t, const uint8_t *image, bool samples, double share)
{
	struct replay *r = replay_new(t, image, lab_disk_sectors(run->lab->customer));
	uint64_t begin = dm_now_ns();

	for (unsigned pos = 0; pos <= t->ios->len && !is_over(run); pos++) {
		unsigned points = (samples ? 2 : 1) * (t->ios->len - pos);
		double used = (double)(dm_now_ns() - begin);
		double left = run->limits->deadline ? share - used : 0;

		replay_advance(r, pos);
		if (!is_point(t, pos))
			continue;
		/* With too little time, some are passed over, evenly. */
		if (run->limits->deadline && pos > 8 && pos < t->ios->len &&
		    g_rand_double(run->rand) * points * run->point_ns > left)
			continue;
		look_at_point(run, r, samples);
	}
	replay_free(r);
}

/* --- the log ------------------------------------------------------------------------------------ */

static bool same_io(const struct trace_io *a, const struct trace_io *b)
{
	return a->kind == b->kind && a->fua == b->fua && a->sector == b->sector && a->sectors == b->sectors &&
	       !a->data == !b->data && (!a->data || !memcmp(a->data, b->data, a->sectors * DM_SECTOR_SIZE));
}

/* For each write of the log, as the how manieth the disk did it; UINT_MAX: it never did. */
static unsigned *match(const struct trace *log, const struct trace *record)
{
	unsigned *at = g_new(unsigned, log->ios->len + 1), first = 0;
	g_autofree bool *taken = g_new0(bool, record->ios->len + 1);

	for (unsigned i = 0; i < log->ios->len; i++) {
		at[i] = UINT_MAX;
		if (trace_at(log, i)->kind != TRACE_WRITE)
			continue;
		while (first < record->ios->len && (taken[first] || trace_at(record, first)->kind != TRACE_WRITE))
			first++;
		for (unsigned k = first; k < record->ios->len; k++)
			if (!taken[k] && same_io(trace_at(log, i), trace_at(record, k))) {
				taken[k] = true;
				at[i] = trace_at(record, k)->done == UINT_MAX ? UINT_MAX : trace_at(record, k)->order;
				break;
			}
	}
	return at;
}

static bool overlap(const struct trace_io *a, const struct trace_io *b)
{
	return a->sector < b->sector + b->sectors && b->sector < a->sector + a->sectors;
}

/* Whether a write stands in the log after a FUA write that was answered after it. */
static bool is_late(const struct trace *log, const unsigned *at, unsigned i, unsigned fua)
{
	const struct trace_io *io = trace_at(log, i);

	return io->kind == TRACE_WRITE && !io->fua && at[i] < at[fua];
}

static void move(struct trace *log, unsigned *at, unsigned from, unsigned to)
{
	const struct trace_io io = *trace_at(log, from);
	unsigned place = at[from];

	for (; from > to; from--) {
		*trace_at(log, from) = *trace_at(log, from - 1);
		at[from] = at[from - 1];
	}
	*trace_at(log, to) = io;
	at[to] = place;
}

/* Puts a write of the log before another, taking along the writes in between that it was written over. */
static unsigned put_before(struct trace *log, unsigned *at, unsigned from, unsigned to)
{
	for (unsigned i = to; i < from; i++)
		if (trace_at(log, i)->kind == TRACE_WRITE && at[i] < at[from] &&
		    overlap(trace_at(log, i), trace_at(log, from)))
			to = put_before(log, at, i, to);
	move(log, at, from, to);
	return to + 1;
}

/*
 * Writes of the same sectors that were under way together: the log has them as their
 * answers came through log-writes, not always as the disk did them.
 */
static void order_as_on_disk(struct trace *log, unsigned *at)
{
	for (unsigned k = 0; k < log->ios->len; k++)
		for (unsigned i = 0; trace_at(log, k)->kind == TRACE_WRITE && i < k; i++)
			if (trace_at(log, i)->kind == TRACE_WRITE && at[i] > at[k] && at[i] != UINT_MAX &&
			    overlap(trace_at(log, i), trace_at(log, k))) {
				put_before(log, at, k, i);
				break;
			}
}

/*
 * A FUA write is logged at once and so stands before writes of the same
 * sectors that were answered before it and waited for a flush (not always the next
 * in the log: that may have been sent before they were answered).  The log alone cannot
 * tell; where it matters, all that was answered before the FUA write is put before it again;
 * from behind that flush, only what it was written over.
 */
static void reorder(struct trace *log, unsigned *at)
{
	for (unsigned fua = 0; fua < log->ios->len; fua++) {
		bool matters = false;
		unsigned to = fua, end = fua;

		if (trace_at(log, fua)->kind != TRACE_WRITE || !trace_at(log, fua)->fua || at[fua] == UINT_MAX)
			continue;
		while (end < log->ios->len && trace_at(log, end)->kind != TRACE_FLUSH)
			end++;
		for (unsigned i = fua + 1; i < log->ios->len && !matters; i++)
			matters = is_late(log, at, i, fua) && overlap(trace_at(log, i), trace_at(log, fua));
		for (unsigned i = fua + 1; matters && i < log->ios->len; i++)
			if (is_late(log, at, i, to) && (i < end || overlap(trace_at(log, i), trace_at(log, to))))
				move(log, at, i, to++);
		fua = to;
	}
	order_as_on_disk(log, at);
	for (unsigned i = 0; i < log->ios->len; i++) {
		trace_at(log, i)->done = i + 1;
		trace_at(log, i)->start = i;
	}
}

/* The log must hold what the disk was told, no more and no less. */
static void check_log(struct lab *lab, const struct trace *log, const struct trace *record, const unsigned *at,
		      const uint8_t *image, const struct disk *disk)
{
	unsigned writes = 0, logged = 0;
	struct replay *r;

	for (unsigned i = 0; i < record->ios->len; i++)
		writes += trace_at(record, i)->kind == TRACE_WRITE;
	for (unsigned i = 0; i < log->ios->len; i++)
		if (trace_at(log, i)->kind == TRACE_WRITE) {
			logged++;
			if (at[i] == UINT_MAX)
				lab_fail(lab, "entry %u of the log was never written to the disk", i);
		}
	if (logged != writes)
		lab_fail(lab, "the log has %u writes, the disk got %u", logged, writes);
	r = replay_new(log, image, disk->sectors);
	replay_advance(r, log->ios->len);
	replay_build(r, KEEP_ALL, disk->rand);
	for (uint64_t i = 0; i < disk->sectors; i++)
		if (memcmp(r->disk->data + i * DM_SECTOR_SIZE, disk->data + i * DM_SECTOR_SIZE, DM_SECTOR_SIZE)) {
			lab_fail(lab, "the whole log replayed is not the disk, from sector %" PRIu64 " on", i);
			break;
		}
	replay_free(r);
}

/* --- a run ---------------------------------------------------------------------------------------- */

/* Runs the workload above log-writes; the disk's record is in lab->disk. */
static void record_workload(struct lab *lab, bool slow)
{
	g_autoptr(GError) err = NULL;

	lab->log_disk = disk_new(LOG_SECTORS, 0);
	lab->disk->record = trace_new();
	if (slow)
		disk_slow(lab->disk);
	if (lab_open_slices(lab, &err) || lab_open_stack(lab, &err)) {
		lab_fail(lab, "does not open at first: %s", err ? err->message : "(no text)");
	} else {
		lab->customer->workload(lab);
		lab_verify(lab, true);
	}
	lab_close_devices(lab);
	lab_close_slices(lab);
}

static void replay_both(struct run *run, struct trace *log, const struct trace *record, const uint8_t *image)
{
	double left = run->limits->deadline ? (double)run->limits->deadline - (double)dm_now_ns() : 0;

	run->name = "log";
	replay_trace(run, log, image, false, left / 3);
	left = run->limits->deadline ? (double)run->limits->deadline - (double)dm_now_ns() : 0;
	run->name = "write cache";
	replay_trace(run, record, image, true, left);
}

void run_crash(const struct lab_customer *customer, uint32_t seed, const struct run_limits *limits,
	       struct run_sum *sum)
{
	struct lab *lab = lab_new(customer, seed);
	struct run run = {lab, limits, sum, g_rand_new_with_seed(seed), "", 0, 0, 2e6};
	uint64_t sectors = lab_disk_sectors(customer);
	struct disk *disk = lab->disk = disk_new(sectors, seed);
	g_autofree uint8_t *image = NULL;
	g_autofree unsigned *at = NULL;
	g_autoptr(GError) err = NULL;
	struct trace *log = NULL;

	sum->runs++;
	if (prepare(lab, &err))
		lab_fail(lab, "prepare: %s", err ? err->message : "(no text)");
	if (tell(&run, "preparing"))
		goto out;
	image = g_memdup2(disk->data, sectors * DM_SECTOR_SIZE);
	record_workload(lab, seed % 2);
	log = trace_parse(lab->log_disk->data, LOG_SECTORS, &err);
	if (log) {
		at = match(log, disk->record);
		reorder(log, at);
		check_log(lab, log, disk->record, at, image, disk);
	} else {
		lab_fail(lab, "the log: %s", err->message);
	}
	disk_free(lab->log_disk);
	lab->log_disk = NULL;
	lab->at_crash_point = true;
	if (limits->verbose)
		fprintf(stderr, "%s, seed %u: %" PRIu64 " requests, %u I/Os and marks of the disk\n", customer->name,
			seed, lab->requests, disk->record->ios->len);
	if (!tell(&run, "while running"))
		replay_both(&run, log, disk->record, image);
	sum->sectors += lab->sectors_checked;
out:
	trace_free(log);
	disk_free(disk);
	lab->disk = NULL;
	g_rand_free(run.rand);
	lab_free(lab);
}

/* --- faults ------------------------------------------------------------------------------------------ */

static const struct fault {
	const char *name;
	int error;
	uint64_t count;
	bool writes_only;
	unsigned parts; /* slices that fail; 0: all */
} faults[] = {
    {"one EIO", -EIO, 1, false, 0},
    {"EIO from then on", -EIO, NEVER, false, 0},
    {"EIO of one slice from then on", -EIO, NEVER, false, 1},
    {"one ENOSPC", -ENOSPC, 1, true, 0},
    {"ENOSPC from then on", -ENOSPC, NEVER, true, 0},
    /* these for who asks for them */
    {"one EIO of each of two slices", -EIO, 1, false, 2},
    {"EIO of two slices from then on", -EIO, NEVER, false, 2},
};

static unsigned faults_for(const struct lab_customer *c)
{
	unsigned n = 0;

	while (n < G_N_ELEMENTS(faults) && (c->bears > 1 || faults[n].parts < 2))
		n++;
	return n;
}

/* The slices as parts of the disk. */
static const uint64_t *parts_of(const struct lab_customer *c)
{
	static uint64_t parts[LAB_MAX_SLICES + 2];
	unsigned n = 0;

	while (n < LAB_MAX_SLICES && c->slices[n].name) {
		parts[n] = lab_slice_place(c, n);
		n++;
	}
	parts[n] = lab_disk_sectors(c);
	parts[n + 1] = 0;
	return parts;
}

static void use_faulty(struct lab *lab)
{
	g_autoptr(GError) err = NULL;
	g_autoptr(GError) open_err = NULL;

	lab->faulty = true;
	if (lab_open_slices(lab, &err))
		lab_fail(lab, "slices: %s", err->message);
	else if (!lab_open_stack(lab, &open_err))
		(lab->customer->fault_workload ? lab->customer->fault_workload : lab->customer->workload)(lab);
	else if (!lab->disk->failed)
		lab_fail(lab, "does not open at first: %s", open_err ? open_err->message : "(no text)");
	lab_close_devices(lab);
	lab_close_slices(lab);
	lab->faulty = false;
}

/* After the fault: the disk as it is, and as a power loss at the end would leave it. */
static void look_after(struct run *run, struct disk *disk, const uint8_t *image, const struct fault *f, uint64_t n)
{
	struct trace *trace = disk->record;
	struct replay *r;

	run->lab->at_crash_point = run->lab->after_fault = true;
	disk->record = NULL;
	disk->fail_at = 0;
	r = replay_new(trace, image, disk->sectors);
	replay_advance(r, trace->ios->len);
	replay_build(r, 1 + g_rand_int(run->rand) % (KEEPS - 1), run->rand);
	run->lab->unsure = g_steal_pointer(&disk->unsure);
	lab_look(run->lab, disk, NEVER, g_rand_int(run->rand) % 8 == 0 ? run->rand : NULL);
	tell(run, "%s at I/O %" PRIu64, f->name, n);
	forget_lost(run->lab);
	set_unsure(run->lab, r, true);
	lab_look(run->lab, r->disk, NEVER, NULL);
	if (tell(run, "%s at I/O %" PRIu64 ", and power loss", f->name, n))
		show_tail(run, r);
	run->sum->fault_points += 2;
	run->limits->progress();
	replay_free(r);
	trace_free(trace);
}

/* With I/O n failing; n 0: none.  The number of I/Os; 0 if it cannot go on. */
static uint64_t run_fault(struct run *run, const struct lab_customer *customer, uint32_t seed, const struct fault *f,
			  uint64_t n)
{
	struct lab *lab = run->lab = lab_new(customer, seed);
	struct disk *disk = lab->disk = disk_new(lab_disk_sectors(customer), seed);
	g_autofree uint8_t *image = NULL;
	g_autoptr(GError) err = NULL;
	uint64_t ios = 0;

	run->told = 0;
	if (prepare(lab, &err))
		lab_fail(lab, "prepare: %s", err ? err->message : "(no text)");
	if (!tell(run, "preparing")) {
		image = g_memdup2(disk->data, disk->sectors * DM_SECTOR_SIZE);
		disk->record = trace_new();
		disk->ios = 0;
		disk->fail_at = n;
		disk->fail_count = f->count;
		disk->fail_error = f->error;
		disk->fail_writes_only = f->writes_only;
		disk->fail_parts = f->parts;
		lab->bears = f->parts && f->parts <= customer->bears;
		disk->nr_bad = 0;
		disk->parts = parts_of(customer);
		use_faulty(lab);
		ios = disk->ios;
		tell(run, "%s at I/O %" PRIu64 ", while running", f->name, n);
		look_after(run, disk, image, f, n);
	}
	run->sum->sectors += lab->sectors_checked;
	disk_free(disk);
	lab->disk = NULL;
	lab_free(lab);
	return ios;
}

void run_faults(const struct lab_customer *customer, uint32_t seed, const struct run_limits *limits,
		struct run_sum *sum)
{
	struct run run = {NULL, limits, sum, g_rand_new_with_seed(seed), "", 0, 0, 0};
	unsigned kinds = faults_for(customer);
	uint64_t begin = dm_now_ns();

	sum->runs++;
	for (unsigned i = 0; i < kinds && !is_over(&run); i++) {
		uint64_t ios = run_fault(&run, customer, seed, &faults[i], 0);
		double share = limits->deadline ? (double)(limits->deadline - begin) * (i + 1) / kinds : 0;
		uint64_t done = 0, began = dm_now_ns();

		for (uint64_t n = 1; n <= ios && !is_over(&run); n++) {
			double left = share - (double)(dm_now_ns() - begin);
			double each = done ? (double)(dm_now_ns() - began) / (double)done : 0;

			if (limits->io && limits->io != n)
				continue;
			if (limits->deadline && g_rand_double(run.rand) * (double)(ios - n + 1) * each > MAX(left, 0))
				continue;
			run_fault(&run, customer, seed, &faults[i], n);
			done++;
		}
	}
	g_rand_free(run.rand);
}
