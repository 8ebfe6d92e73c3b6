/*
 * The cachefiles on-demand dialect (reference kernel-transports 1.3 - 1.6).
 *
 * What is read is on record (journal.h) until it is answered, and the descriptors of
 * objects are parked: so a successor can answer, where the kernel has no
 * `restore` to make it send again.
 *
 * A record is taken while its len is not 0: an OPEN until copen, a READ until READ_COMPLETE,
 * a CLOSE until the object is forgotten; that of an object until it is closed.
 *
 * Longer than other files, because one order of writes to the record holds for messages, objects
 * and the take-over that reads it.
 */
#include "cachefiles.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define ERROR_PAUSE_US 1000
#define OP_OPEN 0
#define OP_CLOSE 1
#define OP_READ 2
#define READ_COMPLETE _IOW(0x98, 1, int)
#define HEADER_LEN 16u

struct msg_open {
	uint32_t volume_key_size;
	uint32_t cookie_key_size;
	uint32_t fd;
	uint32_t flags;
};

struct msg_read {
	uint64_t off;
	uint64_t len;
};

struct cachefiles {
	struct nf_transport t;
	atomic_int keeper_fd;		/* see nf_core_keep_by */
	atomic_uint *objects;		/* of the records of open objects: their numbers; 0: free */
};

static struct cachefiles *mine(struct nf_transport *t)
{
	return (struct cachefiles *)t;
}

static struct nf_message *message_of(const struct nf_transport *t, uint32_t slot)
{
	return nf_transport_record(t, slot);
}

static struct nf_message *object_of(const struct nf_transport *t, uint32_t i)
{
	return (struct nf_message *)(t->kept.records + (size_t)i * t->kept.record_size);
}

static void clear(struct nf_message *m)
{
	__atomic_store_n(&m->len, 0, __ATOMIC_RELEASE);
}

static void release(struct nf_request *r)
{
	clear(message_of(r->via, r->slot));
	nf_request_release(r);
}

static struct nf_request *take(struct nf_transport *t, uint32_t slot)
{
	struct nf_request *r = nf_request_take(t, slot);

	r->unique = message_of(t, slot)->msg_id;
	return r;
}

/* A taken record of one kind that is about `number`: an OPEN's msg_id, a CLOSE's object; or NULL. */
static struct nf_request *find(struct nf_transport *t, uint32_t opcode, uint32_t number)
{
	uint32_t slot;

	for (slot = 0; slot < t->slots; slot++) {
		const struct nf_message *m = message_of(t, slot);

		if (atomic_load(&t->requests[slot].used) && m->opcode == opcode &&
		    (opcode == OP_OPEN ? m->msg_id : m->object_id) == number)
			return &t->requests[slot];
	}
	return NULL;
}

/*
 * There is no errno for a READ: completed without data, its reader gets EIO
 * (the kernel looks once more and finds the hole).
 */
static void answer(struct nf_transport *t, struct nf_request *r, int err)
{
	(void)t, (void)err;
	/* EINVAL: the reader was killed and its request with it */
	ioctl(r->fd, READ_COMPLETE, (unsigned long)r->unique);
	release(r);
}

int nf_cachefiles_answer_open(struct nf_transport *t, uint32_t msg_id, int64_t size)
{
	int device = atomic_load(&t->fd), rc = 0;
	/* before the answer: behind it, a new OPEN may have the same number */
	struct nf_request *r = find(t, OP_OPEN, msg_id);
	char text[64];
	int n = snprintf(text, sizeof(text), "copen %u,%lld", msg_id, (long long)size);

	if (device < 0)
		return -EBADF;
	if (write(device, text, (size_t)n) < 0)
		rc = -errno;
	if (r)
		release(r);
	return rc;
}

/* -- objects on record --------------------------------------------------------------------------- */

/* When the record is full, a successor finds the object closed, as it is without a keeper. */
static void put_on_record(struct nf_transport *t, const struct nf_message *m)
{
	atomic_uint *objects = mine(t)->objects;
	struct nf_message *to;
	uint32_t i;

	for (i = 0; i < t->kept.slots; i++)
		if (!atomic_load(&objects[i]))
			break;
	if (i == t->kept.slots)
		return;
	nf_area_use(&t->kept, i);
	to = object_of(t, i);
	to->msg_id = m->msg_id;
	to->opcode = m->opcode;
	to->object_id = m->object_id;
	memcpy(to->body, m->body, m->len - HEADER_LEN);
	__atomic_store_n(&to->len, m->len, __ATOMIC_RELEASE);
	atomic_store(&objects[i], m->object_id);
}

void nf_cachefiles_closed(struct nf_transport *t, uint32_t kernel_object)
{
	atomic_uint *objects = mine(t)->objects;
	struct nf_request *r;
	uint32_t i;

	for (i = 0; i < t->kept.slots && kernel_object; i++) {
		if (atomic_load(&objects[i]) != kernel_object)
			continue;
		clear(object_of(t, i));
		atomic_store(&objects[i], 0);
	}
	while ((r = find(t, OP_CLOSE, kernel_object)))
		release(r);
}

