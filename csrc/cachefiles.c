/*
 * The cachefiles on-demand dialect (reference kernel-transports 1.3 - 1.6).
 *
 * Nothing of it is journalled: `restore` makes the kernel send again what a dead
 * service had read and not answered.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core_internal.h"

#define MSG_MAX 1024
#define ERROR_PAUSE_US 1000
#define OP_OPEN 0
#define OP_CLOSE 1
#define OP_READ 2
#define READ_COMPLETE _IOW(0x98, 1, int)

struct msg_header {
	uint32_t msg_id;
	uint32_t opcode;
	uint32_t len;
	uint32_t object_id;
};

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

static uint32_t free_slot(struct nf_core *c)
{
	uint32_t slot;

	/* only the loop takes slots, so a free one stays free until it is used */
	for (slot = c->journal.nslots; slot < c->journal.nslots * 2; slot++)
		if (!__atomic_load_n(&c->slots[slot].used, __ATOMIC_ACQUIRE))
			return slot;
	return NF_NO_SLOT;
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
	s->t_ns = 0;
	__atomic_store_n(&s->used, false, __ATOMIC_RELEASE);
}

int nf_cachefiles_copen(struct nf_core *c, uint32_t msg_id, int64_t size)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "copen %u,%lld", msg_id, (long long)size);

	if (c->cache_fd < 0)
		return -EBADF;
	return write(c->cache_fd, text, (size_t)n) < 0 ? -errno : 0;
}

static void handle_open(struct nf_core *c, const struct msg_header *h, const uint8_t *p, size_t len)
{
	struct nf_event ev = { .type = NF_EV_OPEN, .msg_id = h->msg_id,
			       .kernel_object = h->object_id };
	struct msg_open o;
	const uint8_t *keys = p + sizeof(o);

	if (len < sizeof(o)) {
		nf_cachefiles_copen(c, h->msg_id, -EINVAL);
		return;
	}
	memcpy(&o, p, sizeof(o));
	ev.fd = (int32_t)o.fd;
	fcntl(ev.fd, F_SETFD, FD_CLOEXEC);
	if (!o.volume_key_size || o.volume_key_size > NF_KEY_MAX ||
	    o.cookie_key_size > NF_KEY_MAX ||
	    sizeof(o) + o.volume_key_size + o.cookie_key_size > len) {
		nf_cachefiles_copen(c, h->msg_id, -EINVAL);
		close(ev.fd);
		return;
	}
	ev.volume_len = o.volume_key_size - 1;	/* its size counts the NUL */
	ev.cookie_len = o.cookie_key_size;
	memcpy(ev.volume, keys, ev.volume_len);
	memcpy(ev.cookie, keys + o.volume_key_size, ev.cookie_len);
	nf_push(c, &ev);
}

static void handle_read(struct nf_core *c, const struct msg_header *h, const uint8_t *p, size_t len,
			uint32_t slot)
{
	struct nf_slot *s = &c->slots[slot];
	struct nf_object *o = nf_get_kernel(c, h->object_id);
	struct msg_read r;

	if (!o) {	/* closed here while the READ was on its way */
		nf_push(c, &(struct nf_event){ .type = NF_EV_LOST, .fd = -1 });
		return;
	}
	if (len < sizeof(r)) {
		ioctl(o->fill_fd, READ_COMPLETE, (unsigned long)h->msg_id);
		nf_put(o);
		return;
	}
	memcpy(&r, p, sizeof(r));
	memset(s, 0, sizeof(*s));
	s->off = r.off;
	s->len = r.len;
	s->t_ns = nf_now_ns();
	s->next = NF_NO_SLOT;
	s->msg_id = h->msg_id;
	s->fd = o->fill_fd;
	__atomic_store_n(&s->used, true, __ATOMIC_RELEASE);
	nf_admit(c, o, slot, 0);
	nf_put(o);
}

static void handle_close(struct nf_core *c, const struct msg_header *h)
{
	struct nf_object *o = nf_get_kernel(c, h->object_id);
	struct nf_event ev = { .type = NF_EV_CLOSE, .kernel_object = h->object_id, .fd = -1 };

	if (!o)
		return;
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
	_Alignas(8) uint8_t buf[MSG_MAX];
	struct msg_header h;
	uint32_t slot;
	ssize_t n;

	for (;;) {
		slot = free_slot(c);
		if (slot == NF_NO_SLOT)
			return false;
		n = read(c->cache_fd, buf, sizeof(buf));
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
		if ((size_t)n < sizeof(h))	/* 0 means that nothing is pending */
			return true;
		atomic_fetch_add(&c->events, 1);
		memcpy(&h, buf, sizeof(h));
		if (h.opcode == OP_OPEN)
			handle_open(c, &h, buf + sizeof(h), (size_t)n - sizeof(h));
		else if (h.opcode == OP_READ)
			handle_read(c, &h, buf + sizeof(h), (size_t)n - sizeof(h), slot);
		else if (h.opcode == OP_CLOSE)
			handle_close(c, &h);
	}
}
