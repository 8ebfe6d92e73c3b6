/*
 * The fuse dialect: objects as files of a FUSE file system, on which the kernel's EROFS is mounted
 * (reference stock-kernels 4).
 *
 * A connection is a descriptor of /dev/fuse, one for each image.  Its root directory has a file
 * for every object, named by the object's id; object N is node N + 1.  A READ is the kernel's
 * question, and its answer carries the bytes, out of the cache file.
 *
 * One read(2) brings one message, and takes it from the kernel's queue in the same call: its head
 * goes into a record of the journal, the rest (of which nothing is wanted) elsewhere.  An answer is
 * one writev(2), whole or not at all; one that was given already is ENOENT and does no harm, so
 * whatever a dead predecessor left on record is answered once more.
 *
 * Nothing depends on a handle: OPEN is refused with ENOSYS, after which the kernel opens files
 * without asking.
 */
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fuse.h"

#define READ_BUFFER 8192u	/* FUSE_MIN_READ_BUFFER: with less the kernel says EINVAL */
#define MAX_WRITE 4096u
#define MAX_PAGES 256u		/* of one READ: 1 MiB */
#define MAX_BACKGROUND 64u
#define VALID_S 86400u
#define SPARE_BUFFERS 4u
#define BUFFER_SIZE (MAX_PAGES * NF_PAGE)
#define GONE UINT32_MAX		/* in a record: its connection has ended */
#define ROOT_NODE 1u

struct connection {
	uint32_t id;		/* 0: free */
	int fd;
	bool ended;		/* the kernel has closed it: nothing is read any more */
	uint32_t users;		/* who writes to fd */
	struct nf_watch watch;	/* armed ones stay where they are, so connections are never freed */
	struct connection *next;
};

struct fuse {
	struct nf_transport t;
	pthread_mutex_t lock;	/* connections, buffers, holding */
	pthread_cond_t idle;
	struct connection *connections;
	uint8_t *spare[SPARE_BUFFERS];
	unsigned int nspare;
	bool holding;		/* a READ of an object that is not known waits for it */
	atomic_bool *unclaimed;	/* by slot: such READs */
	uint32_t cursor;	/* where to look for free records; the loop's own */
	uint8_t rest[READ_BUFFER];	/* of a message; the loop's own */
};

static struct nf_fuse_record *record(const struct nf_transport *t, uint32_t slot)
{
	return nf_transport_record(t, slot);
}

static uint32_t *len_of(const struct nf_transport *t, uint32_t slot)
{
	return (uint32_t *)(void *)record(t, slot)->head;
}

static void clear(struct nf_transport *t, uint32_t slot)
{
	t->area.meta[slot].object = 0;
	__atomic_store_n(len_of(t, slot), 0, __ATOMIC_RELEASE);
}

/* -- connections ------------------------------------------------------------------------------- */

static struct connection *find(struct fuse *f, uint32_t id)
{
	struct connection *c;

	for (c = f->connections; c; c = c->next)
		if (c->id == id)
			return c;
	return NULL;
}

/* The connection's descriptor stays what it is until put.  NULL: there is none. */
static struct connection *get(struct fuse *f, uint32_t id)
{
	struct connection *c;

	pthread_mutex_lock(&f->lock);
	c = id ? find(f, id) : NULL;
	if (c)
		c->users++;
	pthread_mutex_unlock(&f->lock);
	return c;
}

static void put(struct fuse *f, struct connection *c)
{
	pthread_mutex_lock(&f->lock);
	c->users--;
	pthread_cond_broadcast(&f->idle);
	pthread_mutex_unlock(&f->lock);
}

