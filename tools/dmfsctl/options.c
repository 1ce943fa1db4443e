/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line (options.h). */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

/* Options without a letter. */
enum {
	ADDNODE_ON_CREATE = 256,
	ADDNODE_ON_RESUME,
	ALIAS,
	ALL_DEVICES,
	ALL_PROGRAMS,
	ALL_REGIONS,
	AREA,
	AREAS,
	AREA_SIZE,
	BOUNDS,
	CLEAR,
	CONCISE,
	COUNT,
	DEFERRED,
	EXEC,
	GROUP,
	GROUP_ID,
	HISTOGRAM,
	INACTIVE,
	INTERVAL,
	LENGTH,
	MANGLENAME,
	MOUNT,
	NAMEPREFIXES,
	NOFLUSH,
	NOGROUP,
	NOHEADINGS,
	NOLOCKFS,
	NOTHING, /* there is nothing that it could do here: udev, device nodes, checks that are always made */
	NOTHING_WITH_VALUE,
	NOTIMESUFFIX,
	PRECISE,
	PROGRAM_ID,
	PROGRESS,
	READAHEAD,
	REGION,
	REGIONS,
	REGION_ID,
	RELATIVE,
	RETRY,
	SEGMENTS,
	SEPARATOR,
	SETUUID,
	SHOWKEYS,
	START,
	TABLE,
	TARGET,
	TREE,
	UNITS,
	USERDATA,
	VERSION,
};

static const struct option long_options[] = {
	{"addnodeoncreate", no_argument, NULL, ADDNODE_ON_CREATE},
	{"addnodeonresume", no_argument, NULL, ADDNODE_ON_RESUME},
	{"alias", required_argument, NULL, ALIAS},
	{"alldevices", no_argument, NULL, ALL_DEVICES},
	{"allprograms", no_argument, NULL, ALL_PROGRAMS},
	{"allregions", no_argument, NULL, ALL_REGIONS},
	{"area", no_argument, NULL, AREA},
	{"areas", required_argument, NULL, AREAS},
	{"areasize", required_argument, NULL, AREA_SIZE},
	{"bounds", required_argument, NULL, BOUNDS},
	{"checks", no_argument, NULL, NOTHING},
	{"clear", no_argument, NULL, CLEAR},
	{"columns", no_argument, NULL, 'c'},
	{"concise", no_argument, NULL, CONCISE},
	{"count", required_argument, NULL, COUNT},
	{"deferred", no_argument, NULL, DEFERRED},
	{"exec", required_argument, NULL, EXEC},
	{"force", no_argument, NULL, 'f'},
	{"gid", required_argument, NULL, 'G'},
	{"group", no_argument, NULL, GROUP},
	{"groupid", required_argument, NULL, GROUP_ID},
	{"help", no_argument, NULL, 'h'},
	{"histogram", no_argument, NULL, HISTOGRAM},
	{"inactive", no_argument, NULL, INACTIVE},
	{"interval", required_argument, NULL, INTERVAL},
	{"length", required_argument, NULL, LENGTH},
	{"major", required_argument, NULL, 'j'},
	{"manglename", required_argument, NULL, MANGLENAME},
	{"minor", required_argument, NULL, 'm'},
	{"mode", required_argument, NULL, 'M'},
	{"mount", required_argument, NULL, MOUNT},
	{"nameprefixes", no_argument, NULL, NAMEPREFIXES},
	{"noflush", no_argument, NULL, NOFLUSH},
	{"nogroup", no_argument, NULL, NOGROUP},
	{"noheadings", no_argument, NULL, NOHEADINGS},
	{"nolockfs", no_argument, NULL, NOLOCKFS},
	{"noopencount", no_argument, NULL, NOTHING},
	{"nosuffix", no_argument, NULL, NOTHING},
	{"notable", no_argument, NULL, 'n'},
	{"notimesuffix", no_argument, NULL, NOTIMESUFFIX},
	{"noudevrules", no_argument, NULL, NOTHING},
	{"noudevsync", no_argument, NULL, NOTHING},
	{"options", required_argument, NULL, 'o'},
	{"precise", no_argument, NULL, PRECISE},
	{"programid", required_argument, NULL, PROGRAM_ID},
	{"progress", no_argument, NULL, PROGRESS},
	{"readahead", required_argument, NULL, READAHEAD},
	{"readonly", no_argument, NULL, 'r'},
	{"region", no_argument, NULL, REGION},
	{"regionid", required_argument, NULL, REGION_ID},
	{"regions", required_argument, NULL, REGIONS},
	{"relative", no_argument, NULL, RELATIVE},
	{"retry", no_argument, NULL, RETRY},
	{"segments", no_argument, NULL, SEGMENTS},
	{"select", required_argument, NULL, 'S'},
	{"separator", required_argument, NULL, SEPARATOR},
	{"setuuid", no_argument, NULL, SETUUID},
	{"showkeys", no_argument, NULL, SHOWKEYS},
	{"sort", required_argument, NULL, 'O'},
	{"start", required_argument, NULL, START},
	{"table", required_argument, NULL, TABLE},
	{"target", required_argument, NULL, TARGET},
	{"tree", no_argument, NULL, TREE},
	{"udevcookie", required_argument, NULL, NOTHING_WITH_VALUE},
	{"uid", required_argument, NULL, 'U'},
	{"units", required_argument, NULL, UNITS},
	{"userdata", required_argument, NULL, USERDATA},
	{"uuid", required_argument, NULL, 'u'},
	{"verbose", no_argument, NULL, 'v'},
	{"verifyudev", no_argument, NULL, NOTHING},
	{"version", no_argument, NULL, VERSION},
	{"yes", no_argument, NULL, 'y'},
	{NULL, 0, NULL, 0},
};

