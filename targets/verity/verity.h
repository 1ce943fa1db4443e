/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of verity, and what they know of each other.
 *
 *   format.c      hashing and the tree's layout: no I/O
 *   tree.c        digests of blocks, out of a bounded cache of hash blocks
 *   read.c        a read's way: data, digest, comparison
 *   rs.c, fec.c   the code, and mending blocks with it
 *   validated.c   check_at_most_once's bits
 *   corrupt.c     what happens when a block is corrupted; the command for it
 *   signature.c   signatures of root hashes
 *   options.c     the optional words of a table line
 *   target.c      the table line, the type
 */
#ifndef DMFS_VERITY_VERITY_H
#define DMFS_VERITY_VERITY_H

#include <stdatomic.h>

#include <dmfs/target.h>
#include <dmfs/work.h>

#include "format.h"

#define VERITY_MAX_ERRORS 100 /* that are told of, a device */

enum verity_mode { VERITY_MODE_EIO, VERITY_MODE_LOGGING, VERITY_MODE_RESTART, VERITY_MODE_PANIC };

enum verity_block_type { VERITY_DATA, VERITY_METADATA };

struct verity {
	struct dm_target *ti;
	struct verity_format f;
	struct dm_dev *data_dev, *hash_dev;
	char *hash_name; /* as it was given */
	enum verity_mode mode;
	bool ignore_zero_blocks, tasklet;
	uint8_t zero_digest[DM_HASH_MAX_SIZE];
	struct verity_validated *validated; /* NULL: every read is verified */
	struct verity_fec *fec;             /* NULL: nothing is mended */
	char *signature_key;                /* NULL: none given */
	struct verity_tree *tree;
	struct dm_wq *wq;       /* verifying */
	struct dm_wq *mending;
	size_t ns_per_block;    /* that hashing one takes, about */
	_Atomic bool corrupted; /* some check failed */
	_Atomic bool failed;    /* for good */
	atomic_uint errors;     /* told of */
};

/* --- tree.c ---------------------------------------------------------------------------------------- */

/* Most bytes of hash blocks that are kept, unless reads that are under way need more. */
#define VERITY_CACHE_BYTES ((size_t)4608 << 10)

struct verity_node;

/* Somebody who wants a digest.  Zeroed at first; his while he does not wait. */
struct verity_wait {
	void (*ready)(struct verity_wait *); /* try again: from any thread, perhaps before verity_tree_digests() returns */
	struct verity_wait *next;
	struct verity_node *path[VERITY_MAX_LEVELS]; /* the tree's */
	int error;
};

enum verity_answer {
	VERITY_DIGEST,
	VERITY_WAIT,   /* ready() comes, and only then is *w the caller's again */
	VERITY_FAILED, /* w->error says why */
};

struct verity_tree *verity_tree_new(struct verity *v);
/* Waits for read-ahead; before the queues go. */
void verity_tree_settle(struct verity_tree *t);
void verity_tree_free(struct verity_tree *t);
/* Whether it was told to wait: until it has asked again for the same block, it holds on to hash blocks. */
static inline bool verity_has_waited(const struct verity_wait *w)
{
	return w->path[0];
}
/*
 * The digests of up to *n data blocks from this one on, *n not 0: of how many goes to *n, at least 1, and they to
 * digests one behind the other.  More than one only if they are in the same hash block.  Any thread; never waits.
 */
enum verity_answer verity_tree_digests(struct verity_tree *t, uint64_t block, unsigned *n, uint8_t *digests,
				       struct verity_wait *w);
/* Starts reading what the digests of these data blocks need. */
void verity_tree_prefetch(struct verity_tree *t, uint64_t block, uint64_t blocks);
/* The content of a hash block that is verified, if it is in the cache: copies len bytes from offset on. */
bool verity_tree_peek(struct verity_tree *t, uint64_t hash_block, size_t offset, void *out, size_t len);
/* Bytes of the hash blocks in the cache. */
size_t verity_tree_bytes(struct verity_tree *t);

/* --- read.c ---------------------------------------------------------------------------------------- */

size_t verity_per_bio_size(void);
enum dm_mapio verity_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio verity_end_io(struct dm_target *ti, struct dm_bio *bio);

/* --- validated.c ------------------------------------------------------------------------------------ */

/* NULL: no memory. */
struct verity_validated *verity_validated_new(uint64_t blocks);
void verity_validated_free(struct verity_validated *b);
void verity_validated_set(struct verity_validated *b, uint64_t block);
/* Whether all of them are. */
bool verity_validated_test(struct verity_validated *b, uint64_t block, uint64_t blocks);

/* --- fec.c ------------------------------------------------------------------------------------------ */

struct verity_fec {
	struct dm_dev *dev;
	uint64_t blocks, start; /* in data blocks */
	unsigned roots;
	struct rs *rs;
	uint64_t rounds; /* blocks between two of a codeword's bytes */
};

/* Checks it against the format and the devices.  -EINVAL, -E2BIG. */
int verity_fec_prepare(struct verity *v, GError **err);
void verity_fec_free(struct verity_fec *fec);
/*
 * Reads a block again and, if it is not what its digest says, mends it: block_bytes to out.  A metadata block counts
 * from the hash device's start.  Waits for I/O: not from map() or an end().  0 or -EIO.
 */
int verity_fec_mend(struct verity *v, enum verity_block_type type, uint64_t block, const uint8_t *digest, uint8_t *out);

/* --- corrupt.c -------------------------------------------------------------------------------------- */

/* A block is not what its digest says.  True: its read must fail. */
bool verity_block_corrupted(struct verity *v, enum verity_block_type type, uint64_t block);

/* --- signature.c ------------------------------------------------------------------------------------ */

/*
 * Checks the signature of a root hash, as it stands in the table line, that is in the user key or the file
 * that *key names; NULL: none was given, which is fine unless there are certificates.  Of one that came with its
 * name, *key becomes the name.
 */
int verity_check_signature(struct dm_target *ti, const char *root, char **key, GError **err);

/* --- options.c -------------------------------------------------------------------------------------- */

/* The optional words.  fec is made if any word of FEC's is there. */
int verity_read_options(struct dm_target *ti, struct verity *v, struct dm_args *as, GError **err);
void verity_print_options(const struct verity *v, GString *out);

#endif