int nf_fuse_connect(struct nf_transport *t, uint32_t id, int fd)
{
	struct fuse *f = (struct fuse *)t;
	struct connection *c;
	int rc = 0;

	if (!id || id == GONE || fd < 0)
		return -EINVAL;
	pthread_mutex_lock(&f->lock);
	if (find(f, id)) {
		rc = -EEXIST;
	} else {
		for (c = f->connections; c; c = c->next)
			if (!c->id && !c->users && !c->watch.armed)
				break;
		if (!c) {
			c = calloc(1, sizeof(*c));
			if (c) {
				c->next = f->connections;
				f->connections = c;
			}
		}
		if (c) {
			c->fd = fd;
			c->ended = false;
			c->id = id;
		} else {
			rc = -ENOMEM;
		}
	}
	pthread_mutex_unlock(&f->lock);
	return rc;
}

int nf_fuse_disconnect(struct nf_transport *t, uint32_t id)
{
	struct fuse *f = (struct fuse *)t;
	struct connection *c;
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
		if (__atomic_load_n(&record(t, slot)->connection, __ATOMIC_ACQUIRE) == id)
			__atomic_store_n(&record(t, slot)->connection, GONE, __ATOMIC_RELEASE);
	while (c->users)
		pthread_cond_wait(&f->idle, &f->lock);
	pthread_mutex_unlock(&f->lock);
	return 0;
}

/* -- answers ----------------------------------------------------------------------------------- */

/* To the message in the record; err is a positive errno or 0.  What the kernel does not take any
 * more (ENOENT: answered; ENODEV: unmounted) is nothing to us. */
static void reply(struct nf_transport *t, uint32_t slot, int err, const void *data, size_t len)
{
	struct fuse *f = (struct fuse *)t;
	struct connection *c = get(f, __atomic_load_n(&record(t, slot)->connection, __ATOMIC_ACQUIRE));
	struct fuse_in_header in;
	struct fuse_out_header out;
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)(uintptr_t)data, err ? 0 : len } };
	ssize_t n;

	if (!c)
		return;
	memcpy(&in, record(t, slot)->head, sizeof(in));
	out = (struct fuse_out_header){ .len = (uint32_t)(sizeof(out) + iov[1].iov_len),
					.error = -err, .unique = in.unique };
	n = writev(c->fd, iov, iov[1].iov_len ? 2 : 1);
	(void)n;
	put(f, c);
}

static uint8_t *take_buffer(struct fuse *f)
{
	uint8_t *buffer = NULL;

	pthread_mutex_lock(&f->lock);
	if (f->nspare)
		buffer = f->spare[--f->nspare];
	pthread_mutex_unlock(&f->lock);
	return buffer ? buffer : malloc(BUFFER_SIZE);
}

static void give_buffer(struct fuse *f, uint8_t *buffer)
{
	pthread_mutex_lock(&f->lock);
	if (f->nspare < SPARE_BUFFERS) {
		f->spare[f->nspare++] = buffer;
		buffer = NULL;
	}
	pthread_mutex_unlock(&f->lock);
	free(buffer);
}

static bool read_whole(int fd, uint8_t *to, size_t len, uint64_t off)
{
	ssize_t n;

	for (; len; to += n, len -= (size_t)n, off += (uint64_t)n) {
		n = pread(fd, to, len, (off_t)off);
		if (n < 0 && errno == EINTR)
			n = 0;
		else if (n <= 0)
			return false;
	}
	return true;
}

/* The bytes of a request that is present; a positive errno when they cannot be had. */
static int reply_bytes(struct nf_transport *t, const struct nf_request *r)
{
	struct fuse *f = (struct fuse *)t;
	struct nf_object *o = nf_object_by_id(&t->core->table, r->object);
	uint8_t *buffer = NULL;
	uint64_t len = r->len;
	int err = EIO;

	if (!o)
		return EIO;
	if (r->off >= o->size)
		len = 0;
	else if (len > o->size - r->off)
		len = o->size - r->off;
	if (len <= BUFFER_SIZE)
		buffer = take_buffer(f);
	/* what is lost meanwhile (a write-back failed) may have been read already */
	if (buffer && read_whole(o->fill_fd, buffer, len, r->off) &&
	    (!len || nf_object_present(o, r->off, len))) {
		reply(t, r->slot, 0, buffer, len);
		err = 0;
	}
	if (buffer)
		give_buffer(f, buffer);
	nf_object_put(o);
	return err;
}

