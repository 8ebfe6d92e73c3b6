/*
 * The fuse dialect (reference stock-kernels 4): what the kernel asks over connections, and what of
 * it waits for bytes.
 *
 * A connection (fuse_connections.c) is one mount, of one image, and a server says what it shows:
 * objects as files, on which the kernel's EROFS is mounted (fuse_files.c), one file of all of them
 * (fuse_flat.c), or the image's own tree (fuse_tree.c).  A READ is the kernel's question, and its
 * answer carries the bytes, out of the cache files.  A file may have pieces in several objects: a
 * READ is admitted to one after another.
 *
 * Nothing depends on a handle: OPEN and FLUSH are refused with ENOSYS, after which the kernel
 * opens and closes files without asking.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuse_internal.h"

#define MAX_WRITE 4096u
#define MAX_PAGES (NF_FUSE_BUFFER / NF_PAGE)
#define MAX_BACKGROUND 64u

static void dispatch(struct nf_transport *t, uint32_t slot);

/* Its answer was written, or it needs none. */
static void finish(struct nf_transport *t, uint32_t slot)
{
	nf_fuse_clear(t, slot);
	nf_request_release(&t->requests[slot]);
}

static void fail(struct nf_transport *t, uint32_t slot, int err)
{
	nf_fuse_reply(t, slot, err == ENOSPC ? ENOSPC : EIO, NULL, 0);
	finish(t, slot);
}

/* Something that the message needs is not known (yet), as `came` was: EIO, or it waits. */
static void wait_or_fail(struct nf_transport *t, uint32_t slot, unsigned int came)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	bool waits;

	pthread_mutex_lock(&f->lock);
	waits = f->holding;
	if (waits)
		atomic_store(&f->unclaimed[slot], true);
	pthread_mutex_unlock(&f->lock);
	if (!waits) {
		atomic_fetch_add(&t->core->denied, 1);
		fail(t, slot, EIO);
	} else if (atomic_load(&f->came) != came && atomic_exchange(&f->unclaimed[slot], false)) {
		/* it came before somebody could see that it is waited for */
		dispatch(t, slot);
	}
}

/* -- READs ------------------------------------------------------------------------------------- */

struct question {
	uint64_t node;
	uint64_t off;
	uint64_t end;
	uint32_t pid;
};

static bool question_of(struct nf_transport *t, uint32_t slot, struct question *q)
{
	struct fuse_in_header in;
	struct fuse_read_in body;

	memcpy(&in, nf_fuse_record(t, slot)->head, sizeof(in));
	memcpy(&body, nf_fuse_body(t, slot), sizeof(body));
	*q = (struct question){ in.nodeid, body.offset, body.offset + body.size, in.pid };
	return in.len >= sizeof(in) + sizeof(body) && body.size <= NF_FUSE_BUFFER &&
	       body.offset <= INT64_MAX - NF_FUSE_BUFFER;
}

/* Zeros behind the end of an object belong to its last page. */
static bool read_whole(const struct nf_object *o, uint8_t *to, uint64_t len, uint64_t off)
{
	uint64_t there = off < o->size ? o->size - off : 0;
	ssize_t n;

	if (len > there) {
		memset(to + there, 0, len - there);
		len = there;
	}
	for (; len; to += n, len -= (uint64_t)n, off += (uint64_t)n) {
		n = pread(o->fill_fd, to, len, (off_t)off);
		if (n < 0 && errno == EINTR)
			n = 0;
		else if (n <= 0)
			return false;
	}
	return true;
}

static bool read_piece(struct nf_transport *t, const struct nf_fuse_piece *p, uint8_t *to)
{
	struct nf_object *o = nf_object_by_id(&t->core->table, (uint32_t)p->object);
	bool right;

	if (!o)
		return false;
	/* what is lost meanwhile (a write-back failed) may have been read already */
	right = read_whole(o, to, p->len, p->off) &&
		(p->off >= o->size || nf_object_present(o, p->off, p->len));
	nf_object_put(o);
	return right;
}

