/*
 * Connections of FUSE: each is a descriptor of /dev/fuse.
 *
 * One read(2) brings one message, and takes it from the kernel's queue in the same call: its head
 * goes into a record of the journal, the rest (of which nothing is wanted) elsewhere.  An answer is
 * one writev(2), whole or not at all; one that was given already is ENOENT and does no harm, so
 * whatever a dead predecessor left on record is answered once more (reference stock-kernels 4.1).
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "fuse_internal.h"

static struct nf_fuse_connection *find(struct nf_fuse *f, uint32_t id)
{
	struct nf_fuse_connection *c;

	for (c = f->connections; c; c = c->next)
		if (c->id == id)
			return c;
	return NULL;
}

struct nf_fuse_connection *nf_fuse_get(struct nf_transport *t, uint32_t slot)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	uint32_t id = __atomic_load_n(&nf_fuse_record(t, slot)->connection, __ATOMIC_ACQUIRE);
	struct nf_fuse_connection *c;

	pthread_mutex_lock(&f->lock);
	c = id ? find(f, id) : NULL;
	if (c)
		c->users++;
	pthread_mutex_unlock(&f->lock);
	return c;
}

void nf_fuse_put(struct nf_transport *t, struct nf_fuse_connection *c)
{
	struct nf_fuse *f = (struct nf_fuse *)t;

	pthread_mutex_lock(&f->lock);
	c->users--;
	pthread_cond_broadcast(&f->idle);
	pthread_mutex_unlock(&f->lock);
}

/* With the lock.  NULL: no memory. */
static struct nf_fuse_connection *new_connection(struct nf_fuse *f)
{
	struct nf_fuse_connection *c;

	for (c = f->connections; c; c = c->next)
		if (!c->id && !c->users && !c->watch.armed)
			return c;
	c = calloc(1, sizeof(*c));
	if (c) {
		c->next = f->connections;
		f->connections = c;
	}
	return c;
}

static int connect_locked(struct nf_fuse *f, uint32_t id, int fd, const struct nf_fuse_shown *shown)
{
	struct nf_fuse_connection *c = find(f, id);

	if (fd < 0) {
		if (!c || c->shown.server)
			return c ? -EEXIST : -ENOENT;
		c->shown.tree = shown->tree;
		c->shown.objects = shown->objects;
		c->shown.starts = shown->starts;
		c->shown.nobjects = shown->nobjects;
		__atomic_store_n(&c->shown.server, shown->server, __ATOMIC_RELEASE);
		return 0;
	}
	if (c)
		return -EEXIST;
	/* a message that the kernel cannot copy (a page fault of a process that is being killed) is
	 * EIO for its reader; before the first connection nobody reads, and 1 MiB is spared */
	if (!f->connections)
		mlock(f->t.area.records, (size_t)f->t.slots * sizeof(struct nf_fuse_record));
	c = new_connection(f);
	if (!c)
		return -ENOMEM;
	c->fd = fd;
	c->ended = false;
	c->shown = *shown;
	c->id = id;
	return 0;
}

int nf_fuse_connect(struct nf_transport *t, uint32_t id, int fd, const struct nf_fuse_shown *shown)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	int rc;

	if (!id || id == NF_FUSE_GONE)
		return -EINVAL;
	pthread_mutex_lock(&f->lock);
	rc = connect_locked(f, id, fd, shown);
	pthread_mutex_unlock(&f->lock);
	return rc;
}

int nf_fuse_disconnect(struct nf_transport *t, uint32_t id)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	struct nf_fuse_connection *c;
	uint32_t slot;

	pthread_mutex_lock(&f->lock);
	c = id ? find(f, id) : NULL;
	if (!c) {
		pthread_mutex_unlock(&f->lock);
		return -ENOENT;
	}
	c->id = 0;
	/* its READs wait on: what they are answered must not meet a later connection of this id */
	for (slot = 0; slot < t->slots; slot++)
		if (__atomic_load_n(&nf_fuse_record(t, slot)->connection, __ATOMIC_ACQUIRE) == id)
			__atomic_store_n(&nf_fuse_record(t, slot)->connection, NF_FUSE_GONE, __ATOMIC_RELEASE);
	while (c->users)
		pthread_cond_wait(&f->idle, &f->lock);
	pthread_mutex_unlock(&f->lock);
	return 0;
}

/* To the message in the record; err is a positive errno or 0.  What the kernel does not take any
 * more (ENOENT: answered; ENODEV: unmounted) is nothing to us. */
void nf_fuse_reply(struct nf_transport *t, uint32_t slot, int err, const void *data, size_t len)
{
	struct nf_fuse_connection *c = nf_fuse_get(t, slot);
	struct fuse_in_header in;
	struct fuse_out_header out;
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)(uintptr_t)data, err ? 0 : len } };
	ssize_t n;

	if (!c)
		return;
	memcpy(&in, nf_fuse_record(t, slot)->head, sizeof(in));
	out = (struct fuse_out_header){ .len = (uint32_t)(sizeof(out) + iov[1].iov_len),
					.error = -err, .unique = in.unique };
	n = writev(c->fd, iov, iov[1].iov_len ? 2 : 1);
	(void)n;
	nf_fuse_put(t, c);
}

uint8_t *nf_fuse_take_buffer(struct nf_transport *t)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	uint8_t *buffer = NULL;

	pthread_mutex_lock(&f->lock);
	if (f->nspare)
		buffer = f->spare[--f->nspare];
	pthread_mutex_unlock(&f->lock);
	return buffer ? buffer : malloc(NF_FUSE_BUFFER);
}

