/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-replay-log --log LOG [--replay FILE] [OPTIONS]
 *
 * Replays a log of log-writes (log-writes.rst; its format is in targets/log_writes_format.h) onto a file or device, in
 * whole or in part, and looks into logs.  The options and what is printed are those of the well-known replay-log.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glib.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"

#define CHUNK (1u << 20)

enum check { CHECK_NEVER, CHECK_COUNT, CHECK_FLUSH, CHECK_FUA };

static struct {
	const char *log, *replay, *start_mark, *end_mark, *fsck;
	uint64_t start_entry, limit, check_count, start_sector, end_sector;
	enum check check;
	unsigned verbose;
	bool find, num_entries, next_flush, next_fua, no_discard, has_limit, has_start_entry;
} opts = {.end_sector = UINT64_MAX};

static char buffer[CHUNK];

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("dmfs-replay-log: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

/* --- the entries ------------------------------------------------------------------------ */

/* Goes to the next entry; false at the end. */
static bool next_entry(struct log *log, struct entry *e)
{
	GError *err = NULL;
	int more = log_next(log, e, &err);

	if (more < 0)
		die("%s", err->message);
	return more;
}

static void print_flags(uint64_t flags)
{
	static const char *const names[] = {"FLUSH", "FUA", "DISCARD", "MARK", "METADATA"};
	bool first = true;

	for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
		if (flags >> i & 1) {
			printf("%s%s", first ? "" : "|", names[i]);
			first = false;
		}
	if (first)
		fputs("NONE", stdout);
}

static void print_entry(const struct log *log, const struct entry *e, const char *what)
{
	printf("%s %" PRIu64 "@%" PRIu64 ": sector %" PRIu64 ", size %" PRIu64 ", flags 0x%" PRIx64 "(", what,
	       e->number, e->data / log->block, e->sector, e->sectors * log->block, e->flags);
	print_flags(e->flags);
	fputs(")", stdout);
	if (e->flags & LOG_WRITES_MARK)
		printf(" '%s'", e->mark);
	putchar('\n');
}

static bool is_mark(const struct entry *e, const char *text)
{
	return (e->flags & LOG_WRITES_MARK) && !strcmp(e->mark, text);
}

/* Whether this entry is the last one that is wanted. */
static bool is_last(const struct entry *e)
{
	return (opts.next_flush && (e->flags & LOG_WRITES_FLUSH)) || (opts.next_fua && (e->flags & LOG_WRITES_FUA)) ||
	       (opts.end_mark && is_mark(e, opts.end_mark));
}

/* Skips what lies before --start-mark or --start-entry. */
static void go_to_start(struct log *log, struct entry *e)
{
	if (opts.start_mark) {
		while (next_entry(log, e)) {
			if (opts.verbose > 1)
				print_entry(log, e, "seeking");
			if (is_mark(e, opts.start_mark))
				return;
		}
		die("%s: there is no mark '%s' to start from", opts.log, opts.start_mark);
	}
	if (opts.start_entry && opts.start_entry >= log->entries)
		die("%s: there is no entry %" PRIu64 " to start from: it has %" PRIu64, opts.log, opts.start_entry,
		    log->entries);
	while (log->next < opts.start_entry && next_entry(log, e))
		if (opts.verbose > 1)
			print_entry(log, e, "seeking");
}

static int find(struct log *log, struct entry *e)
{
	for (uint64_t n = 1; next_entry(log, e); n++) {
		if (opts.verbose > 1)
			print_entry(log, e, "seeking");
		if ((opts.has_limit && n == opts.limit) || is_last(e)) {
			printf("%" PRIu64 "@%" PRIu64 "\n", e->number, log->pos / log->block);
			return 0;
		}
	}
	fputs("dmfs-replay-log: there is no such entry\n", stderr);
	return 1;
}

/* --- replaying ------------------------------------------------------------------------ */

static void write_target(int fd, const void *buf, size_t len, uint64_t pos)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(pos + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("%s: writing at byte %" PRIu64 ": %s", opts.replay, pos + done,
			    strerror(n ? errno : ENOSPC));
		done += (size_t)n;
	}
}

static void replay_data(const struct log *log, int fd, const struct entry *e)
{
	GError *err = NULL;

	for (uint64_t done = 0; done < e->len;) {
		size_t n = MIN(e->len - done, CHUNK);

		if (log_read(log, buffer, n, e->data + done, &err))
			die("%s", err->message);
		write_target(fd, buffer, n, e->sector * log->block + done);
		done += n;
	}
}

