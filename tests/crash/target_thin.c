/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin: a volume, a snapshot of it taken on the way, both written; the pool is
 * reloaded, the stack reopened, the snapshot deleted.  thin_threads: both used by several threads at once.
 * (Without zeroing a new block shows what it held before, so there is nothing to prove.)
 *
 * Before the stack is built on what a power loss has left, thin_check must
 * find the metadata clean (if it is installed).  After a fault the pool
 * may have been left marked needs_check: as its user would, we clear the mark once thin_check has agreed.
 * The pool goes back to its last commit then, as the kernel's does: what was written since is gone, even for readers.
 */
#include "lab.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <dmfs/block_manager.h>
#include <dmfs/le.h>

#define META 512u
#define BLOCK 128u
#define DATA (BLOCK * 40)
#define SECTORS (BLOCK * 6)
#define SB_SEED 160774

static int run_thin_check(const char *path)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		int null = open("/dev/null", O_RDWR);

		dup2(null, 1);
		dup2(null, 2);
		execl("/usr/sbin/thin_check", "thin_check", path, NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int check_metadata(struct lab *lab, GError **err)
{
	g_autofree uint8_t *meta = g_malloc(META * DM_SECTOR_SIZE);
	char path[] = "/dev/shm/crash-thin-XXXXXX";
	int error = lab_read_raw(lab, "meta", 0, meta, META * DM_SECTOR_SIZE, err), fd, code;

	if (error)
		return error;
	fd = mkstemp(path);
	if (fd < 0 || write(fd, meta, META * DM_SECTOR_SIZE) != META * DM_SECTOR_SIZE)
		return dm_fail(err, EIO, "%s: %s", path, g_strerror(errno));
	close(fd);
	code = run_thin_check(path);
	unlink(path);
	if (code && code != 127)
		return dm_fail(err, EILSEQ, "thin_check says %d", code);
	if (!(get_le32(meta + 4) & 1))
		return 0;
	put_le32(meta + 4, get_le32(meta + 4) & ~1u);
	put_le32(meta, dm_bm_checksum(meta + 4, 4092, SB_SEED));
	return lab_write_raw(lab, "meta", 0, meta, 4096, err);
}

static char *pool_line(void)
{
	return g_strdup_printf("0 %u thin-pool meta data %u 0", DATA, BLOCK);
}

static int open_pool(struct lab *lab, GError **err)
{
	g_autofree char *line = pool_line();

	return lab_device(lab, "pool", err, line, NULL);
}

static int open_thin(struct lab *lab, const char *name, unsigned id, GError **err)
{
	g_autofree char *line = g_strdup_printf("0 %u thin pool %u", SECTORS, id);
	int error = lab_device(lab, name, err, line, NULL);

	return error ? error : lab_volume(lab, name, LAB_ZEROES, err);
}

/* The volume is there before anything can happen to it. */
static int prepare_thin(struct lab *lab, GError **err)
{
	int error = open_pool(lab, err);

	if (!error)
		error = lab_message(lab, "pool", NULL, err, "create_thin 0");
	return error ? error : lab_remove(lab, "pool", err);
}

static int open_all(struct lab *lab, GError **err)
{
	int error = lab_first_open(lab) ? 0 : check_metadata(lab, err);

	if (!error)
		error = open_pool(lab, err);
	if (!error)
		error = open_thin(lab, "vol", 0, err);
	if (!error && lab_reached(lab, "snap") && !lab_reached(lab, "snap is to go"))
		error = open_thin(lab, "snap", 1, err);
	return error;
}

/* Once it has been answered, the snapshot is there for good. */
static bool take_snapshot(struct lab *lab)
{
	g_autoptr(GError) err = NULL;
	int error = lab_suspend(lab, "vol", &err);

	if (!error)
		error = lab_message(lab, "pool", NULL, &err, "create_snap 1 0");
	if (!error) {
		lab_inherit(lab, "snap", "vol");
		lab_step(lab, "snap");
	}
	if (!lab_ok(lab, error, &err))
		return false;
	return lab_ok(lab, lab_resume(lab, "vol", &err), &err) && lab_ok(lab, open_thin(lab, "snap", 1, &err), &err);
}

static void drop_snapshot(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	lab_step(lab, "snap is to go");
	if (lab_ok(lab, lab_remove(lab, "snap", &err), &err))
		lab_ok(lab, lab_message(lab, "pool", NULL, &err, "delete 1"), &err);
}

static void reload(struct lab *lab)
{
	g_autofree char *line = pool_line();
	g_autoptr(GError) err = NULL;

	lab_ok(lab, lab_load(lab, "pool", &err, line, NULL), &err);
}

static void use_in_turn(struct lab *lab)
{
	lab_random_io(lab, 40, "vol", NULL);
	if (!take_snapshot(lab))
		return;
	lab_random_io(lab, 60, "vol", "snap", NULL);
	reload(lab);
	lab_random_io(lab, 30, "vol", "snap", NULL);
	lab_reopen(lab);
	lab_random_io(lab, 20, "vol", "snap", NULL);
	drop_snapshot(lab);
	lab_random_io(lab, 30, "vol", NULL);
}

static void use_from_thread(struct lab *lab, unsigned i, void *data)
{
	lab_random_io(lab, 20, "vol", "snap", NULL);
}

static void use_at_once(struct lab *lab)
{
	lab_random_io(lab, 30, "vol", NULL);
	if (take_snapshot(lab))
		lab_threads(lab, 4, use_from_thread, NULL);
}

static void use_shortly(struct lab *lab)
{
	lab_random_io(lab, 15, "vol", NULL);
}

/* A pool that could not even go back to its last commit has failed until it is opened anew. */
static bool excuse_failed(struct lab *lab, const char *volume)
{
	g_autofree char *status = lab_status(lab, "pool");

	return status && strstr(status, " Fail");
}

LAB_CUSTOMER(thin) = {
	.slices = {{"meta", META}, {"data", DATA}},
	.prepare = prepare_thin,
	.open = open_all,
	.workload = use_in_turn,
	.excuse = excuse_failed,
	.fault_workload = use_shortly,
	.goes_back = true,
};

LAB_CUSTOMER(thin_threads) = {
	.slices = {{"meta", META}, {"data", DATA}},
	.prepare = prepare_thin,
	.open = open_all,
	.workload = use_at_once,
	.excuse = excuse_failed,
	.fault_workload = use_shortly,
	.goes_back = true,
};