static bool complain(const char *format, const char *value)
{
	fprintf(stderr, format, value);
	fputc('\n', stderr);
	return false;
}

static bool is_number(const char *text)
{
	return *text && strspn(text, "0123456789") == strlen(text);
}

/* A number from 0 to max in the given base. */
static bool number(const char *text, int base, int64_t max, const char *complaint, int64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoll(text, &end, base);
	if (!isdigit((unsigned char)*text) || *end || errno || *out > max)
		return complain(complaint, text);
	return true;
}

static bool interval(struct options *o, const char *text)
{
	char *end;

	o->interval = g_ascii_strtod(text, &end);
	if (end == text || *end || !(o->interval > 0) || o->interval > 1e6)
		return complain("Interval must be a positive integer.", text);
	return true;
}

static bool mangling(struct options *o, const char *text)
{
	if (!strcmp(text, "auto"))
		o->mangling = MANGLE_AUTO;
	else if (!strcmp(text, "hex"))
		o->mangling = MANGLE_HEX;
	else if (!strcmp(text, "none"))
		o->mangling = MANGLE_NONE;
	else
		return complain("Unknown name mangling mode.", text);
	return true;
}

/* +N, N, auto or none, as dmsetup; the caller says that it has no effect. */
static bool take_readahead(struct options *o, char *text)
{
	int64_t n;

	o->readahead = text;
	if (!strcmp(text, "auto") || !strcmp(text, "none"))
		return true;
	return number(text + (*text == '+'), 10, INT32_MAX, "Negative read ahead value (%s) is not understood.", &n);
}

static bool minor_or_mount(struct options *o, char *text)
{
	if (!o->words->len && !is_number(text)) {
		o->mount = text;
		return true;
	}
	return number(text, 10, (1 << 20) - 1, "Invalid minor number '%s': it is 0 to 1048575.", &o->minor);
}

static char **text_option(struct options *o, int c)
{
	switch (c) {
	case ALIAS:
		return &o->alias;
	case AREAS:
		return &o->areas;
	case AREA_SIZE:
		return &o->areasize;
	case BOUNDS:
		return &o->bounds;
	case EXEC:
		return &o->exec;
	case LENGTH:
		return &o->length;
	case MOUNT:
		return &o->mount;
	case 'o':
		return &o->options;
	case PROGRAM_ID:
		return &o->programid;
	case REGIONS:
		return &o->regions;
	case 'S':
		return &o->select;
	case SEPARATOR:
		return &o->separator;
	case 'O':
		return &o->sort;
	case START:
		return &o->start;
	case TABLE:
		return &o->table;
	case TARGET:
		return &o->target;
	case UNITS:
		return &o->units;
	case USERDATA:
		return &o->userdata;
	case 'u':
		return &o->uuid;
	default:
		return NULL;
	}
}

