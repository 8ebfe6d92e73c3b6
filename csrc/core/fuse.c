/*
 * The fuse dialect: objects as files of a FUSE file system, on which the kernel's EROFS is mounted
 * (reference stock-kernels 4).
 *
 * A connection (fuse_connections.c) is one mount, of one image.  Its root directory has a file
 * for every object, named by the object's id; object N is node N + 1.  A READ is the kernel's
 * question, and its answer carries the bytes, out of the cache file.
 *
 * Nothing depends on a handle: OPEN is refused with ENOSYS, after which the kernel opens files
 * without asking.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuse_internal.h"

#define MAX_WRITE 4096u
#define MAX_PAGES 256u		/* of one READ: 1 MiB */
#define MAX_BACKGROUND 64u
#define VALID_S 86400u
#define BUFFER_SIZE (MAX_PAGES * NF_PAGE)
#define ROOT_NODE 1u

/* -- answers ----------------------------------------------------------------------------------- */

static uint8_t *take_buffer(struct nf_fuse *f)
{
	uint8_t *buffer = NULL;

	pthread_mutex_lock(&f->lock);
	if (f->nspare)
		buffer = f->spare[--f->nspare];
	pthread_mutex_unlock(&f->lock);
	return buffer ? buffer : malloc(BUFFER_SIZE);
}

static void give_buffer(struct nf_fuse *f, uint8_t *buffer)
{
	pthread_mutex_lock(&f->lock);
	if (f->nspare < sizeof(f->spare) / sizeof(f->spare[0])) {
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
	struct nf_fuse *f = (struct nf_fuse *)t;
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
		nf_fuse_reply(t, r->slot, 0, buffer, len);
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
		nf_fuse_reply(t, r->slot, err == ENOSPC ? ENOSPC : EIO, NULL, 0);
	nf_fuse_clear(t, r->slot);
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
		nf_fuse_reply(t, slot, EPROTO, NULL, 0);
	else
		nf_fuse_reply(t, slot, 0, &out, sizeof(out));
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
		nf_fuse_reply(t, slot, 0, &out, sizeof(out));
	else
		nf_fuse_reply(t, slot, EIO, NULL, 0);
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
	const char *name = (const char *)nf_fuse_record(t, slot)->head + sizeof(*in);
	size_t room = NF_FUSE_HEAD - sizeof(*in), len = in->len - sizeof(*in);
	struct fuse_entry_out out = { .entry_valid = VALID_S, .attr_valid = VALID_S };
	uint64_t number = number_of(name, len < room ? len : room);

	if (in->nodeid == ROOT_NODE && number && attributes_of(t, number + 1, &out.attr)) {
		out.nodeid = number + 1;
		nf_fuse_reply(t, slot, 0, &out, sizeof(out));
	} else {
		nf_fuse_reply(t, slot, ENOENT, NULL, 0);
	}
}

/* A READ of an object that is not known is EIO, or waits: then true. */
static bool admit_unknown(struct nf_transport *t, struct nf_request *r)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
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

	memcpy(&in, nf_fuse_record(t, slot)->head, sizeof(in));
	memcpy(&body, nf_fuse_record(t, slot)->head + sizeof(in), sizeof(body));
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
		if (atomic_exchange(&((struct nf_fuse *)t)->unclaimed[slot], false))
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

	memcpy(&in, nf_fuse_record(t, slot)->head, sizeof(in));
	switch (in.opcode) {
	case FUSE_INIT:
		memcpy(&init, nf_fuse_record(t, slot)->head + sizeof(in), sizeof(init));
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
		nf_fuse_reply(t, slot, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:	/* the kernel expects no answer of these */
		break;
	default:
		nf_fuse_reply(t, slot, ENOSYS, NULL, 0);
	}
	nf_fuse_clear(t, slot);
}

static void on_message(struct nf_transport *t, uint32_t slot)
{
	const struct fuse_in_header *in = (const void *)nf_fuse_record(t, slot)->head;

	if (in->opcode == FUSE_READ) {
		nf_request_take(t, slot);
		admit_read(t, slot);
	} else {
		handle(t, slot);
	}
}

/* -- take-over --------------------------------------------------------------------------------- */

static int occupy(struct nf_transport *t)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	uint32_t slot;

	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->idle, NULL);
	f->on_message = on_message;
	f->unclaimed = calloc(t->slots, sizeof(*f->unclaimed));
	if (!f->unclaimed)
		return -ENOMEM;
	/* a message that the kernel cannot copy (a page fault of a process that is being killed)
	 * is EIO for its reader */
	mlock(t->area.records, (size_t)t->slots * sizeof(struct nf_fuse_record));
	for (slot = 0; slot < *t->area.used; slot++)
		if (*nf_fuse_len(t, slot))
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
		memcpy(&in, nf_fuse_record(t, slot)->head, sizeof(in));
		if (in.opcode == FUSE_READ && in.len >= sizeof(in)) {
			admit_read(t, slot);
			n++;
		} else {
			if (in.len >= sizeof(in))
				handle(t, slot);
			nf_fuse_clear(t, slot);
			nf_request_release(r);
		}
	}
	return n;
}

/* Each once more, now that there may be an object for it, or nobody waits for one any more. */
static void admit_unclaimed(struct nf_transport *t)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	uint32_t slot;

	for (slot = 0; slot < t->slots; slot++)
		if (atomic_exchange(&f->unclaimed[slot], false))
			admit_read(t, slot);
}

void nf_fuse_wait_for_objects(struct nf_transport *t, bool wait)
{
	struct nf_fuse *f = (struct nf_fuse *)t;

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
	struct nf_fuse *f = (struct nf_fuse *)t;

	nf_fuse_free_connections(f);
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
	.size = sizeof(struct nf_fuse),
	.occupy = occupy,
	.settle = settle,
	.arm = nf_fuse_arm,
	.drain = nf_fuse_drain,
	.answer = answer,
	.destroy = destroy,
};
