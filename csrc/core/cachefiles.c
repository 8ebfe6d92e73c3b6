/*
 * The cachefiles on-demand dialect (reference kernel-transports 1.3 - 1.6).
 *
 * What is read is on record (journal.h) until it is answered, and the descriptors of
 * objects are with the keeper: so a successor can answer, where the kernel has no
 * `restore` to make it send again.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core_internal.h"

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

static struct nf_message *message_of(struct nf_core *c, uint32_t slot)
{
	return &c->journal.messages[slot - c->journal.nslots];
}

static uint32_t free_slot(struct nf_core *c)
{
	uint32_t slot;

	/* only the loop takes slots, so a free one stays free until it is used */
	for (slot = c->journal.nslots; slot < c->journal.nslots * 2; slot++)
		if (!__atomic_load_n(&c->slots[slot].used, __ATOMIC_ACQUIRE))
			return slot;
	return NF_NO_SLOT;
}

static void take_slot(struct nf_core *c, uint32_t slot)
{
	struct nf_slot *s = &c->slots[slot];

	memset(s, 0, sizeof(*s));
	s->next = NF_NO_SLOT;
	s->msg_id = message_of(c, slot)->msg_id;
	__atomic_store_n(&s->used, true, __ATOMIC_RELEASE);
}

static void free_up(struct nf_core *c, uint32_t slot)
{
	struct nf_slot *s = &c->slots[slot];

	s->t_ns = 0;
	nf_message_clear(message_of(c, slot));
	__atomic_store_n(&s->used, false, __ATOMIC_RELEASE);
}

/* Free the records of one kind that are about `number`: an OPEN's msg_id, a CLOSE's object. */
static void free_all(struct nf_core *c, uint32_t opcode, uint32_t number)
{
	uint32_t slot;

	for (slot = c->journal.nslots; slot < c->journal.nslots * 2; slot++) {
		const struct nf_message *m = message_of(c, slot);

		if (__atomic_load_n(&c->slots[slot].used, __ATOMIC_ACQUIRE) && m->opcode == opcode &&
		    (opcode == OP_OPEN ? m->msg_id : m->object_id) == number)
			free_up(c, slot);
	}
	if (atomic_exchange(&c->starved, false))
		nf_wake_loop(c);
}

/*
 * There is no errno for a READ: completed without data, its reader gets EIO
 * (the kernel looks once more and finds the hole).
 */
void nf_cachefiles_answer(struct nf_core *c, uint32_t slot)
{
	struct nf_slot *s = &c->slots[slot];

	/* EINVAL: the reader was killed and its request with it */
	ioctl(s->fd, READ_COMPLETE, (unsigned long)s->msg_id);
	free_up(c, slot);
}

int nf_cachefiles_copen(struct nf_core *c, uint32_t msg_id, int64_t size)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "copen %u,%lld", msg_id, (long long)size), rc = 0;

	if (c->cache_fd < 0)
		return -EBADF;
	if (write(c->cache_fd, text, (size_t)n) < 0)
		rc = -errno;
	free_all(c, OP_OPEN, msg_id);
	return rc;
}

/* -- objects on record --------------------------------------------------------------------------- */

/* When the record is full, a successor finds the object closed, as it is without a keeper. */
static void put_on_record(struct nf_core *c, const struct nf_message *m)
{
	struct nf_message *to;
	uint32_t i;

	for (i = 0; i < c->journal.nslots; i++)
		if (!__atomic_load_n(&c->kernel_objects[i], __ATOMIC_ACQUIRE))
			break;
	if (i == c->journal.nslots)
		return;
	if (c->journal.header->objects_used <= i)
		c->journal.header->objects_used = i + 1;
	to = &c->journal.objects[i];
	to->msg_id = m->msg_id;
	to->opcode = m->opcode;
	to->object_id = m->object_id;
	memcpy(to->body, m->body, m->len - HEADER_LEN);
	__atomic_store_n(&to->len, m->len, __ATOMIC_RELEASE);
	__atomic_store_n(&c->kernel_objects[i], m->object_id, __ATOMIC_RELEASE);
}

void nf_cachefiles_forget(struct nf_core *c, uint32_t kernel_object)
{
	uint32_t i;

	for (i = 0; i < c->journal.nslots; i++) {
		if (__atomic_load_n(&c->kernel_objects[i], __ATOMIC_ACQUIRE) != kernel_object)
			continue;
		nf_message_clear(&c->journal.objects[i]);
		__atomic_store_n(&c->kernel_objects[i], 0, __ATOMIC_RELEASE);
	}
	free_all(c, OP_CLOSE, kernel_object);
}

/* Python does the same, and waits for a keeper that is slow or lost: here it is only sooner. */
static void hand_over(struct nf_core *c, uint32_t kernel_object, int fd)
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
	ssize_t n;

	if (c->keeper_fd < 0)
		return;
	iov.iov_len = (size_t)snprintf(text, sizeof(text), "keep object.%u", kernel_object);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	n = sendmsg(c->keeper_fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL);
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

static void handle_open(struct nf_core *c, const struct nf_message *m)
{
	struct nf_event ev = { .type = NF_EV_OPEN, .fd = -1 };
	bool good = parse_open(m, &ev);

	if (!good) {
		nf_cachefiles_copen(c, m->msg_id, -EINVAL);
		if (ev.fd >= 0)
			close(ev.fd);
		return;
	}
	fcntl(ev.fd, F_SETFD, FD_CLOEXEC);
	put_on_record(c, m);
	hand_over(c, ev.kernel_object, ev.fd);
	nf_push(c, &ev);
}