/* Python does the same, and waits for a keeper that is slow or lost: here it is only sooner. */
static void hand_over(struct nf_transport *t, uint32_t kernel_object, int fd)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .room = { 0 } };
	char text[64];
	struct iovec iov = { .iov_base = text };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room,
			    .msg_controllen = sizeof(control.room) };
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&h);
	int keeper = atomic_load(&mine(t)->keeper_fd);
	ssize_t n;

	if (keeper < 0)
		return;
	iov.iov_len = (size_t)snprintf(text, sizeof(text), "keep object.%u", kernel_object);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	n = sendmsg(keeper, &h, MSG_DONTWAIT | MSG_NOSIGNAL);
	(void)n;
}

/* -- messages ------------------------------------------------------------------------------------ */

/* False: its keys do not fit. */
static bool parse_open(const struct nf_message *m, struct nf_event *ev)
{
	struct msg_open o;
	const uint8_t *keys = m->body + sizeof(o);
	size_t len = m->len - HEADER_LEN;

	if (m->len < HEADER_LEN + sizeof(o) || m->len > sizeof(*m))
		return false;
	memcpy(&o, m->body, sizeof(o));
	ev->msg_id = m->msg_id;
	ev->kernel_object = m->object_id;
	ev->fd = (int32_t)o.fd;
	if (!o.volume_key_size || o.volume_key_size > NF_KEY_MAX || o.cookie_key_size > NF_KEY_MAX ||
	    sizeof(o) + o.volume_key_size + o.cookie_key_size > len)
		return false;
	ev->volume_len = o.volume_key_size - 1;	/* its size counts the NUL */
	ev->cookie_len = o.cookie_key_size;
	memcpy(ev->volume, keys, ev->volume_len);
	memcpy(ev->cookie, keys + o.volume_key_size, ev->cookie_len);
	return true;
}

static void handle_open(struct nf_transport *t, struct nf_request *r)
{
	const struct nf_message *m = message_of(t, r->slot);
	struct nf_event ev = { .type = NF_EV_OPEN, .fd = -1 };
	bool good = parse_open(m, &ev);

	if (!good) {
		nf_cachefiles_answer_open(t, m->msg_id, -EINVAL);
		if (ev.fd >= 0)
			close(ev.fd);
		return;
	}
	fcntl(ev.fd, F_SETFD, FD_CLOEXEC);
	put_on_record(t, m);
	hand_over(t, ev.kernel_object, ev.fd);
	nf_queue_push(&t->core->queue, &ev);
}

static void admit(struct nf_object *o, struct nf_request *r)
{
	const struct nf_message *m = message_of(r->via, r->slot);
	struct msg_read range;

	r->fd = o->fill_fd;
	r->object = o->id;
	if (m->len < HEADER_LEN + sizeof(range)) {
		nf_request_answer(r, EIO);
		return;
	}
	memcpy(&range, m->body, sizeof(range));
	r->off = range.off;
	r->len = range.len;
	atomic_store(&r->t_ns, nf_now_ns());
	nf_request_admit(o, r, 0);
}

static void handle_read(struct nf_transport *t, struct nf_request *r)
{
	struct nf_object *o = nf_object_by_kernel(&t->core->table, message_of(t, r->slot)->object_id);

	if (!o) {	/* closed here while the READ was on its way */
		release(r);
		nf_queue_push(&t->core->queue, &(struct nf_event){ .type = NF_EV_LOST, .fd = -1 });
		return;
	}
	admit(o, r);
	nf_object_put(o);
}

static void handle_close(struct nf_transport *t, struct nf_request *r)
{
	uint32_t number = message_of(t, r->slot)->object_id;
	struct nf_object *o = nf_object_by_kernel(&t->core->table, number);
	struct nf_event ev = { .type = NF_EV_CLOSE, .kernel_object = number, .fd = -1 };

	if (!o) {
		release(r);
		return;
	}
	ev.object = o->id;
	nf_object_put(o);
	nf_queue_push(&t->core->queue, &ev);
}

static void handle(struct nf_transport *t, uint32_t slot)
{
	struct nf_request *r = take(t, slot);

	atomic_fetch_add(&t->core->events, 1);
	switch (message_of(t, slot)->opcode) {
	case OP_OPEN:
		handle_open(t, r);
		break;
	case OP_READ:
		handle_read(t, r);
		break;
	case OP_CLOSE:
		handle_close(t, r);
		break;
	default:
		release(r);
	}
}

/* The next free record, from the lowest: those behind take no memory until they are needed. */
static bool free_slot(const struct nf_transport *t, uint32_t *slot)
{
	for (*slot = 0; *slot < t->slots; ++*slot)
		if (!atomic_load(&t->requests[*slot].used))
			return true;
	return false;
}

/*
 * The kernel has failed this one message with the error, and has maybe others:
 * it announces each but once.  EEXIST: `restore` met an OPEN that is not answered yet.
 */