static void answer(struct nf_transport *t, struct nf_request *r, int err)
{
	if (!err)
		err = reply_bytes(t, r);
	if (err)
		reply(t, r->slot, err == ENOSPC ? ENOSPC : EIO, NULL, 0);
	clear(t, r->slot);
	nf_request_release(r);
}

/* -- messages ---------------------------------------------------------------------------------- */

static void reply_init(struct nf_transport *t, uint32_t slot, const struct fuse_init_in *in)
{
	const uint32_t wanted = FUSE_ASYNC_READ | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS;
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = in->minor < 31 ? in->minor : 31,
		.max_readahead = in->max_readahead,
		.flags = in->flags & wanted,
		.max_background = MAX_BACKGROUND,
		.congestion_threshold = MAX_BACKGROUND,
		.max_write = MAX_WRITE,
		.time_gran = 1,
		.max_pages = MAX_PAGES,
	};

	/* 7.23 (Linux 3.15) is the first with this answer */
	if (in->major != FUSE_KERNEL_VERSION || in->minor < 23)
		reply(t, slot, EPROTO, NULL, 0);
	else
		reply(t, slot, 0, &out, sizeof(out));
}

/* False: it is not a node. */
static bool attributes_of(struct nf_transport *t, uint64_t node, struct fuse_attr *attr)
{
	struct nf_object *o;

	memset(attr, 0, sizeof(*attr));
	attr->ino = node;
	attr->nlink = 1;
	attr->blksize = NF_PAGE;
	if (node == ROOT_NODE) {
		attr->mode = S_IFDIR | 0500;
		return true;
	}
	o = node - 1 < UINT32_MAX ? nf_object_by_id(&t->core->table, (uint32_t)(node - 1)) : NULL;
	if (!o)
		return false;
	attr->mode = S_IFREG | 0400;
	attr->size = o->size;
	attr->blocks = (o->size + 511) / 512;
	nf_object_put(o);
	return true;
}

static void reply_attributes(struct nf_transport *t, uint32_t slot, uint64_t node)
{
	struct fuse_attr_out out = { .attr_valid = VALID_S };

	if (attributes_of(t, node, &out.attr))
		reply(t, slot, 0, &out, sizeof(out));
	else
		reply(t, slot, EIO, NULL, 0);
}

/* The object of a file name: a decimal number without anything else.  0: none. */
static uint64_t number_of(const char *name, size_t len)
{
	uint64_t number = 0;
	size_t i;

	for (i = 0; i < len && name[i]; i++) {
		if (name[i] < '0' || name[i] > '9' || i > 9)
			return 0;
		number = number * 10 + (uint64_t)(name[i] - '0');
	}
	return i == len || name[0] == '0' ? 0 : number;
}

static void reply_lookup(struct nf_transport *t, uint32_t slot, const struct fuse_in_header *in)
{
	const char *name = (const char *)record(t, slot)->head + sizeof(*in);
	size_t room = NF_FUSE_HEAD - sizeof(*in), len = in->len - sizeof(*in);
	struct fuse_entry_out out = { .entry_valid = VALID_S, .attr_valid = VALID_S };
	uint64_t number = number_of(name, len < room ? len : room);

	if (in->nodeid == ROOT_NODE && number && attributes_of(t, number + 1, &out.attr)) {
		out.nodeid = number + 1;
		reply(t, slot, 0, &out, sizeof(out));
	} else {
		reply(t, slot, ENOENT, NULL, 0);
	}
}

/* A READ of an object that is not known is EIO, or waits: then true. */
static bool admit_unknown(struct nf_transport *t, struct nf_request *r)
{
	struct fuse *f = (struct fuse *)t;
	bool waits;

	pthread_mutex_lock(&f->lock);
	waits = f->holding;
	if (waits)
		atomic_store(&f->unclaimed[r->slot], true);
	pthread_mutex_unlock(&f->lock);
	if (!waits)
		nf_request_answer(r, EIO);
	return waits;
}

