/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The messages of userspace dirty logs, both sides.  The first byte chooses:
 *
 *   even  The server: the rest is messages to a log with two clients, each a byte of its type and client, one of
 *         length, and data; the first CTR's data begin the log.  What it answers must be a message again, no more
 *         regions are in sync than there are, and what a client has is not clean.
 *   odd   The client: a log asks a server that answers with what stands in the input, each answer a byte that says how
 *         wrong it is, one of length, and data.
 */
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fuzz.h"

#include "../../tools/dmfs-logd/log.c"
#include "../../tools/dmfs-logd/state.c"
#include "../../tools/dmfs-logd/store.c"

#include <dmfs/dirty_log.h>
#include <dmfs/options.h>

#define MAX_MESSAGES 64

static struct dm_mapped *md;
static struct dm_dirty_log *live;

struct input {
	const uint8_t *data;
	size_t size;
};

static uint8_t next_byte(struct input *in)
{
	if (!in->size)
		return 0;
	in->size--;
	return *in->data++;
}

static const uint8_t *next_data(struct input *in, size_t *size)
{
	size_t want = next_byte(in);
	const uint8_t *data = in->data;

	*size = MIN(want, in->size);
	in->data += *size;
	in->size -= *size;
	return data;
}

/* --- the server --------------------------------------------------------------------------- */

static void check_log(struct log *log)
{
	struct log_state *s = log_state_of(log);

	if (s->in_sync > s->regions)
		abort();
	for (guint i = 0; i < s->clients->len; i++) {
		struct log_client *c = s->clients->pdata[i];
		GHashTableIter iter;
		gpointer region;

		g_hash_table_iter_init(&iter, c->has);
		while (g_hash_table_iter_next(&iter, &region, NULL))
			if (GPOINTER_TO_SIZE(region) >= s->regions || log_is_clean(s, GPOINTER_TO_SIZE(region)))
				abort();
	}
}

static void check_answer(const struct ulog *out)
{
	uint8_t message[ULOG_MAX];
	struct ulog again;

	if (ulog_parse(message, ulog_pack(out, message), &again))
		abort();
}

static struct log *begin_log(struct input *in)
{
	struct log_shape shape;
	struct log *log = NULL;
	size_t size;
	const uint8_t *data = next_data(in, &size);
	g_autofree char *text = fuzz_text(data, size);
	g_autoptr(GError) err = NULL;

	if (!log_shape_parse((const uint8_t *)text, strlen(text), &shape, &err)) {
		if (shape.regions <= 1 << 20)
			log = log_new(&shape, size & 1, &err);
		else
			err = g_error_new(DM_ERROR, EFBIG, "too large for here");
	}
	if (!log && (!err || !*err->message))
		abort();
	g_free(shape.device);
	return log;
}

static void serve(struct input *in)
{
	struct log *log = begin_log(in);
	struct log_client *c[2];
	uint8_t answer_data[ULOG_MAX_DATA];

	if (!log)
		return;
	for (unsigned i = 0; i < 2; i++)
		c[i] = log_join(log_state_of(log));
	for (unsigned n = 0; in->size && n < MAX_MESSAGES; n++) {
		uint8_t type = next_byte(in);
		struct ulog m = {.uuid = "u", .seq = n, .type = 1 + (type & 31) % ULOG_TYPES}, out = m;

		if (type & 0x40)
			log_end_grace(log);
		m.data = next_data(in, &m.size);
		if (log_request(log, c[type >> 7], &m, &out, answer_data))
			log_commit(log);
		check_answer(&out);
		check_log(log);
	}
	log_leave(c[0]);
	log_leave(c[1]);
	log_free(log);
}

/* --- the client ------------------------------------------------------------------------------ */

static struct input answers;
static int listener = -1, over[2];

static bool reply(int fd, const struct ulog *request)
{
	uint8_t how = next_byte(&answers), message[ULOG_MAX];
	struct ulog out = *request;
	size_t len;

	out.data = next_data(&answers, &out.size);
	if (how & 0x80)
		return true; /* none */
	if (how & 0x40)
		return send(fd, out.data, out.size, MSG_NOSIGNAL) >= 0;
	out.error = how & 1 ? -(int)next_byte(&answers) : 0;
	out.seq += (how & 2) != 0;
	out.luid += (how & 4) != 0;
	len = ulog_pack(&out, message);
	if (how & 8) {
		size_t cut = next_byte(&answers);

		len = MIN(len, cut);
	}
	if (how & 16 && send(fd, message, len, MSG_NOSIGNAL) < 0)
		return false;
	return !(how & 32) && send(fd, message, len, MSG_NOSIGNAL) >= 0;
}