static bool is_of_one_message(int err)
{
	return err == EMFILE || err == ENFILE || err == ENOMEM || err == EEXIST;
}

static enum nf_more drain(struct nf_transport *t, unsigned int budget)
{
	struct nf_message *m;
	uint32_t slot;
	ssize_t n;

	for (; budget; budget--) {
		if (!free_slot(t, &slot))
			return NF_NO_SLOT;
		m = message_of(t, slot);
		nf_area_use(&t->area, slot);
		/* its page is there now: a kill in a page fault would cost the kernel's copy */
		clear(m);
		n = read(atomic_load(&t->fd), m, sizeof(*m));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return NF_EMPTY;
		if (n < 0) {
			bool of_one = is_of_one_message(errno);

			nf_queue_push(&t->core->queue,
				      &(struct nf_event){ .type = NF_EV_BROKEN, .fd = -1,
							  .len = (uint64_t)errno });
			if (!of_one)
				return NF_FAILED;
			usleep(ERROR_PAUSE_US);
			continue;
		}
		if ((size_t)n < HEADER_LEN) {	/* 0 means that nothing is pending */
			clear(m);
			return NF_EMPTY;
		}
		m->len = (uint32_t)n;
		handle(t, slot);
	}
	return NF_MORE;
}

int nf_cachefiles_attach(struct nf_transport *t, int device)
{
	int none = -1;

	return atomic_compare_exchange_strong(&t->fd, &none, device) ? 0 : -EBUSY;
}

int nf_cachefiles_keep_by(struct nf_transport *t, int socket)
{
	int none = -1;

	return atomic_compare_exchange_strong(&mine(t)->keeper_fd, &none, socket) ? 0 : -EBUSY;
}

/* -- take-over ----------------------------------------------------------------------------------- */

static int occupy(struct nf_transport *t)
{
	uint32_t i;

	atomic_init(&mine(t)->keeper_fd, -1);
	mine(t)->objects = calloc(t->kept.slots, sizeof(*mine(t)->objects));
	if (!mine(t)->objects)
		return -ENOMEM;
	for (i = 0; i < *t->area.used; i++)
		if (message_of(t, i)->len)
			take(t, i);
	for (i = 0; i < *t->kept.used; i++)
		if (object_of(t, i)->len)
			atomic_init(&mine(t)->objects[i], object_of(t, i)->object_id);
	return 0;
}

static void destroy(struct nf_transport *t)
{
	free(mine(t)->objects);
}

static int settle(struct nf_transport *t, bool all_served)
{
	uint32_t i;
	int n = 0;

	(void)all_served;
	for (i = 0; i < *t->area.used; i++) {
		struct nf_request *r = &t->requests[i];
		struct nf_object *o;

		if (!atomic_load(&r->used) || message_of(t, i)->opcode != OP_READ)
			continue;
		n++;
		o = nf_object_by_kernel(&t->core->table, message_of(t, i)->object_id);
		if (!o) {	/* the kernel failed it when its object's last descriptor was closed */
			release(r);
			continue;
		}
		admit(o, r);
		nf_object_put(o);
	}
	return n;
}

int nf_cachefiles_next_inherited(struct nf_transport *t, uint32_t what, uint32_t *cursor,
				 struct nf_event *out)
{
	bool objects = what == NF_INHERITED_OBJECTS;
	uint32_t used = objects ? *t->kept.used : *t->area.used;
	uint32_t opcode = what == NF_INHERITED_CLOSES ? OP_CLOSE : OP_OPEN;

	while (*cursor < used) {
		const struct nf_message *m = objects ? object_of(t, *cursor) : message_of(t, *cursor);

		++*cursor;
		if (!m->len || m->opcode != opcode)
			continue;
		memset(out, 0, sizeof(*out));
		if (opcode == OP_OPEN)
			parse_open(m, out);
		out->type = opcode == OP_OPEN ? NF_EV_OPEN : NF_EV_CLOSE;
		out->msg_id = m->msg_id;
		out->kernel_object = m->object_id;
		out->fd = -1;
		return 1;
	}
	return 0;
}

void nf_cachefiles_sent_again(struct nf_transport *t)
{
	uint32_t i;

	for (i = 0; i < *t->area.used; i++)
		/* an OPEN that is sent again has the same msg_id: its answer is this one's too */
		if (atomic_load(&t->requests[i].used) && message_of(t, i)->opcode != OP_OPEN)
			release(&t->requests[i]);
}

const struct nf_transport_ops nf_cachefiles = {
	.name = "cachefiles",
	.kind = NF_AREA_CACHEFILES,
	.record_size = NF_MESSAGE_SIZE,
	.kept_kind = NF_AREA_CACHEFILES_OBJECTS,
	.kept_size = NF_MESSAGE_SIZE,
	.size = sizeof(struct cachefiles),
	.occupy = occupy,
	.settle = settle,
	.arm = nf_transport_arm,
	.drain = drain,
	.answer = answer,
	.destroy = destroy,
};