/* All of its pieces are present; a positive errno when they cannot be had. */
static int reply_bytes(struct nf_transport *t, uint32_t slot, const struct nf_fuse_connection *c,
		       const struct question *q)
{
	uint8_t *buffer = nf_fuse_take_buffer(t);
	struct nf_fuse_piece p = { .len = 1 };
	uint64_t off = q->off;
	int err = buffer ? 0 : EIO;

	while (!err && off < q->end) {
		err = -c->shown.server->piece(t, c, q->node, off, q->end - off, &p);
		if (err || !p.len)
			break;
		if (!p.object)
			memset(buffer + (off - q->off), 0, p.len);
		else if (!read_piece(t, &p, buffer + (off - q->off)))
			err = EIO;
		off += p.len;
	}
	if (!err)
		nf_fuse_reply(t, slot, 0, buffer, off - q->off);
	if (buffer)
		nf_fuse_give_buffer(t, buffer);
	return err;
}

/* The request waits for the next of its pieces, or is answered when there is none left. */
static void advance(struct nf_transport *t, const struct nf_fuse_connection *c, uint32_t slot)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	struct nf_request *r = &t->requests[slot];
	unsigned int came = atomic_load(&f->came);
	struct nf_fuse_piece p = { 0 };
	struct nf_object *o;
	struct question q;
	int err = 0;

	question_of(t, slot, &q);
	do {	/* nobody has to be waited for because of zeros */
		f->done[slot] += p.len;
		p.len = 0;
		if (f->done[slot] < q.end)
			err = -c->shown.server->piece(t, c, q.node, f->done[slot],
						      q.end - f->done[slot], &p);
	} while (!err && p.len && !p.object);
	if (!err && !p.len) {
		err = reply_bytes(t, slot, c, &q);
		if (!err) {
			finish(t, slot);
			return;
		}
	}
	if (err) {
		fail(t, slot, err);
		return;
	}
	o = p.object <= UINT32_MAX ?
		    nf_object_by_id(&t->core->table, (uint32_t)p.object) : NULL;
	if (!o) {
		wait_or_fail(t, slot, came);
		return;
	}
	f->done[slot] += p.len;
	r->off = p.off;
	r->len = p.len;
	r->object = o->id;
	t->area.meta[slot].t_ns = atomic_load(&r->t_ns);
	__atomic_store_n(&t->area.meta[slot].object, o->id, __ATOMIC_RELEASE);
	nf_request_admit(o, r, (int)q.pid);
	nf_object_put(o);
}

static void answer(struct nf_transport *t, struct nf_request *r, int err)
{
	struct nf_fuse_connection *c = nf_fuse_get(t, r->slot);

	if (!c)		/* nobody is there to be told */
		finish(t, r->slot);
	else if (err)
		fail(t, r->slot, err);
	else
		advance(t, c, r->slot);
	if (c)
		nf_fuse_put(t, c);
}

static void admit_read(struct nf_transport *t, const struct nf_fuse_connection *c, uint32_t slot)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	struct question q;

	if (!question_of(t, slot, &q)) {
		fail(t, slot, EIO);
		return;
	}
	f->done[slot] = q.off;
	atomic_store(&t->requests[slot].t_ns, nf_now_ns());
	advance(t, c, slot);
}

/* -- other messages ---------------------------------------------------------------------------- */

static void reply_init(struct nf_transport *t, uint32_t slot, const struct nf_fuse_connection *c)
{
	const uint64_t wanted = c->shown.server->init_flags | FUSE_ASYNC_READ | FUSE_MAX_PAGES |
				FUSE_PARALLEL_DIROPS;
	struct fuse_init_in in;
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.max_background = MAX_BACKGROUND,
		.congestion_threshold = MAX_BACKGROUND,
		.max_write = MAX_WRITE,
		.time_gran = 1,
		.max_pages = MAX_PAGES,
	};

	memcpy(&in, nf_fuse_body(t, slot), sizeof(in));
	out.minor = in.minor < 31 ? in.minor : 31;
	out.max_readahead = in.max_readahead;
	out.flags = (uint32_t)(in.flags & wanted);
	/* 7.23 (Linux 3.15) is the first with this answer */
	if (in.major != FUSE_KERNEL_VERSION || in.minor < 23)
		nf_fuse_reply(t, slot, EPROTO, NULL, 0);
	else
		nf_fuse_reply(t, slot, 0, &out, sizeof(out));
}

