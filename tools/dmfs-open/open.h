/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-open: a whole disk image, opened as devices of a dmfs.
 *
 *   main.c       the command line
 *   plan.c       the loop: what is found is opened, and looked into, until nothing new appears
 *   node.c       what was found: a graph of nodes, each a device or what could not be one
 *   src.c        reading a file, an image of the mount, or memory (fuzzers)
 *   probe.c      which thing is in it (libblkid, and the readers)
 *   gpt.c mbr.c  partition tables
 *   lvm_disk.c   LVM2's labels and metadata areas; lvm_text.c: the text; lvm_vg.c: what it says;
 *                lvm_table.c, lvm_cache.c: the tables
 *   md.c         md's superblocks; md_state.c: changing them; md_array.c: the tables; md_plan.c: the arrays;
 *                md_close.c: how they are closed
 *   crypt.c      LUKS and BitLocker, through dmfs-luks
 *   verity.c     verity superblocks, through dmfs-verity
 *   integrity.c  integrity superblocks
 *   container.c  qcow2 and the like, through qemu-nbd
 *   show.c       the tree, JSON and the script of --dry-run
 *   close.c      takes it down
 *   fsmount.c    --mount
 *   run.c        other programs
 *
 * Readers get hostile input: they check all lengths, and refuse by name what cannot be; the rest still opens.
 * Functions return 0 or a negative errno and set the error.
 */
#ifndef DMFS_OPEN_H
#define DMFS_OPEN_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../common/fail.h"

struct options {
	char *mount;	  /* -m */
	char **key_files; /* or NULL */
	char **root_hashes;
	char *fs_dir; /* --mount */
	char *integrity;
	bool write, json, dry_run, close, no_ask;
};

/* --- src.c ---------------------------------------------------------------------------------- */

struct src {
	int fd;		    /* or -1 */
	const uint8_t *mem; /* instead */
	uint64_t size;	    /* bytes */
};

int src_open(const char *path, struct src *out, GError **err);
void src_close(struct src *s);
/* All of it, or -EIO. */
int src_read(const struct src *s, uint64_t at, void *out, size_t len);

/* --- partition tables ------------------------------------------------------------------------ */

struct part {
	unsigned nr;
	uint64_t start, sectors; /* of 512 bytes */
	char *type;		 /* a GUID in lower case, or 0xNN */
	char *uuid, *name;	 /* or NULL */
};

/* An array of struct part, in order of their starts; notes: what was left out and why, gets strings. */
GArray *part_array(void);
/* Adds p, whose strings it takes, unless it lies outside or over another; clips what ends outside. */
void part_add(GArray *parts, GPtrArray *notes, const struct src *s, struct part p);
/* 0: there is such a table; -ENOENT: there is none. */
int gpt_read(const struct src *s, GArray *parts, GPtrArray *notes);
int mbr_read(const struct src *s, GArray *parts, GPtrArray *notes);

/* --- LVM2: lvm_text.c -------------------------------------------------------------------------- */

struct lvm_value {
	bool text;
	char *string; /* text */
	int64_t number;
};

struct lvm_item {
	char *key;
	GPtrArray *items;  /* a section: struct lvm_item; else NULL */
	GHashTable *index; /* of a section: key to item, the first of that name */
	GArray *values;	   /* an assignment: struct lvm_value, one or, if array, any number */
	bool array;
};

/* The root section; NULL: err says at which byte it is no such text. */
struct lvm_item *lvm_text_parse(const char *text, size_t len, GError **err);
void lvm_item_free(struct lvm_item *item);
struct lvm_item *lvm_section(const struct lvm_item *in, const char *key);
const char *lvm_string(const struct lvm_item *in, const char *key);
/* -ENOENT or -EINVAL: there is none, or it is negative. */
int lvm_number(const struct lvm_item *in, const char *key, uint64_t *out);
const GArray *lvm_values(const struct lvm_item *in, const char *key);
bool lvm_has_word(const struct lvm_item *in, const char *key, const char *word);

/* --- lvm_disk.c --------------------------------------------------------------------------------- */

#define LVM_ID 38 /* with dashes; and a zero byte */