static bool *flag_option(struct options *o, int c)
{
	switch (c) {
	case ALL_DEVICES:
		return &o->alldevices;
	case ALL_PROGRAMS:
		return &o->allprograms;
	case ALL_REGIONS:
		return &o->allregions;
	case AREA:
		return &o->area;
	case 'c':
	case 'C':
		return &o->columns;
	case CLEAR:
		return &o->clear;
	case CONCISE:
		return &o->concise;
	case DEFERRED:
		return &o->deferred;
	case 'f':
		return &o->force;
	case GROUP:
		return &o->group;
	case 'h':
		return &o->help;
	case HISTOGRAM:
		return &o->histogram;
	case INACTIVE:
		return &o->inactive;
	case 'n':
		return &o->notable;
	case NAMEPREFIXES:
		return &o->nameprefixes;
	case NOFLUSH:
		return &o->noflush;
	case NOGROUP:
		return &o->nogroup;
	case NOHEADINGS:
		return &o->noheadings;
	case NOLOCKFS:
		return &o->nolockfs;
	case NOTIMESUFFIX:
		return &o->notimesuffix;
	case PRECISE:
		return &o->precise;
	case PROGRESS:
		return &o->progress;
	case 'r':
		return &o->readonly;
	case REGION:
		return &o->region;
	case RELATIVE:
		return &o->relative;
	case RETRY:
		return &o->retry;
	case SEGMENTS:
		return &o->segments;
	case SETUUID:
		return &o->setuuid;
	case SHOWKEYS:
		return &o->showkeys;
	case TREE:
		return &o->tree;
	case VERSION:
		return &o->version;
	case 'y':
		return &o->yes;
	default:
		return NULL;
	}
}

static bool value_option(struct options *o, int c, char *value)
{
	switch (c) {
	case COUNT:
		return number(value, 10, INT32_MAX, "Count must be zero or greater.", &o->count);
	case 'G':
		return number(value, 10, UINT32_MAX - 1, "Invalid argument for --gid: %s.", &o->gid);
	case INTERVAL:
		return interval(o, value);
	case 'j':
		return number(value, 10, 4095, "Invalid major number '%s': it is 0 to 4095.", &o->major);
	case 'm':
		return minor_or_mount(o, value);
	case 'M':
		return number(value, 8, 07777, "Invalid argument for --mode: %s. ", &o->mode);
	case MANGLENAME:
		return mangling(o, value);
	case READAHEAD:
		return take_readahead(o, value);
	case GROUP_ID:
		return number(value, 10, INT32_MAX, "Invalid group ID '%s'.", &o->groupid);
	case REGION_ID:
		return number(value, 10, INT32_MAX, "Invalid region ID '%s'.", &o->regionid);
	case 'U':
		return number(value, 10, UINT32_MAX - 1, "Invalid argument for --uid: %s.", &o->uid);
	case 'v':
		o->verbose++;
		return true;
	default:
		return c == ADDNODE_ON_CREATE || c == ADDNODE_ON_RESUME || c == NOTHING || c == NOTHING_WITH_VALUE;
	}
}

static bool take(struct options *o, int c, char *value)
{
	char **text = text_option(o, c);
	bool *flag = flag_option(o, c);

	if (c == 1)
		g_ptr_array_add(o->words, value);
	else if (text)
		*text = value;
	else if (flag)
		*flag = true;
	else
		return value_option(o, c, value);
	return true;
}

static bool fits_together(const struct options *o, bool on_create, bool on_resume)
{
	if ((o->major >= 0) != (o->minor >= 0))
		return complain("Please specify both major number and minor number.", "");
	if (o->table && o->notable)
		return complain("--table and --notable are incompatible.", "");
	if (on_create && on_resume)
		return complain("--addnodeonresume and --addnodeoncreate are incompatible.", "");
	return true;
}

bool options_parse(struct options *o, int argc, char **argv)
{
	const char *mode = g_getenv("DM_DEFAULT_NAME_MANGLING_MODE");
	bool on_create = false, on_resume = false;
	int c;

	*o = (struct options){
	    .major = -1, .minor = -1, .uid = -1, .gid = -1, .mode = -1, .count = -1, .regionid = -1, .groupid = -1};
	o->words = g_ptr_array_new();
	if (mode && !mangling(o, mode))
		return false;
	optind = 0; /* also for a second time */
	while ((c = getopt_long(argc, argv, "-cCfG:hj:m:M:no:O:rS:u:U:vy", long_options, NULL)) != -1) {
		on_create |= c == ADDNODE_ON_CREATE;
		on_resume |= c == ADDNODE_ON_RESUME;
		if (c == '?' || !take(o, c, optarg))
			return false;
	}
	while (optind < argc)
		g_ptr_array_add(o->words, argv[optind++]);
	g_ptr_array_add(o->words, NULL);
	return fits_together(o, on_create, on_resume);
}

void options_clear(struct options *o)
{
	g_ptr_array_free(o->words, TRUE);
	o->words = NULL;
}