static void *answer_all(void *unused)
{
	int fd = -1;

	for (;;) {
		struct pollfd p[3] = {{over[0], POLLIN, 0}, {listener, POLLIN, 0}, {fd, POLLIN, 0}};
		uint8_t message[ULOG_MAX];
		struct ulog m;
		ssize_t n;

		poll(p, 3, -1);
		if (p[0].revents)
			break;
		if (p[1].revents) {
			if (fd >= 0)
				close(fd);
			fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
			continue;
		}
		n = recv(fd, message, sizeof message, 0);
		if (n > 0 && ulog_parse(message, (size_t)n, &m))
			abort(); /* the client speaks no nonsense */
		if (n <= 0 || !reply(fd, &m)) {
			close(fd);
			fd = -1;
		}
	}
	if (fd >= 0)
		close(fd);
	return NULL;
}

static void use(void)
{
	const struct dm_dirty_log_type *t = live->type;
	g_autoptr(GString) text = g_string_new(NULL);
	uint64_t r;

	t->resume(live);
	t->end_waiting(live); /* it would wait for ever for one that does not answer */
	for (unsigned i = 0; i < 3; i++) {
		t->refresh(live);
		if (t->sync_count(live) > live->regions)
			abort();
		t->mark_region(live, i % live->regions);
		t->flush(live);
		if (t->in_sync(live, 0, true) > 1)
			abort();
		if (t->get_resync_work(live, &r)) {
			if (r >= live->regions)
				abort();
			t->set_region_sync(live, r, i);
		}
		t->is_remote_recovering(live, 0);
		t->clear_region(live, 0);
		t->flush(live);
	}
	t->presuspend(live);
	t->postsuspend(live);
	t->status(live, DM_STATUS_INFO, text);
	t->status(live, DM_STATUS_TABLE, text);
	for (const char *p = text->str; *p; p++)
		if ((unsigned char)*p < ' ')
			abort();
}

static void ask(struct input *in)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	g_autofree char *line = g_strdup_printf("0 %u logged u%s x y", 64 + next_byte(in),
						in->size & 1 ? " integrated_flush" : "");
	g_autoptr(GError) err = NULL;
	pthread_t server;

	answers = *in;
	if (pipe(over) || pthread_create(&server, NULL, answer_all, NULL))
		abort();
	live = NULL;
	if (!dm_table_add_line(t, line, &err))
		use();
	else if (!err || !*err->message)
		abort();
	dm_table_unref(t);
	close(over[1]);
	pthread_join(server, NULL);
	close(over[0]);
}

static int logged_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	int error = dm_dirty_log_new(ti, "logged", "userspace", argc, argv, &live, err);

	ti->private = live;
	return error;
}

static void logged_dtr(struct dm_target *ti)
{
	dm_dirty_log_free(ti->private);
}

static enum dm_mapio logged_map(struct dm_target *ti, struct dm_bio *bio)
{
	return DM_MAPIO_KILL;
}

static const struct dm_target_type logged_target = {
	.name = "logged", .version = {1, 0, 0}, .ctr = logged_ctr, .dtr = logged_dtr, .map = logged_map};

/* --- both ----------------------------------------------------------------------------------------- */

static void stop(void)
{
	close(listener);
	unlink(dm_options.log_server);
	g_free(dm_options.log_server);
	dm_mapped_unref(md);
	dm_remove_all();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static const struct dm_target_type *types[] = {&logged_target, NULL};
	struct sockaddr_un at = {.sun_family = AF_UNIX};

	fuzz_start();
	dm_register_targets(types);
	dm_options.log_server = g_build_filename(fuzz_dir, "socket", NULL);
	dm_options.log_timeout_ms = 20;
	strcpy(at.sun_path, dm_options.log_server);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4) || dm_create("m", -1, &md, NULL))
		abort();
	atexit(stop);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};

	if (size < 2 || size > 4096)
		return -1;
	fuzz_reset();
	if (next_byte(&in) & 1)
		ask(&in);
	else
		serve(&in);
	return 0;
}