/* The request of the record is taken. */
static void admit_read(struct nf_transport *t, uint32_t slot)
{
	struct nf_request *r = &t->requests[slot];
	struct fuse_in_header in;
	struct fuse_read_in body;
	struct nf_object *o = NULL;

	memcpy(&in, record(t, slot)->head, sizeof(in));
	memcpy(&body, record(t, slot)->head + sizeof(in), sizeof(body));
	r->unique = in.unique;
	r->off = body.offset;
	r->len = body.size;
	atomic_store(&r->t_ns, nf_now_ns());
	if (in.nodeid > ROOT_NODE && in.nodeid - 1 < UINT32_MAX)
		o = nf_object_by_id(&t->core->table, (uint32_t)(in.nodeid - 1));
	if (in.len < sizeof(in) + sizeof(body) || body.size > BUFFER_SIZE ||
	    body.offset > INT64_MAX - BUFFER_SIZE) {
		nf_request_answer(r, EIO);
	} else if (!o) {
		uint32_t id = (uint32_t)(in.nodeid - 1);

		/* it may have come before somebody could see that it is waited for */
		if (!admit_unknown(t, r) || !(o = nf_object_by_id(&t->core->table, id)))
			return;
		nf_object_put(o);
		if (atomic_exchange(&((struct fuse *)t)->unclaimed[slot], false))
			admit_read(t, slot);
		return;
	} else {
		r->object = o->id;
		t->area.meta[slot].t_ns = atomic_load(&r->t_ns);
		__atomic_store_n(&t->area.meta[slot].object, o->id, __ATOMIC_RELEASE);
		nf_request_admit(o, r, (int)in.pid);
	}
	if (o)
		nf_object_put(o);
}

/* Of a message in a record that is no READ: answered at once, and off the record. */
static void handle(struct nf_transport *t, uint32_t slot)
{
	struct fuse_in_header in;
	struct fuse_init_in init;

	memcpy(&in, record(t, slot)->head, sizeof(in));
	switch (in.opcode) {
	case FUSE_INIT:
		memcpy(&init, record(t, slot)->head + sizeof(in), sizeof(init));
		reply_init(t, slot, &init);
		break;
	case FUSE_LOOKUP:
		reply_lookup(t, slot, &in);
		break;
	case FUSE_GETATTR:
		reply_attributes(t, slot, in.nodeid);
		break;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_FLUSH:
	case FUSE_DESTROY:
		reply(t, slot, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:	/* the kernel expects no answer of these */
		break;
	default:
		reply(t, slot, ENOSYS, NULL, 0);
	}
	clear(t, slot);
}

/* -- the loop ---------------------------------------------------------------------------------- */

static uint32_t free_record(struct nf_transport *t)
{
	struct fuse *f = (struct fuse *)t;
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
static int drain_one(struct nf_transport *t, const struct connection *c, uint32_t id, uint32_t slot)
{
	struct fuse *f = (struct fuse *)t;
	struct nf_fuse_record *m = record(t, slot);
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
		clear(t, slot);
		return n ? -EIO : -ENODEV;
	}
	atomic_fetch_add(&t->core->events, 1);
	if (in.opcode == FUSE_READ) {
		nf_request_take(t, slot);
		admit_read(t, slot);
	} else {
		handle(t, slot);
	}
	return 0;
}

static bool is_end(int err)
{
	return err == -ENODEV || err == -EPERM || err == -ECONNABORTED || err == -EBADF;
}

static enum nf_more drain_connection(struct nf_transport *t, struct connection *c, uint32_t id,
				     unsigned int *budget)
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

/* The next connection behind `c` that is in use, with its id; the loop's own way along the list. */
static struct connection *next_open(struct fuse *f, struct connection *c, uint32_t *id)
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

static enum nf_more drain(struct nf_transport *t, unsigned int budget)
{
	struct fuse *f = (struct fuse *)t;
	struct connection *c = NULL, *next;
	enum nf_more all = NF_EMPTY, one;
	uint32_t id = 0, n = 0;

	for (c = next_open(f, NULL, &id); c; c = next_open(f, c, &id)) {
		n++;
		put(f, c);
	}
	/* each gets its part: one that is busy holds up no other */
	for (c = next_open(f, NULL, &id); c; c = next) {
		unsigned int share = budget / n ? budget / n : 1;

		one = drain_connection(t, c, id, &share);
		if (one > all)
			all = one;
		next = one == NF_NO_SLOT ? NULL : next_open(f, c, &id);
		put(f, c);
	}
	return all;
}

static void arm(struct nf_transport *t, struct nf_waiter *w)
{
	struct fuse *f = (struct fuse *)t;
	struct connection *c, *next;
	uint32_t id = 0;

	for (c = next_open(f, NULL, &id); c; c = next) {
		c->watch.fd = c->fd;
		c->watch.ready = &t->ready;
		nf_waiter_watch(w, &c->watch);
		next = next_open(f, c, &id);
		put(f, c);
	}
}

/* -- take-over --------------------------------------------------------------------------------- */

static int occupy(struct nf_transport *t)
{
	struct fuse *f = (struct fuse *)t;
	uint32_t slot;

	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->idle, NULL);
	f->unclaimed = calloc(t->slots, sizeof(*f->unclaimed));
	if (!f->unclaimed)
		return -ENOMEM;
	/* a message that the kernel cannot copy (a page fault of a process that is being killed)
	 * is EIO for its reader */
	mlock(t->area.records, (size_t)t->slots * sizeof(struct nf_fuse_record));
	for (slot = 0; slot < *t->area.used; slot++)
		if (*len_of(t, slot))
			nf_request_take(t, slot);
	return 0;
}