struct lvm_pv {
	char id[LVM_ID + 1];
	uint64_t bytes;
	char *text; /* the newest metadata on it; NULL: none */
	size_t len;
};

/* -ENOENT: it is no physical volume. */
int lvm_pv_read(const struct src *s, struct lvm_pv *pv, GPtrArray *notes);
void lvm_pv_clear(struct lvm_pv *pv);

/* --- lvm_vg.c ------------------------------------------------------------------------------------ */

struct vg_pv {
	char *key, *id;
	uint64_t pe_start, pe_count, sectors;
	const char *device; /* the name of it in the mount; NULL: it is missing */
	uint64_t have;	    /* sectors of that device */
	void *node;
};

struct vg_lv {
	char *name, *id;
	const struct lvm_item *text;
	GPtrArray *segments; /* const struct lvm_item *, in order */
	uint64_t extents;
	bool visible;
	/* of the table's maker */
	int state;
	enum { MISSING_UNKNOWN, MISSING_NO, MISSING_YES } missing;
	char *why;
	char *device;
	void *node;
};

struct vg {
	char *name, *id;
	uint64_t seqno, extent; /* sectors */
	struct lvm_item *text;
	GPtrArray *pvs; /* struct vg_pv */
	GHashTable *pv_by_key;
	GPtrArray *lvs; /* struct vg_lv */
	GHashTable *lv_by_name;
};

struct vg *vg_parse(const char *text, size_t len, GPtrArray *notes, GError **err);
void vg_free(struct vg *vg);

/* --- lvm_table.c --------------------------------------------------------------------------------- */

/* Whoever makes the devices. */
struct vg_maker {
	/*
	 * Makes a device; lv: whose, or NULL; uses: devices in its table (owned by the caller); sectors: its length.
	 * The name it got, or NULL: err says why.
	 */
	const char *(*make)(void *data, const char *name, const char *id, const char *type, const char *table, uint64_t sectors,
			    bool writable, const GPtrArray *uses, GError **err);
	/* A device that takes writes and passes none on; the device itself with -w. */
	const char *(*overlay)(void *data, const char *device, uint64_t sectors, GError **err);
	void (*note)(void *data, const char *device, const char *text);
	/* The device is a whole volume, not a part of one: what is in it counts. */
	void (*look)(void *data, const char *device);
	bool write;
	void *data;
};

/* Makes the devices of all logical volumes; what cannot be is said through note. */
void vg_make(struct vg *vg, const struct vg_maker *m);

/* --- md.c ----------------------------------------------------------------------------------------- */

struct md_super {
	char version[8]; /* 0.90, 1.0, 1.1, 1.2 */
	char id[40];
	char *name;  /* or NULL */
	int level;   /* -1: linear; -4 multipath and others are refused */
	unsigned layout, chunk; /* sectors */
	unsigned disks;
	int role;	 /* of this one; -1: spare, faulty or journal */
	uint64_t at;	 /* byte of the superblock */
	size_t bytes;	 /* of it */
	uint8_t uuid[16];
	unsigned number;	/* of this one among the devices */
	bool spare;		/* it is one, that waits */
	uint64_t bitmap_at;	/* byte of its bitmap's head, perhaps outside; 0: there is none */
	const char *only_md;	/* why nobody but md may write to it; or NULL */
	uint64_t events, size, data_offset, data_sectors, resync, recovery; /* sectors */
	bool reshape, journal;
	uint8_t *active; /* of the disks, by role: 1 if the array counts on it */
};

/* -ENOENT: no superblock; -EINVAL: a note says what is wrong with it. */
int md_read(const struct src *s, struct md_super *sb, GPtrArray *notes);
void md_clear(struct md_super *sb);
/* Where a superblock of version 0.90 is on a device of that many bytes; -1: it is too small. */
int64_t md_090_place(uint64_t bytes);

#define MD_ROLE_SPARE 0xffffu
uint32_t md_sum_090(const uint8_t *p);
uint32_t md_sum_1(const uint8_t *p, size_t len);

/* --- md_state.c ------------------------------------------------------------------------------------ */

struct md_disk {
	char *path; /* its image */
	enum { MD_USED = 1, MD_SPARE, MD_FAILED } as;
	struct md_super sb; /* md_disk_look() */
};