void nf_fuse_give_buffer(struct nf_transport *t, uint8_t *buffer)
{
	struct nf_fuse *f = (struct nf_fuse *)t;

	pthread_mutex_lock(&f->lock);
	if (f->nspare < sizeof(f->spare) / sizeof(f->spare[0])) {
		f->spare[f->nspare++] = buffer;
		buffer = NULL;
	}
	pthread_mutex_unlock(&f->lock);
	free(buffer);
}

/* -- the loop ---------------------------------------------------------------------------------- */

static uint32_t free_record(struct nf_transport *t)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	uint32_t tried, slot;

	for (tried = 0; tried < t->slots; tried++) {
		slot = (f->cursor + tried) % t->slots;
		if (!atomic_load(&t->requests[slot].used)) {
			f->cursor = (slot + 1) % t->slots;
			return slot;
		}
	}
	return t->slots;
}

/* One message.  0, or a negative errno: -EAGAIN, there is none. */
static int drain_one(struct nf_transport *t, const struct nf_fuse_connection *c, uint32_t id,
		     uint32_t slot)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	struct nf_fuse_record *m = nf_fuse_record(t, slot);
	struct iovec iov[2] = { { m->head, NF_FUSE_HEAD }, { f->rest, sizeof(f->rest) } };
	struct fuse_in_header in;
	ssize_t n;

	nf_area_use(&t->area, slot);
	__atomic_store_n(&m->connection, id, __ATOMIC_RELEASE);
	n = readv(c->fd, iov, 2);
	if (n < 0)
		return -errno;
	memcpy(&in, m->head, sizeof(in));
	if ((size_t)n < sizeof(in) || in.len != (uint32_t)n) {	/* the kernel never sends this */
		nf_fuse_clear(t, slot);
		return n ? -EIO : -ENODEV;
	}
	atomic_fetch_add(&t->core->events, 1);
	f->on_message(t, slot);
	return 0;
}

static bool is_end(int err)
{
	return err == -ENODEV || err == -EPERM || err == -ECONNABORTED || err == -EBADF;
}

static enum nf_more drain_connection(struct nf_transport *t, struct nf_fuse_connection *c,
				     uint32_t id, unsigned int *budget)
{
	uint32_t slot;
	int rc;

	for (; *budget; --*budget) {
		slot = free_record(t);
		if (slot == t->slots)
			return NF_NO_SLOT;
		rc = drain_one(t, c, id, slot);
		if (rc == -EAGAIN)
			return NF_EMPTY;
		if (is_end(rc)) {
			c->ended = true;
			return NF_EMPTY;
		}
		if (rc < 0 && rc != -EINTR && rc != -ENOENT && rc != -EIO) {
			nf_queue_push(&t->core->queue,
				      &(struct nf_event){ .type = NF_EV_BROKEN, .fd = -1,
							  .len = (uint64_t)-rc });
			return NF_FAILED;
		}
	}
	return NF_MORE;
}

/* Was it not waited for, or is something there? */
static bool may_have_more(const struct nf_fuse_connection *c)
{
	return !c->watch.armed || c->watch.fired;
}

/* The next connection behind `c` that is in use, with its id; the loop's own way along the list. */
static struct nf_fuse_connection *next_open(struct nf_fuse *f, struct nf_fuse_connection *c,
					    uint32_t *id)
{
	pthread_mutex_lock(&f->lock);
	for (c = c ? c->next : f->connections; c; c = c->next)
		if (c->id && !c->ended)
			break;
	if (c) {
		*id = c->id;
		c->users++;
	}
	pthread_mutex_unlock(&f->lock);
	return c;
}

enum nf_more nf_fuse_drain(struct nf_transport *t, unsigned int budget)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	struct nf_fuse_connection *c, *next;
	enum nf_more all = NF_EMPTY, one;
	uint32_t id = 0, n = 0;

	pthread_mutex_lock(&f->lock);
	for (c = f->connections; c; c = c->next)
		n += c->id && !c->ended && may_have_more(c);
	pthread_mutex_unlock(&f->lock);
	/* each gets its part: one that is busy holds up no other, and one more may come meanwhile */
	for (c = next_open(f, NULL, &id); c; c = next) {
		unsigned int share = n && n < budget ? budget / n : 1;

		one = may_have_more(c) ? drain_connection(t, c, id, &share) : NF_EMPTY;
		if (one > all)
			all = one;
		next = one == NF_NO_SLOT ? NULL : next_open(f, c, &id);
		nf_fuse_put(t, c);
	}
	return all;
}

void nf_fuse_arm(struct nf_transport *t, struct nf_waiter *w)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	struct nf_fuse_connection *c, *next;
	uint32_t id = 0;

	for (c = next_open(f, NULL, &id); c; c = next) {
		c->watch.fd = c->fd;
		c->watch.ready = &t->ready;
		nf_waiter_watch(w, &c->watch);
		next = next_open(f, c, &id);
		nf_fuse_put(t, c);
	}
}

void nf_fuse_rest(struct nf_transport *t)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	struct nf_fuse_connection *c;

	pthread_mutex_lock(&f->lock);
	for (c = f->connections; c; c = c->next)
		c->watch.armed = false;
	pthread_mutex_unlock(&f->lock);
}

void nf_fuse_free_connections(struct nf_fuse *f)
{
	struct nf_fuse_connection *c, *next;

	for (c = f->connections; c; c = next) {
		next = c->next;
		free(c);
	}
	while (f->nspare)
		free(f->spare[--f->nspare]);
}