/* A discarded range reads as zeroes: a hole where there can be one.  Beyond the end there is nothing to discard. */
static void replay_discard(const struct log *log, int fd, const struct entry *e)
{
	uint64_t pos = e->sector * log->block, len = e->sectors * log->block;
	off_t end = lseek(fd, 0, SEEK_END);

	if (end < 0)
		die("%s: is not seekable: %s", opts.replay, strerror(errno));
	if (opts.no_discard || pos >= (uint64_t)end)
		return;
	len = MIN(len, (uint64_t)end - pos);
	if (!len || !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)pos, (off_t)len))
		return;
	memset(buffer, 0, sizeof buffer);
	for (uint64_t done = 0; done < len;) {
		size_t n = MIN(len - done, CHUNK);

		write_target(fd, buffer, n, pos + done);
		done += n;
	}
}

static void replay_entry(const struct log *log, int fd, const struct entry *e)
{
	bool skip = e->sectors && (e->sector + e->sectors <= opts.start_sector || e->sector > opts.end_sector);

	if (opts.verbose > 1 || (opts.verbose && !skip))
		print_entry(log, e, skip ? "skipping" : "replaying");
	if (skip)
		return;
	if (e->flags & LOG_WRITES_DISCARD)
		replay_discard(log, fd, e);
	else
		replay_data(log, fd, e);
}

static void sync_target(int fd)
{
	if (fsync(fd))
		die("%s: fsync: %s", opts.replay, strerror(errno));
}

/* Runs the check command if it is due; false: it failed. */
static bool check(int fd, const struct entry *e, uint64_t replayed)
{
	int status;

	switch (opts.check) {
	case CHECK_COUNT:
		if (replayed % opts.check_count)
			return true;
		break;
	case CHECK_FLUSH:
		if (!(e->flags & LOG_WRITES_FLUSH))
			return true;
		break;
	case CHECK_FUA:
		if (!(e->flags & LOG_WRITES_FUA))
			return true;
		break;
	case CHECK_NEVER:
		return true;
	}
	sync_target(fd);
	fflush(stdout);
	status = system(opts.fsck);
	if (!status)
		return true;
	fprintf(stderr, "dmfs-replay-log: '%s' failed (%s %d) after entry %" PRIu64 "\n", opts.fsck,
		WIFSIGNALED(status) ? "signal" : "exit status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
		e->number);
	return false;
}

/* A bar on a terminal, redrawn when a percent has passed. */
static void show_progress(uint64_t done, uint64_t all, bool end)
{
	static int on = -1, last = -1;
	int percent = all ? (int)(done * 100.0 / all) : 100;

	if (on < 0)
		on = isatty(STDERR_FILENO) && !opts.verbose;
	if (!on || (percent == last && !end))
		return;
	last = percent;
	fprintf(stderr, "\r[%-50.*s] %3d%% %" PRIu64 " of %" PRIu64 " entries%s", percent / 2,
		"##################################################", percent, done, all, end ? "\n" : "");
	fflush(stderr);
}

static int replay(struct log *log, struct entry *e)
{
	int fd = open(opts.replay, O_WRONLY | O_CLOEXEC), status = 0;
	uint64_t first = log->next, all = log->entries - first, n = 0;

	if (fd < 0)
		die("%s: %s", opts.replay, strerror(errno));
	if (opts.has_limit)
		all = MIN(all, opts.limit);
	while (!(opts.has_limit && n == opts.limit) && next_entry(log, e)) {
		replay_entry(log, fd, e);
		show_progress(++n, all, false);
		if (!check(fd, e, n)) {
			status = 1;
			break;
		}
		if (is_last(e))
			break;
	}
	show_progress(n, all, true);
	sync_target(fd);
	close(fd);
	if (!status && opts.end_mark && !(n && is_mark(e, opts.end_mark)) && !opts.has_limit && !opts.next_flush &&
	    !opts.next_fua)
		die("%s: there is no mark '%s' to end at; all was replayed", opts.log, opts.end_mark);
	return status;
}

/* --- the command line -------------------------------------------------------------------- */

static void usage(FILE *to)
{
	fputs("usage: dmfs-replay-log --log LOG [OPTIONS]\n"
	      "\n"
	      "  --log LOG            the log device or a copy of it; alone: tells what it is\n"
	      "  --replay FILE        replay onto this file or device\n"
	      "  --start-entry N      begin with entry N (0 is the first)\n"
	      "  --start-mark MARK    begin after the mark\n"
	      "  --end-mark MARK      up to the mark\n"
	      "  --limit N            at most N entries\n"
	      "  --next-flush         up to the next flush\n"
	      "  --next-fua           up to the next FUA write\n"
	      "  --start-sector N, --end-sector N\n"
	      "                       only writes that touch this part of the device\n"
	      "  --discard            replay discards, as zeroes (the default)\n"
	      "  --no-discard         leave them out\n"
	      "  --fsck CMD           run this while replaying, as --check says; stop when it fails\n"
	      "  --check N|flush|fua  after every N entries, each flush, each FUA write\n"
	      "  --find               only print the entry the options above end at, as ENTRY@BLOCK\n"
	      "  --num-entries        only print the number of entries\n"
	      "  -v, --verbose        print what is replayed; twice: also what is not\n"
	      "  -h, --help\n",
	      to);
}