static void admit_read(struct nf_core *c, struct nf_object *o, uint32_t slot)
{
	const struct nf_message *m = message_of(c, slot);
	struct nf_slot *s = &c->slots[slot];
	struct msg_read r;

	s->fd = o->fill_fd;
	if (m->len < HEADER_LEN + sizeof(r)) {
		nf_cachefiles_answer(c, slot);
		return;
	}
	memcpy(&r, m->body, sizeof(r));
	s->off = r.off;
	s->len = r.len;
	s->t_ns = nf_now_ns();
	nf_admit(c, o, slot, 0);
}

static void handle_read(struct nf_core *c, uint32_t slot)
{
	struct nf_object *o = nf_get_kernel(c, message_of(c, slot)->object_id);

	if (!o) {	/* closed here while the READ was on its way */
		free_up(c, slot);
		nf_push(c, &(struct nf_event){ .type = NF_EV_LOST, .fd = -1 });
		return;
	}
	admit_read(c, o, slot);
	nf_put(o);
}

static void handle_close(struct nf_core *c, uint32_t slot)
{
	const struct nf_message *m = message_of(c, slot);
	struct nf_object *o = nf_get_kernel(c, m->object_id);
	struct nf_event ev = { .type = NF_EV_CLOSE, .kernel_object = m->object_id, .fd = -1 };

	if (!o) {
		free_up(c, slot);
		return;
	}
	ev.object = o->id;
	nf_put(o);
	nf_push(c, &ev);
}

/*
 * The kernel has failed this one message with the error, and has maybe others:
 * it announces each but once.  EEXIST: `restore` met an OPEN that is not answered yet.
 */
static bool is_of_one_message(int err)
{
	return err == EMFILE || err == ENFILE || err == ENOMEM || err == EEXIST;
}

bool nf_cachefiles_drain(struct nf_core *c)
{
	struct nf_message *m;
	uint32_t slot, number;
	ssize_t n;

	for (;;) {
		slot = free_slot(c);
		if (slot == NF_NO_SLOT)
			return false;
		m = message_of(c, slot);
		number = slot - c->journal.nslots;
		if (c->journal.header->messages_used <= number)
			c->journal.header->messages_used = number + 1;
		/* its page is there now: a kill in a page fault would cost the kernel's copy */
		nf_message_clear(m);
		n = read(c->cache_fd, m, sizeof(*m));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n < 0) {
			bool of_one = is_of_one_message(errno);
			struct nf_event ev = { .type = NF_EV_BROKEN, .fd = -1,
					       .len = (uint64_t)errno };

			nf_push(c, &ev);
			if (!of_one)
				return true;
			usleep(ERROR_PAUSE_US);
			continue;
		}
		if ((size_t)n < HEADER_LEN) {	/* 0 means that nothing is pending */
			nf_message_clear(m);
			return true;
		}
		m->len = (uint32_t)n;
		atomic_fetch_add(&c->events, 1);
		take_slot(c, slot);
		if (m->opcode == OP_OPEN)
			handle_open(c, m);
		else if (m->opcode == OP_READ)
			handle_read(c, slot);
		else if (m->opcode == OP_CLOSE)
			handle_close(c, slot);
		else
			free_up(c, slot);
	}
}

/* -- take-over ----------------------------------------------------------------------------------- */

void nf_cachefiles_occupy(struct nf_core *c)
{
	const struct nf_journal_header *h = c->journal.header;
	uint32_t i;

	for (i = 0; i < h->messages_used; i++)
		if (c->journal.messages[i].len)
			take_slot(c, c->journal.nslots + i);
	for (i = 0; i < h->objects_used; i++)
		if (c->journal.objects[i].len)
			c->kernel_objects[i] = c->journal.objects[i].object_id;
}

int nf_cachefiles_settle(struct nf_core *c)
{
	uint32_t i, slot;
	int n = 0;

	for (i = 0; i < c->journal.header->messages_used; i++) {
		const struct nf_message *m = &c->journal.messages[i];
		struct nf_object *o;

		slot = c->journal.nslots + i;
		if (!c->slots[slot].used || m->opcode != OP_READ)
			continue;
		n++;
		o = nf_get_kernel(c, m->object_id);
		if (!o) {	/* the kernel failed it when its object's last descriptor was closed */
			free_up(c, slot);
			continue;
		}
		admit_read(c, o, slot);
		nf_put(o);
	}
	return n;
}

int nf_cachefiles_left(struct nf_core *c, uint32_t type, uint32_t *cursor, struct nf_event *out)
{
	const struct nf_journal_header *h = c->journal.header;
	bool objects = type == NF_LEFT_OBJECT;
	uint32_t used = objects ? h->objects_used : h->messages_used;
	uint32_t opcode = type == NF_EV_CLOSE ? OP_CLOSE : OP_OPEN;

	while (*cursor < used) {
		const struct nf_message *m =
			&(objects ? c->journal.objects : c->journal.messages)[(*cursor)++];

		if (!m->len || m->opcode != opcode)
			continue;
		memset(out, 0, sizeof(*out));
		if (opcode == OP_OPEN)
			parse_open(m, out);
		out->type = type;
		out->msg_id = m->msg_id;
		out->kernel_object = m->object_id;
		out->fd = -1;
		return 1;
	}
	return 0;
}

void nf_cachefiles_resent(struct nf_core *c)
{
	uint32_t i;

	for (i = 0; i < c->journal.header->messages_used; i++)
		/* an OPEN that is sent again has the same msg_id: its answer is this one's too */
		if (c->slots[c->journal.nslots + i].used && c->journal.messages[i].opcode != OP_OPEN)
			free_up(c, c->journal.nslots + i);
}