static int settle(struct nf_transport *t, bool all_served)
{
	struct fuse_in_header in;
	uint32_t slot;
	int n = 0;

	(void)all_served;	/* a READ says itself what it is for */
	for (slot = 0; slot < *t->area.used; slot++) {
		struct nf_request *r = &t->requests[slot];

		if (!atomic_load(&r->used))
			continue;
		memcpy(&in, record(t, slot)->head, sizeof(in));
		if (in.opcode == FUSE_READ && in.len >= sizeof(in)) {
			admit_read(t, slot);
			n++;
		} else {
			if (in.len >= sizeof(in))
				handle(t, slot);
			clear(t, slot);
			nf_request_release(r);
		}
	}
	return n;
}

/* Each once more, now that there may be an object for it, or nobody waits for one any more. */
static void admit_unclaimed(struct nf_transport *t)
{
	struct fuse *f = (struct fuse *)t;
	uint32_t slot;

	for (slot = 0; slot < t->slots; slot++)
		if (atomic_exchange(&f->unclaimed[slot], false))
			admit_read(t, slot);
}

void nf_fuse_wait_for_objects(struct nf_transport *t, bool wait)
{
	struct fuse *f = (struct fuse *)t;

	pthread_mutex_lock(&f->lock);
	f->holding = wait;
	pthread_mutex_unlock(&f->lock);
	if (!wait)
		admit_unclaimed(t);
}

void nf_fuse_objects_came(struct nf_transport *t)
{
	admit_unclaimed(t);
}

static void destroy(struct nf_transport *t)
{
	struct fuse *f = (struct fuse *)t;
	struct connection *c, *next;

	for (c = f->connections; c; c = next) {
		next = c->next;
		free(c);
	}
	while (f->nspare)
		free(f->spare[--f->nspare]);
	free(f->unclaimed);
	pthread_cond_destroy(&f->idle);
	pthread_mutex_destroy(&f->lock);
}

const struct nf_transport_ops nf_fuse = {
	.name = "fuse",
	.kind = NF_AREA_FUSE,
	.record_size = sizeof(struct nf_fuse_record),
	.size = sizeof(struct fuse),
	.occupy = occupy,
	.settle = settle,
	.arm = arm,
	.drain = drain,
	.answer = answer,
	.destroy = destroy,
};