void md_disk_free(gpointer disk);
/* Reads the superblock of an image that is to be a member's of the array id. */
int md_disk_look(struct md_disk *d, const char *id, GError **err);
/*
 * What its superblock must say: as: what each device is, by number, 0 for those that are not there.  The bytes p are
 * those that sb was read from.
 */
void md_put_state(uint8_t *p, const struct md_super *sb, uint64_t events, bool clean, const uint8_t *as, unsigned nr);
/* Says on all disks (struct md_disk) that the array is being written to; nothing may have been written before. */
int md_state_begin(GPtrArray *disks, GError **err);
/*
 * Whether the copies and parities agree: no; yes, as they did at the begin; or since all of them were synchronised
 * after it.  What was written is made durable first.
 */
enum md_end { MD_UNCLEAN, MD_CLEAN, MD_SYNCED };
int md_state_end(GPtrArray *disks, enum md_end how, GError **err);

/* --- md_array.c ------------------------------------------------------------------------------------ */

struct md_member {
	const struct md_super *sb; /* NULL: missing */
	const char *device;	   /* where md_shape() says so, one that begins where the data does */
};

/* Whether a member's data can be used: it is as new as best, and in sync. */
bool md_usable(const struct md_super *best, const struct md_super *sb);
/*
 * What stands on what: each member's data is a device of so many sectors (0: the table is one of the members), with so
 * many zeroes behind it; and sectors of the table are the array.
 */
struct md_shape {
	uint64_t part, zeroes, sectors;
};
void md_shape(const struct md_super *best, struct md_shape *shape);
/* Reading; or writing to what is in sync; or synchronising first. */
enum md_use { MD_READ, MD_WRITE, MD_SYNC };
#define MD_ID_WRITE "MDW" /* what the uuids of those that are written to begin with */
#define MD_ID_SYNC "MDS"
/* The table of an array from its members, best->disks of them by role; best: whose superblock counts. */
int md_table(const struct md_super *best, const struct md_member *members, enum md_use use, GString *table,
	     uint64_t *sectors, GPtrArray *notes, GError **err);
const char *md_level_name(int level);

/* --- small superblocks ------------------------------------------------------------------------------ */

struct verity_sb {
	char uuid[37], hash[32];
	unsigned data_block, hash_block;
	uint64_t data_blocks;
};
int verity_read(const struct src *s, struct verity_sb *sb, GPtrArray *notes);

struct integrity_sb {
	unsigned version, tag, log2_block, log2_interleave;
	uint64_t sectors;
	uint32_t flags;
};
int integrity_read(const struct src *s, struct integrity_sb *sb, GPtrArray *notes);
/* The table line on a device; hash: internal_hash; mode: J, or R. */
char *integrity_table(const struct integrity_sb *sb, const char *device, const char *hash, char mode);

/* qcow2, vmdk, vdi, vhdx, vpc, or NULL; backing (g_free()): the file it names as what is beneath. */
const char *container_kind(const struct src *s, char **backing);

/* --- run.c -------------------------------------------------------------------------------------------- */

/* The program beside this one, or in PATH; NULL: there is none. */
char *run_find(const char *program);
/*
 * Its exit status, or a negative errno; out: what it printed; why: what it said on standard error.  Either may be NULL.
 */
int run(char *const *argv, bool quiet_input, char **out, char **why);
/* A directory of one's own for sockets and files of this run; made the first time. */
const char *run_dir(GError **err);
/* Removes it if nothing is in it. */
void run_dir_done(void);
/* The words as a shell reads them. */
char *run_shell_text(char *const *argv);

/* --- node.c --------------------------------------------------------------------------------------------- */

enum node_kind { NODE_IMAGE, NODE_PART, NODE_LVM, NODE_MD, NODE_CRYPT, NODE_VERITY, NODE_INTEGRITY, NODE_CONTAINER };