static void handle(struct nf_transport *t, const struct nf_fuse_connection *c, uint32_t slot)
{
	struct fuse_in_header in;

	memcpy(&in, nf_fuse_record(t, slot)->head, sizeof(in));
	switch (in.opcode) {
	case FUSE_INIT:
		reply_init(t, slot, c);
		break;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_DESTROY:
		nf_fuse_reply(t, slot, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:	/* the kernel expects no answer of these */
		break;
	default:
		if (in.len < sizeof(in) || !c->shown.server->handle(t, slot, c, &in))
			nf_fuse_reply(t, slot, ENOSYS, NULL, 0);
	}
	finish(t, slot);
}

/* The request of the record is taken. */
static void dispatch(struct nf_transport *t, uint32_t slot)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	unsigned int came = atomic_load(&f->came);
	struct nf_fuse_connection *c = nf_fuse_get(t, slot);
	const struct fuse_in_header *in = (const void *)nf_fuse_record(t, slot)->head;

	if (!c)
		finish(t, slot);
	else if (!__atomic_load_n(&c->shown.server, __ATOMIC_ACQUIRE))
		wait_or_fail(t, slot, came);
	else if (in->opcode == FUSE_READ)
		admit_read(t, c, slot);
	else
		handle(t, c, slot);
	if (c)
		nf_fuse_put(t, c);
}

static void on_message(struct nf_transport *t, uint32_t slot)
{
	struct nf_request *r = nf_request_take(t, slot);
	const struct fuse_in_header *in = (const void *)nf_fuse_record(t, slot)->head;

	r->unique = in->unique;
	dispatch(t, slot);
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
	f->done = calloc(t->slots, sizeof(*f->done));
	if (!f->unclaimed || !f->done)
		return -ENOMEM;
	for (slot = 0; slot < *t->area.used; slot++)
		if (*nf_fuse_len(t, slot))
			nf_request_take(t, slot);
	return 0;
}

static int settle(struct nf_transport *t, bool all_served)
{
	const struct fuse_in_header *in;
	uint32_t slot;
	int n = 0;

	(void)all_served;	/* a READ says itself what it is for */
	for (slot = 0; slot < *t->area.used; slot++) {
		if (!atomic_load(&t->requests[slot].used))
			continue;
		in = (const void *)nf_fuse_record(t, slot)->head;
		n += in->opcode == FUSE_READ;
		if (in->len < sizeof(*in))
			finish(t, slot);
		else
			dispatch(t, slot);
	}
	return n;
}

/* Each once more, now that there may be an object for it, or nobody waits for one any more. */
static void dispatch_unclaimed(struct nf_transport *t)
{
	struct nf_fuse *f = (struct nf_fuse *)t;
	uint32_t slot;

	for (slot = 0; slot < t->slots; slot++)
		if (atomic_exchange(&f->unclaimed[slot], false))
			dispatch(t, slot);
}

void nf_fuse_wait_for_objects(struct nf_transport *t, bool wait)
{
	struct nf_fuse *f = (struct nf_fuse *)t;

	pthread_mutex_lock(&f->lock);
	f->holding = wait;
	pthread_mutex_unlock(&f->lock);
	if (!wait)
		dispatch_unclaimed(t);
}

void nf_fuse_objects_came(struct nf_transport *t)
{
	struct nf_fuse *f = (struct nf_fuse *)t;

	atomic_fetch_add(&f->came, 1);
	dispatch_unclaimed(t);
}

int nf_fuse_attach_files(struct nf_transport *t, uint32_t connection, int fd)
{
	return nf_fuse_connect(t, connection, fd, &(struct nf_fuse_shown){ .server = &nf_fuse_files });
}

int nf_fuse_attach_flat(struct nf_transport *t, uint32_t connection, int fd, const uint32_t *objects,
			const uint64_t *starts, uint32_t n)
{
	struct nf_fuse_shown shown = { .objects = objects, .starts = starts, .nobjects = n };

	shown.server = n ? &nf_fuse_flat : NULL;
	return nf_fuse_connect(t, connection, fd, &shown);
}

int nf_fuse_attach_tree(struct nf_transport *t, uint32_t connection, int fd, const uint8_t *image,
			size_t len, const uint32_t *objects, uint32_t nobjects)
{
	struct nf_fuse_shown shown = { .objects = objects, .nobjects = nobjects };
	int rc = 0;

	if (image) {
		shown.server = &nf_fuse_tree;
		rc = nf_tree_open(&shown.tree, image, len);
	}
	return rc ? rc : nf_fuse_connect(t, connection, fd, &shown);
}

static void destroy(struct nf_transport *t)
{
	struct nf_fuse *f = (struct nf_fuse *)t;

	nf_fuse_free_connections(f);
	free(f->unclaimed);
	free(f->done);
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
	.rest = nf_fuse_rest,
	.destroy = destroy,
};