static uint64_t number(const char *option, const char *s)
{
	uint64_t n;

	if (*s < '0' || *s > '9' || !g_ascii_string_to_unsigned(s, 10, 0, UINT64_MAX, &n, NULL))
		die("%s '%s' is not a number", option, s);
	return n;
}

static void parse_check(const char *s)
{
	if (!strcmp(s, "flush")) {
		opts.check = CHECK_FLUSH;
	} else if (!strcmp(s, "fua")) {
		opts.check = CHECK_FUA;
	} else {
		opts.check = CHECK_COUNT;
		opts.check_count = number("--check", s);
		if (!opts.check_count)
			die("--check 0: every 1 entry is the least");
	}
}

enum { LOG = 256, REPLAY, START_ENTRY, START_MARK, END_MARK, LIMIT, NEXT_FLUSH, NEXT_FUA, START_SECTOR, END_SECTOR,
       DISCARD, NO_DISCARD, FSCK, CHECK, FIND, NUM_ENTRIES };

static const struct option longs[] = {
	{"log", required_argument, NULL, LOG},
	{"replay", required_argument, NULL, REPLAY},
	{"start-entry", required_argument, NULL, START_ENTRY},
	{"start-mark", required_argument, NULL, START_MARK},
	{"end-mark", required_argument, NULL, END_MARK},
	{"limit", required_argument, NULL, LIMIT},
	{"next-flush", no_argument, NULL, NEXT_FLUSH},
	{"next-fua", no_argument, NULL, NEXT_FUA},
	{"start-sector", required_argument, NULL, START_SECTOR},
	{"end-sector", required_argument, NULL, END_SECTOR},
	{"discard", no_argument, NULL, DISCARD},
	{"no-discard", no_argument, NULL, NO_DISCARD},
	{"fsck", required_argument, NULL, FSCK},
	{"check", required_argument, NULL, CHECK},
	{"find", no_argument, NULL, FIND},
	{"num-entries", no_argument, NULL, NUM_ENTRIES},
	{"number-entries", no_argument, NULL, NUM_ENTRIES},
	{"verbose", no_argument, NULL, 'v'},
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

static void take_option(int c)
{
	switch (c) {
	case LOG: opts.log = optarg; break;
	case REPLAY: opts.replay = optarg; break;
	case START_ENTRY:
		opts.start_entry = number("--start-entry", optarg);
		opts.has_start_entry = true;
		break;
	case START_MARK: opts.start_mark = optarg; break;
	case END_MARK: opts.end_mark = optarg; break;
	case LIMIT:
		opts.limit = number("--limit", optarg);
		opts.has_limit = opts.limit; /* 0: none, as ever */
		break;
	case NEXT_FLUSH: opts.next_flush = true; break;
	case NEXT_FUA: opts.next_fua = true; break;
	case START_SECTOR: opts.start_sector = number("--start-sector", optarg); break;
	case END_SECTOR: opts.end_sector = number("--end-sector", optarg); break;
	case DISCARD: opts.no_discard = false; break;
	case NO_DISCARD: opts.no_discard = true; break;
	case FSCK: opts.fsck = optarg; break;
	case CHECK: parse_check(optarg); break;
	case FIND: opts.find = true; break;
	case NUM_ENTRIES: opts.num_entries = true; break;
	case 'v': opts.verbose++; break;
	case 'h': usage(stdout); exit(0);
	default: usage(stderr); exit(2);
	}
}

static void parse(int argc, char **argv)
{
	int c;

	while ((c = getopt_long(argc, argv, "vh", longs, NULL)) != -1)
		take_option(c);
	if (optind < argc)
		die("'%s' is one argument too many", argv[optind]);
	if (!opts.log) {
		usage(stderr);
		exit(2);
	}
	if (!opts.fsck != !opts.check)
		die("--fsck and --check go together");
	if (opts.fsck && !opts.replay)
		die("--fsck needs --replay");
	if (opts.start_mark && opts.has_start_entry)
		die("--start-mark or --start-entry, not both");
	if (opts.find && !opts.end_mark && !opts.next_flush && !opts.next_fua && !opts.has_limit)
		die("--find what? --end-mark, --next-flush, --next-fua or --limit tell");
}

int main(int argc, char **argv)
{
	struct entry e = {0};
	GError *err = NULL;
	struct log log;
	int status = 0;

	parse(argc, argv);
	if (log_open(&log, opts.log, &err))
		die("%s", err->message);
	if (opts.num_entries) {
		printf("%" PRIu64 "\n", log.entries);
	} else if (!opts.find && !opts.replay) {
		printf("Log version=%llu, sectorsize=%" PRIu32 ", entries=%" PRIu64 "\n", LOG_WRITES_VERSION, log.block,
		       log.entries);
	} else {
		go_to_start(&log, &e);
		status = opts.find ? find(&log, &e) : replay(&log, &e);
	}
	g_free(e.mark);
	log_close(&log);
	return status;
}