struct node {
	char *name; /* the device's in the mount */
	enum node_kind kind;
	char *type; /* shown: disk, part, lvm, raid1, crypt, ... */
	uint64_t sectors;
	GPtrArray *parents, *children; /* struct node *, not owned */
	GPtrArray *notes;
	char *path; /* of an image: the file */
	/* what is in it */
	char *fstype, *label, *uuid;
	bool swap_or_fs; /* a file system */
	char *part_type, *part_uuid, *part_label;
	char *mounted;
	bool open, probed, at_start; /* at_start: a partition that begins where its table does */
	unsigned depth;
	char *table, *dm_uuid;
	bool readonly;
	char *command; /* instead of a table: what made it, for --dry-run */
	unsigned seq;
	bool shown;
	/* members */
	struct md_super *md;
	struct lvm_pv *pv;
	struct verity_sb *verity;
	bool taken; /* by an array or group */
};

struct plan {
	const struct options *o;
	char *mount; /* of the dmfs */
	char run[12];
	GPtrArray *nodes; /* owned, in the order they were made */
	GHashTable *names;
	GHashTable *seen; /* ids of encrypted volumes that were asked for */
	bool failed;
	unsigned next_seq;
};

struct plan *plan_new(const struct options *o, char *mount);
void plan_free(struct plan *p);
/* A name that is free, from what the bytes are. */
char *plan_name(struct plan *p, const char *wanted);
/* A node that is not open yet; takes none of the strings. */
struct node *node_new(struct plan *p, enum node_kind kind, const char *type, const char *name);
void node_stand_on(struct node *n, struct node *parent);
/* Says it on standard error too. */
void node_note(struct plan *p, struct node *n, const char *fmt, ...) G_GNUC_PRINTF(3, 4);
/*
 * Makes the device with n's table, id in its uuid, for reading only if what it stands on is; on failure a note says
 * why, and n stays closed.
 */
int node_make(struct plan *p, struct node *n, const char *id, bool readonly);
/* The same without the note. */
int node_try(struct plan *p, struct node *n, const char *id, bool readonly, GError **err);
/* It stands on one that may not be written to, also with -w. */
bool node_on_readonly(const struct node *n);
char *node_image(const struct plan *p, const struct node *n);
struct node *node_find(struct plan *p, const char *name);

/* --- the rest --------------------------------------------------------------------------------------------- */

/* Looks into an open node: type, label, members; opens what needs no others. */
void probe(struct plan *p, struct node *n);
/* Opens the images and all that is in them. */
int plan_open(struct plan *p, char **images, GError **err);
void plan_arrays(struct plan *p, bool degraded, bool *progress);
void plan_groups(struct plan *p, bool degraded, bool *progress);
void plan_verity(struct plan *p, bool *progress);
void crypt_open(struct plan *p, struct node *n, const char *what, const char *id);
void verity_open_pairs(struct plan *p, bool *progress);
void integrity_open(struct plan *p, struct node *n, const struct integrity_sb *sb);
void container_open(struct plan *p, struct node *n, const char *kind, const char *backing);

void show_tree(struct plan *p);
void show_json(struct plan *p);
void show_script(struct plan *p);

/* A device that --close found. */
struct dev {
	char *name, *uuid, *table; /* table: where it is needed */
	unsigned seq;
	bool gone;
};

/* The part of a uuid behind OPEN-RUN-NUMBER-. */
const char *close_id(const char *uuid);
int close_all(const char *mount, char **images, GError **err);
/* Whether a uuid is of a device of that run; run NULL: of any. */
bool close_is_ours(const char *uuid, const char *run);
/* Takes the devices of one run down; -EBUSY: some are in use. */
int close_run(const char *mount, const char *run, GError **err);

/*
 * Arrays of md's that were written to, among the devices of a run, as these are removed: before and after each.  What
 * goes wrong is in the error, the first of it.
 */
struct md_closing;
struct md_array;
bool md_close_is(const char *id);
struct md_closing *md_close_new(const char *mount, GPtrArray *devs, GError **err);
/* Suspends d, if it is an array; which, or NULL. */
struct md_array *md_close_before(struct md_closing *c, struct dev *d);
/* array: what md_close_before() said of the same device; gone: it was removed. */
void md_close_after(struct md_closing *c, struct md_array *array, bool gone);
void md_close_free(struct md_closing *c);

int fs_mount_all(struct plan *p, GError **err);
/* Unmounts what is mounted from an image of the mount; names: devices'. */
int fs_unmount(const char *mount, GPtrArray *names, GError **err);

#endif
