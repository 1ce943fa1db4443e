/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Telling the front end that this thread is about to wait. */
#include <assert.h>

#include <dmfs/io.h>

static _Thread_local struct {
	void (*begin)(void *), (*end)(void *);
	void *context;
	unsigned depth;
} hooks;

void dm_block_set_hooks(void (*begin)(void *), void (*end)(void *), void *context)
{
	hooks.begin = begin;
	hooks.end = end;
	hooks.context = context;
}

static _Thread_local unsigned forbidden;

void dm_wait_forbid(void)
{
	forbidden++;
}

void dm_wait_allow(void)
{
	assert(forbidden);
	forbidden--;
}

void dm_block_begin(void)
{
	assert(!forbidden);
	if (hooks.depth++ == 0 && hooks.begin)
		hooks.begin(hooks.context);
}

void dm_block_end(void)
{
	if (--hooks.depth == 0 && hooks.end)
		hooks.end(hooks.context);
}
